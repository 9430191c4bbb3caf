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
    microtome run matching_tree --set 'dictionaries=["narrow.safetensors", "wide.safetensors"]'

Reference: Bricken et al. (2023) for splitting; Sharkey, Braun and Millidge (2022) for agreement as a sign of truth.
Misleads where units are alike by construction, such as neurons of the same layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from microtome.bases.basis import Basis
from microtome.bases.codes import SparseCodes
from microtome.core import config as base
from microtome.core import result
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.errors import InputError, StoreError
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Arc, Cell, Graph, Node, Shape, Table
from microtome.dictionaries.files import load
from microtome.models.model import Model

CLOSE: Final = 0.9
NEAR: Final = 0.5
SHARES: Final = ("recurring", "by_luck", "mean_max", "mean_max_by_luck", "split", "merged", "vanished", "new")

card = Card(
    name="matching_tree",
    title="Dictionaries matched",
    question="Do the features of one dictionary come back in another, of another seed or width, or do they split?",
    steps=(
        "Compare what units write by cosine.",
        "Units that are each other's nearest, and close, recur; beside them stands what random directions do.",
        "A unit of the next dictionary is a child of the nearest unit before it: several children are a split.",
    ),
    reference="Bricken et al. (2023), Towards Monosemanticity; Sharkey, Braun and Millidge (2022)",
    misleads="What recurs need not be what the network computes with; dictionaries can share a bias.",
    needs="weights",
    causal="observation",
    locality="global",
    comprehensiveness="comprehensive",
)


class Config(base.Config):
    """Which dictionaries, and what is near."""

    dictionaries: tuple[str, ...] = Field(
        (), description="Files, in their order, as `microtome train` writes them; at least two."
    )
    close: float = Field(CLOSE, gt=0, le=1, description="Cosine of units that are the same.")
    near: float = Field(NEAR, gt=0, le=1, description="Cosine of a unit with its child.")
    families: int = Field(
        6, ge=0, description="Units of the first dictionary whose families are drawn, at random."
    )
    seed: base.Seed = Field(0, description="Of random directions, and of the units that are drawn.")


@dataclass(frozen=True, eq=False)
class Match:
    """Two dictionaries. likeness `[unit, other unit]`. partner `[unit]`: the other's unit that recurs, or -1.

    parent `[other unit]`: the unit that it is a child of, or -1; child `[unit]`: the other way round. by_luck,
    mean_max_by_luck: the same of what cannot be alike, such as random directions.
    """

    likeness: Float[Tensor, "unit other"]
    partner: Int[Tensor, " unit"]
    parent: Int[Tensor, " other"]
    child: Int[Tensor, " unit"]
    by_luck: float
    mean_max_by_luck: float
    close: float
    near: float

    @property
    def recurring(self) -> float:
        """Share of the smaller dictionary's units that recur."""
        return _recurring(self.partner, self.likeness)

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
        return _mean_max(self.likeness)

    def numbers(self) -> dict[str, float]:
        """The shares by name."""
        return {name: getattr(self, name) for name in SHARES}


