"""When in training do induction heads form, and does learning from the context come with them? The induction bump.

1. At every checkpoint the loss of the given rows is taken at an early and at a late position. Their difference, late
   minus early, is the in-context-learning score: the more negative, the more the context helps.
2. At every checkpoint each head is scored by its attention, on rows of random tokens that repeat, to all tokens that
   followed earlier occurrences of the present one (prefix matching).
3. For both, the first checkpoint at which half of the way to the last value is done. If induction is how the network
   learns from its context, they coincide.

Olsson et al. (2022), In-context Learning and Induction Heads.
"""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from microtome.core import config as base
from microtome.core import result
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.errors import InputError
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Curve, Grid, Shape, Table
from microtome.core.site import Site
from microtome.data.observed import Observed, as_prompts
from microtome.data.prompts import Prompts
from microtome.heads.relations import mass, relations
from microtome.heads.repeated_tokens import RepeatedTokens, repeated_tokens
from microtome.models.checkpoints import at_steps, folder_of
from microtome.models.model import Model

card = Card(
    name="induction_formation",
    title="Induction bump",
    question="When in training do induction heads form, and does the network then learn from its context?",
    steps=(
        "At each checkpoint take the loss at a late position minus that at an early one.",
        "At each checkpoint score every head by its attention to what followed earlier occurrences of a token.",
        "Compare when half of the way to the last value is done.",
    ),
    reference="Olsson et al. (2022), In-context Learning and Induction Heads",
    misleads=(
        "Two things that change at the same time need not cause each other; take the head away, or make induction "
        "impossible, to know. Between checkpoints far apart everything coincides."
    ),
    needs="tokens",
    causal="observation",
    phase="during",
    locality="global",
    comprehensiveness="partial",
)


