"""How do a basis's activations come to the disk, so that a kill loses nothing that was committed?

    with UnitWriter.open(folder, identity, n_units=…, n_tokens=…) as writer:
        for batch in batches[writer.batches:]:       # after a kill: from where it is
            writer.append(token, unit, value, seen=…)
        writer.seal()

1. Batches gather in memory; once they are many enough they become a shard, written whole, and then the manifest,
   whole, says so. What it does not name is not there, and is given again after a kill.
2. Sealing sorts the shards (`unit_sort`), writes both orders, then says so in the manifest; only then shards go.

Batches are counted, so whoever gives the same ones in the same order gets the same bytes, killed or not.
"""

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from microtome.core.errors import InputError, StoreError
from microtome.core.tensor_file import filled, mapped
from microtome.store.lock import Holder, lock
from microtome.store.unit_files import (
    BY_TOKEN,
    BY_UNIT,
    MANIFEST,
    MOST_TOKENS,
    UnitsManifest,
    as_bfloat16,
    as_half,
    shard_name,
    unit_dtype,
)
from microtome.store.unit_sort import AT_ONCE, write_by_token, write_by_unit
from microtome.store.whole_file import refuse_strangers

_Columns = dict[str, NDArray[Any]]
_BYTES: Final = 1 << 24
_LEFT: Final = ("shard-*", "run-*", "by_*.partial")  # what is there only while units are being written


