"""Which edges must stay for a loss to stay low? Gates on edges, or on all edges out of a node, learned by gradient.

1. Every edge, or every head and MLP, has a gate; what a gate does not let through carries the ablated value instead.
2. A step draws the gates once, runs the aims with the edges cut by what is shut, exactly and on the untouched module,
   and takes the gradient by every amount cut from one pass back (`EdgeRun.gradient`).
3. The gates follow the losses and a price on being open, by Adam.
4. In the order of their chances to be open, as many are kept as the loss needs: the least number that holds it under a
   bound, found by bisection on exact runs. Of these goes what can be spared, so that none is left without need.

Reference: Cao, Sanh, Rush (2021), Low-Complexity Probing via Finding Subnetworks; Bhaskar et al. (2024), Finding
Transformer Circuits with Edge Pruning; Louizos et al. (2018) for the gates.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.circuits.edge_cut import Ablation, Amounts
from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_pairs import EdgePairs
from microtome.circuits.edge_run import EdgeRun
from microtome.circuits.gates import Gates
from microtome.core.cost import Recorder
from microtome.core.logits import LogitSelection, Metric
from microtome.data import metrics

Grain = Literal["edges", "nodes"]
Price = Callable[[Float[Tensor, " gate"], int], Tensor]
"""What it costs that gates are open: of their chances, at a step."""


@dataclass(frozen=True)
class Distance:
    """How far another metric is from what it was. For a metric to be minimised."""

    metric: Metric
    before: Float[Tensor, " row"]
    name = "distance"

    @property
    def needs(self) -> LogitSelection:
        return self.metric.needs

    def __call__(self, logits: Float[Tensor, "batch position token"]) -> Float[Tensor, " batch"]:
        return (self.metric(logits) - self.before.to(logits.device)).abs()

    def for_rows(self, rows: list[int]) -> "Distance":
        return Distance(self.metric.for_rows(rows), self.before[rows])


@dataclass(frozen=True, eq=False)
class Aim:
    """A batch whose metric is to be small, with what its cut edges carry.

    weight: of its rows' mean among all aims. name: of what it belongs to, where there are several things to aim at.
    """

    batch: EdgeRun
    ablation: Ablation
    weight: float = 1.0
    name: str = ""


def faithful(pairs: EdgePairs, recorder: Recorder) -> list[Aim]:
    """To do what the uncut runs do: the divergence from them, or how far another metric moves. As many batches."""
    found: list[Aim] = []
    for batch, ablation in pairs.batches():
        if pairs.metric == metrics.KL.name:
            run = batch.model.run(batch.tokens, logits=LogitSelection((-1,)), mask=batch.mask)
            assert run.logits is not None
            metric: Metric = metrics.KL(run.logits)
        else:
            before = batch.score(torch.zeros(pairs.graph.allowed.shape), ablation)
            metric = Distance(batch.metric, before)
        recorder.add(passes=2)
        found.append(Aim(replace(batch, metric=metric), ablation, len(batch.tokens) / len(pairs.pairs)))
    return found


@dataclass(frozen=True, eq=False)
class Mask:
    """Gates on groups of edges.

    groups `[receiver, source]`: the number of each edge's gate, -1 where it has none. shuts: a gate that is shut cuts
    its edges; otherwise one that is open cuts them.
    """

    graph: EdgeGraph
    groups: Int[Tensor, "receiver source"]
    gates: Gates
    shuts: bool = True
    losses: list[float] = field(default_factory=list)
    opened: list[float] = field(default_factory=list)

    @staticmethod
    def of(graph: EdgeGraph, grain: Grain, start: float, shuts: bool = True) -> "Mask":
        """A gate for every edge, or for every head and MLP (embeddings have none and are never cut)."""
        groups = torch.full(graph.allowed.shape, -1)
        if grain == "edges":
            groups[graph.allowed] = torch.arange(len(graph))
        else:
            first = 1 + graph.splits_positions
            numbers = torch.arange(len(graph.sources)) - first
            groups = torch.where(graph.allowed & (numbers >= 0), numbers, -1)
        return Mask(graph, groups, Gates.of(int(groups.max()) + 1, start), shuts)

    def cut(self, values: Float[Tensor, " gate"]) -> Amounts:
        """What is cut where gates have these values."""
        amounts = 1 - values if self.shuts else values
        spread = amounts[self.groups.clamp(min=0)]
        return torch.where(self.groups >= 0, spread, 0.0)

    def spread(self, values: Float[Tensor, " gate"]) -> Float[Tensor, "receiver source"]:
        """A value of every gate at each of its edges; NaN where there is no gate."""
        return torch.where(self.groups >= 0, values[self.groups.clamp(min=0)], float("nan"))

    def learn(self, aims: Sequence[Aim], price: Price, steps: int, rate: float, seed: int) -> None:
        """Take these many steps."""
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam([self.gates.location], lr=rate)
        for step in range(steps):
            values = self.gates.drawn(generator)
            loss, slope = self._slope(aims, values.detach())
            chances = self.gates.chance()
            optimizer.zero_grad()
            (values @ slope + price(chances, step)).backward()
            optimizer.step()
            self.losses.append(loss)
            self.opened.append(float(chances.detach().sum()))

    def _slope(
        self, aims: Sequence[Aim], values: Float[Tensor, " gate"]
    ) -> tuple[float, Float[Tensor, " gate"]]:
        """The loss, and its gradient by the gates."""
        cut, loss = self.cut(values), 0.0
        total = torch.zeros(self.graph.allowed.shape)
        for aim in aims:
            scores, found = aim.batch.gradient(aim.ablation, cut)
            loss += aim.weight * float(scores.double().mean())
            total += aim.weight * found.cpu() / len(scores)
        gated = self.groups >= 0
        slope = torch.zeros_like(values).index_add(0, self.groups[gated], total[gated])
        return loss, -slope if self.shuts else slope

    def loss(self, aims: Sequence[Aim], kept: Bool[Tensor, " gate"]) -> float:
        """The exact loss with these gates open and all others shut."""
        cut = self.cut(kept.float())
        return sum(aim.weight * float(aim.batch.score(cut, aim.ablation).double().mean()) for aim in aims)

    def least(self, aims: Sequence[Aim], most: float) -> Bool[Tensor, " gate"]:
        """The fewest gates, those likeliest to be open first, that hold the loss down to `most`; all if none do."""
        order = torch.sort(self.gates.chance().detach(), descending=True, stable=True).indices

        def first(count: int) -> Bool[Tensor, " gate"]:
            kept = torch.zeros(len(order), dtype=torch.bool)
            kept[order[:count]] = True
            return kept

        return first(bisect_left(range(len(order)), True, key=lambda n: self.loss(aims, first(n)) <= most))

    def trimmed(
        self, aims: Sequence[Aim], kept: Bool[Tensor, " gate"], most: float
    ) -> tuple[Bool[Tensor, " gate"], int]:
        """Of these gates, so many that the loss holds at `most` with them and without none of them; and the passes.

        Blocks of gates, least likely to be open first, are shut where the loss holds without them, else halved. Anew
        until nothing more goes, for what is needed beside others may be spared without them.
        """
        chance, passes = self.gates.chance().detach(), 0

        def without(kept: Tensor, block: Tensor) -> Tensor:
            nonlocal passes
            fewer = kept.clone()
            fewer[block] = False
            passes += len(aims)
            if self.loss(aims, fewer) <= most:
                return fewer
            if len(block) == 1:
                return kept
            for half in block.tensor_split(2):
                kept = without(kept, half)
            return kept

        while bool(kept.any()):
            places = kept.nonzero()[:, 0]
            fewer = without(kept, places[torch.sort(chance[places], stable=True).indices])
            if torch.equal(fewer, kept):
                break
            kept = fewer
        return kept, passes
