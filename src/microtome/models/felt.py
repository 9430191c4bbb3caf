"""What of a variant can change anything? The rows and columns where some value put in is not what stands there anyway.

Two prompts of a pair are often one up to the word that differs. Where everything put in equals the base run's own
values, nothing changes, there and in what follows; so

1. a row on which all values are the base's own is left out: its answer is the base's, exactly;
2. an edit of all columns becomes one of the columns from the first on at which anything differs, where the model looks
   back only and the positions of those columns have the same names in all rows.

Only `Set` says what it puts in before it is run: a variant with any other edit stays as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from microtome.core.edits import Edit, Set
from microtome.core.site import Site
from microtome.models import select
from microtome.models.batch import Batch
from microtome.models.sweep import Variant


def felt(variant: Variant, base: Mapping[Site, Tensor], batch: Batch, *, causal: bool) -> Variant:
    """The variant on the rows and columns where it can change anything.

    base: values of whole sites in the very run that the variant is a variant of; one without edits of its own.
    """
    rows = range(batch.rows) if variant.rows is None else variant.rows
    changed = torch.zeros(batch.rows, batch.end, dtype=torch.bool)
    for edit in variant.edits:
        by_position = edit.site.axes[1:2] == ("position",) and not edit.site.stack
        if not isinstance(edit, Set) or not by_position or edit.site.whole not in base:
            return variant
        changed |= _changed(edit, base[edit.site.whole], batch)
    active = tuple(row for row in rows if bool(changed[row].any()))
    if not active or not causal:
        return Variant(variant.edits, active)
    first = int(changed[list(active)].any(dim=0).int().argmax())
    positions = _positions(batch, active, first)
    if not first or positions is None:
        return Variant(variant.edits, active)
    return Variant(tuple(_from(edit, first, positions, batch) for edit in variant.edits), active)


def _changed(edit: Set, whole: Tensor, batch: Batch) -> Bool[Tensor, "row column"]:
    """Where an edit puts in what is not there already."""
    held = list(range(batch.rows)) if edit.rows is None else list(edit.rows)
    own = select.read(edit.site, whole[held], batch.select(held))
    differs = (own != edit.apply(own)).flatten(2).any(dim=2).cpu()
    found = torch.zeros(batch.rows, batch.end, dtype=torch.bool)
    if edit.site.positions is None:
        found[held] = differs
        return found & batch.real(found.device)
    columns = torch.tensor(batch.columns(edit.site.positions, held))
    found[torch.tensor(held)[:, None], columns] = differs
    return found


def _positions(batch: Batch, rows: Sequence[int], first: int) -> tuple[int, ...] | None:
    """The positions of the columns from the first on, where they have the same names in these rows."""
    if batch.first is None or batch.length is None:
        return tuple(range(first, batch.end))
    count = batch.end - first
    ends_together = all(batch.first[row] + batch.length[row] == batch.end for row in rows)
    if not ends_together or min(batch.length[row] for row in rows) < count:
        return None
    return tuple(range(-count, 0))


def _from(edit: Edit, first: int, positions: tuple[int, ...], batch: Batch) -> Edit:
    assert isinstance(edit, Set)
    if edit.site.positions is not None:
        return edit
    value = edit.value
    # Values may lack the first axes, or have one for all columns.
    axis = value.dim() - len(edit.site.axes) + 1
    if axis >= 0 and value.shape[axis] > 1:
        value = value.narrow(axis, first, batch.end - first)
    return replace(edit, site=edit.site.at(*positions), value=value)
