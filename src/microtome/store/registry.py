"""What is known of each unit of a network? One SQLite file: bases, units, labels, edges, evidence, asked by anybody.

    with Registry.open("study/registry.sqlite") as registry:
        registry.add_basis("dictionary", …)
        registry.label("dictionary", 7, "names of months", author="rank method", confidence=0.8)
        registry.units("dictionary", order="density", limit=20)
        registry.search("months")

Readers read while one process writes (write-ahead log). Nothing is overwritten: a label is superseded by a later one of
the same author, and stays; evidence is only added. The file says which version it has; older ones are brought up to
date, one numbered step after the other (`registry_versions`).

The strongest tokens of a unit are not here but in its store (`unit_store`), whose folder the basis names; its vectors
are in the basis's own file.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from microtome.core.errors import InputError, StoreError
from microtome.store.registry_versions import bring_up_to_date

_ORDERS: Final = {"number": "number", "density": "density DESC", "largest": "largest DESC"}
Row = dict[str, Any]


class Registry:
    """A registry, open for reading and writing. Made by `Registry.open`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a registry, brought up to date, or begin one.

        Raises `StoreError` for a file that is damaged, no registry, or of a later version.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{path} cannot be opened ({error}); give another place") from error
        registry = cls(path, connection)
        try:
            connection.row_factory = sqlite3.Row
            bring_up_to_date(connection, path)
        except BaseException:
            connection.close()
            raise
        return registry

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    @property
    def version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def add_basis(
        self,
        name: str,
        *,
        model: str,
        model_hash: str,
        reads: Sequence[str],
        writes: Sequence[str],
        n_units: int,
        store: str = "",
        vectors: str = "",
        told: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a basis and its units; the same one again changes nothing.

        Raises `StoreError` where another basis has this name.
        """
        row = {
            "name": name, "model": model, "model_hash": model_hash, "reads": _json(list(reads)),
            "writes": _json(list(writes)), "n_units": n_units, "store": store, "vectors": vectors,
            "told": _json(dict(told or {})),
        }  # fmt: skip
        with self._written() as connection:
            there = connection.execute("SELECT * FROM basis WHERE name = ?", (name,)).fetchone()
            if there is not None:
                if dict(there) != row:
                    parts = ", ".join(part for part in row if there[part] != row[part])
                    raise StoreError(
                        f"{self.path} has another basis {name!r} (its {parts} differ); choose another name"
                    )
                return
            connection.execute(f"INSERT INTO basis VALUES ({', '.join(f':{part}' for part in row)})", row)
            numbers = ((name, number) for number in range(n_units))
            connection.executemany("INSERT INTO unit (basis, number) VALUES (?, ?)", numbers)

    def set_statistics(
        self,
        basis: str,
        *,
        density: NDArray[np.floating[Any]],
        mean: NDArray[np.floating[Any]],
        largest: NDArray[np.floating[Any]],
    ) -> None:
        """Statistics of all units of a basis, each `[unit]`; NaN is kept as unknown."""
        n_units = self._basis(basis)["n_units"]
        columns = [np.asarray(column, np.float64) for column in (density, mean, largest)]
        if any(column.shape != (n_units,) for column in columns):
            raise InputError(
                f"{basis} has {n_units} units; got statistics of {[len(column) for column in columns]}"
            )
        rows = zip(*(column.tolist() for column in columns), [basis] * n_units, range(n_units), strict=True)
        with self._written() as connection:
            connection.executemany(
                "UPDATE unit SET density = ?, mean = ?, largest = ? WHERE basis = ? AND number = ?", rows
            )

    def label(self, basis: str, unit: int, text: str, *, author: str, confidence: float | None = None) -> int:
        """Say what a unit is; supersedes what the same author said before. Returns the label's number."""
        if not text.strip() or not author.strip():
            raise InputError("a label needs a text and an author")
        if confidence is not None and not 0 <= confidence <= 1:
            raise InputError(f"a confidence lies between 0 and 1; got {confidence}")
        self._unit(basis, unit)
        with self._written() as connection:
            row = (basis, unit, text, author, confidence, _now())
            added = connection.execute(
                "INSERT INTO label (basis, number, text, author, confidence, date) VALUES (?, ?, ?, ?, ?, ?)",
                row,
            ).lastrowid
            connection.execute(
                "UPDATE label SET superseded_by = ? WHERE basis = ? AND number = ? AND author = ? AND id != ? "
                "AND superseded_by IS NULL",
                (added, basis, unit, author, added),
            )
        assert added is not None
        return added

    def add_edges(
        self, source_basis: str, target_basis: str, kind: str, edges: Sequence[tuple[int, int, float]]
    ) -> None:
        """Edges `(source, target, weight)` of one kind; one that is there gets the new weight."""
        for source, target, _ in edges:
            self._unit(source_basis, source)
            self._unit(target_basis, target)
        rows = (
            (source_basis, source, target_basis, target, kind, weight) for source, target, weight in edges
        )
        with self._written() as connection:
            connection.executemany("INSERT OR REPLACE INTO edge VALUES (?, ?, ?, ?, ?, ?)", rows)

    def add_evidence(
        self,
        basis: str,
        unit: int,
        claim: str,
        *,
        measured: str,
        value: float,
        n: int,
        hit: bool | None = None,
        told: Mapping[str, Any] | None = None,
    ) -> None:
        """What came out when a claim about a unit was tested. hit: whether it was as predicted, if that was said."""
        self._unit(basis, unit)
        row = (
            basis,
            unit,
            claim,
            measured,
            value,
            n,
            None if hit is None else int(hit),
            _json(dict(told or {})),
            _now(),
        )
        with self._written() as connection:
            connection.execute(
                "INSERT INTO evidence (basis, number, claim, measured, value, n, hit, told, date) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )

    def bases(self) -> list[Row]:
        """All bases, by name."""
        rows = self._ask("SELECT * FROM basis ORDER BY name")
        return [row | {part: json.loads(row[part]) for part in ("reads", "writes", "told")} for row in rows]

    def units(
        self,
        basis: str,
        order: str = "number",
        *,
        limit: int = -1,
        offset: int = 0,
        labelled: bool | None = None,
    ) -> list[Row]:
        """Units with their statistics and how many labels stand.

        order: number, density or largest. labelled: only units with labels, or only those without.
        """
        self._basis(basis)
        if order not in _ORDERS:
            raise InputError(f"units are ordered by {', '.join(_ORDERS)}; got {order!r}")
        having = "" if labelled is None else f"HAVING labels {'> 0' if labelled else '= 0'}"
        return self._ask(
            "SELECT unit.*, count(label.id) AS labels FROM unit LEFT JOIN label "
            "ON label.basis = unit.basis AND label.number = unit.number AND superseded_by IS NULL "
            f"WHERE unit.basis = ? GROUP BY unit.number {having} ORDER BY {_ORDERS[order]}, unit.number "
            "LIMIT ? OFFSET ?",
            basis, limit, offset,
        )  # fmt: skip

    def labels(self, basis: str, unit: int, *, superseded: bool = False) -> list[Row]:
        """What is said of a unit, latest first. superseded: also what an author has since said otherwise."""
        self._unit(basis, unit)
        which = "" if superseded else "AND superseded_by IS NULL"
        return self._ask(
            f"SELECT * FROM label WHERE basis = ? AND number = ? {which} ORDER BY id DESC", basis, unit
        )

    def edges(self, basis: str, unit: int) -> list[Row]:
        """Edges from and to a unit, the heaviest first."""
        self._unit(basis, unit)
        return self._ask(
            "SELECT * FROM edge WHERE (source_basis = ?1 AND source = ?2) OR (target_basis = ?1 AND target = ?2) "
            "ORDER BY abs(weight) DESC",
            basis, unit,
        )  # fmt: skip

    def evidence(self, basis: str, unit: int) -> list[Row]:
        """How claims about a unit fared, in the order in which they were tested."""
        self._unit(basis, unit)
        rows = self._ask("SELECT * FROM evidence WHERE basis = ? AND number = ? ORDER BY id", basis, unit)
        return [row | {"told": json.loads(row["told"])} for row in rows]

    def search(self, words: str, limit: int = 50) -> list[Row]:
        """Labels that stand and hold all these words, the best match first."""
        quoted = " ".join(f'"{word.replace(chr(34), "")}"' for word in words.split())
        if not quoted:
            raise InputError("there is nothing to search for; give a word")
        return self._ask(
            "SELECT label.* FROM label_text JOIN label ON label.id = label_text.rowid "
            "WHERE label_text MATCH ? AND superseded_by IS NULL ORDER BY rank LIMIT ?",
            quoted, limit,
        )  # fmt: skip

    def _basis(self, name: str) -> Row:
        found = self._ask("SELECT * FROM basis WHERE name = ?", name)
        if not found:
            known = (
                ", ".join(row["name"] for row in self._ask("SELECT name FROM basis ORDER BY name")) or "none"
            )
            raise InputError(f"there is no basis {name!r}; the registry has {known}")
        return found[0]

    def _unit(self, basis: str, unit: int) -> None:
        n_units = self._basis(basis)["n_units"]
        if not 0 <= unit < n_units:
            raise InputError(f"{basis} has units 0 … {n_units - 1}; got {unit}")

    def _ask(self, question: str, *values: Any) -> list[Row]:
        try:
            return [dict(row) for row in self._connection.execute(question, values)]
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} cannot be read ({error}); restore it from a copy") from error

    @contextmanager
    def _written(self) -> Iterator[sqlite3.Connection]:
        """A change, whole or not at all."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreError(
                f"{self.path} cannot be written ({error}); make room, or wait for who writes"
            ) from error


def _json(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"what is kept must be plain numbers, strings, lists and dicts: {error}") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
