"""Which heads read what which earlier heads write? Composition of heads, from the weights alone.

For a head `a` and a head `b` in a later layer, with rows going through `OV_a` first:

    Q-composition   ‖OV_a · QK_b‖ / (‖OV_a‖ ‖QK_b‖)       a writes what b's queries are made of
    K-composition   ‖OV_a · QK_bᵀ‖ / (‖OV_a‖ ‖QK_b‖)      … its keys
    V-composition   ‖OV_a · OV_b‖ / (‖OV_a‖ ‖OV_b‖)       … its values

1. QK and OV are taken as low-rank factors, gain and centring of the norms multiplied in; no `d_model²` matrix is made.
2. Each score is a Frobenius norm of a `d_head` by `d_head` matrix.
3. The baseline: the same score of random matrices of the same shapes. Its root mean square is 1/√d_model exactly, and
   its spread is measured. A score means nothing but by its distance from that.

Elhage et al. (2021), A Mathematical Framework for Transformer Circuits.
"""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, EdgeScores
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.errors import InputError
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Arc, Graph, Grid, Node, Shape, Table
from microtome.models.head_circuits import ov, qk
from microtome.models.low_rank import LowRank
from microtome.models.model import Model

card = Card(
    name="composition",
    title="Composition scores of heads",
    question="Which heads can read, as query, key or value, what which earlier heads write?",
    steps=(
        "Take QK and OV of each head as low-rank factors with the norms' gain and centring multiplied in.",
        "Score a pair by the Frobenius norm of the product over the product of the norms.",
        "Compare with random matrices of the same shapes: only the distance from that baseline means anything.",
    ),
    reference="Elhage et al. (2021), A Mathematical Framework for Transformer Circuits",
    misleads=(
        "It says what could flow, not what does: no token is looked at. A few shared directions of the stream raise "
        "scores of heads that have nothing to do with each other, and a perfect induction pair may score only half "
        "above chance."
    ),
    needs="weights",
    causal="observation",
    locality="global",
    comprehensiveness="partial",
    claims=("edges",),
)

KINDS = ("q", "k", "v")


