from collections.abc import Mapping

import numpy as np
import pytest

from microtome.core.errors import InputError
from microtome.core.shapes import Curve, Grid, Shape, Strip
from microtome.view.frame import frame


def test_a_grid_keeps_its_rows_columns_and_panels(shapes: Mapping[str, Shape]) -> None:
    grid, panels = shapes["grid"], shapes["panels"]
    assert isinstance(grid, Grid)
    assert isinstance(panels, Grid)
    numbers = frame(grid)
    np.testing.assert_array_equal(numbers.to_numpy(), grid.values)
    assert (numbers.index.name, numbers.columns.name) == ("layer", "position")
    assert tuple(numbers.columns) == grid.column_labels
    np.testing.assert_array_equal(frame(panels).loc["h1"].to_numpy(), panels.values[1])


def test_a_strip_has_a_row_a_token(shapes: Mapping[str, Shape]) -> None:
    strip = shapes["strip"]
    assert isinstance(strip, Strip)
    numbers = frame(strip)
    assert tuple(numbers["token"]) == strip.tokens
    np.testing.assert_array_equal(numbers["entropy"].to_numpy(), strip.values[1])


def test_a_curve_has_its_bands_beside_it(shapes: Mapping[str, Shape]) -> None:
    curve = shapes["curve"]
    assert isinstance(curve, Curve)
    assert curve.band is not None
    numbers = frame(curve)
    np.testing.assert_array_equal(numbers.index.to_numpy(), curve.x)
    np.testing.assert_array_equal(numbers["copying"].to_numpy(), curve.y[1])
    np.testing.assert_array_equal(numbers["copying high"].to_numpy(), curve.band[1, :, 1])
    np.testing.assert_array_equal(numbers["induction low"].to_numpy(), curve.band[0, :, 0])


def test_a_graph_has_a_row_an_arc_and_a_table_is_itself(shapes: Mapping[str, Shape]) -> None:
    arcs = frame(shapes["graph"])
    assert list(arcs["weight"]) == [1.5, -0.75, 2.25, 0.125]
    assert list(arcs.loc[0, ["source", "target", "from", "to"]]) == ["a", "b", "input <a>", "head 1.2"]
    assert list(frame(shapes["table"])["heads"]) == [26, 26, 3]


def test_nothing_is_an_empty_frame(empty: Mapping[str, Shape]) -> None:
    for shape in empty.values():
        frame(shape)


def test_a_shape_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="to fit the labels"):
        frame(Strip("s", ("a",), np.zeros((1, 2))))
