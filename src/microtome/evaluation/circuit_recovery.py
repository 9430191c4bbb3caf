"""How well do scores of edges or nodes recover a known circuit? The areas in use, each by its name.

* *AUROC*: the probability that a true edge ranks above another, ties by half; and *average precision*. Both by absolute
  score, over all edges of the network: what a method did not score counts as zero, so that a true edge it left out is
  missed, and none is ever counted as found.
* *AUROC over ten points*, as on public leaderboards: circuits at ten sizes, grown from the logits by the strongest edge
  that reaches what is in already; true-positive rate over false-positive rate divided by the last one, by the trapezoid
  rule. It starts at the smallest circuit and not at nothing, so it is not the area above: perfect scores may give less
  than 1 and it knows nothing of ranks between its points.

Reference: Conmy et al. (2023) for the task; Gupta et al. (2024), InterpBench; Mueller et al. (2025), MIB, for ten
points.
"""

from collections.abc import Set
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.random_circuits import Kept
from microtome.core.answers import EdgeScores, NodeScores
from microtome.core.circuit import Circuit
from microtome.core.errors import InputError
from microtome.core.shapes import Curve, Shape, Table
from microtome.evaluation.curve_areas import FRACTIONS
from microtome.evaluation.marks import auroc, average_precision


@dataclass(frozen=True, eq=False)
class Recovery:
    """How scores recover a circuit. auroc_ten_points: NaN for nodes, and where all edges or none are true.

    precision, recall: of the first 1, 2, … of the ranking; those tied are taken together.
    """

    grain: str
    true: int
    count: int
    unscored: int
    auroc: float
    average_precision: float
    auroc_ten_points: float
    precision: Float[NDArray[np.float64], " first"]
    recall: Float[NDArray[np.float64], " first"]

    def shapes(self) -> tuple[Shape, ...]:
        """The areas, and precision over recall."""
        told = (
            f"{self.true} true of {self.count} {self.grain}s, {self.unscored} not scored; by absolute score"
        )
        areas = Table(
            f"recovery of {self.grain}s",
            ("AUROC", "average precision", "AUROC over ten points"),
            ((self.auroc, self.average_precision, self.auroc_ten_points),),
            caption=told,
        )
        drawn = Curve(
            "precision and recall of the first so many",
            np.arange(1, len(self.precision) + 1, dtype=float),
            np.stack([self.precision, self.recall]),
            ("precision", "recall"),
            f"{self.grain}s taken",
            "share",
            caption=told,
        )
        return (areas, drawn)


def recovery(
    graph: EdgeGraph,
    scores: EdgeScores | NodeScores,
    truth: Circuit,
    left_out: Set[str | tuple[str, str, str]] = frozenset(),
) -> Recovery:
    """Compare scores with a known circuit of this network. left_out: edges or nodes that count neither way.

    Raises `InputError` for a circuit or scores that name what the network does not have, and where there is nothing to
    tell apart because everything is true, or nothing.
    """
    real: Set[str | tuple[str, str, str]]
    if isinstance(scores, EdgeScores):
        real = {edge.ends for edge in truth.edges}
        graph.mask(truth)
        graph.mask(scores.scores)
        names: list[str | tuple[str, str, str]] = [one for one in graph.edges() if one not in left_out]
    else:
        real = {name for name in truth.nodes if name != "logits"}
        unknown = {*truth.nodes, *scores.scores} - {*graph.sources, "logits"}
        if unknown:
            raise InputError(
                f"{min(unknown)} is no node of this network; was the circuit written for another model?"
            )
        names = [one for one in graph.sources if one not in left_out]
    hits = np.array([name in real for name in names], dtype=bool)
    if hits.all() or not hits.any():
        raise InputError(f"{int(hits.sum())} of {len(hits)} are true, so there is nothing to tell apart")
    known = dict(scores.scores.items())
    size = np.array([abs(known.get(name, 0.0)) for name in names], dtype=np.float64)
    above = rankdata(-size, method="max").astype(np.float64)
    taken = np.array(
        [hits[above <= np.sort(above)[first]].sum() for first in range(len(above))], dtype=np.float64
    )
    by_edges = isinstance(scores, EdgeScores)
    return Recovery(
        grain="edge" if by_edges else "node",
        true=int(hits.sum()),
        count=len(hits),
        unscored=sum(name not in known for name in names),
        auroc=auroc(rankdata(size), hits),
        average_precision=average_precision(above, hits),
        auroc_ten_points=_ten_points(graph, scores, truth)
        if isinstance(scores, EdgeScores)
        else float("nan"),
        precision=taken / np.sort(above),
        recall=taken / hits.sum(),
    )


def grown(graph: EdgeGraph, values: Float[Tensor, "receiver source"], edges: int) -> Kept:
    """A circuit grown from the logits: each time the strongest edge into what is in already, up to so many."""
    kept = torch.zeros_like(graph.allowed)
    open_ = torch.zeros(len(graph.receivers), dtype=torch.bool)
    open_[-1] = True
    size = values.abs().masked_fill(~graph.allowed, -1.0)
    for _ in range(edges):
        reachable = size.masked_fill(kept | ~open_[:, None], -1.0).flatten()
        best = int(reachable.argmax())
        if reachable[best] < 0:
            break
        row, column = divmod(best, kept.shape[1])
        kept[row, column] = True
        open_[graph.feeds[column]] = True
    return kept


def _ten_points(graph: EdgeGraph, scores: EdgeScores, truth: Circuit) -> float:
    values = torch.zeros(graph.allowed.shape, dtype=torch.float64)
    for edge, score in scores.scores.items():
        values[graph.place(edge)] = score
    real = graph.mask(truth)
    rates = [_rates(grown(graph, values, max(1, int(f * len(graph) + 1e-9))), real, graph) for f in FRACTIONS]
    true, false = (np.array(one) for one in zip(*rates, strict=True))
    return float(np.trapezoid(true, false / false[-1])) if false[-1] > 0 else float("nan")


def _rates(kept: Kept, real: Bool[Tensor, "receiver source"], graph: EdgeGraph) -> tuple[float, float]:
    """True- and false-positive rate."""
    others = graph.allowed & ~real
    return float((kept & real).sum() / real.sum()), float((kept & others).sum() / others.sum().clamp_min(1))
