"""How can a shape be read where no script runs? As plain HTML tables of its numbers.

Nothing is left out up to 4096 cells. A larger grid, strip or curve gives its strongest cells (or evenly spaced
columns of a curve; the first and last frame of points) and says how many there are; a table is always whole.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from microtome.core.shapes import Cell, Curve, Graph, Grid, Points, Shape, Strip, Table
from microtome.view.lettering import cell_text, numeral, visible
from microtome.view.scale import Scale
from microtome.view.source import panelled

CELLS = 4096
STRONGEST = 200


def plain(shape: Shape) -> str:
    """The HTML tables of a checked shape, every text escaped."""
    match shape:
        case Grid():
            return _grid(shape)
        case Strip():
            return _strip(shape)
        case Curve():
            return _curve(shape)
        case Graph():
            nodes = [(n.label, n.kind, n.layer, n.weight, n.note) for n in shape.nodes]
            label = {node.id: node.label for node in shape.nodes}
            arcs = sorted(shape.arcs, key=lambda arc: -abs(arc.weight))
            named = [(label[arc.source], label[arc.target], arc.weight, arc.kind, arc.note) for arc in arcs]
            weight = shape.unit or "weight"
            return _table(("node", "kind", "layer", weight, "note"), nodes) + _table(
                ("from", "to", weight, "kind", "note"), named
            )
        case Table():
            return _table(shape.columns, shape.rows)
        case Points():
            return _points(shape)


def letters(text: str) -> str:
    """Text made visible and safe between tags and in quoted attributes."""
    return escape(visible(text))


def _grid(grid: Grid) -> str:
    values = panelled(grid)
    scale = Scale.over(values, grid.diverging)
    if values.size > CELLS:
        axes = (*(("panel",) if grid.panels else ()), grid.row_axis, grid.column_axis)
        names = (*((grid.panels,) if grid.panels else ()), grid.row_labels, grid.column_labels)
        return _strongest(values if grid.panels else values[0], axes, names, grid.unit or "value")
    heads = "".join(f'<th scope="col">{letters(label)}</th>' for label in grid.column_labels)
    corner = f"<th>{letters(grid.row_axis)} ╲ {letters(grid.column_axis)}</th>"
    tables = []
    for panel, page in enumerate(values):
        rows = (
            f'<tr><th scope="row">{letters(label)}</th>{"".join(_shade(float(v), scale) for v in row)}</tr>'
            for label, row in zip(grid.row_labels, page, strict=True)
        )
        name = f"<caption>{letters(grid.panels[panel])}</caption>" if grid.panels else ""
        tables.append(
            f"<table>{name}<thead><tr>{corner}{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        )
    return "".join(tables)


def _strip(strip: Strip) -> str:
    if strip.values.size > CELLS:
        places = tuple(f"{i} {token}" for i, token in enumerate(strip.tokens))
        return _strongest(strip.values, ("series", "token"), (strip.series, places), strip.unit or "value")
    scale = Scale.over(strip.values, bool((strip.values < 0).any()))
    heads = "".join(f'<th scope="col">{letters(name)}</th>' for name in ("token", *strip.series))
    rows = (
        f'<tr><th scope="row">{letters(token)}</th>{"".join(_shade(float(v), scale) for v in column)}</tr>'
        for token, column in zip(strip.tokens, strip.values.T, strict=True)
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _curve(curve: Curve) -> str:
    most = max(1, CELLS // max(1, len(curve.series)))
    places = np.unique(np.linspace(0, len(curve.x) - 1, min(most, len(curve.x))).round().astype(int))
    rows = []
    for i in places:
        cells = [numeral(float(y)) for y in curve.y[:, i]]
        if curve.band is not None:
            ends = (f" ({numeral(float(low))} to {numeral(float(high))})" for low, high in curve.band[:, i])
            cells = [cell + end for cell, end in zip(cells, ends, strict=True)]
        rows.append((numeral(float(curve.x[i]), 6), *cells))
    left_out = len(curve.x) - len(places)
    note = f"<p>{left_out} of {len(curve.x)} points are not listed.</p>" if left_out else ""
    return note + _table((curve.x_axis, *curve.series), rows)


def _points(points: Points) -> str:
    frames = list(range(len(points.frames)))
    shown = frames if points.values.size <= CELLS else sorted({frames[0], frames[-1]})
    left_out = len(frames) - len(shown)
    note = f"<p>{left_out} of {len(frames)} frames are not listed.</p>" if left_out else ""
    columns = ("point", *(f"{plane} {axis}" for plane in points.planes for axis in "xy"))
    tables = []
    for frame in shown:
        rows: list[tuple[Cell, ...]] = [
            (label, *points.values[frame, :, i].ravel().tolist()) for i, label in enumerate(points.labels)
        ]
        name = f"<caption>{letters(points.frame_axis)} {letters(points.frames[frame])}</caption>"
        tables.append(_table(columns, rows).replace("<table>", f"<table>{name}", 1))
    return note + ("".join(tables) or _table(columns, []))


def _strongest(values: np.ndarray, axes: Sequence[str], labels: Sequence[Sequence[str]], unit: str) -> str:
    """The cells of greatest magnitude, with where they stand."""
    strength = np.where(np.isnan(values), -1.0, np.abs(values)).ravel()
    order = np.argsort(-strength, kind="stable")[:STRONGEST]
    rows: list[tuple[Cell, ...]] = []
    for flat in order[strength[order] >= 0]:
        place = np.unravel_index(flat, values.shape)
        rows.append((*(names[int(i)] for names, i in zip(labels, place, strict=True)), float(values[place])))
    note = f"<p>The {len(rows)} strongest of {values.size} cells.</p>"
    return note + _table((*axes, unit), rows)


def _shade(value: float, scale: Scale) -> str:
    """A cell shaded by its share of the greatest magnitude, so that a heat map needs no script."""
    greatest = max(scale.high, -scale.low)
    share = 0 if math.isnan(value) else round(100 * min(1.0, abs(value) / greatest))
    text = numeral(value).replace("-", "−")
    return (
        f'<td class="{"n" if value < 0 else "p"}" style="--v:{share}%">{text}</td>'
        if share
        else f"<td>{text}</td>"
    )


def _table(columns: Iterable[str], rows: Iterable[Sequence[Cell]]) -> str:
    heads = "".join(f'<th scope="col">{letters(column)}</th>' for column in columns)
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _cell(cell: Cell) -> str:
    text = escape(cell_text(cell))
    if isinstance(cell, int | float):
        return f'<td class="number">{text.replace("-", "−")}</td>'
    return f"<td>{text}</td>"
