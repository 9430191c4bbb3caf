"""How do a basis's activations lie on the disk? One folder a basis, so that a question about a unit is one slice.

    units.json               which basis, model and corpus; what is committed; the hashes of the files when sealed
    shard-00000.safetensors  while it grows: token U32, unit U16 or U32, value F16, perhaps gradient BF16 [entry]
    by_unit.safetensors      sealed: starts I64 [unit + 1], sum F64 and squares F64 [unit], token U32, value F16,
                             perhaps gradient BF16 [entry]: unit u is [starts[u] : starts[u + 1]], largest value
                             first, equal values in the order of their tokens
    by_token.safetensors     sealed: starts I64 [token + 1], value F16, unit U16 or U32 [entry]: what was on at token t

An entry is a unit that is not zero at a token; tokens are numbers in the corpus, which is kept once, beside the bases.
While entries are sorted an entry is one number of 64 bits: value (largest first), token, gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from microtome.core.errors import InputError, StoreError
from microtome.store.headed_json import HeadedJson
from microtome.store.manifest import differences

MANIFEST: Final = "units.json"
BY_UNIT: Final = "by_unit.safetensors"
BY_TOKEN: Final = "by_token.safetensors"
MOST_TOKENS: Final = 1 << 32
_FILE: Final = HeadedJson(MANIFEST, "microtome.units", 1, "units", {"identity": dict, "shards": list})
_LARGEST: Final = 65504.0  # of float16


@dataclass(frozen=True)
class UnitsManifest:
    """What `units.json` says.

    identity: which basis of which model on which corpus, and how it was harvested, in plain JSON.
    corpus: where the tokens are, as seen from this folder. shards: entries of each. batches: how many are committed.
    seen: how many tokens were looked at. sealed: SHA-256 of the sorted files, once they are there.
    """

    identity: dict[str, Any]
    n_units: int
    n_tokens: int
    gradients: bool
    corpus: str
    shards: tuple[int, ...] = ()
    batches: int = 0
    seen: int = 0
    sealed: dict[str, str] | None = None

    def write(self, folder: Path) -> None:
        _FILE.write(folder, vars(self))

    @classmethod
    def read(cls, folder: Path) -> "UnitsManifest":
        """Raises `StoreError` for a folder without units, a damaged manifest, and a later format."""
        told = _FILE.read(folder)
        try:
            found = cls(**told | {"shards": tuple(told["shards"])})
            numbers = (found.n_units, found.n_tokens, found.batches, found.seen, *found.shards)
            if not all(type(number) is int and number >= 0 for number in numbers):
                raise TypeError("a count is no number")
            if not isinstance(found.identity, dict) or not isinstance(found.corpus, str):
                raise TypeError("identity and corpus must be an object and a path")
        except (KeyError, TypeError) as error:
            raise StoreError(f"{folder / MANIFEST} is damaged ({error}); restore it from a copy") from error
        return found

    def refuse_other(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Raise `StoreError` naming every part in which what is there is not what is given here."""
        if found := differences(self.identity, identity):
            raise StoreError(
                f"{folder} holds units of something else: {'; '.join(found)}. Give another folder"
            )


def unit_dtype(n_units: int) -> tuple[str, type[np.unsignedinteger[Any]]]:
    """How numbers of units are kept: as safetensors and as numpy call it."""
    return ("U16", np.uint16) if n_units <= 1 << 16 else ("U32", np.uint32)


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def as_half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Values as they are kept. Raises `InputError` where one is not finite or too large for float16."""
    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= _LARGEST:
        raise InputError(
            f"a value of {largest:g} cannot be kept in float16 (up to {_LARGEST:g}); rescale the basis, and look for "
            "NaN and infinity"
        )
    return values.astype(np.float16)


def as_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16: float32's range with 8 bits of precision, which tiny gradients need."""
    if not np.isfinite(values).all():
        raise InputError("a gradient is NaN or infinite; look at the model and the metric")
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Their values."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def packed(
    value: NDArray[np.float16], token: NDArray[np.uint32], gradient: NDArray[np.uint16] | None
) -> NDArray[np.uint64]:
    """Each entry as one number; ascending numbers are descending values, then ascending tokens."""
    bits = value.view(np.uint16)
    # Of a sign and a magnitude, the order of numbers: positive ones down to zero, then negative ones away from it.
    falling = np.where(bits & 0x8000, bits, bits ^ 0x7FFF).astype(np.uint64)
    key = (falling << np.uint64(48)) | (token.astype(np.uint64) << np.uint64(16))
    return key if gradient is None else key | gradient


def unpacked(
    key: NDArray[np.uint64],
) -> tuple[NDArray[np.float16], NDArray[np.uint32], NDArray[np.uint16]]:
    """Values, tokens and gradients of packed entries."""
    falling = (key >> np.uint64(48)).astype(np.uint16)
    value = np.where(falling & 0x8000, falling, falling ^ 0x7FFF).astype(np.uint16).view(np.float16)
    return value, ((key >> np.uint64(16)) & np.uint64(0xFFFFFFFF)).astype(np.uint32), key.astype(np.uint16)
