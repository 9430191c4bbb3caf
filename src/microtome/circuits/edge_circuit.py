"""Which edges are enough for the task? Rank them by attribution, keep the first that suffice, prune by exact tests.

1. Attribution: an estimate for every edge from a few passes, with gradients averaged on the way between the sides.
2. Growing: circuits of the strongest edges, twice as many each time, are kept alone, exactly, until one reaches the
   target share of the behaviour; between that size and the one before, halving finds the least that does.
3. Pruning: from the weakest on, blocks of edges are cut as long as the share stays at the target; a block that does not
   pass is tried in halves. What is then on no path is gone too. Every step is an exact pass.
4. An edge's weight is what cutting it costs the finished circuit, in shares of the behaviour.

Reference: Syed et al. (2023) and Hanna et al. (2024) for the ranking; Conmy et al. (2023) for pruning by exact tests.
Misleads where two edges back each other up: one is kept, the other pruned; and the set is one of several that suffice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import xarray as xr
from pydantic import Field

from microtome.circuits import edge_attribution_patching
from microtome.circuits.edge_attribution_patching import Integrate
from microtome.circuits.edge_estimates import edges_of
from microtome.circuits.edge_knockout import EdgeKnockout, Kept
from microtome.circuits.edge_pairs import EdgePairs
from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, EdgeScores, FoundCircuit, NodeScores
from microtome.core.card import Card
from microtome.core.circuit import Circuit, Edge
from microtome.core.cost import measure
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Graph, Shape, Table
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.model import Model

card = Card(
    name="edge_circuit",
    title="Circuit of edges (attribution, then exact pruning)",
    question="Which edges between heads and MLPs are enough for the task, with all others cut?",
    steps=(
        "Estimate from a few gradients what cutting each edge would do.",
        "Keep the strongest edges, ever more of them, until with all others cut the target share is reached.",
        "Cut, exactly, from the weakest on, whatever is not missed while the target holds.",
    ),
    reference="Syed, Rager and Conmy 2023; Hanna, Pezzelle and Belinkov 2024; Conmy et al. 2023",
    misleads="Of two edges that back each other up one is kept; other sets of edges may suffice as well.",
    needs="pairs",
    causal="intervention",
    claims=("circuit", "edges", "nodes"),
)

grading = ({"split_positions": True},)  # learned positions are a source of their own in the keys


class Config(base.Config):
    """How much of the behaviour the circuit must keep, and how edges are ranked."""

    target: float = Field(0.9, gt=0, le=1, description="Share of the behaviour that the circuit keeps.")
    metric: str = Field(metrics.DEFAULT, description="Metric by name; it must have a gradient.")
    integrate: Integrate = Field("inputs", description="How gradients of the ranking are averaged.")
    steps: int = Field(5, ge=1, description="Steps of that average.")
    split_positions: bool = Field(
        False, description="Count positions, where they are learned, as a source of their own."
    )
    rows: int = Field(16, ge=1, description="Pairs in a batch; fewer need less memory.")
    seed: base.Seed = Field(0, description="Recorded; nothing here is drawn at random.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`estimate`, `loss [edge]`: estimated effect of cutting each edge alone; what the circuit found loses without it
    (NaN outside the circuit). `grown_share [grown]` at `size [grown]`: what circuits of the first so many keep.

    Edges are named by `source`, `target`, `through [edge]`. Attributes: `n`, `gap`, `kept_share`.
    """

    @cached_property
    def circuit(self) -> Circuit:
        """The edges kept, weighted by what their absence costs; a node by what its outgoing edges cost together."""
        data = self.data
        kept = np.isfinite(data["loss"].values)
        found = [
            Edge(str(source), str(target), str(through), float(loss))
            for source, target, through, loss in zip(
                *(data[name].values[kept] for name in ("source", "target", "through", "loss")), strict=True
            )
        ]
        nodes: dict[str, float] = {}
        for edge in found:
            nodes[edge.source] = nodes.get(edge.source, 0.0) + edge.weight
            nodes.setdefault(edge.target, 0.0)
        return Circuit.of(nodes, found)

    @property
    def estimates(self) -> EdgeScores:
        """The estimated effect of cutting each edge, by which they were ranked."""
        names = zip(
            *(self.data[name].values.tolist() for name in ("source", "target", "through")), strict=True
        )
        return EdgeScores(dict(zip(names, self.data["estimate"].values.tolist(), strict=True)))

    def answers(self) -> tuple[Answer, ...]:
        edges = self.estimates
        nodes: dict[str, float] = {}
        for (source, _, _), effect in edges.scores.items():
            nodes[source] = nodes.get(source, 0.0) + effect
        return FoundCircuit(self.circuit), edges, NodeScores(nodes)

    def shapes(self) -> tuple[Shape, ...]:
        data, circuit = self.data, self.circuit
        told = (
            f"{len(circuit.edges)} of {data.sizes['edge']} edges keep {data.attrs['kept_share']:.2f} of the behaviour "
            f"on {data.attrs['n']} pairs ({self.config['metric']}, ratio of means; cut edges carry the corrupt side's "
            "values)"
        )
        drawn = circuit.shape("circuit of edges", "share lost without it")
        rows = tuple(
            (*edge.ends, edge.weight) for edge in sorted(circuit.edges, key=lambda edge: -abs(edge.weight))
        )
        table = Table(
            "edges of the circuit", ("from", "to", "through", "share lost without it"), rows, caption=told
        )
        return (Graph(drawn.title, drawn.nodes, drawn.arcs, drawn.unit, told), table)


