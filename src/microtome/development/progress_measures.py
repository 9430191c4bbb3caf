"""How does a network come to add on a circle? Progress measures, from checkpoint to checkpoint.

1. The key frequencies are those of the last checkpoint: what the network will compute in the end.
2. At every checkpoint the logits of all pairs are taken as one table; the loss is measured whole, restricted to the
   waves of a + b of the key frequencies, and without these (excluded), on the pairs given and on all others.
3. Beside it: the share of logit variance in cos w(a + b − c) of the key frequencies, how unevenly the embedding is
   spread over the waves (Gini), and the sum of all squared weights.
4. The numbers' embeddings are seen in the plane of each key frequency, the same plane at all checkpoints: the circle as
   it forms.
5. Milestones: when the pairs given are remembered, when the key waves alone answer better than a guess, when the
   other pairs are right.

Nanda et al. (2023), Progress measures for grokking via mechanistic interpretability.
"""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.bases import modular_fourier as fourier
from microtome.bases.number_pairs import NumberPairs, number_pairs, table
from microtome.core import config as base
from microtome.core import result
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.errors import InputError
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Curve, Points, Shape, Table
from microtome.core.site import Site
from microtome.data.observed import Observed, as_prompts
from microtome.models.checkpoints import at_steps, folder_of
from microtome.models.model import Model

card = Card(
    name="progress_measures",
    title="Progress measures of grokking",
    question="When in training does a network remember, when does the algorithm form, and when does it take over?",
    steps=(
        "Take the key frequencies of the last checkpoint.",
        "At each checkpoint take the loss whole, with only their waves, and without them, on pairs given and others.",
        "Follow the share of logit variance, the evenness of the embedding, the size of the weights, and the circle.",
    ),
    reference="Nanda et al. (2023), Progress measures for grokking via mechanistic interpretability",
    misleads=(
        "The measures look for what the last checkpoint does; a frequency that was tried and given up is not seen. "
        "Under strong weight decay the phases overlap, and checkpoints far apart hide them."
    ),
    needs="tokens",
    causal="intervention",
    phase="during",
    locality="global",
    comprehensiveness="partial",
)

MILESTONES = ("remembers", "circuit", "adds")


