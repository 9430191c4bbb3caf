"""How does a store write a file, whole or not at all? As `core.whole_file` does, folders made and errors told."""

import re
from pathlib import Path
from typing import Final

from microtome.core.errors import StoreError
from microtome.core.whole_file import replace_file

PARTIAL: Final = re.compile(
    r".+\.[a-z0-9_]{8}\.partial"
)  # what a kill may leave behind, and nobody else writes


def refuse_strangers(folder: Path, *patterns: str) -> None:
    """Raise `StoreError` where files lie that would be written over, and nothing here says whose they are."""
    if found := sorted(path.name for pattern in patterns for path in folder.glob(pattern)):
        raise StoreError(
            f"{folder} holds {found[0]}, which no harvest there wrote; nothing was changed. Give another folder"
        )


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` in the place of the file at `path`, whose folders are made where absent.

    Raises `StoreError` where the disk refuses; what stood there before still does.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror or error}); nothing that was there has changed. "
            "Make room or give a folder that can be written, then start again"
        ) from error
