"""Which study is this, and what of it is done? `manifest.json`, read with suspicion and compared with care.

format, version    which file this is
identity           what makes it this study and no other, as given when it was begun
created            when; not part of the identity
versions           of Python and packages that worked on it, oldest first
stages             for each that is done: its file, the file's SHA-256, seconds, cost and date
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from microtome.core.cost import Cost
from microtome.core.errors import InputError, StoreError

MANIFEST: Final = "manifest.json"
UNTOUCHED: Final = "nothing in it was changed or deleted"
_FORMAT: Final = "microtome.study"
_VERSION: Final = 1
_PARTS: Final = {"identity": dict, "created": str, "versions": list, "stages": dict}
_STAGE: Final = {"file": str, "sha256": str, "seconds": float, "cost": dict, "date": str}
_ANEW: Final = "give another folder (--out), or begin anew (--fresh sets this one aside)"


def new(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a study of which nothing is done."""
    head = {"format": _FORMAT, "version": _VERSION, "identity": identity, "created": now()}
    return head | {"versions": [], "stages": {}}


def read(folder: Path) -> dict[str, Any]:
    """The manifest in `folder`. Raises `StoreError` where it is damaged, foreign or of a later format."""
    refuse_foreign(folder)
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from error
    if manifest.get("version") != _VERSION:
        raise StoreError(
            f"{file} has format version {manifest.get('version')}, this microtome reads {_VERSION}; {UNTOUCHED}. "
            "Update microtome, or give another folder (--out)"
        )
    try:
        _expect(manifest, _PARTS, "the manifest")
        for name, done in manifest["stages"].items():
            _expect(done, _STAGE, f"stage {name!r}")
            cost(done)
    except (LookupError, TypeError) as error:
        raise _damaged(file, error) from error
    return manifest


def refuse_foreign(folder: Path) -> None:
    """Raise `StoreError` where the file of that name is somebody else's; a damaged one passes here."""
    try:
        told = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return
    if not isinstance(told, dict) or told.get("format") != _FORMAT:
        raise StoreError(
            f"{folder / MANIFEST} is not the manifest of a study; {UNTOUCHED}. Give another folder (--out)"
        )


def cost(done: Mapping[str, Any]) -> Cost:
    """What a stage cost, from its entry."""
    return Cost(**{**done["cost"], "notes": tuple(done["cost"]["notes"])})


def refuse_other(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise `StoreError` naming every part in which the identity there is not the one given here."""
    if found := differences(there, here):
        raise StoreError(f"{folder} holds another study: {'; '.join(found)}; {UNTOUCHED}. To go on, {_ANEW}")


def now() -> str:
    """The date and time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def plain(value: Any, what: str) -> Any:
    """A copy made of JSON's own types, so that what is kept is what is used. Raises `InputError` for other types."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what} must be plain numbers, strings, lists and dicts to be kept: {error}"
        ) from error


def _expect(told: Any, parts: Mapping[str, type], what: str) -> None:
    if not isinstance(told, dict):
        raise TypeError(f"{what} is no object")
    for part, kind in parts.items():
        if not isinstance(told.get(part), kind):
            raise TypeError(f"{part!r} of {what} is {_short(told.get(part))}, not a {kind.__name__}")


def _damaged(file: Path, error: Exception) -> StoreError:
    return StoreError(
        f"{file} is damaged ({type(error).__name__}: {error}); {UNTOUCHED}. Restore it from a copy, {_ANEW}"
    )


def differences(there: Any, here: Any, at: str = "") -> list[str]:
    """Where two plain values part, as `config.seed is 0 there and 1 here`."""
    if not (isinstance(there, dict) and isinstance(here, dict)):
        # As text, because NaN equals nothing and 1 equals True.
        same = json.dumps(there, sort_keys=True) == json.dumps(here, sort_keys=True)
        return [] if same else [f"{at} is {_short(there)} there and {_short(here)} here"]
    found = []
    for key in {**there, **here}:
        name = f"{at}.{key}" if at else key
        if key not in here:
            found.append(f"{name} is {_short(there[key])} there and absent here")
        elif key not in there:
            found.append(f"{name} is absent there and {_short(here[key])} here")
        else:
            found += differences(there[key], here[key], name)
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text)} characters)"
