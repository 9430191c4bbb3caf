"""Are the units of one dictionary those of another? Which recur, which split as it widens, and which merge?

1. Units are compared by the cosine of what they write (signs count). Two that are on in the same rows, if codes are
   given, are compared by the correlation of their codes instead.
2. Recurring: pairs that are each other's nearest and at least `close`; a unit has at most one such partner. The share
   is over the units of the smaller dictionary; beside it that of random directions, large in few dimensions.
3. From narrow to wide: each unit of the wider is the child of the nearest unit of the narrower, if it is near at all.
   A unit with several children has split; one without has vanished.
4. The same the other way round: a unit of the wider dictionary that is nearest to several units of the narrower has
   merged them.

    tree = matching_tree([narrow, wide, wider])

Reference: Bricken et al. (2023) for splitting; Sharkey, Braun and Millidge (2022) for agreement as a sign of truth.
Misleads where units are alike by construction, such as neurons of the same layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from microtome.bases.basis import Basis
from microtome.bases.codes import SparseCodes
from microtome.core.errors import InputError
from microtome.core.shapes import Arc, Cell, Graph, Node, Table

CLOSE: Final = 0.9
NEAR: Final = 0.5


@dataclass(frozen=True, eq=False)
class Match:
    """Two dictionaries. likeness `[unit, other unit]`. partner `[unit]`: the other's unit that recurs, or -1.

    parent `[other unit]`: the unit that it is a child of, or -1; child `[unit]`: the other way round. by_luck: the
    share that recurs with as many random directions.
    """

    likeness: Float[Tensor, "unit other"]
    partner: Int[Tensor, " unit"]
    parent: Int[Tensor, " other"]
    child: Int[Tensor, " unit"]
    by_luck: float
    close: float
    near: float

    @property
    def recurring(self) -> float:
        """Share of the smaller dictionary's units that recur."""
        return float((self.partner >= 0).sum()) / min(self.likeness.shape)

    @property
    def children(self) -> Int[Tensor, " unit"]:
        """How many children each unit has."""
        return _counted(self.parent, self.likeness.shape[0])

    @property
    def split(self) -> float:
        """Share of units with several children."""
        return float((self.children > 1).double().mean())

    @property
    def vanished(self) -> float:
        """Share of units with no child."""
        return float((self.children == 0).double().mean())

    @property
    def new(self) -> float:
        """Share of the other's units without a parent."""
        return float((self.parent < 0).double().mean())

    @property
    def merged(self) -> float:
        """Share of the other's units that are the nearest of several."""
        return float((_counted(self.child, self.likeness.shape[1]) > 1).double().mean())

    @property
    def mean_max(self) -> float:
        """Mean over the smaller dictionary's units of the likeness of the nearest."""
        return float(self.likeness.amax(1 if self.likeness.shape[0] <= self.likeness.shape[1] else 0).mean())

    def numbers(self) -> dict[str, float]:
        """The shares by name."""
        names = ("recurring", "by_luck", "mean_max", "split", "merged", "vanished", "new")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, eq=False)
class MatchingTree:
    """Dictionaries in a row, each matched with the next."""

    names: tuple[str, ...]
    widths: tuple[int, ...]
    matches: tuple[Match, ...]

    def table(self) -> Table:
        """A row for each pair of neighbours."""
        rows: tuple[tuple[Cell, ...], ...] = tuple(
            (f"{one} ({width})", f"{other} ({next_width})", *match.numbers().values())
            for one, other, width, next_width, match in zip(
                self.names, self.names[1:], self.widths, self.widths[1:], self.matches, strict=False
            )
        )
        columns = ("from", "to", "recurring", "by luck", "mean max", "split", "merged", "vanished", "new")
        first = self.matches[0]
        caption = (
            f"recurring: each other's nearest, at least {first.close:g} alike; children: at least {first.near:g} "
            "alike; by luck: the same with random directions"
        )
        return Table("units from one dictionary to the next", columns, rows, caption)

    def graph(self, roots: Sequence[int]) -> Graph:
        """The families of some units of the first dictionary, level by level."""
        nodes = [Node(f"0.{unit}", f"u{unit}", 0.0, kind=self.names[0]) for unit in roots]
        arcs = []
        family = torch.tensor(list(roots))
        for level, match in enumerate(self.matches):
            mine = torch.isin(match.parent, family).nonzero().flatten()
            for unit in mine.tolist():
                parent = int(match.parent[unit])
                nodes.append(Node(f"{level + 1}.{unit}", f"u{unit}", level + 1.0, kind=self.names[level + 1]))
                arcs.append(
                    Arc(f"{level}.{parent}", f"{level + 1}.{unit}", float(match.likeness[parent, unit]))
                )
            family = mine
        caption = "lines: likeness of a unit with its child in the next dictionary"
        return Graph("families of units", tuple(nodes), tuple(arcs), "likeness", caption)


