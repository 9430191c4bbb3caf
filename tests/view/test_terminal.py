import io
import re
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from rich.cells import cell_len
from rich.console import Console

from microtome.core.errors import InputError
from microtome.core.shapes import Curve, Grid, Shape, Strip, Table
from microtome.view.lettering import numeral
from microtome.view.terminal import terminal


def printed(shape: Shape, width: int = 100, colour: bool = False) -> str:
    system = "truecolor" if colour else None
    console = Console(
        width=width, file=io.StringIO(), force_terminal=colour, color_system=system, legacy_windows=False
    )
    console.print(terminal(shape))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_a_grid_prints_its_numbers(shapes: Mapping[str, Shape]) -> None:
    grid = shapes["grid"]
    assert isinstance(grid, Grid)
    text = printed(grid)
    for value in grid.values[np.isfinite(grid.values)]:
        assert re.search(rf"(?<![\d.]){re.escape(f'{value:.1f}'.replace('0.', '.'))}\d?(?!\d)", text), value
    assert "Patching" in text
    assert "layer down, position across" in text


def test_a_strip_and_a_table_print_their_numbers(shapes: Mapping[str, Shape]) -> None:
    strip = shapes["strip"]
    assert isinstance(strip, Strip)
    text = printed(strip)
    assert all(numeral(float(value)) in text for value in strip.values.ravel())
    assert all(
        word in printed(shapes["table"]) for word in ("0.942", "26", "yes", "–", "</td><script>", "n = 512")
    )


def test_a_curve_prints_its_ends_and_a_marker_a_point() -> None:
    curve = Curve("c", np.arange(10.0), np.arange(10.0)[None], ("line",), "x", "y")
    text = printed(curve)
    assert "first 0, last 9.00, least 0, greatest 9.00" in text
    plot = [line.split("│")[-1].split("┤")[-1] for line in text.splitlines() if "│" in line or "┤" in line]
    columns = [line.index("●") for line in plot if "●" in line]
    assert sum(line.count("●") for line in plot) == 10
    assert columns == sorted(columns, reverse=True)
    ticks = {row: float(line.split("┤")[0]) for row, line in enumerate(text.splitlines()[2:]) if "┤" in line}
    top, middle, bottom = ticks
    assert middle - top == bottom - middle
    assert list(ticks.values()) == [9.0, 4.5, 0.0]


def test_a_graph_prints_its_layers_and_arcs_by_strength(shapes: Mapping[str, Shape]) -> None:
    text = printed(shapes["graph"])
    assert [text.index(weight) for weight in ("2.25", "1.50", "-0.750")] == sorted(
        text.index(weight) for weight in ("2.25", "1.50", "-0.750")
    )
    assert text.index("output") < text.index("head 1.2 (0.500)") < text.index("input <a>")


def test_no_token_steers_the_terminal(shapes: Mapping[str, Shape]) -> None:
    for shape in shapes.values():
        assert "\x1b" not in printed(shape)
    strip = Strip("[bold]t[/bold]", ("[red]", "\x1b[2J", "\ud800"), np.ones((1, 3)))
    text = printed(strip)
    assert all(token in text for token in ("[bold]t[/bold]", "[red]", "⟨0x1B⟩[2J", "⟨U+D800⟩"))


def test_colour_only_adds_to_what_is_said(shapes: Mapping[str, Shape]) -> None:
    for shape in shapes.values():
        plain, coloured = printed(shape), printed(shape, colour=True)
        assert "\x1b[" in coloured
        assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


@pytest.mark.parametrize("width", [30, 60, 200])
def test_no_line_is_wider_than_the_terminal(shapes: Mapping[str, Shape], width: int) -> None:
    for shape in shapes.values():
        for line in printed(shape, width).splitlines():
            assert cell_len(line.rstrip()) <= width


def test_nothing_to_draw_is_said(empty: Mapping[str, Shape]) -> None:
    for name, shape in empty.items():
        text = printed(shape)
        assert "Nothing" in text
        assert name in ("unmeasured", "point", "arcless", "seriesless") or "no " in text


def test_a_large_grid_is_pooled_and_its_strongest_cell_told() -> None:
    values = np.random.default_rng(0).normal(size=(7, 300, 500)) / 10
    values[5, 123, 456] = -9.25
    labels = tuple(map(str, range(500)))
    grid = Grid("g", values, "row", labels[:300], "column", labels, panels=tuple("abcdefg"))
    lines = printed(grid, 80).splitlines()
    assert len(lines) < 4 * 64 + 20
    assert any("-9.25" in line and "f, row 123, column 456" in line for line in lines)
    assert sum(line.count("-9") for line in lines if line.lstrip()[:1].isdigit()) >= 1
    assert "3 weaker panels of 7 not shown" in lines[-1]


def test_what_was_not_measured_is_blank() -> None:
    grid = Grid("g", np.array([[np.nan, 0.5]]), "r", ("a",), "c", ("x", "y"))
    assert "blank: not measured" in printed(grid)
    assert re.search(r"^ *a {3,}\.500$|^ *a {3,}\.50$", printed(grid), re.MULTILINE)


@given(arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.floats(width=64)))
def test_any_grid_prints(values: np.ndarray) -> None:
    labels = [tuple(map(str, range(size))) for size in values.shape]
    assert printed(Grid("g", values, "r", labels[0], "c", labels[1]), 60)


@given(arrays(np.float64, st.integers(1, 9), elements=st.floats(-1e300, 1e300)))
def test_any_curve_prints(y: np.ndarray) -> None:
    assert printed(Curve("c", np.arange(float(len(y))), y[None], ("s",), "x", "y"), 60)


def test_a_shape_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="row 0 has 1 cells for 2 columns"):
        terminal(Table("t", ("a", "b"), ((1,),)))
