"""How much does each part of the model write, directly, towards the answer?

1. The last residual stream, at the last position of each prompt, is taken apart into embeddings, heads, MLPs and
   biases: vectors that sum to it.
2. The answer is a direction in that stream: the unembedding of the right tokens minus that of the wrong ones, pulled
   back through the final norm, whose divisor is kept at its actual value.
3. A part's contribution is its dot product with the direction. With the biases of the final norm and of the unembedding
   the contributions sum to the model's logit difference, before the soft cap where there is one.
4. The sum is compared with the model's own logits. A difference is an error, not a footnote.
5. What freezing the norm hides is measured: each part is also removed from the stream and the norm computed anew.
6. The neurons that write most are listed; those of a layer sum to its MLP.

Elhage et al. (2021), A Mathematical Framework for Transformer Circuits.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, EdgeScores, Quantities
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.errors import FamilyError
from microtome.core.logits import LogitSelection
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Grid, Shape, Table
from microtome.core.site import Site
from microtome.data.observed import Observed, as_prompts
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.models.readout import Readout, readout
from microtome.models.stream_parts import StreamParts, behind, stream_parts

NODES = ("embed", "pos_embed", "z", "mlp_out")  # parts that are nodes; biases are not

card = Card(
    name="direct_logit_attribution",
    title="Direct logit attribution",
    question="How much does each head, MLP, embedding and bias write directly towards the answer?",
    steps=(
        "Take the last residual stream apart into the vectors that parts wrote.",
        "Pull the answer's direction back through the unembedding and the final norm with its divisor frozen.",
        "A part's contribution is its dot product with that direction; all of them sum to the logit difference.",
        "Compare the sum with the model's own logits.",
        "Remove each part with the norm computed anew, to see what freezing the divisor hides.",
    ),
    reference="Elhage et al. (2021), A Mathematical Framework for Transformer Circuits",
    misleads=(
        "It sees only what is written straight to the output: a part that works through later parts shows nothing, and "
        "one whose writing later parts erase shows much. Ablate or patch before calling a part a cause."
    ),
    needs="pairs",
    causal="observation",
    locality="local",
    comprehensiveness="partial",
    claims=("quantity:direct", "edges"),
)


class Config(base.Config):
    """Settings of direct logit attribution."""

    target: Literal["answers", "top"] = Field(
        "answers",
        description="`answers`: right minus wrong answers of pairs. `top`: the model's own most likely token "
        "(always used for prompts without answers).",
    )
    neurons: int = Field(10, ge=0, description="How many of the neurons that write most to list; 0 for none.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`contribution` and `recomputed` `[row, part]` in logits, `value` `[row]`: their sum, `neuron_contribution`."""

    def answers(self) -> tuple[Answer, ...]:
        """What each part adds to the answer, exactly; and so the weight of its edge to the logits."""
        mean = self.data["contribution"].mean("row").values.tolist()
        parts = dict(zip(self.data["part"].values.tolist(), mean, strict=True))
        nodes = {name: value for name, value in parts.items() if name.split(".")[0] in NODES}
        exact = {f"direct.{name}": value for name, value in parts.items()}
        edges = EdgeScores({(name, "logits", "logits"): value for name, value in nodes.items()})
        return Quantities(exact, frozenset(exact)), edges

    def shapes(self) -> tuple[Shape, ...]:
        mean = self.data["contribution"].mean("row").values
        count = self.data.sizes["row"]
        caption = f"Mean over {count} prompts, in logits, norm frozen. Direct effects only."
        shapes: list[Shape] = [self._grid(mean, caption)]
        spread = self.data["contribution"].std("row").values
        anew = self.data["recomputed"].mean("row").values
        names = self.data["part"].values
        rows = tuple(
            (str(names[i]), float(mean[i]), float(spread[i]), float(anew[i]))
            for i in np.argsort(-np.abs(mean), kind="stable")
        )
        total = float(self.data["value"].mean())
        shapes.append(
            Table(
                "Direct contribution of each part",
                ("part", "mean", "spread over prompts", "mean, norm computed anew"),
                (*rows, ("sum", float(mean.sum()), None, None)),
                f"{caption} The sum is the model's own value, {total:.4g}.",
                self.notes,
            )
        )
        if self.data.sizes.get("neuron", 0):
            told = zip(
                self.data["neuron"].values, self.data["neuron_contribution"].mean("row").values, strict=True
            )
            shapes.append(
                Table(
                    "Neurons that write most",
                    ("neuron", "mean"),
                    tuple((str(name), float(value)) for name, value in told),
                    f"Chosen by size among {self.data.attrs['n_neurons']} neurons; mean over {count} prompts.",
                )
            )
        return tuple(shapes)

    def _grid(self, mean: np.ndarray, caption: str) -> Grid:
        layers = int(self.data["layer"].max()) + 1
        heads = int(self.data["head"].max()) + 1
        values = np.full((layers, heads + 1), np.nan)
        for i, kind in enumerate(self.data["kind"].values):
            layer, head = int(self.data["layer"][i]), int(self.data["head"][i])
            if kind == "head":
                values[layer, head] = mean[i]
            elif kind == "mlp":
                values[layer, heads] = mean[i]
        return Grid(
            "Direct contribution to the answer",
            values,
            "layer",
            tuple(map(str, range(layers))),
            "head",
            (*(f"H{h}" for h in range(heads)), "MLP"),
            "logits",
            caption=caption,
        )


