"""How does a shape look in a terminal? `terminal(shape)` is a rich renderable, fitted to the width at hand.

Every drawing says in letters and numbers what it says in colour, so it can be piped and searched. A grid
prints its numbers where they fit, else a digit a cell (tenths of the greatest magnitude; pooled where even that
is too wide) and the strongest cells in full.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.style import Style
from rich.table import Table as RichTable
from rich.text import Text

from microtome.core.shapes import Curve, Graph, Grid, Points, Shape, Strip, Table
from microtome.view.lettering import cell_text, numeral, visible
from microtome.view.scale import Scale, ink
from microtome.view.source import check, columns, is_logarithmic, panelled

ROWS = 60
PANELS = 4
STRONGEST = 5
ARCS = 30
LABEL = 18
HEIGHT = 15
MARKERS = "●▲■◆○△□◇"
COLOURS = ("blue", "yellow", "green", "magenta", "cyan", "red", "bright_black", "white")


def terminal(shape: Shape) -> RenderableType:
    """A rich renderable of any shape. Raises `InputError` when its parts do not fit together."""
    check(shape)
    match shape:
        case Grid():
            body: RenderableType = _GridView(shape)
        case Strip():
            body = _StripView(shape)
        case Curve():
            body = _CurveView(shape)
        case Graph():
            body = _graph(shape)
        case Table():
            body = _table(shape)
        case Points():
            body = _points(shape)
    parts: list[RenderableType] = [Text(visible(shape.title), style="bold"), body]
    if shape.caption:
        parts.append(Text(visible(shape.caption), style="dim italic"))
    return Group(*parts)


@dataclass(frozen=True)
class _GridView:
    grid: Grid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        grid, values = self.grid, panelled(self.grid)
        if not values.size:
            yield Text("no cells", style="dim")
            return
        scale = Scale.over(values, grid.diverging)
        strength = _strength(values)
        shown = sorted(np.argsort(-strength.max(axis=(1, 2)), kind="stable")[:PANELS].tolist())
        left = max(cell_len(_cut(label)) for label in [*grid.row_labels, grid.row_axis])
        room = max(8, options.max_width - left - 1)
        width, numbers = 2, False
        if 2 * values.shape[2] <= room and values.shape[1] <= ROWS:
            written = 1 + max(len(_short(float(value), scale)) for value in values[shown].ravel())
            numbers = written * values.shape[2] <= room
        if numbers:
            width, rows, columns = written, np.arange(values.shape[1]), np.arange(values.shape[2])
        else:
            rows, columns = _starts(values.shape[1], ROWS), _starts(values.shape[2], room // width)
        for panel in shown:
            if grid.panels:
                yield Text(visible(grid.panels[panel]), style="underline")
            yield self._header(columns, left, width)
            for row, line in zip(rows, _pooled(values[panel], rows, columns), strict=True):
                text = Text(_cut(grid.row_labels[row]).rjust(left))
                for value in line.tolist():
                    written_cell = _short(value, scale) if numbers else _digit(value, scale)
                    text.append(written_cell.rjust(width), _style(value, scale))
                yield text
        yield from self._legend(scale, numbers, values.shape, (len(rows), len(columns)))
        if not numbers:
            yield from self._strongest(values, strength)
        if len(shown) < len(values):
            yield Text(f"{len(values) - len(shown)} weaker panels of {len(values)} not shown", style="dim")

    def _header(self, columns: NDArray[np.intp], left: int, width: int) -> Text:
        """Labels above columns of five or more cells, else the column's number above every third one or so."""
        labels = [visible(self.grid.column_labels[column]).strip() for column in columns]
        if width >= 5 or all(cell_len(label) < width for label in labels):
            line = "".join(_cut(label, width - 1).rjust(width) for label in labels)
        else:
            step = -(-6 // width)
            line = " " * (width - 1) + "".join(str(column).ljust(width * step) for column in columns[::step])
        return Text(_cut(self.grid.row_axis).rjust(left) + line.rstrip(), style="dim")

    def _legend(
        self, scale: Scale, numbers: bool, size: tuple[int, ...], cells: tuple[int, int]
    ) -> Iterator[Text]:
        unit = f" {visible(self.grid.unit)}" if self.grid.unit else ""
        span = f"from {numeral(scale.low)} to {numeral(scale.high)}{unit}"
        span += "; blank: not measured" if np.isnan(self.grid.values).any() else ""
        yield Text(
            f"{visible(self.grid.row_axis)} down, {visible(self.grid.column_axis)} across, {span}", "dim"
        )
        if not numbers:
            text = f"a digit says tenths of {numeral(max(scale.high, -scale.low))}"
            if cells != size[1:]:
                text += (
                    f"; a cell is the strongest of about {size[1] / cells[0]:.2g} × {size[2] / cells[1]:.2g}"
                )
            yield Text(f"{text}. The strongest cells:", style="dim")

    def _strongest(self, values: NDArray[np.floating], strength: NDArray[np.floating]) -> Iterator[Text]:
        grid = self.grid
        for flat in np.argsort(-strength, axis=None, kind="stable")[:STRONGEST].tolist():
            panel, row, column = (int(i) for i in np.unravel_index(flat, values.shape))
            if strength[panel, row, column] < 0:
                break
            place = [visible(grid.panels[panel])] if grid.panels else []
            place.append(f"{visible(grid.row_axis)} {_named(row, grid.row_labels[row])}")
            place.append(f"{visible(grid.column_axis)} {_named(column, grid.column_labels[column])}")
            yield Text(f"{numeral(float(values[panel, row, column])):>9}  {', '.join(place)}")


@dataclass(frozen=True)
class _StripView:
    strip: Strip

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        strip = self.strip
        scale = Scale.over(strip.values, bool((strip.values < 0).any()))
        names = [_cut(name) for name in strip.series] if len(strip.series) > 1 else [""] * len(strip.series)
        left = max(map(cell_len, names), default=0) + (1 if any(names) else 0)
        tokens = [visible(token) for token in strip.tokens]
        written = [[numeral(float(v)) for v in row] for row in strip.values]
        widths = [
            max([cell_len(token), *(len(row[i]) for row in written)]) + 1 for i, token in enumerate(tokens)
        ]
        for part in _wrapped(widths, max(8, options.max_width - left)):
            line = Text(" " * left, style="bold")
            for i in part:
                first = float(strip.values[0, i]) if len(strip.series) else float("nan")
                line.append(tokens[i] + " " * (widths[i] - 1 - cell_len(tokens[i])), _style(first, scale))
                line.append(" ")
            yield line
            for name, row in zip(names, written, strict=True):
                text = name + " " * (left - cell_len(name)) + "".join(row[i].ljust(widths[i]) for i in part)
                yield Text(text.rstrip(), style="dim")
        if not tokens:
            yield Text("no tokens", style="dim")
        name = visible(strip.series[0]) if strip.series else "value"
        unit = f" {visible(strip.unit)}" if strip.unit else ""
        yield Text(
            f"coloured by {name}, from {numeral(scale.low)} to {numeral(scale.high)}{unit}", style="dim"
        )


@dataclass(frozen=True)
class _CurveView:
    curve: Curve

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        curve = self.curve
        points = np.isfinite(curve.y) & np.isfinite(curve.x)
        if not points.any():
            yield Text("no points", style="dim")
            return
        logarithmic = is_logarithmic(curve.x)
        x = np.broadcast_to(np.log(curve.x) if logarithmic else curve.x, curve.y.shape)
        low, high = float(curve.y[points].min()), float(curve.y[points].max())
        first, last = float(x[points].min()), float(x[points].max())
        ticks = {0: numeral(high), HEIGHT - 1: numeral(low), HEIGHT // 2: numeral((low + high) / 2)}
        left = max(map(len, ticks.values()))
        width = max(16, min(options.max_width, 100) - left - 3)
        canvas = [[(" ", "")] * width for _ in range(HEIGHT)]
        for line in range(len(curve.series)):
            order = np.argsort(x[line][points[line]], kind="stable")
            across = _spread(x[line][points[line]][order], first, last, width)
            up = _spread(curve.y[line][points[line]][order], low, high, HEIGHT)
            for column, row in _joined(across, up):
                if canvas[HEIGHT - 1 - row][column][0] == " ":
                    canvas[HEIGHT - 1 - row][column] = ("·", COLOURS[line % len(COLOURS)])
            for column, row in zip(across, up, strict=True):
                canvas[HEIGHT - 1 - row][column] = (
                    MARKERS[line % len(MARKERS)],
                    COLOURS[line % len(COLOURS)],
                )
        yield Text(f"{' ' * left} {visible(curve.y_axis)}", style="dim")
        for place, cells in enumerate(canvas):
            text = Text(f"{ticks.get(place, ''):>{left}} {'┤' if place in ticks else '│'}", style="dim")
            for glyph, colour in cells:
                text.append(glyph, Style(color=colour or None, dim=False))
            text.rstrip()
            yield text
        yield Text(f"{' ' * left} └{'─' * width}", style="dim")
        ends = [numeral(math.exp(end) if logarithmic else end) for end in (first, last)]
        axis = visible(curve.x_axis) + (" (logarithmic)" if logarithmic else "")
        between = axis.center(max(len(axis) + 2, width - sum(map(len, ends))))
        yield Text(f"{' ' * left}  {ends[0]}{between}{ends[1]}", style="dim")
        for line, name in enumerate(curve.series):
            y = curve.y[line][points[line]]
            if not y.size:
                yield Text(f"{MARKERS[line % len(MARKERS)]} {visible(name)}: no points")
                continue
            yield Text.assemble(
                (MARKERS[line % len(MARKERS)], COLOURS[line % len(COLOURS)]),
                f" {visible(name)}: first {numeral(float(y[0]))}, last {numeral(float(y[-1]))}, "
                f"least {numeral(float(y.min()))}, greatest {numeral(float(y.max()))}",
            )


def _points(points: Points) -> RenderableType:
    """Each plane at the last frame."""
    drawn: list[RenderableType] = []
    for plane, name in enumerate(points.planes):
        values = points.values[-1, plane] if len(points.frames) else np.zeros((0, 2))
        known = np.isfinite(values).all(-1)
        if not known.any():
            drawn.append(Text(f"{visible(name)}: no points", style="dim"))
            continue
        most = float(np.abs(values[known]).max())
        across, up = (_spread(values[known, axis], -most, most, size) for axis, size in ((0, 40), (1, 20)))
        canvas = [[" "] * 40 for _ in range(20)]
        for label, column, row in zip(np.array(points.labels)[known], across, up, strict=True):
            for place, letter in enumerate(visible(str(label))[: 40 - column]):
                canvas[19 - row][column + place] = letter
        at = f"{visible(points.frame_axis)} {visible(points.frames[-1])}"
        drawn.append(Text(f"{visible(name)}, {at}, from {numeral(-most)} to {numeral(most)}", style="dim"))
        drawn += [Text("".join(line).rstrip()) for line in canvas]
    return Group(*drawn) if drawn else Text("no planes", style="dim")


def _graph(graph: Graph) -> RenderableType:
    if not graph.nodes:
        return Text("no nodes", style="dim")
    nodes = RichTable("layer", "nodes", box=box.SIMPLE_HEAD, pad_edge=False)
    for layer in sorted({node.layer for node in graph.nodes}, reverse=True):
        here = [node for node in graph.nodes if node.layer == layer]
        labels = [
            visible(node.label) + (f" ({numeral(node.weight)})" if node.weight else "") for node in here
        ]
        nodes.add_row(f"{layer:g}", Text("  ".join(labels)))
    label = {node.id: visible(node.label) for node in graph.nodes}
    scale = Scale.over(np.array([arc.weight for arc in graph.arcs]), diverging=True)
    arcs = RichTable("from", "to", box=box.SIMPLE_HEAD, pad_edge=False)
    arcs.add_column(visible(graph.unit) or "weight", justify="right")
    kinds = any(arc.kind for arc in graph.arcs)
    if kinds:
        arcs.add_column("kind")
    for arc in islice(sorted(graph.arcs, key=lambda arc: -abs(arc.weight)), ARCS):
        weight = Text(numeral(arc.weight), style=_style(arc.weight, scale))
        arcs.add_row(
            Text(label[arc.source]),
            Text(label[arc.target]),
            weight,
            *([Text(visible(arc.kind))] if kinds else []),
        )
    told = f"{len(graph.nodes)} nodes, {len(graph.arcs)} arcs"
    if len(graph.arcs) > ARCS:
        told += f"; the {ARCS} strongest shown"
    return (
        Group(nodes, arcs, Text(told, style="dim")) if graph.arcs else Group(nodes, Text(told, style="dim"))
    )


def _table(table: Table) -> RenderableType:
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, cells in zip(table.columns, columns(table), strict=True):
        numeric = all(isinstance(cell, int | float | None) for cell in cells)
        drawn.add_column(Text(visible(column)), justify="right" if numeric else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(cell_text(cell)) for cell in row))
    notes = [Text(f"· {visible(note)}", style="dim") for note in table.notes]
    return Group(drawn, *([] if table.rows else [Text("no rows", style="dim")]), *notes)


def _cut(label: str, room: int = LABEL) -> str:
    """A label of at most `room` cells."""
    label = visible(label).strip()
    return label if cell_len(label) <= room else set_cell_size(label, room - 1).rstrip() + "…"


def _style(value: float, scale: Scale) -> Style:
    """The ground and ink of a value; none for what is not measured or close to nothing."""
    if np.isnan(value) or abs(scale.place(value) - (0.5 if scale.diverging else 0.0)) < 0.03:
        return Style()
    ground = scale.colour(value, "dark")
    return Style(color="rgb({},{},{})".format(*ink(ground)), bgcolor="rgb({},{},{})".format(*ground))


def _short(value: float, scale: Scale) -> str:
    """A cell's number with as many decimals as give the greatest magnitude two or three digits; `.12` for 0.12."""
    if math.isnan(value):
        return ""
    greatest = max(scale.high, -scale.low)
    if math.isinf(value) or not 1e-4 <= greatest < 1e5:
        return numeral(value, 2)
    text = f"{value:.{max(0, 2 - math.floor(math.log10(greatest) + 0.7))}f}"
    text = text if float(text) else text.lstrip("-")
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def _digit(value: float, scale: Scale) -> str:
    """Sign and tenths of the greatest magnitude; `9` also for the greatest itself, `·` for about zero."""
    if math.isnan(value):
        return ""
    tenths = min(9, round(10 * min(1.0, abs(value) / max(scale.high, -scale.low))))
    return f"{'-' if value < 0 else ''}{tenths}" if tenths else "·"


def _strength(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Magnitudes, and -1 where nothing was measured."""
    return np.where(np.isnan(values), -1.0, np.abs(values))


def _starts(size: int, room: int) -> NDArray[np.intp]:
    """Where at most `room` about equal runs of `size` places begin."""
    return np.unique(np.arange(min(size, room)) * size // min(size, room))


def _pooled(
    values: NDArray[np.floating], rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> NDArray[np.floating]:
    """The value of greatest magnitude in each block `[rows, columns]`."""
    filled = np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=-np.inf)
    greatest = np.maximum.reduceat(np.maximum.reduceat(filled, rows, axis=0), columns, axis=1)
    least = np.minimum.reduceat(np.minimum.reduceat(filled, rows, axis=0), columns, axis=1)
    measured = np.logical_or.reduceat(
        np.logical_or.reduceat(~np.isnan(values), rows, axis=0), columns, axis=1
    )
    return np.where(measured, np.where(greatest >= -least, greatest, least), np.nan)


def _named(place: int, label: str) -> str:
    """A label, with its place where the label is not itself the number."""
    return visible(label) if label.strip() == str(place) else f"{place} {visible(label)!r}"


def _wrapped(widths: list[int], room: int) -> Iterator[range]:
    """Consecutive ranges of places whose widths add up to at most `room`, at least one place each."""
    start = used = 0
    for place, width in enumerate(widths):
        if used + width > room and place > start:
            yield range(start, place)
            start, used = place, 0
        used += width
    if start < len(widths):
        yield range(start, len(widths))


def _spread(values: NDArray[np.floating], low: float, high: float, cells: int) -> list[int]:
    """Values from `low` to `high` as places `0 … cells - 1`."""
    part = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    return [round(place * (cells - 1)) for place in part.tolist()]


def _joined(across: list[int], up: list[int]) -> Iterator[tuple[int, int]]:
    """The cells on the straight lines between successive points."""
    for (c0, r0), (c1, r1) in pairwise(zip(across, up, strict=True)):
        steps = max(abs(c1 - c0), abs(r1 - r0))
        for step in range(1, steps):
            yield round(c0 + (c1 - c0) * step / steps), round(r0 + (r1 - r0) * step / steps)
