"""Does a network work as its causal model says, and in no other way? Shares of rows, intervention by intervention.

1. accuracy: rows answered right in every place that is asked.
2. interchange: for each set of variables, rows answered as the causal model does when the variables come from another
   row; counted where the answer changes by that, too, since a network that ignored it would be right elsewhere.
3. invariance: for each node and edge outside the circuit, and for all at once, rows whose answers stay what they were.
4. effect: for each edge of the circuit, rows whose answers change when it alone is taken from another row.
"""

import itertools
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from microtome.data.causal_model import UNASKED
from microtome.models.transformer import Transformer
from microtome.testbeds.case import Evidence
from microtome.testbeds.interchange.task import Rows, Task
from microtome.testbeds.interchange.wiring import EdgeName, traced

LEAST = 0.99
LEAST_EFFECT = 0.05  # five times the most that an edge outside the circuit may change


@dataclass(frozen=True)
class Measured:
    """The shares. rows: of how many. changed: of how many rows an interchange of these variables changes the answer."""

    rows: int
    accuracy: float
    interchange: dict[tuple[str, ...], float]
    interchange_changed: dict[tuple[str, ...], float]
    changed: dict[tuple[str, ...], int]
    node_invariance: dict[str, float]
    edge_invariance: dict[EdgeName, float]
    all_invariance: float
    effect: dict[EdgeName, float]

    def evidence(self, least: float = LEAST) -> tuple[Evidence, ...]:
        """Each number with the bound that it must keep: of many, the worst. least: the bound of all but the effects."""
        n = self.rows
        fewest = self.changed[min(self.changed, key=lambda names: self.interchange_changed[names])]
        kept = {"an edge": self.edge_invariance.values(), "a node": self.node_invariance.values()}
        return (
            Evidence("share of unseen rows answered right", self.accuracy, least, n=n),
            Evidence("least share right after an interchange", _least(self.interchange.values()), least, n=n),
            Evidence(
                "least share right where an interchange changes the answer",
                _least(self.interchange_changed.values()),
                least,
                n=fewest,
            ),
            *(
                Evidence(f"least share unchanged by {part} outside", _least(shares), least, n=n)
                for part, shares in kept.items()
                if shares
            ),
            Evidence("share unchanged by all edges outside at once", self.all_invariance, least, n=n),
            Evidence(
                "least share changed by an edge inside", _least(self.effect.values()), LEAST_EFFECT, n=n
            ),
        )


@torch.no_grad()
def measure(task: Task, module: Transformer, rows: Rows) -> Measured:
    """All of it on these rows, each paired with the row after it."""
    alignment, wiring, other = task.alignment, task.alignment.wiring, rows.roll(-1, 0)
    logits, written = traced(module, rows)
    due, elsewhere = task.answers(rows), written.roll(-1, 1)
    asked = due != UNASKED
    said = logits.argmax(-1)

    def agree(one: Rows, two: Rows) -> Bool[Tensor, " row"]:
        return ((one == two) | ~asked).all(-1)

    def after(edges: Bool[Tensor, "source target"]) -> Rows:
        return traced(module, rows, elsewhere, edges.expand(len(rows), -1, -1))[0].argmax(-1)

    def share(rows: Bool[Tensor, " row"]) -> float:
        return float(rows.double().mean())

    right, right_changed, changed = {}, {}, {}
    for names in _sets(task.model.inner):
        nodes = [node for name in names for node in task.places[name].nodes]
        counterfactual = task.model.interchange(rows, other, names)
        correct, new = agree(after(wiring.out_of(nodes)), counterfactual), ~agree(counterfactual, due)
        right[names], right_changed[names], changed[names] = (
            share(correct),
            share(correct[new]),
            int(new.sum()),
        )

    def kept(edges: Bool[Tensor, "source target"]) -> float:
        return share(agree(after(edges), said))

    outside = [edge for edge in wiring.edges if edge not in alignment.edges]
    return Measured(
        rows=len(rows),
        accuracy=share(agree(said, due)),
        interchange=right,
        interchange_changed=right_changed,
        changed=changed,
        node_invariance={node: kept(wiring.out_of([node])) for node in alignment.spared},
        edge_invariance={edge: kept(wiring.mask([edge])) for edge in outside},
        all_invariance=kept(alignment.outside),
        effect={edge: 1 - kept(wiring.mask([edge])) for edge in alignment.edges},
    )


def _least(shares: Collection[float]) -> float:
    """The smallest; NaN where one is NaN, as of an interchange that changes no answer: then nothing is shown."""
    return float(np.min([*shares]))


def _sets(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [some for size in range(1, len(names) + 1) for some in itertools.combinations(names, size)]
