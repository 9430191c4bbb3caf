"""How should many variants share passes? Lanes, where each enters, and which climb together.

A lane is one variant on one row. It enters at the first layer and column that its edits change. Lanes of one climb
share their first column, the smallest of theirs: fewer climbs mean fewer and larger matrix products, at the price of
columns that need not have been computed. Adjacent columns are merged while that is cheaper.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from microtome.core.edits import Edit
from microtome.core.errors import EditError, InputError
from microtome.models.anatomy import Anatomy
from microtome.models.batch import Batch

_FROM_THE_START = {"embed", "pos_embed", "path", "final_norm_scale", "logits"}
_KEYS_AND_VALUES = {"k", "v", "k_proj", "v_proj"}
_SECONDS_A_CALL = 8e-4
_FLOPS_A_SECOND = 4e10
_LEAST_OVERHEAD = 16.0


@dataclass(frozen=True)
class Lane:
    """One variant on one row.

    entry: the block it enters at (`n_layers`: after the last), or `None` if it must be run from the start.
    column: the first column it changes.
    """

    variant: int
    row: int
    edits: tuple[Edit, ...]
    entry: int | None
    column: int


@dataclass(frozen=True)
class Climb:
    """Lanes that climb together from one column, in the order of their entries."""

    start: int
    lanes: tuple[Lane, ...]


def lanes_of(
    anatomy: Anatomy | None,
    batch: Batch,
    variants: Sequence[tuple[Sequence[Edit], Sequence[int] | None]],
    base_edits: Sequence[Edit],
) -> list[Lane]:
    """Every lane of the variants (edits, rows). Raises `InputError` and `EditError` for rows out of range."""
    lanes = []
    for number, (edits, chosen) in enumerate(variants):
        rows = range(batch.rows) if chosen is None else chosen
        if any(not 0 <= row < batch.rows for row in rows):
            raise InputError(
                f"variant {number} names rows {list(rows)}; the base has rows 0 … {batch.rows - 1}"
            )
        for edit in edits:
            if edit.rows is not None and any(not 0 <= row < batch.rows for row in edit.rows):
                raise EditError(f"{edit!r}: the base has rows 0 … {batch.rows - 1}")
        entries: dict[tuple[int, ...], int | None] = {}
        for row in rows:
            mine = tuple(edit for edit in edits if edit.rows is None or row in edit.rows)
            which = tuple(map(id, mine))
            if which not in entries:
                entries[which] = _entry(anatomy, mine, base_edits)
            entry = entries[which]
            column = 0 if entry is None else _column(anatomy, batch, row, mine, entry, base_edits)
            lanes.append(Lane(number, row, mine, entry, column))
    return lanes


def _entry(anatomy: Anatomy | None, edits: Sequence[Edit], base_edits: Sequence[Edit]) -> int | None:
    """Early enough for all edits and what they need to see; the same holds of base edits that are made again."""
    if anatomy is None or any(e.site.part in _FROM_THE_START or e.site.stack != anatomy.stack for e in edits):
        return None
    seeing = [edit for edit in base_edits if edit.sources]
    if any(site.layer is None for edit in (*edits, *seeing) for site in (edit.site, *edit.sources)):
        return None
    entry = min((_first_layer(edit) for edit in edits), default=len(anatomy.blocks))
    while again := [
        _first_layer(edit) for edit in seeing if _first_layer(edit) < entry and not _is_done(edit, entry)
    ]:
        entry = min(again)
    return entry


def _first_layer(edit: Edit) -> int:
    """The first block that an edit, or what it needs to see, takes part in."""
    return min((source.layer or 0 for source in edit.sources), default=entry_of(edit))


def entry_of(edit: Edit) -> int:
    """The block at which an edit is felt first: an edit of a block's output is felt by the next."""
    assert edit.site.layer is not None
    return edit.site.layer + (edit.site.part == "resid_post")


