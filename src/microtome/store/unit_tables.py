"""How do other programs read what units respond to? Two tables in Parquet, which any of them opens.

    write_tables(UnitStore.open("harvest/dictionary"), "tables")

    units.parquet       unit, tokens (at how many it is on), density, mean and largest (of its values where it is on)
    entries.parquet     unit, token, document, place, value; where it was kept gradient, and attribution, the product
                        of the two: by unit, largest first

Entries are written unit by unit, so that no more than some of them are in memory.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from microtome.core.errors import StoreError
from microtome.core.parquet import pyarrow
from microtome.store.unit_files import from_bfloat16
from microtome.store.unit_store import UnitStore

UNITS: Final = "units.parquet"
ENTRIES: Final = "entries.parquet"
_AT_ONCE: Final = 1 << 20  # entries


def write_tables(store: UnitStore, folder: str | Path) -> tuple[Path, Path]:
    """Write both tables into a folder and return their paths; one that is there stays until the new one is whole.

    Raises `InputError` without pyarrow (the extra `parquet`), `StoreError` where the disk refuses.
    """
    folder = Path(folder)
    units: dict[str, NDArray[Any]] = {
        "unit": np.arange(store.n_units),
        "tokens": store.counts,
        "density": store.densities,
        "mean": np.nan_to_num(store.means),  # of a unit that is never on, 0
        "largest": np.nan_to_num(store.largest),
    }
    _write(folder / UNITS, iter([units]))
    _write(folder / ENTRIES, _entries(store))
    return folder / UNITS, folder / ENTRIES


def _entries(store: UnitStore) -> Iterator[dict[str, NDArray[Any]]]:
    """Some entries at a time; none at all make one empty table."""
    by_unit = store.by_unit
    count = len(by_unit["value"])
    for at in range(0, max(count, 1), _AT_ONCE):
        here = slice(at, min(at + _AT_ONCE, count))
        token = by_unit["token"][here]
        document, place = store.places(token)
        columns = {
            "unit": np.searchsorted(by_unit["starts"], np.arange(here.start, here.stop), "right") - 1,
            "token": token,
            "document": document,
            "place": place,
            "value": by_unit["value"][here].astype(np.float32),
        }
        if "gradient" in by_unit:
            columns["gradient"] = from_bfloat16(by_unit["gradient"][here])
            columns["attribution"] = columns["gradient"] * columns["value"]
        yield columns


def _write(path: Path, pieces: Iterator[dict[str, NDArray[Any]]]) -> None:
    """A table of pieces with the same columns, whole or not at all: first in a file beside it, which a later attempt
    writes over."""
    arrow = pyarrow()
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table = arrow.table(next(pieces))
        with arrow.parquet.ParquetWriter(partial, table.schema) as writer:
            writer.write_table(table)
            for piece in pieces:
                writer.write_table(arrow.table(piece))
        os.replace(partial, path)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror or error}); make room, or give another folder"
        ) from error
