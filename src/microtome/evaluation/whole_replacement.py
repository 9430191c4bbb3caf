"""Do the circuits of several tasks hold together? All of them kept at once, everything else cut, on every task.

1. Each task's circuit, kept alone, on each task's pairs: the diagonal is faithfulness; off it, a circuit that keeps
   another task's behaviour is shared with it, or not specific.
2. The union of all circuits, kept alone: the account of the whole network, as far as these tasks go. A union may keep
   less of a task than that task's own circuit, where another circuit brings in what works against it.
3. Control: random circuits at least as large as the union.

Cut edges carry the corrupt side's values of the same pair. Reference: Bereska and Gavves (2024), 8.2: evaluation by
replacing components with the hypothesised circuits.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_knockout import EdgeKnockout
from microtome.circuits.edge_pairs import EdgePairs
from microtome.circuits.random_circuits import random_circuit
from microtome.core.circuit import Circuit
from microtome.core.errors import InputError
from microtome.core.shapes import Grid, Table
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.model import Model


@dataclass(frozen=True)
class Replacement:
    """What circuits keep of tasks, as shares of the behaviour.

    alone: by task that the circuit is of, then by task that it is put to. together, random: of the union, and the mean
    of random circuits at least as large, by task. edges: of each circuit; union, total: of the union and the network.
    """

    alone: dict[str, dict[str, float]]
    together: dict[str, float]
    random: dict[str, float]
    edges: dict[str, int]
    union: int
    total: int
    draws: int
    conventions: str

    def plain(self) -> dict[str, Any]:
        """As JSON values, from which `Replacement(**…)` makes it again."""
        return asdict(self)

    def grid(self) -> Grid:
        """Circuits as rows, tasks as columns."""
        names = tuple(self.alone)
        rows = [*self.alone.values(), self.together, self.random]
        values = torch.tensor([[row[name] for name in names] for row in rows], dtype=torch.float64).numpy()
        return Grid(
            "what each circuit keeps of each task",
            values,
            "circuit of",
            (*names, "all together", "random, as large as all"),
            "task",
            names,
            unit="share of the behaviour",
            caption=f"{self.conventions}; {self.draws} random circuits",
        )

    def table(self) -> Table:
        """Each task with its own circuit, with the union, and by luck."""
        rows = tuple(
            (name, self.edges[name], self.alone[name][name], self.together[name], self.random[name])
            for name in self.alone
        )
        return Table(
            "all circuits at once in the place of the network",
            (
                "task",
                "edges of its circuit",
                "kept by its circuit",
                "kept by all together",
                "kept by random ones",
            ),
            rows,
            caption=f"all together: {self.union} of {self.total} edges. {self.conventions}; random ones are at least "
            f"as large, mean of {self.draws}",
        )


def replace(
    model: Model,
    circuits: Mapping[str, Circuit],
    pairs: Mapping[str, Pairs],
    metric: str = metrics.DEFAULT,
    draws: int = 5,
    seed: int = 0,
    rows: int = 16,
) -> Replacement:
    """Put circuits of edges in the place of the network. circuits, pairs: by task, the same tasks in both.

    Raises `InputError` for tasks without pairs or circuit, for a circuit without edges or with edges that this network
    lacks, and for pairs without a difference to explain.
    """
    if not circuits or set(circuits) != set(pairs):
        raise InputError(
            f"expected a circuit and pairs for each task, got circuits of {', '.join(sorted(circuits)) or 'none'} and "
            f"pairs of {', '.join(sorted(pairs)) or 'none'}"
        )
    if empty := [name for name, circuit in circuits.items() if not circuit.edges]:
        raise InputError(f"the circuit of {empty[0]} has no edges; give one at the grain of edges")
    graph = EdgeGraph.of(model, split_positions=any("pos_embed" in circuit for circuit in circuits.values()))
    masks = {name: graph.mask(circuit) for name, circuit in circuits.items()}
    union = torch.stack(list(masks.values())).any(dim=0)
    generator = torch.Generator().manual_seed(seed)
    rivals = [random_circuit(graph, int(union.sum()), generator) for _ in range(draws)]
    shares = {
        name: EdgeKnockout(EdgePairs(model, graph, pairs[name], metric, rows=rows))
        .shares([*masks.values(), union, *rivals])
        .tolist()
        for name in masks
    }
    told = ", ".join(f"{len(pairs[name])}" for name in masks)
    return Replacement(
        alone={own: {name: shares[name][i] for name in masks} for i, own in enumerate(masks)},
        together={name: shares[name][len(masks)] for name in masks},
        random={name: sum(shares[name][len(masks) + 1 :]) / draws for name in masks},
        edges={name: int(mask.sum()) for name, mask in masks.items()},
        union=int(union.sum()),
        total=len(graph),
        draws=draws,
        conventions=f"{metric}, ratio of means over pairs ({told}); clean prompts run, cut edges carry the corrupt "
        "side's values",
    )