def _column(
    anatomy: Anatomy | None,
    batch: Batch,
    row: int,
    edits: Sequence[Edit],
    entry: int,
    base_edits: Sequence[Edit],
) -> int:
    """The first column that changes. Base edits above the entry are made again, so they must fit in whole."""
    if anatomy is None or not anatomy.family.causal:
        return 0
    above = [e for e in base_edits if e.site.layer is None or entry_of(e) >= entry]
    if any(e.site.positions is None or e.site.part in _KEYS_AND_VALUES for e in above):
        return 0
    first = batch.end
    for edit in edits:
        if edit.site.positions is None:
            return 0
        first = min(first, *batch.columns(edit.site.positions, [row])[0])
    for edit in above:
        if edit.site.positions is not None and (edit.rows is None or row in edit.rows):
            columns = batch.columns(edit.site.positions, [row])[0]
            if len(columns) > 1:
                first = min(first, *columns)
    return first


def climbs(lanes: Sequence[Lane], anatomy: Anatomy, batch: Batch, budget_bytes: int) -> list[Climb]:
    """Group lanes into climbs: by first column, merged while cheaper, split to fit the budget."""
    by_column: dict[int, list[Lane]] = {}
    for lane in lanes:
        by_column.setdefault(min(lane.column, batch.end - 1), []).append(lane)
    overhead = max(_LEAST_OVERHEAD, _SECONDS_A_CALL * _FLOPS_A_SECOND / max(1.0, flops_of_column(anatomy)))
    groups: list[Climb] = []
    for start in sorted(by_column):
        group = Climb(start, tuple(by_column[start]))
        while groups:
            merged = Climb(groups[-1].start, groups[-1].lanes + group.lanes)
            apart = _price(groups[-1], anatomy, batch, overhead) + _price(group, anatomy, batch, overhead)
            if _price(merged, anatomy, batch, overhead) > apart:
                break
            group = merged
            groups.pop()
        groups.append(group)
    found = []
    for group in groups:
        room = max(1, budget_bytes // bytes_of_lane(anatomy, batch, group.start))
        ordered = sorted(group.lanes, key=lambda lane: (lane.entry, lane.variant, lane.row))
        found += [Climb(group.start, tuple(ordered[i : i + room])) for i in range(0, len(ordered), room)]
    return found


def _price(climb: Climb, anatomy: Anatomy, batch: Batch, overhead: float) -> float:
    """Columns computed, calls counted as `overhead` columns each."""
    entries = [lane.entry or 0 for lane in climb.lanes]
    blocks = len(anatomy.blocks)
    computed = sum(blocks - entry for entry in entries) * (batch.end - climb.start)
    return computed + overhead * (blocks - min(entries))


def flops_of_column(anatomy: Anatomy) -> float:
    """Floating-point operations of one block on one column, attention over other columns left out."""
    return 2.0 * sum(parameter.numel() for parameter in anatomy.blocks[0].parameters())


def bytes_of_lane(anatomy: Anatomy, batch: Batch, start: int) -> int:
    """A generous estimate of the memory that one lane takes in a block, in float32."""
    sizes = anatomy.sizes
    columns = batch.end - start
    stream = columns * (12 * sizes["d_model"] + 4 * sizes["d_mlp"])
    attention = (
        2 * columns * batch.end * sizes["n_heads"] + 4 * batch.end * sizes["n_kv_heads"] * sizes["d_head"]
    )
    return 4 * (stream + attention)


def by_variant(lanes: Sequence[Lane]) -> list[list[int]]:
    """Places of lanes that have the same edits: those of one variant, entering together."""
    groups: dict[tuple[int, int | None, tuple[int, ...]], list[int]] = {}
    for place, lane in enumerate(lanes):
        groups.setdefault((lane.variant, lane.entry, tuple(map(id, lane.edits))), []).append(place)
    return list(groups.values())


def is_at_entry(edit: Edit, lane: Lane) -> bool:
    """Whether an edit changes the stream with which the lane enters, rather than something inside the climb."""
    return edit.site.part == "resid_post" and entry_of(edit) == lane.entry


def is_below(edit: Edit, lane: Lane) -> bool:
    """Whether a base edit is already in the stream with which the lane enters."""
    return _is_done(edit, lane.entry or 0)


def _is_done(edit: Edit, entry: int) -> bool:
    first = -1 if edit.site.layer is None else entry_of(edit)
    return first < entry or (edit.site.part == "resid_post" and first == entry)
