"""How is a file written so that a kill, a full disk or a power cut leaves the old one or the new one, never a part?

1. Write beside it, under a name that no reader opens, and bring the bytes to the disk.
2. Rename over the old file, in one step, and bring the new name to the disk.
"""

import os
import re
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

from microtome.core.errors import StoreError

PARTIAL: Final = re.compile(
    r".+\.[a-z0-9_]{8}\.partial"
)  # what a kill may leave behind, and nobody else writes


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` in the place of the file at `path`, whose folders are made where absent.

    Raises `StoreError` where the disk refuses; what stood there before still does.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(
            dir=path.parent, prefix=f"{path.name}.", suffix=".partial", delete=False
        ) as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        _settle(path.parent)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror or error}); nothing that was there has changed. "
            "Make room or give a folder that can be written, then start again"
        ) from error


def _settle(folder: Path) -> None:
    """Bring a folder's list of names to the disk, where the system knows how."""
    if os.name != "posix":
        return
    listing = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(listing)
    finally:
        os.close(listing)
