"""What would any other circuit of this size do? Random paths from an embedding to the logits, and circuits of them.

A path is drawn through a given edge: backwards, of all that feed the present source, one receiver and of all that it
could read, one source, each alike, until an embedding is reached; forwards likewise, until the logits are. A random
circuit is a union of paths through edges that are drawn from those still missing, so that all of it can carry something
and every edge may be in it.
"""

from typing import TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from microtome.circuits.edge_graph import EdgeGraph
from microtome.core.errors import InputError

Kept = Bool[Tensor, "receiver source"]
Item = TypeVar("Item")


def random_path(graph: EdgeGraph, through: tuple[int, int], generator: torch.Generator) -> Kept:
    """A path from an embedding to the logits through an edge, given as its row and column."""
    found = torch.zeros_like(graph.allowed)
    found[through] = True
    row, column = through
    while column >= 1 + graph.splits_positions:
        below = _one(graph.feeds[column], generator)
        column = _one(graph.allowed[below].nonzero().flatten().tolist(), generator)
        found[below, column] = True
    while row < len(graph.receivers) - 1:
        fed = _one([number for number, rows in enumerate(graph.feeds) if row in rows], generator)
        row = _one(graph.allowed[:, fed].nonzero().flatten().tolist(), generator)
        found[row, fed] = True
    return found


def missing_edge(graph: EdgeGraph, kept: Kept, generator: torch.Generator) -> tuple[int, int]:
    """One of the edges that are not kept, each alike. Raises `InputError` where all are."""
    missing = (graph.allowed & ~kept).nonzero().tolist()
    if not missing:
        raise InputError(f"all {len(graph)} edges are in the circuit, so there is none to add")
    row, column = _one(missing, generator)
    return row, column


def random_circuit(graph: EdgeGraph, edges: int, generator: torch.Generator) -> Kept:
    """A circuit of random paths with at least so many edges. Raises `InputError` for more than the network has."""
    if edges > len(graph):
        raise InputError(f"the network has {len(graph)} edges, so no random circuit has {edges}")
    found = torch.zeros_like(graph.allowed)
    while int(found.sum()) < edges:
        found |= random_path(graph, missing_edge(graph, found, generator), generator)
    return found


def _one(items: list[Item], generator: torch.Generator) -> Item:
    return items[int(torch.randint(len(items), (1,), generator=generator))]
