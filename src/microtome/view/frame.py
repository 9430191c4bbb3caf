"""Which table of numbers lies behind a shape? `frame(shape)` as a pandas DataFrame, for further work."""

from typing import TYPE_CHECKING

import numpy as np

from microtome.core.shapes import Curve, Graph, Grid, Points, Shape, Strip, Table
from microtome.view.source import check

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]


def frame(shape: Shape) -> "DataFrame":
    """The numbers of `shape`, unrounded. Raises `InputError` when its parts do not fit together.

    A grid keeps its rows and columns (with panels, the index is panel and row); a strip has a row a token; a curve
    a row a place on its axis, with `… low` and `… high` for bands; a graph a row an arc; a table is itself; points
    have a row a frame, plane and point.
    """
    from pandas import DataFrame, Index, MultiIndex

    check(shape)
    match shape:
        case Grid():
            columns = Index(shape.column_labels, name=shape.column_axis)
            if not shape.panels:
                return DataFrame(shape.values, Index(shape.row_labels, name=shape.row_axis), columns)
            rows = [(panel, row) for panel in shape.panels for row in shape.row_labels]
            index = MultiIndex.from_tuples(rows, names=["panel", shape.row_axis])
            return DataFrame(shape.values.reshape(len(rows), len(columns)), index, columns)
        case Strip():
            numbers = DataFrame(shape.values.T, columns=list(shape.series))
            numbers.insert(0, "token", list(shape.tokens), allow_duplicates=True)
            return numbers
        case Curve():
            names, data = list(shape.series), shape.y
            if shape.band is not None:
                names += [f"{name} {end}" for end in ("low", "high") for name in shape.series]
                data = np.concatenate([data, shape.band[..., 0], shape.band[..., 1]])
            return DataFrame(data.T, Index(shape.x, name=shape.x_axis), names)
        case Graph():
            label = {node.id: node.label for node in shape.nodes}
            arcs = [
                (a.source, a.target, label[a.source], label[a.target], a.weight, a.kind) for a in shape.arcs
            ]
            return DataFrame(arcs, columns=["source", "target", "from", "to", "weight", "kind"])
        case Table():
            return DataFrame([list(row) for row in shape.rows], columns=list(shape.columns))
        case Points():
            places = [shape.frames, shape.planes, shape.labels]
            index = MultiIndex.from_product(places, names=[shape.frame_axis, "plane", "point"])
            return DataFrame(shape.values.reshape(-1, 2), index, ["x", "y"])
