"""How is a file written so that a kill, a full disk or a power cut leaves the old one or the new one, never a part?

1. Write beside it, under a name that no reader opens, and bring the bytes to the disk.
2. Rename over the old file, in one step, and bring the new name to the disk.
"""

import os
from pathlib import Path
from tempfile import NamedTemporaryFile


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` in the place of the file at `path`. Raises `OSError` where the disk refuses; what stood there
    before still does."""
    with NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", suffix=".partial", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    _settle(path.parent)


def _settle(folder: Path) -> None:
    """Bring a folder's list of names to the disk, where the system knows how."""
    if os.name != "posix":
        return
    listing = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(listing)
    finally:
        os.close(listing)
