"""How is a small file of plain values told from somebody else's? JSON whose first words are its format and version."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microtome.core.errors import StoreError
from microtome.store.whole_file import write_whole


@dataclass(frozen=True)
class HeadedJson:
    """One kind of file. name: of the file. format: its name for itself. kind: what its folder holds, for messages.
    parts: what must be there, and of which type."""

    name: str
    format: str
    version: int
    kind: str
    parts: Mapping[str, type]

    def write(self, folder: Path, told: Mapping[str, Any]) -> None:
        """Write it whole. Raises `StoreError` where the disk refuses."""
        head = {"format": self.format, "version": self.version}
        write_whole(folder / self.name, json.dumps(head | dict(told), indent=1).encode())

    def read(self, folder: Path) -> dict[str, Any]:
        """What was written, without the head. Raises `StoreError` for a folder without it, and for a file that is
        damaged, foreign or of another version."""
        path = folder / self.name
        try:
            told = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise StoreError(
                f"{folder} holds no {self.kind.removeprefix('a ')} (no {self.name}); give a folder that a harvest made"
            ) from None
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{path} is damaged ({error}); restore it from a copy, or harvest into another folder"
            ) from error
        if not isinstance(told, dict) or told.pop("format", None) != self.format:
            raise StoreError(f"{path} is not the manifest of {self.kind}; give another folder")
        if (version := told.pop("version", None)) != self.version:
            raise StoreError(f"{path} has format version {version}, this microtome reads {self.version}")
        if any(not isinstance(told.get(part), of) for part, of in self.parts.items()):
            raise StoreError(
                f"{path} is damaged (a part is missing); restore it from a copy, or harvest into another folder"
            )
        return told