@dataclass(frozen=True)
class Target:
    """Which combination of logits is explained: ids `[row, token]` and their weights `[row, token]`."""

    ids: Int[Tensor, "row token"]
    weights: Float[Tensor, "row token"]


def answers(pairs: Pairs) -> Target:
    """Mean logit of the right answers minus mean logit of the wrong ones (where there are any)."""
    signed = [
        [(t, 1 / len(right)) for t in right] + [(t, -1 / len(wrong)) for t in wrong]
        for right, wrong in zip(pairs.answers, pairs.wrong, strict=True)
    ]
    width = max(map(len, signed))
    padded = [row + [(row[0][0], 0.0)] * (width - len(row)) for row in signed]
    return Target(
        torch.tensor([[t for t, _ in row] for row in padded]),
        torch.tensor([[w for _, w in row] for row in padded]),
    )


@torch.no_grad()
def contributions(
    parts: StreamParts, head: Readout, target: Target
) -> tuple[Float[Tensor, "row part"], Float[Tensor, "row part"]]:
    """What each part of the stream, and then the two biases of the head, add to the target; and the same with each
    part of the stream removed and the norm computed anew. Of the first position in `parts`, before any soft cap."""
    vectors, stream = parts.vectors[:, 0], parts.stream[:, 0]
    direction = torch.einsum("rt,rtm->rm", target.weights, head.directions(target.ids))
    frozen = torch.einsum("rpm,rm->rp", vectors, direction) / head.norm.scale(stream)
    after_norm = torch.einsum("rt,rtm->rm", target.weights, head.after_norm(target.ids))
    without = head.norm(stream[:, None] - vectors)
    anew = torch.einsum("rpm,rm->rp", head.norm(stream)[:, None] - without, after_norm)
    biases = torch.stack(
        [(target.weights * part).sum(-1) for part in (head.norm_bias(target.ids), head.bias(target.ids))],
        dim=1,
    )
    return torch.cat([frozen, biases], dim=1), torch.cat([anew, biases], dim=1)


@torch.no_grad()
def neuron_contributions(
    model: Model,
    tokens: Int[Tensor, "row column"],
    direction: Float[Tensor, "row d_model"],
    mask: Int[Tensor, "row column"] | None = None,
) -> dict[int, Float[Tensor, "row neuron"]]:
    """By layer, what each neuron adds along a direction of the last stream, at the last position. One pass.

    Layers whose MLP shows no neurons (mixtures of experts) are left out.
    """
    layers = [n for n in range(model.n_layers) if model.has(Site("mlp_post", n))]
    if not layers:
        return {}
    seen = model.run(tokens, [Site("mlp_post", n, positions=(-1,)) for n in layers], mask=mask)
    found = {}
    for n in layers:
        values = seen[Site("mlp_post", n, positions=(-1,))][:, 0].float()
        out = model.weight(f"W_out.{n}").detach().float()
        norm = behind(model.anatomy, n, "mlp")
        if norm is None:
            found[n] = values * (direction @ out.T)
        else:
            bias = getattr(model.anatomy.role("mlp_down", n), "bias", None)
            whole = values @ out if bias is None else values @ out + bias.float()
            found[n] = values * (norm.pull(direction) @ out.T) / norm.scale(whole)
    return found