@dataclass(frozen=True, eq=False)
class MatchingTree:
    """Dictionaries in a row, each matched with the next."""

    names: tuple[str, ...]
    widths: tuple[int, ...]
    matches: tuple[Match, ...]

    def table(self) -> Table:
        """A row for each pair of neighbours."""
        shares = [list(match.numbers().values()) for match in self.matches]
        return _table(self.names, self.widths, shares, self.matches[0].close, self.matches[0].near)

    def graph(self, roots: Sequence[int]) -> Graph:
        """The families of some units of the first dictionary, level by level."""
        steps = [(match.parent.numpy(), match.likeness.amax(0).numpy()) for match in self.matches]
        return _families(self.names, steps, roots)


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`share [pair, what]`. `parent`, `likeness [unit]`: of the units of all dictionaries but the first, one after the
    other (`of [unit]`: which one's), the unit of the one before that is nearest, or -1, and its cosine; `widths
    [dictionary]`; `root [family]`: units of the first whose families are drawn."""

    def shapes(self) -> tuple[Shape, ...]:
        data, told = self.data, self.config
        names, widths = data["dictionary"].values.tolist(), data["widths"].values.tolist()
        shares = data["share"].values.tolist()
        table = _table(names, widths, shares, told["close"], told["near"], self.notes)
        of = data["of"].values
        steps = [
            (data["parent"].values[of == one], data["likeness"].values[of == one])
            for one in range(1, len(names))
        ]
        return (
            table,
            *([_families(names, steps, data["root"].values.tolist())] if data.sizes["family"] else []),
        )


def run(model: Model, data: None = None, config: Config | None = None) -> Result:
    """Match the dictionaries of files. Raises `InputError` for fewer than two, or sites that differ, `StoreError` for
    files that are missing or corrupt."""
    config = config or Config()
    if missing := [path for path in config.dictionaries if not Path(path).exists()]:
        raise StoreError(f"there is no file {missing[0]}; `microtome train` writes dictionaries")
    hashed = model_hash(model.module.state_dict())
    with measure() as recorder:
        bases = [load(path) for path in config.dictionaries]
        tree = matching_tree(bases, config.close, config.near, config.seed)
    draw = torch.Generator().manual_seed(config.seed)
    roots = torch.randperm(tree.widths[0], generator=draw)[: config.families].sort().values
    parents = [match.parent for match in tree.matches]
    nearest = [match.likeness.amax(0) for match in tree.matches]
    dataset = xr.Dataset(
        {
            "share": (("pair", "what"), np.array([list(match.numbers().values()) for match in tree.matches])),
            "parent": ("unit", torch.cat(parents).numpy()),
            "likeness": ("unit", torch.cat(nearest).numpy()),
            "of": ("unit", np.repeat(range(1, len(bases)), tree.widths[1:])),
            "widths": ("dictionary", np.array(tree.widths)),
            "root": ("family", roots.numpy()),
        },
        {"what": list(SHARES), "dictionary": list(tree.names)},
    )
    others = [one.name for one in bases if one.provenance.model_hash not in ("", hashed)]
    notes = [f"Trained on another model than {model.name}: {', '.join(others)}."] if others else []
    return Result.of(card, dataset, config, Provenance(model.name, hashed), recorder.cost(), notes)


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
    return _matched(_cosines(one, other), _cosines(*random), close, near)


def match_codes(
    one: SparseCodes, other: SparseCodes, close: float = CLOSE, near: float = NEAR, seed: int = 0
) -> Match:
    """Match units by the correlation of their codes on the same rows; by luck: with the rows of one shuffled."""
    if one.rows != other.rows:
        raise InputError(f"codes must be of the same rows; got {one.rows} and {other.rows}")
    first, second = one.dense(), other.dense()
    order = torch.randperm(one.rows, generator=torch.Generator().manual_seed(seed))
    return _matched(_correlations(first, second), _correlations(first, second[order]), close, near)


def _matched(
    likeness: Float[Tensor, "unit other"], lucky: Float[Tensor, "unit other"], close: float, near: float
) -> Match:
    nearest, parent = likeness.max(0)
    nearest_child, child = likeness.max(1)
    parent = torch.where(nearest >= near, parent, -1)
    child = torch.where(nearest_child >= near, child, -1)
    by_luck = _recurring(_partners(lucky, close), lucky), _mean_max(lucky)
    return Match(likeness, _partners(likeness, close), parent, child, *by_luck, close, near)


def _recurring(partner: Int[Tensor, " unit"], likeness: Float[Tensor, "unit other"]) -> float:
    return float((partner >= 0).sum()) / min(likeness.shape)


def _mean_max(likeness: Float[Tensor, "unit other"]) -> float:
    return float(likeness.amax(1 if likeness.shape[0] <= likeness.shape[1] else 0).mean())


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


def _table(
    names: Sequence[str],
    widths: Sequence[int],
    shares: Sequence[Sequence[float]],
    close: float,
    near: float,
    notes: tuple[str, ...] = (),
) -> Table:
    told = [f"{name} ({width})" for name, width in zip(names, widths, strict=True)]
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (" → ".join(pair), *some) for pair, some in zip(pairwise(told), shares, strict=True)
    )
    columns = (
        "dictionaries",
        "recurring",
        "by luck",
        "mean max",
        "by luck",
        "split",
        "merged",
        "vanished",
        "new",
    )
    caption = (
        f"recurring: share that is each other's nearest, at least {close:g} alike; mean max: likeness of the nearest, "
        "mean over the smaller's units; by luck: the same of what cannot be alike, such as random directions; split, "
        f"vanished: share with several children, with none; a child is at least {near:g} alike; merged, new: share of "
        "the next one's units that are nearest to several, to none"
    )
    return Table("units from one dictionary to the next", columns, rows, caption, notes)


def _families(
    names: Sequence[str], steps: Sequence[tuple[np.ndarray, np.ndarray]], roots: Sequence[int]
) -> Graph:
    """steps: from each dictionary to the next, the parent of each unit and how alike they are."""
    nodes = [Node(f"0.{unit}", f"u{unit}", 0.0, kind=names[0]) for unit in roots]
    arcs, family = [], np.array(roots)
    for level, (parent, likeness) in enumerate(steps):
        mine = np.flatnonzero(np.isin(parent, family))
        for unit in mine.tolist():
            nodes.append(Node(f"{level + 1}.{unit}", f"u{unit}", level + 1.0, kind=names[level + 1]))
            ends = f"{level}.{parent[unit]}", f"{level + 1}.{unit}"
            arcs.append(Arc(*ends, float(likeness[unit])))
        family = mine
    caption = (
        f"{len(roots)} units of the first dictionary; from below to above their children in the next one; lines: "
        "likeness of a unit with its child"
    )
    return Graph("families of units", tuple(nodes), tuple(arcs), "likeness", caption)