def matching_tree(
    bases: Sequence[Basis], close: float = CLOSE, near: float = NEAR, seed: int = 0
) -> MatchingTree:
    """Match each dictionary with the next. Raises `InputError` for fewer than two, or other sites written."""
    if len(bases) < 2:
        raise InputError(f"matching needs at least two dictionaries; got {len(bases)}")
    if other := [basis for basis in bases if basis.writes != bases[0].writes]:
        raise InputError(
            f"{bases[0].name} writes {', '.join(map(str, bases[0].writes))}, {other[0].name} "
            f"{', '.join(map(str, other[0].writes))}; match dictionaries of the same sites"
        )
    written = [basis.directions().detach().float().cpu() for basis in bases]
    return MatchingTree(
        tuple(basis.name for basis in bases),
        tuple(basis.n_units for basis in bases),
        tuple(match(one, next_one, close, near, seed) for one, next_one in pairwise(written)),
    )


def match(
    one: Float[Tensor, "unit d"],
    other: Float[Tensor, "other d"],
    close: float = CLOSE,
    near: float = NEAR,
    seed: int = 0,
) -> Match:
    """Match directions by cosine."""
    source = torch.Generator().manual_seed(seed)
    random = [torch.randn(rows.shape, generator=source) for rows in (one, other)]
    lucky = _partners(_cosines(*random), close)
    by_luck = float((lucky >= 0).sum()) / min(len(one), len(other))
    return _matched(_cosines(one, other), by_luck, close, near)


def match_codes(
    one: SparseCodes, other: SparseCodes, close: float = CLOSE, near: float = NEAR, seed: int = 0
) -> Match:
    """Match units by the correlation of their codes on the same rows; by luck: with the rows of one shuffled."""
    if one.rows != other.rows:
        raise InputError(f"codes must be of the same rows; got {one.rows} and {other.rows}")
    first, second = one.dense(), other.dense()
    order = torch.randperm(one.rows, generator=torch.Generator().manual_seed(seed))
    lucky = _partners(_correlations(first, second[order]), close)
    by_luck = float((lucky >= 0).sum()) / min(one.units, other.units)
    return _matched(_correlations(first, second), by_luck, close, near)


def _matched(likeness: Float[Tensor, "unit other"], by_luck: float, close: float, near: float) -> Match:
    nearest, parent = likeness.max(0)
    nearest_child, child = likeness.max(1)
    parent = torch.where(nearest >= near, parent, -1)
    child = torch.where(nearest_child >= near, child, -1)
    return Match(likeness, _partners(likeness, close), parent, child, by_luck, close, near)


def _partners(likeness: Float[Tensor, "unit other"], close: float) -> Int[Tensor, " unit"]:
    best, other = likeness.max(1)
    back = likeness.argmax(0)[other]
    return torch.where((back == torch.arange(len(other))) & (best >= close), other, -1)


def _cosines(one: Float[Tensor, "unit d"], other: Float[Tensor, "other d"]) -> Float[Tensor, "unit other"]:
    return functional.normalize(one, dim=-1) @ functional.normalize(other, dim=-1).mT


def _correlations(
    one: Float[Tensor, "row unit"], other: Float[Tensor, "row other"]
) -> Float[Tensor, "unit other"]:
    return _cosines((one - one.mean(0)).mT, (other - other.mean(0)).mT)


def _counted(parents: Int[Tensor, " some"], count: int) -> Int[Tensor, " unit"]:
    return torch.bincount(parents[parents >= 0], minlength=count)
