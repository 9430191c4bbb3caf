"""The six shapes in which any result can show itself: grid, text strip, curve, graph, table, points that move.

Views draw shapes and know no method; methods return shapes and know no view. All are plain frozen data over numpy,
so that a shape can be drawn in a terminal, a notebook or a page, and compared in a test.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Cell = str | int | float | bool | None


@dataclass(frozen=True, eq=False)
class Grid:
    """A heat map over two named axes; with `panels`, one map per panel sharing axes and scale.

    values: `[row, column]` or `[panel, row, column]`, float; NaN = not measured.
    diverging: centre the colours on zero.
    """

    title: str
    values: NDArray[np.floating]
    row_axis: str
    row_labels: tuple[str, ...]
    column_axis: str
    column_labels: tuple[str, ...]
    unit: str = ""
    panels: tuple[str, ...] = ()
    diverging: bool = True
    caption: str = ""


@dataclass(frozen=True, eq=False)
class Strip:
    """Text with a value for every token, one line per named series: values `[series, token]`.

    A newline without a value (NaN) ends the line, and is not shown.
    """

    title: str
    tokens: tuple[str, ...]
    values: NDArray[np.floating]
    series: tuple[str, ...] = ("value",)
    unit: str = ""
    caption: str = ""


@dataclass(frozen=True, eq=False)
class Curve:
    """Named curves over one axis: y `[series, x]`, optional band `[series, x, (low, high)]`.

    Lines join what is measured, across what is not (NaN).
    """

    title: str
    x: NDArray[np.floating]
    y: NDArray[np.floating]
    series: tuple[str, ...]
    x_axis: str
    y_axis: str
    band: NDArray[np.floating] | None = None
    caption: str = ""


@dataclass(frozen=True)
class Node:
    """A node of a drawn graph. `layer` places it from bottom to top; `weight` sets its strength (signed)."""

    id: str
    label: str
    layer: float
    weight: float = 0.0
    kind: str = ""
    note: str = ""


@dataclass(frozen=True)
class Arc:
    """A directed, signed edge of a drawn graph."""

    source: str
    target: str
    weight: float = 1.0
    kind: str = ""
    note: str = ""


@dataclass(frozen=True)
class Graph:
    """Nodes in layers, signed edges."""

    title: str
    nodes: tuple[Node, ...]
    arcs: tuple[Arc, ...]
    unit: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of plain cells; numbers are shown rounded and kept whole."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, eq=False)
class Points:
    """Named points in one or more planes, frame by frame, such as embeddings from checkpoint to checkpoint.

    values: `[frame, plane, point, (x, y)]`, float; NaN = not there. All frames of a plane share one scale about zero.
    frame_axis: what changes from frame to frame, such as `step`.
    """

    title: str
    values: NDArray[np.floating]
    frame_axis: str
    frames: tuple[str, ...]
    planes: tuple[str, ...]
    labels: tuple[str, ...]
    caption: str = ""


Shape = Grid | Strip | Curve | Graph | Table | Points
