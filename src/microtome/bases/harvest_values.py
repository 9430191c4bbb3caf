"""How are all values at some sites kept for later? In shards on the disk, resumable after a kill at any moment.

    harvest.json             what was harvested, which shards are there, and whether that is all
    shard-00000.safetensors  token I64 [token]: numbers in the corpus; and for each site its values [token, d]

1. So many passes make a shard, written whole; then the manifest, whole, says so. A kill between the two leaves a file
   that no manifest names, and that is written over.
2. Going on begins at the first pass that the manifest does not name. The same passes give the same numbers, so that
   the folder is byte for byte what it would have been.

In memory is one shard, whatever the length of the corpus. `grad:SITE` is a column like any other; gradient times value
is `attribution`.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save
from torch import Tensor

from microtome.bases.harvest import Harvest
from microtome.core.errors import InputError, StoreError
from microtome.core.site import Site, as_site
from microtome.store.lock import lock
from microtome.store.manifest import differences
from microtome.store.whole_file import write_whole

MANIFEST: Final = "harvest.json"
SHARD_BYTES: Final = 1 << 26
Progress = Callable[[int, int], None]
"""Called with passes done and passes in all."""
_FORMAT: Final = "microtome.harvest"
_VERSION: Final = 1


def harvest_values(
    harvest: Harvest,
    folder: str | Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> "HarvestFolder":
    """Harvest into a folder, or go on with the harvest there.

    shard_bytes: about how large a shard is. Raises `StoreError` for a folder with another harvest, naming what
    differs, one that is being written, and a full disk; what was written stays.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be made ({error.strerror}); give another folder") from error
    with lock(folder):
        for left in folder.glob("*.partial"):
            left.unlink()
        identity = json.loads(json.dumps(harvest.identity()))
        if (folder / MANIFEST).exists():
            told = _read(folder)
            if found := differences(told["identity"], identity):
                raise StoreError(f"{folder} holds another harvest: {'; '.join(found)}. Give another folder")
        else:
            one = sum(value.nbytes for value in harvest.one(0).values.values())
            told = {
                "format": _FORMAT,
                "version": _VERSION,
                "identity": identity,
                "passes": harvest.n_passes,
                "passes_a_shard": max(1, shard_bytes // one),
                "shards": [],
            }
            _write(folder, told)
        each = told["passes_a_shard"]
        for number in range(len(told["shards"]), -(-harvest.n_passes // each)):
            _write_shard(folder, told, harvest, number, progress)
    return HarvestFolder.open(folder)


def _write_shard(
    folder: Path, told: dict[str, Any], harvest: Harvest, number: int, progress: Progress | None
) -> None:
    each = told["passes_a_shard"]
    passes = []
    for at in range(number * each, min((number + 1) * each, harvest.n_passes)):
        passes.append(harvest.one(at))
        if progress is not None:
            progress(at + 1, harvest.n_passes)
    columns = {str(site): torch.cat([one.values[site] for one in passes]).cpu() for site in harvest.sites}
    columns["token"] = torch.cat([one.token for one in passes])
    write_whole(
        folder / _shard(number), save({name: column.contiguous() for name, column in columns.items()})
    )
    told["shards"].append(len(columns["token"]))
    _write(folder, told)


@dataclass(frozen=True, eq=False)
class HarvestFolder:
    """A finished harvest. identity: what was harvested. shards: how many tokens each holds."""

    folder: Path
    identity: Mapping[str, Any]
    shards: tuple[int, ...]

    @classmethod
    def open(cls, folder: str | Path, *, model_hash: str | None = None) -> Self:
        """Open a folder. model_hash: refuse values of another model.

        Raises `StoreError` for a folder that is not a finished harvest, and for one of another model.
        """
        folder = Path(folder)
        told = _read(folder)
        shards = tuple(told["shards"])
        if len(shards) < -(-told["passes"] // told["passes_a_shard"]):
            raise StoreError(f"{folder} is not finished ({len(shards)} shards are there); resume the harvest")
        there = told["identity"].get("model_hash")
        if model_hash is not None and there != model_hash:
            raise StoreError(
                f"{folder} is of another model (hash {str(there)[:12]}…, not {model_hash[:12]}…); harvest anew"
            )
        return cls(folder, told["identity"], shards)

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(map(as_site, self.identity["sites"]))

    @property
    def n_tokens(self) -> int:
        return sum(self.shards)

    def tokens(self) -> Iterator[Int[Tensor, " token"]]:
        """Which tokens of the corpus the values belong to, shard by shard."""
        for number in range(len(self.shards)):
            yield self._load(number)["token"]

    def values(self, site: Site | str) -> Iterator[Float[Tensor, "token d"]]:
        """Values at a site, shard by shard. Raises `InputError` for one that was not harvested."""
        site = as_site(site)
        if site not in self.sites:
            raise InputError(f"{site} was not harvested; this folder holds {' '.join(map(str, self.sites))}")
        for number in range(len(self.shards)):
            yield self._load(number)[str(site)]

    def attribution(self, site: Site | str) -> Iterator[Float[Tensor, "token d"]]:
        """Gradient times value, shard by shard: to first order, what the metric would lose without each number."""
        site = as_site(site)
        for value, gradient in zip(self.values(site), self.values(site.grad), strict=True):
            yield value * gradient

    def _load(self, number: int) -> dict[str, Tensor]:
        path = self.folder / _shard(number)
        try:
            found = load_file(path)
        except (
            Exception
        ) as error:  # safetensors has its own errors for its format, and the system's for the file
            raise StoreError(
                f"{path} cannot be read ({error}); restore it from a copy, or harvest anew"
            ) from error
        lengths = {len(column) for column in found.values()}
        if set(found) != {"token", *map(str, self.sites)} or lengths != {self.shards[number]}:
            raise StoreError(
                f"{path} does not belong to this harvest; restore it from a copy, or harvest anew"
            )
        return found


def _shard(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _write(folder: Path, told: dict[str, Any]) -> None:
    write_whole(folder / MANIFEST, json.dumps(told, indent=1).encode())


def _read(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(
            f"{folder} holds no harvest (no {MANIFEST}); give a folder that a harvest made"
        ) from None
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} is damaged ({error}); restore it from a copy, or harvest into another folder"
        ) from error
    if not isinstance(told, dict) or told.get("format") != _FORMAT:
        raise StoreError(f"{path} is not the manifest of a harvest; give another folder")
    if told.get("version") != _VERSION:
        raise StoreError(f"{path} has format version {told.get('version')}, this microtome reads {_VERSION}")
    shapes = {"identity": dict, "shards": list, "passes": int, "passes_a_shard": int}
    if (
        any(not isinstance(told.get(part), kind) for part, kind in shapes.items())
        or told["passes_a_shard"] < 1
    ):
        raise StoreError(
            f"{path} is damaged (a part is missing); restore it from a copy, or harvest into another folder"
        )
    return told
