import re
from collections.abc import Mapping

import numpy as np

from microtome.core.shapes import Curve, Grid, Shape, Strip
from microtome.view.lettering import numeral
from microtome.view.plain import CELLS, STRONGEST, plain


def cells(text: str) -> list[str]:
    return re.findall(r"<td[^>]*>([^<]*)</td>", text)


def written(values: np.ndarray) -> list[str]:
    return [numeral(float(value)).replace("-", "−") for value in values.ravel()]


def test_every_number_of_a_grid_stands_in_its_cell(shapes: Mapping[str, Shape]) -> None:
    for name in ("grid", "panels"):
        grid = shapes[name]
        assert isinstance(grid, Grid)
        assert cells(plain(grid)) == written(grid.values)


def test_every_number_of_a_strip_stands_beside_its_token(shapes: Mapping[str, Shape]) -> None:
    strip = shapes["strip"]
    assert isinstance(strip, Strip)
    assert cells(plain(strip)) == written(strip.values.T)
    assert "&lt;/script&gt;" in plain(strip)


def test_curves_give_their_bands_and_graphs_both_their_tables(shapes: Mapping[str, Shape]) -> None:
    assert "0.100 (0 to 0.200)" in plain(shapes["curve"])
    text = plain(shapes["graph"])
    assert text.count("<table>") == 2
    assert cells(text)[-5:] == ["head 1.2", "head 1.3", "0.125", "", ""]
    assert "cut twice" in cells(text)


def test_shading_follows_sign_and_size() -> None:
    text = plain(Grid("g", np.array([[4.0, -1.0, 0.0, np.nan]]), "r", ("a",), "c", tuple("wxyz")))
    assert re.findall(r'<td(?: class="(.)" style="--v:(\d+)%")?>', text) == [
        ("p", "100"),
        ("n", "25"),
        ("", ""),
        ("", ""),
    ]


def test_a_large_grid_gives_its_strongest_cells_and_says_so() -> None:
    values = np.random.default_rng(0).normal(size=(70, 70))
    values[3, 4], values[5, 6] = -99.0, np.nan
    labels = tuple(map(str, range(70)))
    text = plain(Grid("g", values, "row", labels, "column", labels))
    assert values.size > CELLS
    assert f"The {STRONGEST} strongest of 4900 cells" in text
    assert cells(text)[:3] == ["3", "4", "−99.0"]
    assert len(cells(text)) == 3 * STRONGEST


def test_a_long_curve_says_how_many_points_are_left_out() -> None:
    x = np.arange(10_000.0)
    text = plain(Curve("c", x, x[None], ("s",), "x", "y"))
    assert f"{10_000 - CELLS} of 10000 points are not listed" in text
    assert cells(text)[:2] == ["0", "0"]
    assert cells(text)[-2:] == ["9999.00", "9999"]


def test_nothing_still_makes_a_table(empty: Mapping[str, Shape]) -> None:
    for shape in empty.values():
        assert plain(shape).startswith("<table>")