class Config(base.Config):
    """Settings of the progress measures."""

    checkpoints: str = Field(
        "",
        description="The folder of the checkpoints, files like step-000300.safetensors; by default a bundled model's.",
    )
    first: int = Field(0, ge=0, description="The column of the first number, from 0.")
    second: int = Field(1, ge=0, description="The column of the second number, from 0.")
    numbers: tuple[int, ...] = Field(
        (), description="The ids of 0, 1, 2 …; by default the ids seen in the two columns, in their order."
    )
    least: float = Field(
        0.01, gt=0, lt=1, description="The share of logit variance that a key frequency holds by itself."
    )
    carry: float = Field(
        0.5, gt=0, lt=1, description="The share that all of them must hold together; else there are none."
    )


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`loss` `[step, cut, part]` in nats, `accuracy` `[step, part]`, `share` `[step, key]` of logit variance,
    `embedding_gini`, `weight_norm` `[step]`, `circle` `[step, key, number, axis]`, and `reached` `[milestone]`: the
    first checkpoint of each, NaN where it was never reached."""

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        steps = data["step"].values.astype(float)
        keys = ", ".join(map(str, data["key"].values))
        loss = data["loss"]
        told = (
            f"Key frequencies of the last checkpoint: {keys}. Guessing costs {np.log(data.attrs['p']):.3f}."
        )
        losses = Curve(
            "Loss through training",
            steps,
            np.stack(
                [
                    loss.sel(cut="whole", part="given").values,
                    loss.sel(cut="whole", part="others").values,
                    loss.sel(cut="restricted", part="others").values,
                    loss.sel(cut="excluded", part="given").values,
                ]
            ),
            ("given", "others", "restricted, others", "excluded, given"),
            "step",
            "nats",
            caption=told,
        )
        shares = Curve(
            "Share of logit variance of each key frequency",
            steps,
            data["share"].values.T,
            tuple(f"frequency {k}" for k in data["key"].values),
            "step",
            "share of variance",
        )
        size = Curve(
            "Sum of squared weights", steps, data["weight_norm"].values[None], ("weights",), "step", ""
        )
        uneven = Curve(
            "How unevenly the embedding is spread over the waves",
            steps,
            data["embedding_gini"].values[None],
            ("Gini coefficient",),
            "step",
            "",
        )
        found = data["reached"].values
        rows = tuple(
            (meaning, None if np.isnan(step) else int(step))
            for meaning, step in zip(
                (
                    "the pairs given are right (99 %)",
                    "the key waves alone answer the others better than a guess",
                    "the other pairs are right (99 %)",
                ),
                found,
                strict=True,
            )
        )
        film = Points(
            "The embedding of the numbers, in the plane of each key frequency",
            data["circle"].values,
            "step",
            tuple(map(str, data["step"].values)),
            tuple(f"frequency {k}" for k in data["key"].values),
            tuple(map(str, data["number"].values)),
            "The planes are those of the last checkpoint, the same in all frames.",
        )
        milestones = Table(
            "Milestones", ("first checkpoint at which", "step"), rows, "Of the checkpoints kept.", self.notes
        )
        return (losses, film, shares, milestones, size, uneven)


@torch.no_grad()
def run(model: Model, data: Observed, config: Config | None = None) -> Result:
    """Follow a network through its training. data: prompts with two numbers each, those it learned from.

    Raises `InputError` where no folder is named, for prompts of another pattern, and where the last checkpoint has no
    key frequency to look for; `StoreError` for a folder without checkpoints, or with those of another model.
    """
    config = config or Config()
    folder = folder_of(model, config.checkpoints)
    prompts = as_prompts(data, model.tokenizer)
    pairs = number_pairs(prompts.tokens.cpu(), (config.first, config.second), config.numbers)
    tables, embeddings, norms, steps = [], [], [], []
    with measure() as recorder:
        for step, then in at_steps(model, folder):
            steps.append(step)
            tables.append(table(then, pairs)[0])
            embeddings.append(_embedding(then, pairs, config.first))
            norms.append(sum(float(p.double().square().sum()) for p in then.module.parameters()))
            recorder.add(passes=2)
        keys = fourier.key_frequencies(fourier.logit_shares(tables[-1]), config.least, config.carry)
        if not keys:
            raise InputError(
                f"the network has no key frequency after {steps[-1]} steps: its logits are not waves of a + b − c"
            )
        given = pairs.is_given
        losses = torch.stack([fourier.cut_losses(logits, given, keys) for logits in tables])
        shares = torch.stack([fourier.logit_shares(logits)[[k - 1 for k in keys]] for logits in tables])
        right = torch.stack([logits.argmax(-1) == fourier.sums(pairs.p) for logits in tables]).double()
        accuracy = torch.stack([right[:, given].mean(-1), right[:, ~given].mean(-1)], -1)
        circles = torch.stack(
            [torch.stack([e.double() @ plane(embeddings[-1], k) for k in keys]) for e in embeddings]
        )
    guess = float(np.log(pairs.p))
    events = (accuracy[:, 0] >= 0.99, losses[:, 1, 1] < guess / 2, accuracy[:, 1] >= 0.99)
    return Result.of(
        card,
        xr.Dataset(
            {
                "loss": (("step", "cut", "part"), losses.numpy()),
                "accuracy": (("step", "part"), accuracy.numpy()),
                "share": (("step", "key"), shares.numpy()),
                "embedding_gini": ("step", [fourier.gini(fourier.wave_norms(e)[1:]) for e in embeddings]),
                "weight_norm": ("step", norms),
                "circle": (("step", "key", "number", "axis"), circles.numpy()),
                "reached": ("milestone", [_first(steps, when) for when in events]),
            },
            {
                "step": steps,
                "cut": list(fourier.CUTS),
                "part": list(fourier.PARTS),
                "key": list(keys),
                "number": np.arange(pairs.p),
                "axis": ["cos", "sin"],
                "milestone": list(MILESTONES),
            },
            {"p": pairs.p},
        ),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), prompts.hash),
        recorder.cost(),
        ("Key frequencies are those of the last checkpoint; others that came and went are not followed.",),
    )


def plane(embedding: Float[Tensor, "number d"], k: int) -> Float[Tensor, "d axis"]:
    """Two orthonormal directions in which an embedding turns with frequency k: its cosine part, and what of its sine
    part is at right angles to that."""
    waves = fourier.waves(len(embedding))[[2 * k - 1, 2 * k]] @ embedding.double()
    return torch.linalg.qr(waves.T).Q * torch.linalg.qr(waves.T).R.diagonal().sign()


def _embedding(model: Model, pairs: NumberPairs, column: int) -> Float[Tensor, "number d"]:
    prompts = pairs.tokens[pairs.tokens[:, column].argsort(stable=True)][:: pairs.p]
    order = torch.argsort(pairs.numbers.argsort())
    read = model.run(prompts.to(model.device), [Site("embed")])[Site("embed")]
    return read[:, column].cpu()[order]


def _first(steps: list[int], when: Tensor) -> float:
    found = torch.nonzero(when)
    return float(steps[int(found[0])]) if len(found) else float("nan")
