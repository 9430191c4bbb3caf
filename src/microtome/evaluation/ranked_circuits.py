"""Which circuit do the first so many of a ranking make? Edges, or nodes with all the edges out of them.

With values of the other side, an edge that is on no path of kept edges from an embedding to the logits carries what it
would carry if it were cut; such edges are left out, so that sizes are told as they are. With means or zero they do
carry something else, and stay.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.random_circuits import Kept
from microtome.core.answers import EdgeScores, NodeScores
from microtome.core.errors import InputError

Order = Literal["signed", "absolute"]


def graph_of(whole: EdgeGraph, split: EdgeGraph | None, scores: EdgeScores | NodeScores) -> EdgeGraph:
    """The graph that scores speak of: with positions as a source of their own where they name them."""
    named = {name if isinstance(name, str) else name[0] for name in scores.scores}
    return split if split is not None and "pos_embed" in named else whole


@dataclass(frozen=True, eq=False)
class Ranking:
    """Scores of edges or of sources, larger helps more. prune: leave out what lies on no path.

    values: `[receiver, source]` for edges, `[source]` for nodes.
    """

    graph: EdgeGraph
    values: Float[Tensor, "..."]
    prune: bool

    @staticmethod
    def of(
        graph: EdgeGraph,
        scores: EdgeScores | NodeScores,
        helpful: Literal["negative", "positive"],
        prune: bool,
    ) -> "Ranking":
        """From the scores of a method; what it does not score counts as zero.

        Raises `InputError` for scores of edges or nodes that this network does not have, or for none.
        """
        if not scores.scores:
            raise InputError("there are no scores to rank by")
        sign = -1.0 if helpful == "negative" else 1.0
        if isinstance(scores, EdgeScores):
            values = torch.zeros(graph.allowed.shape, dtype=torch.float64)
            for edge, score in scores.scores.items():
                values[graph.place(edge)] = sign * score
            return Ranking(graph, values, prune)
        values = torch.zeros(len(graph.sources), dtype=torch.float64)
        for node, score in scores.scores.items():
            if node == "logits":
                continue
            if node not in graph.sources:
                raise InputError(
                    f"{node} is no node of this network, whose sources are {', '.join(graph.sources[:4])} …; were "
                    "these scores found on another model?"
                )
            values[graph.sources.index(node)] = sign * score
        return Ranking(graph, values, prune)

    @cached_property
    def units(self) -> Int[Tensor, " unit"]:
        """All edges (as places of the flat matrix) or all sources."""
        if self.values.ndim == 1:
            return torch.arange(len(self.values))
        return self.graph.allowed.flatten().nonzero().flatten()

    def ordered(self, order: Order) -> Int[Tensor, " unit"]:
        """Units, the best first; ties in their own order."""
        chosen = self.values.flatten()[self.units]
        keyed = chosen if order == "signed" else chosen.abs()
        return self.units[torch.sort(keyed, descending=True, stable=True).indices]

    def shuffled(self, seed: int) -> Int[Tensor, " unit"]:
        """Units in a random order."""
        generator = torch.Generator().manual_seed(seed)
        return self.units[torch.randperm(len(self.units), generator=generator)]

    def circuit(self, ordered: Int[Tensor, " unit"], fraction: float) -> Kept:
        """The circuit of the first such fraction of ordered units, at least one."""
        first = ordered[: max(1, int(fraction * len(ordered) + 1e-9))]
        kept = torch.zeros_like(self.graph.allowed)
        if self.values.ndim == 1:
            kept[:, first] = True
        else:
            kept.view(-1)[first] = True
        kept &= self.graph.allowed
        return self.graph.connected(kept) if self.prune else kept
