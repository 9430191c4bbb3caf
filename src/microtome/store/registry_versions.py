"""How does a registry's file come to be what this version reads? Numbered steps, each whole or not at all.

`MIGRATIONS[n]` makes version n + 1 of version n; the first makes it of nothing. A step that was released is never
changed: another one is added behind it.
"""

import sqlite3
from pathlib import Path
from typing import Final

from microtome.core.errors import StoreError

MIGRATIONS: Final = (
    """
    CREATE TABLE basis (
        name TEXT PRIMARY KEY,
        model TEXT NOT NULL,
        model_hash TEXT NOT NULL,
        reads TEXT NOT NULL,          -- sites, JSON
        writes TEXT NOT NULL,
        n_units INTEGER NOT NULL,
        store TEXT NOT NULL,          -- folder of activations, as seen from this file; empty for none
        vectors TEXT NOT NULL,        -- file of the basis, likewise
        told TEXT NOT NULL            -- whatever else identifies it, JSON
    ) STRICT;
    CREATE TABLE unit (
        basis TEXT NOT NULL REFERENCES basis,
        number INTEGER NOT NULL,
        density REAL,                 -- share of tokens at which it is on
        mean REAL,                    -- of its values where it is on
        largest REAL,
        PRIMARY KEY (basis, number)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE label (
        id INTEGER PRIMARY KEY,
        basis TEXT NOT NULL,
        number INTEGER NOT NULL,
        text TEXT NOT NULL,
        author TEXT NOT NULL,         -- a person or a method
        confidence REAL CHECK (confidence BETWEEN 0 AND 1),
        date TEXT NOT NULL,
        superseded_by INTEGER REFERENCES label,
        FOREIGN KEY (basis, number) REFERENCES unit
    ) STRICT;
    CREATE INDEX label_of_unit ON label (basis, number);
    CREATE VIRTUAL TABLE label_text USING fts5 (text, content='label', content_rowid='id');
    CREATE TRIGGER label_added AFTER INSERT ON label BEGIN
        INSERT INTO label_text (rowid, text) VALUES (new.id, new.text);
    END;
    CREATE TABLE edge (
        source_basis TEXT NOT NULL,
        source INTEGER NOT NULL,
        target_basis TEXT NOT NULL,
        target INTEGER NOT NULL,
        kind TEXT NOT NULL,           -- what the weight measures
        weight REAL NOT NULL,
        PRIMARY KEY (source_basis, source, target_basis, target, kind),
        FOREIGN KEY (source_basis, source) REFERENCES unit,
        FOREIGN KEY (target_basis, target) REFERENCES unit
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX edge_into ON edge (target_basis, target);
    CREATE TABLE evidence (
        id INTEGER PRIMARY KEY,
        basis TEXT NOT NULL,
        number INTEGER NOT NULL,
        claim TEXT NOT NULL,          -- its identifier in the ledger, or a sentence
        measured TEXT NOT NULL,       -- what was measured
        value REAL NOT NULL,
        n INTEGER NOT NULL,           -- on how many
        hit INTEGER CHECK (hit IN (0, 1)),
        told TEXT NOT NULL,           -- data, control, whatever else, JSON
        date TEXT NOT NULL,
        FOREIGN KEY (basis, number) REFERENCES unit
    ) STRICT;
    CREATE INDEX evidence_of_unit ON evidence (basis, number);
    """,
)

_APPLICATION: Final = 0x4D54_4F4D  # tells our file from other databases


def bring_up_to_date(connection: sqlite3.Connection, path: Path) -> None:
    """Make a file what this version reads. Raises `StoreError` for another database and for a later version."""
    try:
        empty = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
        if not empty and _number(connection, "application_id") != _APPLICATION:
            raise StoreError(f"{path} is a database, but no registry; give another file")
        version = _number(connection, "user_version")
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{path} has version {version}, this microtome knows {len(MIGRATIONS)}; update microtome"
            )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")
        for number in range(version, len(MIGRATIONS)):
            _step(connection, number)
    except sqlite3.Error as error:
        raise StoreError(f"{path} is damaged or in use ({error}); restore it from a copy") from error


def _step(connection: sqlite3.Connection, number: int) -> None:
    done = f"PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {number + 1}"
    try:
        connection.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[number]}; {done}; COMMIT;")
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if _number(connection, "user_version") <= number:  # otherwise another process was first
            raise


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])
