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


def _heads(site: Site, value: Tensor) -> Tensor | None:
    """Indices of the selected heads, `None` for all."""
    if site.heads is None:
        return None
    return _indices(site, "head", site.heads, value.shape[2], value.device)


def _units(site: Site, value: Tensor, batch: Batch, rows: Sequence[int]) -> Tensor | None:
    """Indices of the selected units, `None` for all. Keys count real tokens, as positions do."""
    count = value.shape[-1]
    if site.units is None:
        return None
    if site.part not in ("scores", "pattern"):
        return _indices(site, "unit", site.units, count, value.device)
    columns = batch.columns(site.units, rows)
    if any(row != columns[0] for row in columns):
        raise SiteError(
            f"{site}: rows are padded differently, so a key stands in another column of each; read {site.whole} whole, "
            "or give one edit for each row"
        )
    held = [column - (batch.end - count) for column in columns[0]]
    return _indices(site, "key", held, count, value.device)


def _indices(site: Site, what: str, chosen: Sequence[int], count: int, device: torch.device) -> Tensor:
    for index in chosen:
        if not -count <= index < count:
            raise SiteError(f"{site}: {what} {index} is out of range; there are {count} (0 … {count - 1})")
    return torch.tensor([index % count for index in chosen], device=device)


def _tail(value: Tensor, heads: Tensor | None, units: Tensor | None) -> Tensor:
    """Select heads and units. Keeps every axis."""
    value = value if heads is None else value.index_select(2, heads)
    return value if units is None else value.index_select(-1, units)


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
    heads, units = _heads(site, turned), _units(site, turned, batch, range(turned.shape[0]))
    return _turned(site, _tail(turned, heads, units))


def write(edit: Edit, value: Tensor, batch: Batch, sources: Sequence[Tensor] = ()) -> Tensor:
    """The canonical value after the edit, a new tensor; the given one is left alone.

    sources: canonical values at the edit's `sources`.

    Rows and columns that this pass does not hold are skipped: they were done before, or come later.
    """
    site = edit.site
    if edit.rows is not None and not edit.rows:
        return value
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
    heads, units = _heads(site, turned), _units(site, turned, batch, rows)
    part = _turned(site, _tail(chosen, heads, units))
    new = edit.apply_beside(part, [source[index] for source in sources])
    if new.shape != part.shape:
        raise EditError(
            f"{edit!r} returned shape {list(new.shape)} for a selection of shape {list(part.shape)}; "
            "an edit must keep the shape"
        )
    new = _turned(site, new.to(value.dtype))
    if heads is not None or units is not None:
        new = _put_tail(chosen, new, heads, units)
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


def _put_tail(chosen: Tensor, new: Tensor, heads: Tensor | None, units: Tensor | None) -> Tensor:
    """Put edited heads and units back into all heads and units."""
    if units is not None:
        block = chosen if heads is None else chosen.index_select(2, heads)
        new = block.index_copy(-1, units, new)
    return new if heads is None else chosen.index_copy(2, heads, new)
