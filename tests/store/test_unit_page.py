"""A unit's page shows what its store says; with names of tokens where there are any."""

from pathlib import Path

import numpy as np
import pytest

from microtome.core.errors import InputError, StoreError
from microtome.core.shapes import Curve, Table
from microtome.data.corpus import STRINGS, Corpus
from microtome.store.unit_page import unit_list, unit_page, unit_partners
from microtome.store.unit_store import UnitStore
from microtome.store.unit_writer import UnitWriter


@pytest.fixture
def store(tmp_path: Path) -> UnitStore:
    """60 tokens, 0 … 9 in each of 6 documents. Unit 0 is on at token 4 with 1, 2, … 6; unit 1 always alike; 2 never."""
    Corpus.write([np.arange(10)] * 6, 10, tmp_path / "corpus")
    token = np.arange(60)
    on = np.stack([np.where(token % 10 == 4, token // 10 + 1, 0), np.ones(60), np.zeros(60)], 1)
    with UnitWriter.open(tmp_path / "toy", {}, n_units=3, n_tokens=60) as writer:
        at, unit = np.nonzero(on)
        writer.append(at, unit, on[at, unit].astype(np.float32), seen=60)
        writer.seal()
    return UnitStore.open(tmp_path / "toy")


def test_a_page_has_the_histogram_the_strongest_and_some_of_each_tenth(store: UnitStore) -> None:
    curve, top, some = unit_page(store, 0, top=2, each=1)
    assert isinstance(curve, Curve)
    assert curve.y.sum() == 6
    assert "6 of 60 tokens (10.000%)" in curve.caption
    assert isinstance(top, Table)
    assert [row[:3] for row in top.rows] == [(6.0, 5, 4), (5.0, 4, 4)]
    assert top.rows[0][3] == " 0 1 2 3» 4« 5 6 7 8 9"
    assert isinstance(some, Table)
    assert sorted(row[0] for row in some.rows) == [1, 2, 3, 4, 5, 6]


def test_names_of_tokens_are_shown_where_there_are_any(store: UnitStore) -> None:
    path = store.folder.parent / "corpus" / STRINGS
    path.write_text('["a","b","c","d","e","f","g","h","i","j"]')
    opened = UnitStore.open(store.folder)
    table = unit_page(opened, 0)[1]
    assert isinstance(table, Table)
    assert table.rows[0][3] == "abcd»e«fghij"
    for damaged in ("[", "[1]", "{}"):
        path.write_text(damaged)
        with pytest.raises(StoreError, match="remove it, and tokens are shown by number"):
            unit_page(UnitStore.open(store.folder), 0)


def test_attributions_stand_beside_values_where_gradients_were_kept(tmp_path: Path) -> None:
    Corpus.write([np.arange(4)], 4, tmp_path / "corpus")
    with UnitWriter.open(tmp_path / "toy", {}, n_units=1, n_tokens=4, gradients=True) as writer:
        slopes = np.array([1.0, -1.0, 0.5, 2.0], np.float32)
        writer.append(np.arange(4), np.zeros(4, int), np.arange(1, 5, dtype=np.float32), slopes, seen=4)
        writer.seal()
    _, top, some = unit_page(UnitStore.open(tmp_path / "toy"), 0, top=2)
    for table, rows in ((top, 2), (some, 4)):
        assert isinstance(table, Table)
        assert table.columns == ("value", "attribution", "document", "token", "text")
        assert [row[1] for row in table.rows] == [8.0, 1.5, -2.0, 1.0][:rows]
        assert "slope of the metric" in table.caption


def signed(folder: Path) -> UnitStore:
    """20 tokens. Unit 0 from −9 to 10, unit 1 with a little below zero, 2 and 3 with unit 0 and against it, 4 alone."""
    rising = np.arange(-9, 11.0)
    low = np.where(rising < 0, -0.25, rising)
    dense = np.stack([rising, low, 2 * rising, -rising, np.r_[np.zeros(19), 1]], 1)
    with UnitWriter.open(folder / "toy", {}, n_units=5, n_tokens=20) as writer:
        at, unit = np.nonzero(dense)
        writer.append(at, unit, dense[at, unit].astype(np.float32), seen=20)
        writer.seal()
    Corpus.write([np.arange(20)], 20, folder / "corpus")
    return UnitStore.open(folder / "toy")


def test_of_a_unit_with_two_ends_both_are_shown(tmp_path: Path) -> None:
    store = signed(tmp_path)
    assert [shape.title for shape in unit_page(store, 0, top=3)] == [
        "toy.u0: its values",
        "toy.u0: its 3 largest values",
        "toy.u0: its 3 smallest values",
        "toy.u0: 1 random of each tenth of its values, seed 0",
    ]
    smallest = unit_page(store, 0, top=3)[2]
    assert isinstance(smallest, Table)
    assert [row[:3] for row in smallest.rows] == [(-9.0, 0, 0), (-8.0, 0, 1), (-7.0, 0, 2)]
    assert not any("smallest" in shape.title for shape in unit_page(store, 1))
    assert store.bottom(4, 9).value.tolist() == [1.0]


def test_what_goes_with_a_unit_is_listed_by_correlation_of_either_sign(tmp_path: Path) -> None:
    store = signed(tmp_path)
    table = unit_partners(store, 0, 3)
    assert [(row[0], row[2], row[3]) for row in table.rows] == [(2, 19, 19), (3, 19, 19), (1, 19, 19)]
    assert [row[1] for row in table.rows[:2]] == pytest.approx([1, -1])
    assert len(unit_partners(store, 0, 99).rows) == 4
    with pytest.raises(InputError, match="units 0 … 4; got 5"):
        unit_partners(store, 5)


def test_units_that_never_or_always_do_the_same_have_a_page(store: UnitStore) -> None:
    (never,) = unit_page(store, 2)
    assert never.caption == "at none of 60 tokens"
    top, _ = unit_page(store, 1)
    assert isinstance(top, Table)


def test_units_are_listed_in_order(store: UnitStore) -> None:
    assert [row[0] for row in unit_list(store, "density").rows] == [1, 0, 2]
    assert [row[0] for row in unit_list(store, "largest").rows] == [0, 1, 2]
    listed = unit_list(store, "number", 2)
    assert [row[:3] for row in listed.rows] == [(0, 0.1, 6.0), (1, 1.0, 1.0)]
    assert "2 of 3 units by number; 1 are never on; at each of 60 tokens 1.1 are on" in listed.caption
    with pytest.raises(InputError, match="units are ordered by density, largest, number"):
        unit_list(store, "beauty")