class Config(base.Config):
    """Settings of the induction bump."""

    checkpoints: str = Field(
        "",
        description="The folder of the checkpoints, files like step-000300.safetensors; by default a bundled model's.",
    )
    early: int = Field(
        5, ge=0, description="The early position, from 0; the loss is that of the token after it."
    )
    late: int = Field(50, ge=1, description="The late position.")
    rows: int = Field(16, ge=2, description="Rows of random tokens for prefix matching.")
    length: int = Field(48, ge=4, description="Tokens in such a row.")
    shortest: int = Field(8, ge=2, description="Shortest period of such a row.")
    longest: int = Field(20, ge=2, description="Longest period of such a row.")
    seed: base.Seed = Field(0, description="Of the random tokens.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`early`, `late`, `score` (late minus early) `[step]` in nats; `prefix` `[step, layer, head]` attention;
    `half_way` `[measure]`: the first checkpoint at which half of the way from the first to the last value is done."""

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        steps = data["step"].values.astype(float)
        prefix = data["prefix"].values
        heads = tuple(f"{n}.{h}" for n in data["layer"].values for h in data["head"].values)
        losses = Curve(
            "Loss early and late in the context",
            steps,
            np.stack([data[name].values for name in ("early", "late")]),
            (f"position {self.config['early']}", f"position {self.config['late']}"),
            "step",
            "nats",
            caption=f"Mean over {data.attrs['rows']} rows. In-context-learning score at the end: "
            f"{float(data['score'][-1]):.3f}.",
        )
        best = Curve(
            "Prefix matching of the best head",
            steps,
            prefix.reshape(len(steps), -1).max(-1)[None],
            ("best head",),
            "step",
            "attention",
            caption=f"Mean over {self.config['rows']} rows of random tokens that repeat.",
        )
        grid = Grid(
            "Prefix matching of each head",
            prefix.reshape(len(steps), -1),
            "step",
            tuple(str(step) for step in data["step"].values),
            "head",
            heads,
            "attention",
            diverging=False,
        )
        table = Table(
            "Half of the way",
            ("measure", "first checkpoint"),
            tuple(
                (str(name), int(step))
                for name, step in zip(data["measure"].values, data["half_way"].values, strict=True)
            ),
            f"Of {len(steps)} checkpoints.",
            self.notes,
        )
        return (losses, best, table, grid)


@torch.no_grad()
def run(model: Model, data: Observed, config: Config | None = None) -> Result:
    """Follow induction through training. data: rows long enough for the late position and one token after it.

    Raises `InputError` for rows that are too short, and where no checkpoints are named or came with the model;
    `StoreError` for those of another model.
    """
    config = config or Config()
    prompts = as_prompts(data, model.tokenizer)
    folder = folder_of(model, config.checkpoints)
    _check(prompts, config)
    repeated = repeated_tokens(
        model, config.rows, config.length, (config.shortest, config.longest), config.seed
    )
    steps, losses, prefix = [], [], []
    with measure() as recorder:
        for step, then in at_steps(model, folder):
            steps.append(step)
            losses.append(position_losses(then, prompts, (config.early, config.late)))
            prefix.append(prefix_matching(then, repeated))
            recorder.add(passes=2)
    early, late = torch.stack(losses, -1).double().numpy()
    score, found = late - early, torch.stack(prefix).double().numpy()
    best = found.reshape(len(steps), -1).max(-1)
    return Result.of(
        card,
        xr.Dataset(
            {
                "early": ("step", early),
                "late": ("step", late),
                "score": ("step", score),
                "prefix": (("step", "layer", "head"), found),
                "half_way": ("measure", [steps[half_way(curve)] for curve in (score, best)]),
            },
            {
                "step": steps,
                "layer": np.arange(model.n_layers),
                "head": np.arange(model.n_heads),
                "measure": ["in-context-learning score", "prefix matching"],
            },
            {"rows": len(prompts.tokens)},
        ),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), prompts.hash),
        recorder.cost(),
    )


def position_losses(model: Model, prompts: Prompts, positions: tuple[int, int]) -> Float[Tensor, " position"]:
    """Mean loss in nats of the token after each of these positions, over the rows."""
    logits = model.run(prompts.tokens, logits=True, mask=prompts.mask).logits
    assert logits is not None
    ids = prompts.tokens.to(logits.device)
    return torch.stack(
        [functional.cross_entropy(logits[:, place].float(), ids[:, place + 1]).cpu() for place in positions]
    )


def prefix_matching(model: Model, tokens: RepeatedTokens) -> Float[Tensor, "layer head"]:
    """Mean attention of each head to all tokens that followed earlier occurrences of the present one."""
    body = tokens.ids[:, tokens.start :]
    places = relations(body, torch.ones_like(body, dtype=torch.bool), model.anatomy.family.causal)[
        "induction"
    ]
    seen = model.run(tokens.ids, [Site("pattern", n) for n in range(model.n_layers)])
    return torch.stack(
        [
            mass(
                seen[Site("pattern", n)].float().cpu()[:, :, tokens.start :, tokens.start :], places
            ).nanmean(0)
            for n in range(model.n_layers)
        ]
    )


def half_way(curve: Float[np.ndarray, " step"]) -> int:
    """The first place at which half of the way from the first to the last value is done."""
    done = (curve - curve[0]) / (curve[-1] - curve[0]) if curve[-1] != curve[0] else np.ones_like(curve)
    return int(np.argmax(done >= 0.5))


def _check(prompts: Prompts, config: Config) -> None:
    if config.early >= config.late:
        raise InputError(f"the early position {config.early} must stand before the late one, {config.late}")
    lengths = (
        torch.full((len(prompts.tokens),), prompts.tokens.shape[1])
        if prompts.mask is None
        else prompts.mask.sum(-1)
    )
    padded_left = prompts.mask is not None and not bool(prompts.mask[:, 0].all())
    if padded_left or int(lengths.min()) < config.late + 2:
        raise InputError(
            f"rows of at least {config.late + 2} tokens from the first column on are needed to compare positions "
            f"{config.early} and {config.late}; the shortest has {int(lengths.min())}"
        )
