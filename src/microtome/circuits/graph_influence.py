"""How much does each node of an attribution graph matter to the logits, and which nodes and edges are enough?

1. Of each target, the contributions of all nodes are taken by size and divided by their sum: what share comes from
   where. A path's influence is the product of its shares; a node's, the sum over all its paths to the logits, these
   weighted by their probabilities. Nodes come in layers, so a few products give all paths.
2. Kept are the fewest nodes that together hold a share of all influence, then the fewest edges among them; embeddings
   and logits stay, and what no longer leads from somewhere to the logits goes.
3. *Replacement* score: of the influence that starts somewhere (embeddings and errors), the share from embeddings.
   *Completeness*: of what goes into all nodes, weighted by their influence, the share that is no error.

The fewest that hold a share are found without sorting: a histogram over the upper bits of the numbers, then a sort of
the one bin in which the share is reached.

Ameisen et al. (2025), Circuit Tracing: Revealing Computational Graphs in Language Models.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_BITS = 16


@dataclass(frozen=True, eq=False)
class Contributions:
    """What nodes give to targets. rows `[target, node]`, signed; nodes are units, then errors, then embeddings.

    target `[target]`: the node that a row is of; -1 for a logit. probability `[target]`: of a logit, else 0.
    n_units, n_errors: how many of the nodes are units, and how many errors.
    """

    rows: Float[Tensor, "target node"]
    target: Int[Tensor, " target"]
    probability: Float[Tensor, " target"]
    n_units: int
    n_errors: int

    @property
    def shares(self) -> Float[Tensor, "target node"]:
        """By size, each row's sum 1; a row of zeros stays."""
        size = self.rows.abs()
        total = size.sum(-1, keepdim=True)
        return size / torch.where(total > 0, total, 1.0)

    def only(self, kept: Bool[Tensor, " node"]) -> "Contributions":
        """Only from and to kept nodes; the others' contributions are zero, the logits stay."""
        stays = (self.target < 0) | kept[self.target]
        return Contributions(
            self.rows[stays] * kept,
            self.target[stays],
            self.probability[stays],
            self.n_units,
            self.n_errors,
        )


def influence(found: Contributions, shares: Float[Tensor, "target node"]) -> Float[Tensor, " node"]:
    """The sum over all paths from each node to the logits. Ends when no path is left, which layers guarantee."""
    flow = found.probability @ shares
    total = flow.clone()
    units = found.target >= 0
    below, at = shares[units], found.target[units]
    while bool((flow[at] > 0).any()):
        flow = flow[at] @ below
        total += flow
    return total


def enough(sizes: Float[Tensor, " item"], share: float) -> Bool[Tensor, " item"]:
    """The fewest items that hold a share of the sum; of equal ones the first. sizes: not negative.

    Takes time in proportion to the number of items, and no memory for their order.
    """
    kept = sizes > 0
    wanted = share * float(sizes.double().sum())
    if share >= 1.0 or wanted <= 0.0:
        return kept & (wanted > 0.0)
    # Positive floats are ordered as their bits are.
    bins = sizes.float().contiguous().view(torch.int32) >> _BITS
    held = torch.bincount(bins, weights=sizes.double())
    above = held.flip(0).cumsum(0).flip(0)
    last = int((above >= wanted).nonzero()[-1, 0])
    inside = (bins == last).nonzero()[:, 0]
    order = inside[sizes[inside].argsort(descending=True, stable=True)]
    before = float(above[last + 1]) if last + 1 < len(above) else 0.0
    sums = sizes[order].double().cumsum(0) + before
    count = int((sums < wanted).sum()) + 1
    kept = bins > last
    kept[order[:count]] = True
    return kept


@dataclass(frozen=True, eq=False)
class Pruned:
    """What is left: which nodes; which edges, as `[target, node]` of the contributions; the scores of what is left."""

    nodes: Bool[Tensor, " node"]
    edges: Bool[Tensor, "target node"]
    replacement: float
    completeness: float


def scores(found: Contributions) -> tuple[float, float]:
    """Replacement and completeness; NaN where nothing influences anything."""
    shares = found.shares
    total = influence(found, shares)
    units, errors = found.n_units, found.n_errors
    from_errors = float(total[units : units + errors].sum())
    from_embeddings = float(total[units + errors :].sum())
    weight = torch.where(found.target >= 0, total[found.target], found.probability)
    missing = shares[:, units : units + errors].sum(-1)
    below, whole = from_errors + from_embeddings, float(weight.sum())
    return (
        from_embeddings / below if below > 0 else float("nan"),
        float((weight * (1 - missing)).sum()) / whole if whole > 0 else float("nan"),
    )


def prune(found: Contributions, node_share: float, edge_share: float) -> Pruned:
    """Keep the fewest nodes, and of the edges among them the fewest, that hold these shares of the influence."""
    embeddings = torch.arange(found.rows.shape[1]) >= found.n_units + found.n_errors
    nodes = enough(influence(found, found.shares), node_share) | embeddings
    expanded = torch.zeros_like(nodes)
    expanded[found.target[found.target >= 0]] = True
    # A unit whose own row is not known has no edges into it, so it cannot be followed.
    nodes &= expanded | (torch.arange(len(nodes)) >= found.n_units)
    left = found.only(nodes)
    shares = left.shares
    total = influence(left, shares)
    weight = torch.where(left.target >= 0, total[left.target], left.probability)
    kept = enough((shares * weight[:, None]).flatten(), edge_share).view_as(shares)
    edges = torch.zeros(found.rows.shape, dtype=torch.bool)
    edges[(found.target < 0) | nodes[found.target]] = kept
    nodes, edges = _connected(found, nodes, edges)
    thinned = Contributions(
        found.rows * edges, found.target, found.probability, found.n_units, found.n_errors
    )
    return Pruned(nodes, edges, *scores(thinned.only(nodes)))


def _connected(
    found: Contributions, nodes: Bool[Tensor, " node"], edges: Bool[Tensor, "target node"]
) -> tuple[Bool[Tensor, " node"], Bool[Tensor, "target node"]]:
    """Drop units and errors that lead nowhere and units that come from nowhere, until none is left."""
    embeddings = torch.arange(len(nodes)) >= found.n_units + found.n_errors
    unit_rows = (found.target >= 0).nonzero()[:, 0]
    while True:
        leads = edges.any(0)
        comes = torch.ones_like(nodes)
        comes[found.target[unit_rows]] = edges[unit_rows].any(-1)
        still = nodes & comes & (leads | embeddings)
        rows = (found.target < 0) | still[found.target]
        cut = edges & still & rows[:, None]
        if torch.equal(cut, edges) and torch.equal(still, nodes):
            return nodes, edges
        nodes, edges = still, cut
