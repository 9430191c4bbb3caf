"""Units as Parquet: what the tables say is what the store says, and without pyarrow nothing is begun."""

import sys
from pathlib import Path

import numpy as np
import pytest

from microtome.core.errors import InputError, StoreError
from microtome.data.corpus import Corpus
from microtome.store import unit_tables
from microtome.store.unit_store import UnitStore
from microtome.store.unit_writer import UnitWriter


def stored(folder: Path, *, gradients: bool = False, on: float = 0.4) -> UnitStore:
    """Four units, the last never on, at 30 tokens in documents of 10."""
    Corpus.write([np.arange(10)] * 3, 10, folder / "corpus")
    draw = np.random.default_rng(0)
    values = np.where(draw.random((30, 4)) < on, draw.random((30, 4)), 0.0).astype(np.float32)
    values[:, 3] = 0
    with UnitWriter.open(folder / "toy", {}, n_units=4, n_tokens=30, gradients=gradients) as writer:
        at, unit = np.nonzero(values)
        slope = np.arange(len(at), dtype=np.float32) if gradients else None
        writer.append(at, unit, values[at, unit], slope, seen=30)
        writer.seal()
    return UnitStore.open(folder / "toy")


@pytest.mark.parametrize("gradients", [False, True])
def test_tables_say_what_the_store_says(
    tmp_path: Path, gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    pandas = pytest.importorskip("pandas")
    monkeypatch.setattr(unit_tables, "_AT_ONCE", 7)  # several pieces, one of which ends a unit
    store = stored(tmp_path, gradients=gradients)
    units, entries = map(pandas.read_parquet, unit_tables.write_tables(store, tmp_path / "tables"))
    assert units["tokens"].tolist() == store.counts.tolist()
    assert units["density"].tolist() == store.densities.tolist()
    for unit in range(store.n_units):
        own, mine = entries[entries["unit"] == unit], store.entries(unit)
        assert own["token"].tolist() == mine.token.tolist()
        assert own["value"].tolist() == mine.value.tolist()
        assert (own["document"] * 10 + own["place"]).tolist() == mine.token.tolist()
        assert units["largest"][unit] == (mine.value.max() if len(mine) else 0.0)
        # The store adds up in float32 what it keeps in float16: eleven bits.
        assert units["mean"][unit] == pytest.approx(mine.value.mean() if len(mine) else 0.0, rel=2**-10)
        if gradients:
            assert mine.gradient is not None
            assert own["gradient"].tolist() == mine.gradient.tolist()
            assert own["attribution"].tolist() == mine.attribution.tolist()
    assert ("gradient" in entries) == gradients
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == [
        "entries.parquet",
        "units.parquet",
    ]


def test_units_never_on_make_an_empty_table(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pandas = pytest.importorskip("pandas")
    units, entries = unit_tables.write_tables(stored(tmp_path, on=0.0), tmp_path)
    assert len(pandas.read_parquet(entries)) == 0
    assert pandas.read_parquet(units)["largest"].tolist() == [0.0] * 4


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="give another folder"):
        unit_tables.write_tables(stored(tmp_path), tmp_path / "file")


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'microtome\[parquet\]'"):
        unit_tables.write_tables(stored(tmp_path), tmp_path / "tables")
    assert not (tmp_path / "tables").exists()
