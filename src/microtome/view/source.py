"""What does a view in the browser receive? A shape as plain JSON, small even when the shape is large.

1. The shape is checked: arrays and labels must agree in size.
2. Each float array becomes `{"shape": […], "data": …}`. Up to 512 values, `data` is a list with seven
   significant digits (null is NaN). Above, each value keeps the upper 24 bits of its float32 (a relative error
   of at most 2^-16, below what a screen shows); the bytes are sorted by significance, deflated and written in
   base64, at most 4 bytes a value. `static/source.js` reads both.
3. The JSON is pure ASCII without `<`, `>` or `&`, so that no token can end the script element that holds it.
"""

import base64
import json
import math
import zlib
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.core.errors import InputError
from microtome.core.shapes import Cell, Curve, Graph, Grid, Points, Shape, Strip, Table

LISTED = 512
_CELLS = (str, int, float, bool, type(None))


def kind(shape: Shape) -> str:
    """The name of the view that draws `shape`: grid, strip, curve, graph, table or points."""
    return type(shape).__name__.lower()


def source(shape: Shape) -> dict[str, Any]:
    """`shape` as plain JSON values. Raises `InputError` when its parts do not fit together."""
    check(shape)
    match shape:
        case Grid():
            return {**_fields(shape), "values": array(panelled(shape))}
        case Strip() | Points():
            return {**_fields(shape), "values": array(shape.values)}
        case Curve():
            band = None if shape.band is None else array(shape.band)
            drawn = {"x": array(shape.x), "y": array(shape.y), "band": band}
            return {**_fields(shape), **drawn, "logarithmic": is_logarithmic(shape.x)}
        case Graph():
            return asdict(shape)
        case Table():
            exact = [not any(isinstance(cell, float) for cell in cells) for cells in columns(shape)]
            return {
                **_fields(shape),
                "rows": [[_cell(cell) for cell in row] for row in shape.rows],
                "exact": exact,
            }


def to_json(value: Any) -> str:
    """Compact JSON that may stand inside any element or script."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def panelled(grid: Grid) -> NDArray[np.floating]:
    """A grid's values as `[panel, row, column]`, one panel where it has none."""
    return grid.values if grid.values.ndim == 3 else grid.values[None]


def columns(table: Table) -> list[tuple[Cell, ...]]:
    """A table's cells column by column."""
    return [tuple(row[place] for row in table.rows) for place in range(len(table.columns))]


def is_logarithmic(x: NDArray[np.floating]) -> bool:
    """Whether an axis reads better on a logarithmic scale: all positive, over three powers of ten or more."""
    return bool(x.size and np.isfinite(x).all() and x.min() > 0 and x.max() >= 1000 * x.min())


def array(values: NDArray[np.floating]) -> dict[str, Any]:
    """A float array of any shape, listed or packed (see the module)."""
    finite = values[np.isfinite(values)]
    fits = not finite.size or float(np.abs(finite).max()) < 3e38
    data = pack(values) if values.size > LISTED and fits else [_number(v) for v in values.ravel().tolist()]
    return {"shape": list(values.shape), "data": data}


def pack(values: NDArray[np.floating]) -> str:
    """The upper 24 bits of each float32, byte by byte in three planes, deflated, in base64."""
    single = np.where(np.isnan(values), np.nan, values).astype(np.float32).ravel()
    bits = (single.view(np.uint32) + np.uint32(0x80)) >> np.uint32(8)
    bits[np.isnan(single)] = 0x7FC000
    planes = b"".join((bits >> np.uint32(shift)).astype(np.uint8).tobytes() for shift in (16, 8, 0))
    return base64.b64encode(zlib.compress(planes, 9)).decode("ascii")


def check(shape: Shape) -> None:
    """Raise `InputError` unless the arrays, labels and names of `shape` fit together."""
    match shape:
        case Grid():
            size = (len(shape.row_labels), len(shape.column_labels))
            expected = (len(shape.panels), *size) if shape.panels else size
            _expect(
                shape,
                "values",
                shape.values,
                expected,
                "panels, rows, columns" if shape.panels else "rows, columns",
            )
        case Strip():
            _expect(shape, "values", shape.values, (len(shape.series), len(shape.tokens)), "series, tokens")
        case Points():
            counts = (len(shape.frames), len(shape.planes), len(shape.labels), 2)
            _expect(shape, "values", shape.values, counts, "frames, planes, labels, x and y")
        case Curve():
            if shape.x.ndim != 1:
                raise InputError(f"{shape.title!r}: x must have one dimension; its shape is {shape.x.shape}")
            expected = (len(shape.series), len(shape.x))
            _expect(shape, "y", shape.y, expected, "series, x")
            if shape.band is not None:
                _expect(shape, "band", shape.band, (*expected, 2), "series, x, low and high")
        case Graph():
            known = [node.id for node in shape.nodes]
            if len(set(known)) < len(known):
                twice = sorted({name for name in known if known.count(name) > 1})
                raise InputError(f"{shape.title!r}: node ids must differ; more than once: {', '.join(twice)}")
            ends = {end for arc in shape.arcs for end in (arc.source, arc.target)}
            if lost := sorted(ends - set(known)):
                raise InputError(
                    f"{shape.title!r}: arcs name nodes that are not there: {', '.join(lost)}. Add the nodes"
                )
            weights = [x for node in shape.nodes for x in (node.layer, node.weight)] + [
                arc.weight for arc in shape.arcs
            ]
            if not all(math.isfinite(weight) for weight in weights):
                raise InputError(f"{shape.title!r}: layers and weights of a graph must be finite numbers")
        case Table():
            for place, row in enumerate(shape.rows):
                if len(row) != len(shape.columns):
                    raise InputError(
                        f"{shape.title!r}: row {place} has {len(row)} cells for {len(shape.columns)} columns"
                    )
                if strange := [cell for cell in row if type(cell) not in _CELLS]:
                    raise InputError(
                        f"{shape.title!r}: row {place} holds {strange[0]!r}, a {type(strange[0]).__name__}; "
                        "cells are plain str, int, float, bool or None (for a number of an array, call .item())"
                    )
        case _:
            raise InputError(
                f"expected a Grid, Strip, Curve, Graph, Table or Points; got {type(shape).__name__}"
            )


def _expect(
    shape: Shape, name: str, values: NDArray[np.floating], expected: tuple[int, ...], axes: str
) -> None:
    if values.shape != expected:
        raise InputError(
            f"{shape.title!r}: {name} must be [{axes}] = {expected} to fit the labels; "
            f"its shape is {values.shape}"
        )


def _fields(shape: Grid | Strip | Curve | Table | Points) -> dict[str, Any]:
    return {name: value for name, value in vars(shape).items() if not isinstance(value, np.ndarray)}


def _cell(cell: Cell) -> Cell:
    match cell:
        case float():
            return _number(cell, digits=17)
        case int() if abs(cell) > 2**53:
            return str(cell)
        case _:
            return cell


def _number(value: float, digits: int = 7) -> float | str | None:
    if math.isnan(value):
        return None
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return float(f"{value:.{digits}g}")