def run(model: Model, data: Pairs, config: Config | None = None) -> Result:
    """Find the circuit. Raises `InputError` where clean and corrupt prompts do not differ, so that there is nothing
    to explain, `FamilyError` where the stream is no sum of what parts write."""
    config = config or Config()
    with measure() as recorder:
        graph = edges_of(model, config.split_positions)
        knockout = EdgeKnockout(EdgePairs(model, graph, data, config.metric, rows=config.rows))
        ranking = edge_attribution_patching.Config(
            metric=config.metric,
            integrate=config.integrate,
            steps=config.steps,
            split_positions=config.split_positions,
            checked=0,
            rows=config.rows,
        )
        ranked = edge_attribution_patching.run(model, data, ranking)
        recorder.include(ranked.cost)
        estimate = torch.from_numpy(np.nan_to_num(ranked.data["effect"].values))
        search = _Search(knockout, estimate, config.target)
        kept = search.prune(search.grow())
        share, loss = search.losses(kept)
        recorder.add(passes=search.passes)
    names = list(zip(*graph.edges(), strict=True))
    arrays = {
        "estimate": (("edge",), estimate[graph.allowed].numpy()),
        "loss": (("edge",), loss[graph.allowed].numpy()),
        "grown_share": (("grown",), np.array([value for _, value in search.grown])),
    }
    coords = {
        **{name: ("edge", np.array(column)) for name, column in zip(_NAMES, names, strict=True)},
        "size": ("grown", np.array([size for size, _ in search.grown])),
    }
    attrs = {"n": len(data), "gap": knockout.gap, "kept_share": share}
    return Result.of(
        card,
        xr.Dataset(arrays, coords, attrs),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), data.hash),
        recorder.cost(),
    )


_NAMES = ("source", "target", "through")


class _Search:
    """Exact tests of circuits. grown: sizes tried and the shares that they keep."""

    def __init__(self, knockout: EdgeKnockout, estimate: torch.Tensor, target: float) -> None:
        self._knockout, self._graph, self._target = knockout, knockout.graph, target
        order = torch.sort(
            estimate.abs().masked_fill(~self._graph.allowed, -1.0).flatten(), descending=True, stable=True
        )
        self._order = order.indices[: len(self._graph)]
        self.grown: list[tuple[int, float]] = []
        self.passes = knockout.passes(2)

    def _share(self, kept: Kept) -> float:
        self.passes += self._knockout.passes(1)
        return float(self._knockout.shares([kept])[0])

    def _first(self, size: int) -> Kept:
        kept = torch.zeros_like(self._graph.allowed)
        kept.view(-1)[self._order[:size]] = True
        return self._graph.connected(kept)

    def _reaches(self, size: int) -> bool:
        share = self._share(self._first(size))
        self.grown.append((size, share))
        return share >= self._target

    def grow(self) -> Kept:
        """The strongest edges that reach the target: the least number between the first doubling that does and the one
        before. All edges always reach it."""
        total, high = len(self._graph), 1
        while high < total and not self._reaches(high):
            high = min(2 * high, total)
        low = high // 2
        while high - low > max(1, high // 16):
            middle = (low + high) // 2
            low, high = (low, middle) if self._reaches(middle) else (middle, high)
        return self._first(high)

    def prune(self, kept: Kept) -> Kept:
        """Without what is not missed, from the weakest on."""
        flat = kept.flatten()
        weakest = [place for place in self._order.flip(0).tolist() if flat[place]]
        eighth = max(1, len(weakest) // 8)
        for start in range(0, len(weakest), eighth):
            kept = self._without(kept, weakest[start : start + eighth])
        return kept

    def _without(self, kept: Kept, block: Sequence[int]) -> Kept:
        block = [place for place in block if kept.view(-1)[place]]
        if not block:
            return kept
        less = kept.clone()
        less.view(-1)[list(block)] = False
        less = self._graph.connected(less)
        if bool(less.any()) and self._share(less) >= self._target:
            return less
        if len(block) == 1:
            return kept
        half = len(block) // 2
        return self._without(self._without(kept, block[:half]), block[half:])

    def losses(self, kept: Kept) -> tuple[float, torch.Tensor]:
        """The share that a circuit keeps, and what it loses without each of its edges; NaN outside."""
        edges = kept.nonzero().tolist()
        circuits = [kept.clone() for _ in range(len(edges) + 1)]
        for one, edge in zip(circuits[1:], edges, strict=True):
            one[tuple(edge)] = False
        self.passes += self._knockout.passes(len(circuits))
        shares = self._knockout.shares(circuits)
        found = torch.full(kept.shape, torch.nan, dtype=torch.float64)
        found[kept] = shares[0] - shares[1:]
        return float(shares[0]), found
