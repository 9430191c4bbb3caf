"""The registry: what is said of units is kept, found again, and never overwritten; strangers and damage are refused."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from microtome.core.errors import InputError, StoreError
from microtome.store import registry_versions
from microtome.store.registry import Registry

BASIS = {
    "model": "toy",
    "model_hash": "ab" * 32,
    "reads": ["mlp_in.0"],
    "writes": ["mlp_out.0"],
    "n_units": 5,
}


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(tmp_path / "study" / "registry.sqlite") as opened:
        opened.add_basis("toy", **BASIS, store="../toy", told={"seed": 3})
        yield opened


def test_every_unit_is_there_from_the_start(registry: Registry) -> None:
    (basis,) = registry.bases()
    assert basis == {"name": "toy", "store": "../toy", "vectors": "", "told": {"seed": 3}, **BASIS}
    assert [row["number"] for row in registry.units("toy")] == [0, 1, 2, 3, 4]
    registry.add_basis("toy", **BASIS, store="../toy", told={"seed": 3})
    assert len(registry.units("toy")) == 5
    with pytest.raises(StoreError, match=r"another basis 'toy' \(its n_units, store, told differ\)"):
        registry.add_basis("toy", **BASIS | {"n_units": 6})


def test_statistics_order_units(registry: Registry) -> None:
    density = np.array([0.1, 0.5, 0.0, 0.3, 0.2])
    mean = np.array([1.0, 2.0, np.nan, 4.0, 5.0], np.float32)
    registry.set_statistics("toy", density=density, mean=mean, largest=mean * 2)
    found = registry.units("toy", "density", limit=3)
    assert [row["number"] for row in found] == [1, 3, 4]
    assert registry.units("toy", offset=2, limit=1)[0] | {"basis": ""} == {
        "basis": "", "number": 2, "density": 0.0, "mean": None, "largest": None, "labels": 0
    }  # fmt: skip
    with pytest.raises(InputError, match="toy has 5 units"):
        registry.set_statistics("toy", density=density[1:], mean=mean, largest=mean)
    with pytest.raises(InputError, match="units are ordered by"):
        registry.units("toy", "beauty")


def test_a_label_is_superseded_by_its_author_alone_and_stays(registry: Registry) -> None:
    registry.label("toy", 2, "months", author="method", confidence=0.5)
    registry.label("toy", 2, "days of the week", author="Ada")
    registry.label("toy", 2, "names of months", author="method", confidence=0.9)
    assert [row["text"] for row in registry.labels("toy", 2)] == ["names of months", "days of the week"]
    every = registry.labels("toy", 2, superseded=True)
    assert [row["text"] for row in every] == ["names of months", "days of the week", "months"]
    assert every[2]["superseded_by"] == every[0]["id"]
    assert [row["number"] for row in registry.units("toy", labelled=True)] == [2]
    assert [row["number"] for row in registry.units("toy", labelled=False)] == [0, 1, 3, 4]
    assert registry.units("toy")[2]["labels"] == 2


def test_search_finds_labels_that_stand(registry: Registry) -> None:
    registry.label("toy", 0, "months, 'quoted\" OR NOT words", author="method")
    registry.label("toy", 1, "names of months", author="method")
    registry.label("toy", 1, "names of rivers", author="method")
    assert [row["number"] for row in registry.search("months")] == [0]
    assert [row["number"] for row in registry.search("names rivers")] == [1]
    assert [row["number"] for row in registry.search('quoted" OR')] == [0]
    assert registry.search("names months") == []
    with pytest.raises(InputError, match="nothing to search for"):
        registry.search(" ")


def test_edges_and_evidence(registry: Registry) -> None:
    registry.add_edges("toy", "toy", "attribution", [(0, 1, 0.5), (1, 2, -2.0), (3, 4, 1.0)])
    registry.add_edges("toy", "toy", "attribution", [(0, 1, 0.7)])
    assert [(row["source"], row["target"], row["weight"]) for row in registry.edges("toy", 1)] == [
        (1, 2, -2.0),
        (0, 1, 0.7),
    ]
    registry.add_evidence("toy", 3, "c1", measured="F1", value=0.8, n=40, hit=True, told={"control": 0.1})
    (found,) = registry.evidence("toy", 3)
    assert (found["claim"], found["value"], found["n"], found["hit"], found["told"]) == (
        "c1",
        0.8,
        40,
        1,
        {"control": 0.1},
    )
    assert registry.evidence("toy", 2) == []


def test_a_change_is_whole_or_not_at_all(registry: Registry) -> None:
    with pytest.raises(InputError, match=r"toy has units 0 … 4; got 5"):
        registry.add_edges("toy", "toy", "attribution", [(0, 1, 0.5), (1, 5, 0.5)])
    assert registry.edges("toy", 0) == []
    with pytest.raises(InputError, match="must be plain"):
        registry.add_evidence("toy", 1, "c", measured="F1", value=0.0, n=1, told={"x": object()})
    for text, author, confidence, message in (
        (" ", "a", None, "needs a text and an author"),
        ("a", "", None, "needs a text and an author"),
        ("a", "b", 1.5, "between 0 and 1; got 1.5"),
    ):
        with pytest.raises(InputError, match=message):
            registry.label("toy", 0, text, author=author, confidence=confidence)
    with pytest.raises(InputError, match="there is no basis 'other'; the registry has toy"):
        registry.label("other", 0, "x", author="a")


def test_others_read_while_one_writes(registry: Registry) -> None:
    with registry._written() as connection, Registry.open(registry.path) as reader:
        connection.execute("DELETE FROM unit WHERE number = 4")
        assert len(reader.units("toy")) == 5
    with Registry.open(registry.path) as reader:
        assert len(reader.units("toy")) == 4


def test_begun_by_many_at_once(tmp_path: Path) -> None:
    def begin(number: int) -> int:
        with Registry.open(tmp_path / "registry.sqlite") as opened:
            opened.add_basis(f"basis{number}", **BASIS)
            return opened.version

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(begin, range(8))) == {len(registry_versions.MIGRATIONS)}
    with Registry.open(tmp_path / "registry.sqlite") as opened:
        assert len(opened.bases()) == 8


def test_an_older_file_is_brought_up_to_date_and_a_later_one_refused(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = "ALTER TABLE unit ADD COLUMN mood TEXT; UPDATE unit SET mood = 'calm'"
    broken = (*registry_versions.MIGRATIONS, "ALTER TABLE unit ADD COLUMN mood TEXT; SELECT nonsense")
    monkeypatch.setattr(registry_versions, "MIGRATIONS", broken)
    with pytest.raises(StoreError, match="nonsense"):
        Registry.open(registry.path)
    monkeypatch.setattr(registry_versions, "MIGRATIONS", (*broken[:1], step))
    with Registry.open(registry.path) as opened:
        assert opened.version == 2
        assert {row["mood"] for row in opened.units("toy")} == {"calm"}
    monkeypatch.setattr(registry_versions, "MIGRATIONS", broken[:1])
    with pytest.raises(StoreError, match="has version 2, this microtome knows 1"):
        Registry.open(registry.path)


def test_strangers_and_damage_are_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "other.sqlite")
    connection.execute("CREATE TABLE basis (name TEXT)")
    connection.close()
    with pytest.raises(StoreError, match="is a database, but no registry"):
        Registry.open(tmp_path / "other.sqlite")
    (tmp_path / "text.sqlite").write_text("not a database at all, and long enough to be read as one" * 20)
    with pytest.raises(StoreError, match="is damaged or in use"):
        Registry.open(tmp_path / "text.sqlite")
    with pytest.raises(StoreError, match="cannot be opened"):
        Registry.open(tmp_path / "text.sqlite" / "registry.sqlite")
