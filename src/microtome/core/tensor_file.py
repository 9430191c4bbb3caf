"""How are arrays kept that are larger than memory? In safetensors files, mapped: what is looked at is read, no more.

The file is the usual one, which every safetensors library reads; here it is made before its content is there, filled
in place or appended to, and opened without being read. It appears under its name once it is whole; until then it is
`NAME.partial`, over which the next attempt writes.

    with filled(path, {"value": ("F16", (n,))}) as arrays:
        arrays["value"][:] = …
    with Appended(path, "tokens", "U16") as file:
        file.append(ids)
    arrays, metadata = mapped(path)

Metadata is plain JSON. numpy has no bfloat16: `BF16` arrays come as their bits, unsigned integers of 16.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from microtome.core.errors import StoreError

Spec = Mapping[str, tuple[str, tuple[int, ...]]]
"""For each array, in the order in which they lie in the file: a dtype as safetensors calls it, and a shape."""

_DTYPES: Final = {
    "I64": "<i8", "U64": "<u8", "F64": "<f8", "I32": "<i4", "U32": "<u4", "F32": "<f4",
    "I16": "<i2", "U16": "<u2", "F16": "<f2", "BF16": "<u2", "I8": "<i1", "U8": "<u1", "BOOL": "?",
}  # fmt: skip
_LONGEST_HEADER: Final = 100_000_000  # what the format allows
_ROOM: Final = 1 << 16
_OURS: Final = "microtome"


@contextmanager
def filled(
    path: Path, spec: Spec, metadata: Mapping[str, Any] | None = None
) -> Iterator[dict[str, NDArray[Any]]]:
    """Arrays in a new file, to be written to; the file is there once the block ends, and not at all if it raises.

    Raises `StoreError` where the disk has no room, before anything is written to it.
    """
    head = _header(spec, metadata or {})
    sizes = [np.dtype(_DTYPES[dtype]).itemsize * prod(shape) for dtype, shape in spec.values()]
    total = len(head) + sum(sizes)
    partial = _partial(path)
    try:
        with _told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("w+b") as file:
                file.write(head)
                file.flush()
                _reserve(file, total)
        whole = np.memmap(partial, np.uint8, "r+", shape=(total,))
        yield _views(np.asarray(whole), spec, len(head))
        with _told(path):
            whole.flush()
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


class Appended:
    """One array in a new file, grown at its end; there once the block ends, and not at all if it raises.

    metadata: may be set until then. Raises `StoreError` where the disk is full.
    """

    def __init__(self, path: Path, name: str, dtype: str) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.length = 0
        self._name = name
        self._dtype = dtype
        with _told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _partial(path).open("wb")
            self._file.write(b" " * _ROOM)

    def append(self, values: NDArray[Any]) -> None:
        """Put values behind those that are there."""
        with _told(self.path):
            self._file.write(np.ascontiguousarray(values, _DTYPES[self._dtype]).data)
        self.length += len(values)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with _told(self.path):
                    self._file.seek(0)
                    self._file.write(
                        _header({self._name: (self._dtype, (self.length,))}, self.metadata, _ROOM)
                    )
                    self._file.flush()
                    os.fsync(self._file.fileno())
                    os.replace(self._file.name, self.path)
        finally:
            self._file.close()
            Path(self._file.name).unlink(missing_ok=True)


def mapped(
    path: Path, expect: Mapping[str, str] | None = None
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays of a file, read-only and mapped, and its metadata.

    expect: names that must be there, with the dtype of each. Raises `StoreError` for a file that is missing,
    truncated, longer than it says, or not of this kind.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(size - 8, _LONGEST_HEADER):
                raise ValueError("its header is longer than the file")
            head = json.loads(file.read(length))
        metadata = head.pop("__metadata__", {})
        spec = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in head.items()}
        ends = {name: entry["data_offsets"] for name, entry in head.items()}
        at = 0
        for name in sorted(spec, key=lambda name: ends[name]):
            dtype, shape = spec[name]
            bytes_held = np.dtype(_DTYPES[dtype]).itemsize * prod(shape)
            if ends[name] != [at, at + bytes_held] or any(side < 0 for side in shape):
                raise ValueError(f"the place of {name!r} does not fit its shape")
            at += bytes_held
        if size != 8 + length + at:
            raise ValueError(f"it has {size} bytes where its header says {8 + length + at}")
        told = json.loads(metadata[_OURS]) if _OURS in metadata else {}
        if not isinstance(told, dict):
            raise ValueError("its metadata is no object")
        for name, dtype in (expect or {}).items():
            if name not in spec or spec[name][0] != dtype or len(spec[name][1]) != 1:
                raise ValueError(f"it holds no list {name!r} of {dtype}")
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}); give a folder that is whole") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{path} is damaged or foreign ({error}); restore it from a copy, or make it again"
        ) from error
    in_order = {name: spec[name] for name in sorted(spec, key=lambda name: ends[name])}
    # A plain array over the map: slices of `memmap` itself cost ten times as much.
    whole = np.asarray(np.memmap(path, np.uint8, "r"))
    return _views(whole, in_order, 8 + length), told


def _views(whole: NDArray[np.uint8], spec: Spec, at: int) -> dict[str, NDArray[Any]]:
    arrays = {}
    for name, (dtype, shape) in spec.items():
        kind = np.dtype(_DTYPES[dtype])
        stop = at + kind.itemsize * prod(shape)
        arrays[name] = whole[at:stop].view(kind).reshape(shape)
        at = stop
    return arrays


def _header(spec: Spec, metadata: Mapping[str, Any], room: int = 0) -> bytes:
    """Length and JSON, filled up with spaces to `room` bytes, and to where an array of 64-bit numbers may begin."""
    told: dict[str, Any] = {"__metadata__": {_OURS: json.dumps(metadata)}}
    at = 0
    for name, (dtype, shape) in spec.items():
        stop = at + np.dtype(_DTYPES[dtype]).itemsize * prod(shape)
        told[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(told).encode()
    length = max(-(-len(text) // 8) * 8, room - 8)
    if room and length > room - 8:
        raise StoreError(f"the metadata take {len(text)} bytes, for which {room - 8} are kept; shorten them")
    return length.to_bytes(8, "little") + text.ljust(length)


def _reserve(file: IO[bytes], size: int) -> None:
    """Take the room at once: writing through a map to a full disk would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror or error}); make room or give another folder, then start again"
        ) from error
