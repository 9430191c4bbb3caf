import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from microtome.core.errors import InputError
from microtome.core.shapes import Arc, Curve, Graph, Grid, Node, Shape, Strip, Table
from microtome.view.source import array, check, is_logarithmic, pack, source, to_json


def unpack(text: str) -> np.ndarray:
    """The browser's half, in Python."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(3, -1).astype(np.uint32)
    return ((planes[0] << 24) | (planes[1] << 16) | (planes[2] << 8)).view(np.float32)


usual = st.floats(-(2.0**127), 2.0**127, width=32, allow_subnormal=False)


@given(arrays(np.float32, st.integers(1, 50), elements=usual | st.sampled_from([np.nan, np.inf, -np.inf])))
def test_packed_values_come_back_to_five_digits(values: np.ndarray) -> None:
    np.testing.assert_allclose(unpack(pack(values)), values, rtol=2**-16)


def test_nothing_compresses_noise_below_four_bytes_a_cell_and_nothing_exceeds_them() -> None:
    noise = np.random.default_rng(0).normal(size=(12, 64, 64))
    packed = array(noise)["data"]
    assert isinstance(packed, str)
    assert 2 < len(packed) / noise.size <= 4
    pattern = np.tril(np.ones((64, 64))) / 64
    assert len(array(pattern)["data"]) / pattern.size < 0.1


def test_few_values_are_listed_and_huge_ones_are_never_packed() -> None:
    assert array(np.array([[1.0, np.nan], [np.inf, 0.1]])) == {
        "shape": [2, 2],
        "data": [1.0, None, "Infinity", 0.1],
    }
    assert array(np.full(1000, 1e300))["data"][0] == 1e300


@given(st.text(st.characters(exclude_categories=())))
def test_json_keeps_any_text_and_closes_no_element(text: str) -> None:
    written = to_json({"tokens": [text]})
    assert written.isascii()
    assert not set("<>&") & set(written)
    assert json.loads(written)["tokens"] == [text]


def test_a_source_is_plain_json(shapes: Mapping[str, Shape], empty: Mapping[str, Shape]) -> None:
    for shape in (*shapes.values(), *empty.values()):
        assert json.loads(to_json(source(shape)))["title"] == shape.title


def test_table_cells_are_kept_whole() -> None:
    table = Table("t", ("a", "b", "c"), ((0.1 + 0.2, 2**60, float("inf")),))
    rows = json.loads(to_json(source(table)))["rows"]
    assert rows == [[0.1 + 0.2, str(2**60), "Infinity"]]


def test_an_axis_over_three_powers_of_ten_is_logarithmic() -> None:
    assert is_logarithmic(np.array([1.0, 10.0, 1000.0]))
    assert not is_logarithmic(np.array([1.0, 999.0]))
    assert not is_logarithmic(np.array([0.0, 1000.0]))
    assert not is_logarithmic(np.array([]))


GRID = Grid("g", np.zeros((2, 3)), "r", ("a", "b"), "c", ("x", "y", "z"))
STRIP = Strip("s", ("a", "b"), np.zeros((1, 2)))
CURVE = Curve("c", np.arange(3.0), np.zeros((1, 3)), ("one",), "x", "y")
NODES = (Node("a", "a", 0), Node("b", "b", 1))


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (replace(GRID, values=np.zeros((3, 2))), r"\(2, 3\).*\(3, 2\)"),
        (replace(GRID, panels=("p",)), "panels, rows, columns"),
        (replace(GRID, values=np.zeros((1, 2, 3))), "rows, columns"),
        (replace(STRIP, series=("a", "b")), r"\(2, 2\)"),
        (replace(CURVE, y=np.zeros(3)), r"\(1, 3\)"),
        (replace(CURVE, x=np.zeros((1, 3))), "one dimension"),
        (replace(CURVE, band=np.zeros((1, 3))), r"\(1, 3, 2\)"),
        (Graph("g", NODES, (Arc("a", "z"),)), "not there: z"),
        (Graph("g", (*NODES, NODES[0]), ()), "more than once: a"),
        (Graph("g", NODES, (Arc("a", "b", float("nan")),)), "finite"),
        (Table("t", ("a", "b"), ((1,),)), "1 cells for 2 columns"),
    ],
)
def test_parts_that_do_not_fit_are_refused(shape: Shape, told: str) -> None:
    with pytest.raises(InputError, match=told):
        check(shape)


def test_a_numpy_scalar_in_a_table_is_refused_with_what_to_do() -> None:
    table = Table("t", ("a",), ((1.0,),))
    object.__setattr__(table, "rows", ((np.float32(1),),))
    with pytest.raises(InputError, match=r"float32.*\.item\(\)"):
        check(table)