@torch.no_grad()
def run(model: Model, data: Observed, config: Config | None = None) -> Result:
    """Attribute the answer of each prompt to the parts of the model.

    data: pairs (right minus wrong answers), or prompts, texts or ids (the model's most likely token).

    Raises `FamilyError` where the stream is not additive (BERT, encoder–decoders, norms after the additions) or the
    contributions do not sum to the model's logits; `InputError` for pairs without answers.
    """
    config = config or Config()
    prompts = as_prompts(data, model.tokenizer)
    with measure() as recorder:
        parts = stream_parts(model, prompts.tokens, (-1,), prompts.mask)
        head = readout(model)
        target, own = _target(model, data, prompts.tokens, prompts.mask, config)
        recorder.add(passes=2)
        frozen, anew = contributions(parts, head, target)
        error = _error(parts, head, target, own, model)
        names, neurons, n_neurons = _neurons(
            model, prompts.tokens, prompts.mask, head, parts, target, config.neurons
        )
        recorder.add(passes=int(bool(names)))
    kinds = [p.kind for p in parts.parts] + ["norm_bias", "unembed_bias"]
    places = [(-1 if p.layer is None else p.layer, -1 if p.head is None else p.head) for p in parts.parts]
    places += [(-1, -1)] * 2
    data_set = xr.Dataset(
        {
            "contribution": (("row", "part"), frozen.cpu().numpy()),
            "recomputed": (("row", "part"), anew.cpu().numpy()),
            "value": ("row", (own * target.weights).sum(-1).cpu().numpy()),
            "neuron_contribution": (("row", "neuron"), neurons.cpu().numpy()),
        },
        {
            "part": [*(p.name for p in parts.parts), "norm_bias", "unembed_bias"],
            "kind": ("part", kinds),
            "layer": ("part", [layer for layer, _ in places]),
            "head": ("part", [head_index for _, head_index in places]),
            "row": list(prompts.texts),
            "neuron": names,
        },
        {"error": error, "n_neurons": n_neurons},
    )
    return Result.of(
        card,
        data_set,
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), prompts.hash),
        recorder.cost(),
        _notes(frozen, anew, error, head),
    )


def _target(
    model: Model,
    data: Observed,
    tokens: Int[Tensor, "row column"],
    mask: Int[Tensor, "row column"] | None,
    config: Config,
) -> tuple[Target, Float[Tensor, "row token"]]:
    """What is explained, and the model's own logits of it."""
    if isinstance(data, Pairs) and config.target == "answers":
        target = answers(data)
        wanted = LogitSelection((-1,), tuple(tuple(row) for row in target.ids.tolist()))
        logits = model.run(tokens, logits=wanted, mask=mask).logits
        assert logits is not None
        target = Target(target.ids.to(logits.device), target.weights.to(logits.device))
        return target, logits[:, 0].float()
    logits = model.run(tokens, logits=LogitSelection((-1,)), mask=mask).logits
    assert logits is not None
    best = logits[:, 0].float().max(dim=-1, keepdim=True)
    return Target(best.indices, torch.ones_like(best.values)), best.values


def _error(
    parts: StreamParts, head: Readout, target: Target, own: Float[Tensor, "row token"], model: Model
) -> float:
    """Largest difference between logits put together from the parts and the model's own, relative to the largest."""
    whole = parts.vectors[:, 0].sum(dim=1)
    put_together = torch.einsum("rm,rtm->rt", whole, head.directions(target.ids))
    put_together = put_together / head.norm.scale(parts.stream[:, 0]) + head.norm_bias(target.ids)
    gap = (head.capped(put_together + head.bias(target.ids)) - own).abs().max()
    error = float(gap / own.abs().max().clamp_min(1e-30))
    allowed = 1e-4 if model.dtype == torch.float32 else 32 * torch.finfo(model.dtype).eps
    if error > allowed:
        raise FamilyError(
            f"the contributions of {model.name} sum to its logits only to {error:.1e} (allowed {allowed:.0e}); its "
            "head does something that the map does not know"
        )
    return error


def _neurons(
    model: Model,
    tokens: Int[Tensor, "row column"],
    mask: Int[Tensor, "row column"] | None,
    head: Readout,
    parts: StreamParts,
    target: Target,
    count: int,
) -> tuple[list[str], Float[Tensor, "row neuron"], int]:
    """Names and contributions of the neurons that write most on average, and how many there are in all."""
    direction = torch.einsum("rt,rtm->rm", target.weights, head.directions(target.ids))
    direction = direction / head.norm.scale(parts.stream[:, 0])
    found = neuron_contributions(model, tokens, direction, mask) if count else {}
    if not found:
        return [], torch.zeros(len(tokens), 0), 0
    names = [f"mlp_post.{n}.u{unit}" for n, made in found.items() for unit in range(made.shape[1])]
    every = torch.cat(list(found.values()), dim=1)
    chosen = every.mean(dim=0).abs().topk(min(count, len(names))).indices
    return [names[i] for i in chosen.tolist()], every[:, chosen], len(names)


def _notes(
    frozen: Float[Tensor, "row part"], anew: Float[Tensor, "row part"], error: float, head: Readout
) -> tuple[str, ...]:
    gap = float((frozen - anew).abs().mean() / frozen.abs().mean().clamp_min(1e-30))
    notes = [
        f"The contributions sum to the model's logits to {error:.1e} relative.",
        f"Freezing the norm's divisor changes a part's effect by {gap:.0%} of the mean size of an effect, on average, "
        "against removing the part with the norm computed anew.",
    ]
    if head.cap is not None:
        notes.append(f"Contributions are to the logits before their soft cap at {head.cap:g}.")
    return tuple(notes)
