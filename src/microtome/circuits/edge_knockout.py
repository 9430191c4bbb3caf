"""Keep some edges of a network, cut the others: what is left of a behaviour?

Circuits are matrices of edges `[receiver, source]`. Both ends are fixed points of the scale:

    share(kept) = (metric(kept) - metric(nothing kept)) / (metric(everything kept) - metric(nothing kept))

1. `noise`: clean prompts run, and the edges that are not kept carry the other side's values (or means, or zero).
2. `denoise`: corrupt prompts run, and the kept edges carry the clean side's values.

With values of the other side (resample) everything kept is the clean run and nothing kept the corrupt run, bit for
bit. What cut edges carry is found once for all circuits of a call; a circuit is one pass. Where memory allows, circuits
share passes (`edge_tail`), which leave aside what no cut can change; a score is then that of its own pass to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.circuits.edge_cut import Amounts
from microtome.circuits.edge_graph import EdgeGraph, Edges
from microtome.circuits.edge_pairs import EdgePairs, require_gap
from microtome.circuits.edge_tail import EdgeTail

Kept = Edges
Reduction = Literal["ratio of means", "mean of ratios"]
_HELD_BYTES = 1 << 29


@dataclass(frozen=True, eq=False)
class EdgeKnockout:
    """Runs of pairs in which some edges are kept. Raises `InputError` where cutting every edge changes nothing."""

    pairs: EdgePairs

    def __post_init__(self) -> None:
        require_gap(self.gap, self.pairs.model, self.pairs.kind)

    @property
    def graph(self) -> EdgeGraph:
        """The edges of the network."""
        return self.pairs.graph

    @cached_property
    def whole(self) -> Float[Tensor, " row"]:
        """The metric with every edge kept."""
        return self._ends[0]

    @cached_property
    def empty(self) -> Float[Tensor, " row"]:
        """The metric with none kept."""
        return self._ends[1]

    @cached_property
    def gap(self) -> float:
        """Mean metric with everything kept minus with nothing kept."""
        return float((self.whole - self.empty).double().mean())

    def passes(self, circuits: int) -> int:
        """How many passes it takes to score so many circuits, what cut edges carry included."""
        batches = -(-len(self.pairs.pairs) // self.pairs.rows)
        return batches * (circuits + (0 if self._held else 1))

    def scores(self, kept: Sequence[Kept]) -> Float[Tensor, "circuit row"]:
        """The metric of each pair with only these edges kept, for several circuits."""
        found = torch.empty(len(kept), len(self.pairs.pairs))
        inside = []
        for number, one in enumerate(kept):
            here = one & self.graph.allowed
            if not here.any() or torch.equal(here, self.graph.allowed):
                found[number] = self.whole if here.any() else self.empty
            else:
                inside.append(number)
        if inside:
            cuts = [self._cut(kept[number]) for number in inside]
            found[inside] = torch.cat(
                [batch.scores(cuts) for batch in self._held]
                if self._held
                else [
                    torch.stack([run.score(cut, ablation) for cut in cuts])
                    for run, ablation in self.pairs.batches()
                ],
                dim=1,
            ).cpu()
        return found

    def share(
        self, scores: Float[Tensor, "*circuit row"], reduction: Reduction = "ratio of means"
    ) -> Float[Tensor, "*circuit"]:
        """Scores on the scale from nothing kept (0) to everything kept (1).

        `mean of ratios` weighs each pair alike, and is undefined (NaN) as soon as one pair has no gap of its own.
        """
        above = (scores - self.empty).double()
        if reduction == "ratio of means":
            return above.mean(dim=-1) / self.gap
        gaps = (self.whole - self.empty).double()
        return (above / gaps.where(gaps != 0, torch.nan)).mean(dim=-1)

    def shares(self, kept: Sequence[Kept]) -> Float[Tensor, " circuit"]:
        """What is left of the behaviour with only these edges kept, for several circuits."""
        return self.share(self.scores(kept))

    def interval(
        self, scores: Float[Tensor, " row"], seed: int = 0, draws: int = 1000
    ) -> tuple[float, float]:
        """A 95 % bootstrap interval over pairs of the share of one circuit's scores."""
        drawn = torch.randint(
            len(scores), (draws, len(scores)), generator=torch.Generator().manual_seed(seed)
        )
        above = (scores - self.empty).double()[drawn].mean(dim=1)
        gaps = (self.whole - self.empty).double()[drawn].mean(dim=1)
        low, high = torch.quantile(above / gaps, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return low, high

    def _cut(self, kept: Kept) -> Amounts:
        cut = ~kept if self.pairs.direction == "noise" else kept
        return (cut & self.graph.allowed).float()

    @cached_property
    def _ends(self) -> Float[Tensor, "2 row"]:
        every = self.graph.allowed
        ends = [self._cut(one) for one in (every, torch.zeros_like(every))]
        batches = [(tail.run, tail.ablation) for tail in self._held] or self.pairs.batches()
        columns = [torch.stack([run.score(cut, ablation) for cut in ends]) for run, ablation in batches]
        return torch.cat(columns, dim=1).cpu()

    @cached_property
    def _held(self) -> list[EdgeTail]:
        """All batches with what their cut edges carry, where that fits memory; else none."""
        pairs = self.pairs.pairs
        sites = 2 * len(self.graph.sources) + 6 * len(self.graph.readers)
        bytes_ = 4 * pairs.clean.numel() * self.pairs.model.sizes["d_model"] * sites
        if bytes_ > _HELD_BYTES:
            return []
        return [EdgeTail(run, ablation, together=True) for run, ablation in self.pairs.batches()]
