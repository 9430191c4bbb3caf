"""How does anything new get in? Through Python entry points, the built-in things by the same door.

A package offers a method by naming its module in its `pyproject.toml`:

    [project.entry-points."microtome.methods"]
    my_method = "my_package.my_method"

Names are read from installed metadata, which imports nothing; a module is imported when it is asked for by name.
`-` and `_` in names are the same.
"""

import os
import sys
from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, Final, Literal

from microtome.core.card import Card
from microtome.core.errors import PluginError

Kind = Literal["methods", "tasks", "families", "bases", "basis_files", "testbeds"]

CONTRACT: Final = {
    "card": "a microtome.core.card.Card",
    "Config": "a subclass of microtome.core.config.Config",
    "Result": "a subclass of microtome.core.result.Result",
    "run": "a function run(model, data, config) -> Result",
}


def names(kind: Kind) -> tuple[str, ...]:
    """The registered names of a kind, sorted. Imports nothing."""
    return tuple(sorted({_canonical(point.name) for point in _points(kind)}))


def entry(kind: Kind, name: str) -> EntryPoint:
    """The entry point of that name, not imported. Raises `PluginError` for an unknown or doubly taken name."""
    found = {point.value: point for point in _points(kind) if _canonical(point.name) == _canonical(name)}
    if not found:
        raise PluginError(f"no {_singular(kind)} is called {name!r}. {_known(name, names(kind))}")
    if len(found) > 1:
        raise PluginError(
            f"{len(found)} packages offer a {_singular(kind)} called {name!r}: {', '.join(sorted(found))}; "
            "uninstall one of them or rename its entry point"
        )
    return next(iter(found.values()))


def load(kind: Kind, name: str) -> Any:
    """Import and return what the entry point names. Raises `PluginError` saying what failed to import."""
    point = entry(kind, name)
    try:
        return point.load()
    except Exception as error:  # a stranger's module may fail in any way
        raise PluginError(
            f"the {_singular(kind)} {name!r} ({point.value}) cannot be imported: {type(error).__name__}: {error}; "
            "install what it needs, or uninstall its package"
        ) from error


def method(name: str) -> ModuleType:
    """The module of a method, checked against the contract. Raises `PluginError` naming what is missing."""
    module = load("methods", name)
    missing = [f"{part} ({meaning})" for part, meaning in CONTRACT.items() if not _fits(part, module)]
    if not isinstance(module, ModuleType) or missing:
        raise PluginError(
            f"{entry('methods', name).value} is not a method: it must be a module with {'; '.join(missing)}"
        )
    if _canonical(module.card.name) != _canonical(name):
        raise PluginError(
            f"the method registered as {name!r} calls itself {module.card.name!r}; give it one name"
        )
    return module


def _fits(part: str, module: object) -> bool:
    value = getattr(module, part, None)
    if part == "card":
        return isinstance(value, Card)
    return callable(value) if part == "run" else isinstance(value, type)


def _points(kind: Kind) -> tuple[EntryPoint, ...]:
    return _read(f"microtome.{kind}", tuple((place, _changed(place)) for place in sys.path))


# Reading the metadata of everything installed takes 10 ms, and a menu asks for each of its names.
@lru_cache(maxsize=32)
def _read(group: str, places: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))


def _changed(place: str) -> int:
    """When something was last installed there; 0 where nothing is."""
    try:
        return os.stat(place or ".").st_mtime_ns
    except OSError:
        return 0


def _canonical(name: str) -> str:
    return name.replace("-", "_")


def _singular(kind: Kind) -> str:
    return {"families": "family", "bases": "basis", "basis_files": "file format of bases"}.get(
        kind, kind.removesuffix("s")
    )


def _known(name: str, known: tuple[str, ...]) -> str:
    if close := get_close_matches(_canonical(name), known, n=1):
        return f"Did you mean {close[0]}?"
    return f"There are: {', '.join(known)}" if known else "None is installed."
