"""Who may write into a folder? One process at a time, and none for ever.

The right is an operating system's lock on a file in the folder, not the file itself: it ends with the process that
holds it, however that process ends, so nothing is left to clean up. The file says which process it was, for the
message to the second one. Where the system has no such locks (Windows) nobody is kept out.
"""

import os
import socket
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from microtome.core.errors import StoreError

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

LOCK: Final = "study.lock"


class Holder:
    """One who has the right to write into a folder, until it is closed or its block ends. held: as `lock` gave it."""

    def __init__(self, held: IO[str]) -> None:
        self._held = held

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let others write. Nothing is left to be saved: what is done is on the disk already."""
        self._held.close()


def lock(folder: Path) -> IO[str]:
    """Take the right to write into `folder`; closing what is returned gives it back.

    Raises `StoreError` naming the process that has it.
    """
    path = folder / LOCK
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be written ({error.strerror}); give a folder that can be"
        ) from error
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(file)
        file.close()
        raise StoreError(
            f"{folder} is being written by {holder}; wait until it has ended, end it, or give another folder"
        ) from None
    except OSError as error:
        file.close()
        raise StoreError(
            f"{path} cannot be locked ({error.strerror}), so two studies could write into one folder; "
            "give a folder on a disk that has locks"
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()} {socket.gethostname()}\n")
    file.flush()
    return file


def _holder(file: IO[str]) -> str:
    file.seek(0)
    words = file.read().split()
    return f"process {words[0]} on {words[1]}" if len(words) == 2 else "another process"
