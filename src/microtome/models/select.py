"""Take the part of a value that a site selects, and put an edited part back.

Values come in canonical layout (`PARTS[...].axes`). Attention scores and patterns are turned to `[batch, query,
head, key]` first, so that the position is always the second axis and the head the third.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from microtome.core.edits import Edit
from microtome.core.errors import EditError, SiteError
from microtome.core.site import Site
from microtome.models.batch import Batch

Index = tuple[Tensor | slice, ...]


def _turned(site: Site, value: Tensor) -> Tensor:
    return value.transpose(1, 2) if site.part in ("scores", "pattern") else value


def _tail(site: Site, value: Tensor, first_axis: int) -> Tensor:
    """Select heads and units of a value whose position axis is already done. Keeps every axis."""
    if site.heads is not None:
        count = value.shape[first_axis]
        _in_range(site, "head", site.heads, count)
        value = value.index_select(
            first_axis, torch.tensor([h % count for h in site.heads], device=value.device)
        )
    if site.units is not None:
        count = value.shape[-1]
        _in_range(site, "unit", site.units, count)
        value = value.index_select(-1, torch.tensor([u % count for u in site.units], device=value.device))
    return value


def _in_range(site: Site, what: str, chosen: Sequence[int], count: int) -> None:
    for index in chosen:
        if not -count <= index < count:
            raise SiteError(f"{site}: {what} {index} is out of range; there are {count} (0 … {count - 1})")


def read(site: Site, value: Tensor, batch: Batch) -> Tensor:
    """What the site selects of a canonical value; selected axes are kept. Raises `SiteError` out of range."""
    if site.is_whole:
        return value
    turned = _turned(site, value)
    if site.positions is not None:
        offset = batch.end - turned.shape[1]
        rows = range(turned.shape[0])
        columns = batch.columns(site.positions, rows)
        if any(c < offset or c >= batch.end for row in columns for c in row):
            raise SiteError(f"{site}: this pass holds columns {offset} … {batch.end - 1} only")
        if all(row == columns[0] for row in columns):
            turned = turned.index_select(
                1, torch.tensor([c - offset for c in columns[0]], device=value.device)
            )
        else:
            column = torch.tensor(columns, device=value.device) - offset
            row = torch.arange(len(columns), device=value.device)[:, None]
            turned = turned[row, column]
    return _turned(site, _tail(site, turned, 2))


def write(edit: Edit, value: Tensor, batch: Batch) -> Tensor:
    """The canonical value after the edit, a new tensor; the given one is left alone.

    Rows and columns that this pass does not hold are skipped: they were done before, or come later.
    """
    site = edit.site
    turned = _turned(site, value)
    rows = list(range(turned.shape[0])) if edit.rows is None else list(edit.rows)
    if edit.rows is not None and any(not 0 <= r < turned.shape[0] for r in rows):
        raise EditError(f"{edit!r}: rows go from 0 to {turned.shape[0] - 1} in this batch")
    if site.positions is not None:
        held = _held_rows(site, rows, turned, batch)
        if not held:
            return value
        if len(held) < len(rows):
            edit, rows = edit.moved(held, held), held
    index = _index(site, rows, edit.rows is None, turned, batch)
    chosen = turned[index]
    part = _turned(site, _tail(site, chosen, 2))
    new = edit.apply(part)
    if new.shape != part.shape:
        raise EditError(
            f"{edit!r} returned shape {list(new.shape)} for a selection of shape {list(part.shape)}; "
            "an edit must keep the shape"
        )
    new = _turned(site, new.to(value.dtype))
    if site.heads is not None or site.units is not None:
        new = _put_tail(site, chosen, new)
    if all(isinstance(i, slice) and i == slice(None) for i in index):
        return _turned(site, new)
    result = turned.clone()
    result[index] = new
    return _turned(site, result)


def _held_rows(site: Site, rows: list[int], turned: Tensor, batch: Batch) -> list[int]:
    """The rows whose selected columns this pass holds; an error where it holds only some of a row's."""
    assert site.positions is not None
    offset = batch.end - turned.shape[1]
    held = []
    for row, columns in zip(rows, batch.columns(site.positions, rows), strict=True):
        inside = [offset <= column < batch.end for column in columns]
        if any(inside) and not all(inside):
            raise EditError(
                f"{site} selects positions of which this pass holds only some; give one edit for each position"
            )
        if any(inside):
            held.append(row)
    return held


def _index(site: Site, rows: list[int], all_rows: bool, turned: Tensor, batch: Batch) -> Index:
    """Index of the selected rows and columns, all of which this pass holds."""
    device = turned.device
    if site.positions is None:
        if all_rows:
            return (slice(None), slice(None))
        if rows == list(range(rows[0], rows[0] + len(rows))):
            return (slice(rows[0], rows[0] + len(rows)), slice(None))
        return (torch.tensor(rows, device=device), slice(None))
    columns = torch.tensor(batch.columns(site.positions, rows), device=device)
    return (torch.tensor(rows, device=device)[:, None], columns - (batch.end - turned.shape[1]))


def _put_tail(site: Site, chosen: Tensor, new: Tensor) -> Tensor:
    """Put edited heads and units back into all heads and units."""
    result = chosen.clone()
    heads = slice(None) if site.heads is None else torch.tensor(site.heads, device=chosen.device)
    units = slice(None) if site.units is None else torch.tensor(site.units, device=chosen.device)
    if site.heads is not None and site.units is not None:
        assert isinstance(heads, Tensor)
        block = result[:, :, heads]
        block[..., units] = new
        result[:, :, heads] = block
    elif site.heads is not None:
        result[:, :, heads] = new
    else:
        result[..., units] = new
    return result