class Config(base.Config):
    """Settings of composition scores."""

    centre: bool = Field(
        True, description="Whether the centring of a LayerNorm counts as part of what a head reads."
    )
    draws: int = Field(64, ge=2, description="Pairs of random matrices for the spread of the baseline.")
    seed: base.Seed = Field(0, description="Of the random matrices.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`score` `[kind, source, target]`, NaN where the target is not in a later layer; `baseline`, `spread` `[kind]`."""

    def answers(self) -> tuple[Answer, ...]:
        """How far beyond chance each head is read by each later one through q, k and v; below chance is none."""
        data = self.data
        beyond = (data["score"] - data["baseline"]) / data["spread"]
        heads = [f"z.{name.replace('.', '.h')}" for name in data["source"].values.tolist()]
        return (
            EdgeScores(
                {
                    (heads[a], heads[b], KINDS[kind]): max(0.0, float(value))
                    for (kind, a, b), value in np.ndenumerate(
                        beyond.transpose("kind", "source", "target").values
                    )
                    if np.isfinite(value)
                }
            ),
        )

    def shapes(self) -> tuple[Shape, ...]:
        heads = tuple(str(name) for name in self.data["source"].values)
        baseline, spread = self.data["baseline"].values, self.data["spread"].values
        distance = (self.data["score"].values - baseline[:, None, None]) / spread[:, None, None]
        pairs = int(np.isfinite(distance[0]).sum())
        caption = (
            f"All {pairs} pairs of a head and a later head. Distance from random matrices of the same shapes "
            f"(mean {baseline[0]:.3g}) in their standard deviations ({spread[0]:.2g})."
        )
        grid = Grid(
            "Composition against chance",
            distance,
            "source",
            heads,
            "target",
            heads,
            "standard deviations",
            tuple(f"{kind.upper()}-composition" for kind in KINDS),
            caption=caption,
        )
        order = np.argsort(np.where(np.isnan(distance), -np.inf, distance), axis=None)[::-1][:20]
        found = [np.unravel_index(i, distance.shape) for i in order if np.isfinite(distance.flat[i])]
        rows = tuple(
            (
                KINDS[kind].upper(),
                heads[a],
                heads[b],
                float(self.data["score"].values[kind, a, b]),
                float(distance[kind, a, b]),
            )
            for kind, a, b in found
        )
        table = Table(
            "Strongest pairs",
            ("composition", "writes", "reads", "score", "distance from chance"),
            rows,
            f"The largest {len(rows)} of {3 * pairs} scores, chosen by size.",
            self.notes,
        )
        return (grid, table, self._graph(found, heads, distance))

    def _graph(self, found: list[tuple[np.intp, ...]], heads: tuple[str, ...], distance: np.ndarray) -> Graph:
        named = sorted({int(i) for _, a, b in found for i in (a, b)})
        nodes = tuple(Node(heads[i], heads[i], float(heads[i].split(".")[0]), kind="head") for i in named)
        arcs = tuple(
            Arc(heads[a], heads[b], float(distance[kind, a, b]), KINDS[kind]) for kind, a, b in found
        )
        return Graph("Strongest pairs", nodes, arcs, "standard deviations above chance")


def score(first: LowRank, then: LowRank) -> Float[Tensor, "first then"]:
    """For two stacks of square matrices, every product's norm over the product of the norms; 0 where one is zero.

    first: `[first, d_model, d_model]` in factors; then: `[then, d_model, d_model]`.
    """
    # Only the triangles of the outer factors count for a norm, so each product is d_head by d_head.
    ahead = torch.linalg.qr(first.left, mode="r").R @ first.right
    behind = then.left @ torch.linalg.qr(then.right.mT, mode="r").R.mT
    products = torch.einsum("aim,bmj->abij", ahead, behind).norm(dim=(-2, -1))
    norms = first.norm()[:, None] * then.norm()
    return torch.where(norms > 0, products / torch.where(norms > 0, norms, 1.0), 0.0)


def baseline(d_model: int, rank: int, draws: int, seed: int) -> tuple[float, float]:
    """Mean and standard deviation of the score of products of Gaussian matrices `[d_model, rank] @ [rank, d_model]`."""
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for _ in range(draws):
        one, two, three, four = torch.randn(4, 1, d_model, rank, generator=generator)
        scores.append(score(LowRank(one, two.mT), LowRank(three, four.mT)).item())
    return float(np.mean(scores)), float(np.std(scores, ddof=1))


@torch.no_grad()
def run(model: Model, data: None = None, config: Config | None = None) -> Result:
    """Score every pair of a head and a later head. `data` is not looked at: this reads the weights.

    Raises `InputError` for a model of one layer, whose heads have no later heads.
    """
    config = config or Config()
    if model.n_layers < 2:
        raise InputError(
            f"{model.name} has one layer; heads compose across layers, so there is nothing to score"
        )
    with measure() as recorder:
        layers = range(model.n_layers)
        values = [ov(model, n, config.centre) for n in layers]
        queries = [qk(model, n, config.centre) for n in layers]
        heads = model.n_heads
        scores = np.full((3, model.n_layers * heads, model.n_layers * heads), np.nan, dtype=np.float32)
        for a in layers:
            for b in range(a + 1, model.n_layers):
                rows, columns = slice(a * heads, (a + 1) * heads), slice(b * heads, (b + 1) * heads)
                for kind, target in enumerate((queries[b], queries[b].transpose, values[b])):
                    scores[kind, rows, columns] = score(values[a], target).cpu().numpy()
        chance, spread = baseline(model.sizes["d_model"], model.sizes["d_head"], config.draws, config.seed)
    names = [f"{n}.{h}" for n in layers for h in range(heads)]
    return Result.of(
        card,
        xr.Dataset(
            {
                "score": (("kind", "source", "target"), scores),
                "baseline": ("kind", [chance] * 3),
                "spread": ("kind", [spread] * 3),
            },
            {"kind": list(KINDS), "source": names, "target": names},
        ),
        config,
        Provenance(model.name, model_hash(model.module.state_dict())),
        recorder.cost(),
        (
            f"Random matrices of the same shapes score {chance:.4f} ± {spread:.4f} (1/√d_model is "
            f"{model.sizes['d_model'] ** -0.5:.4f}); read scores only against that.",
            "Gain and centring of the norms are multiplied into the factors read, not into the model."
            if config.centre
            else "The gain of the norms is multiplied into the factors read, not into the model; centring is not.",
        ),
    )