class UnitWriter(Holder):
    """The one who writes into a folder of units. Made by `UnitWriter.open`; closing it lets others write.

    batches: how many are committed, and so the number of the next one to give.
    """

    def __init__(self, folder: Path, manifest: UnitsManifest, at_once: int, held: IO[str]) -> None:
        super().__init__(held)
        self.folder = folder
        self._manifest = manifest
        self._at_once = at_once
        self._waiting: list[_Columns] = []
        self._batches = 0
        self._seen = 0
        self._next_token = 0
        if manifest.shards and not manifest.sealed:
            last, _ = mapped(folder / shard_name(len(manifest.shards) - 1))
            self._next_token = int(last["token"][-1]) + 1

    @classmethod
    def open(
        cls,
        folder: str | Path,
        identity: Mapping[str, Any],
        *,
        n_units: int,
        n_tokens: int,
        gradients: bool = False,
        corpus: str = "../corpus",
        at_once: int = AT_ONCE,
    ) -> Self:
        """Begin, or go on with, the units in a folder.

        identity: which basis of which model on which corpus. n_tokens: of the corpus. corpus: where its files are, as
        seen from the folder. at_once: about how many entries may be in memory.
        Raises `StoreError` for a folder with units of something else, naming what differs, and one being written.
        """
        folder = Path(folder)
        if not 0 < n_tokens <= MOST_TOKENS:
            raise InputError(
                f"units can be kept of 1 … {MOST_TOKENS} tokens, not {n_tokens}; harvest parts of the corpus"
            )
        if n_units < 1:
            raise InputError(f"a basis has at least one unit; got n_units={n_units}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder} cannot be made ({error.strerror}); give another folder") from error
        held = lock(folder)
        try:
            fresh = UnitsManifest(dict(identity), n_units, n_tokens, gradients, corpus)
            if (folder / MANIFEST).exists():
                manifest = UnitsManifest.read(folder)
                manifest.refuse_other(folder, identity)
                for name in ("n_units", "n_tokens", "gradients"):
                    there, here = getattr(manifest, name), getattr(fresh, name)
                    if there != here:
                        raise StoreError(f"{folder} has {name} {there}, not {here}; give another folder")
            else:
                refuse_strangers(folder, *_LEFT, BY_UNIT, BY_TOKEN)
                manifest = fresh
                manifest.write(folder)
            writer = cls(folder, manifest, at_once, held)
            writer._clear()
            return writer
        except BaseException:
            held.close()
            raise

    @property
    def batches(self) -> int:
        """How many batches were given, committed ones included: the number of the next."""
        return self._manifest.batches + self._batches

    @property
    def sealed(self) -> bool:
        return self._manifest.sealed is not None

    def append(
        self,
        token: NDArray[np.integer[Any]],
        unit: NDArray[np.integer[Any]],
        value: NDArray[np.float32],
        gradient: NDArray[np.float32] | None = None,
        *,
        seen: int,
    ) -> None:
        """One batch whole: entries `[entry]`, by token, then by unit. seen: how many tokens were looked at.

        Raises `InputError` for numbers that are not there or not in order, and values that are not finite.
        """
        manifest = self._manifest
        if self.sealed:
            raise StoreError(f"{self.folder} is sealed; harvest into another folder")
        if (gradient is not None) != manifest.gradients or not len(token) == len(unit) == len(value):
            raise InputError(
                "a batch has a token, a unit and a value for each entry, and gradients if they were announced"
            )
        if len(token):
            steps = np.diff(token)
            if not self._next_token <= token[0] <= token[-1] < manifest.n_tokens or (steps < 0).any():
                raise InputError(
                    f"tokens must ascend from {self._next_token}, up to {manifest.n_tokens - 1}; got {token[0]} … "
                    f"{token[-1]}: harvest rows in order"
                )
            if not 0 <= unit.min() <= unit.max() < manifest.n_units:
                raise InputError(
                    f"there are units 0 … {manifest.n_units - 1}; got {unit.min()} … {unit.max()}"
                )
            if ((steps == 0) & (np.diff(unit) <= 0)).any():
                raise InputError("the units that are on at a token must ascend, each unit once")
            columns: _Columns = {
                "token": token.astype(np.uint32),
                "value": as_half(value),
                "unit": unit.astype(unit_dtype(manifest.n_units)[1]),
            }
            if gradient is not None:
                columns["gradient"] = as_bfloat16(gradient)
            self._waiting.append(columns)
            self._next_token = int(token[-1]) + 1
        self._batches += 1
        self._seen += seen
        if sum(len(one["token"]) for one in self._waiting) >= self._at_once:
            self.commit()

    def commit(self) -> None:
        """Bring what waits to the disk. Raises `StoreError` where it is full; what was committed stays."""
        if not self._batches:
            return
        shards = self._manifest.shards
        if self._waiting:
            columns = {
                name: np.concatenate([one[name] for one in self._waiting]) for name in self._waiting[0]
            }
            dtypes = {
                "token": "U32",
                "value": "F16",
                "unit": unit_dtype(self._manifest.n_units)[0],
                "gradient": "BF16",
            }
            spec = {name: (dtypes[name], column.shape) for name, column in columns.items()}
            with filled(self.folder / shard_name(len(shards)), spec) as arrays:
                for name, column in columns.items():
                    arrays[name][:] = column
            shards = (*shards, len(columns["token"]))
        self._become(
            replace(
                self._manifest,
                shards=shards,
                batches=self.batches,
                seen=self._manifest.seen + self._seen,
            )
        )
        self._waiting, self._batches, self._seen = [], 0, 0

    def seal(self) -> None:
        """Commit, sort, and say that it is done. May be called again after a kill."""
        if self.sealed:
            return
        self.commit()
        manifest = self._manifest
        shards = [self.folder / shard_name(number) for number in range(len(manifest.shards))]
        write_by_token(self.folder, shards, manifest.n_units, manifest.n_tokens)
        write_by_unit(self.folder, shards, manifest.n_units, manifest.gradients, self._at_once)
        hashes = {name: file_hash(self.folder / name) for name in (BY_UNIT, BY_TOKEN)}
        self._become(replace(manifest, sealed=hashes))
        self._clear()

    def _become(self, manifest: UnitsManifest) -> None:
        manifest.write(self.folder)
        self._manifest = manifest

    def _clear(self) -> None:
        """Remove what a kill left, and shards that are sorted."""
        kept = 0 if self.sealed else len(self._manifest.shards)
        named = {shard_name(number) for number in range(kept)}
        for pattern in (*_LEFT, f"{MANIFEST}.*.partial"):
            for path in self.folder.glob(pattern):
                if path.name not in named:
                    path.unlink()


def file_hash(path: Path) -> str:
    """SHA-256 in hex of a file's bytes."""
    digest = sha256()
    with path.open("rb") as file:
        while piece := file.read(_BYTES):
            digest.update(piece)
    return digest.hexdigest()
