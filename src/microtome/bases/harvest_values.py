"""How are all values at some sites kept for later? In shards on the disk, resumable after a kill at any moment.

    harvest.json             what was harvested, which shards are there, and whether that is all
    shard-00000.safetensors  token I64 [token]: numbers in the corpus; and for each site its values [token, d]

1. Passes gather until they make a shard, written whole; then the manifest, whole, says so. A kill between the two
   leaves a file that no manifest names, and that is written over.
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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from microtome.bases.harvest import Harvest, Pass
from microtome.core.errors import InputError, StoreError
from microtome.core.site import Site, as_site
from microtome.store.headed_json import HeadedJson
from microtome.store.lock import lock
from microtome.store.manifest import differences
from microtome.store.whole_file import PARTIAL, refuse_strangers, write_whole

MANIFEST: Final = "harvest.json"
SHARD_BYTES: Final = 1 << 26
Progress = Callable[[int, int], None]
"""Called with passes done and passes in all."""
_PARTS = {"identity": dict, "shards": list, "passes": int, "done": int, "shard_bytes": int}
_FILE: Final = HeadedJson(MANIFEST, "microtome.harvest", 1, "a harvest", _PARTS)


def harvest_values(
    harvest: Harvest,
    folder: str | Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> "HarvestFolder":
    """Harvest into a folder, or go on with the harvest there.

    shard_bytes: about how large a shard is. Raises `StoreError` for a folder with another harvest, naming what
    differs, one with somebody else's shards, one that is being written, and a full disk; what was written stays.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be made ({error.strerror}); give another folder") from error
    with lock(folder):
        for left in folder.glob("*.partial"):
            if PARTIAL.fullmatch(left.name):
                left.unlink()
        identity = json.loads(json.dumps(harvest.identity()))
        if (folder / MANIFEST).exists():
            told = _FILE.read(folder)
            if found := differences(told["identity"], identity):
                raise StoreError(f"{folder} holds another harvest: {'; '.join(found)}. Give another folder")
        else:
            refuse_strangers(folder, "shard-*")
            told = {
                "identity": identity,
                "passes": harvest.n_passes,
                "shard_bytes": shard_bytes,
                "done": 0,
                "shards": [],
            }
            _FILE.write(folder, told)
        gathered: list[Pass] = []
        for one in harvest.passes(told["done"]):
            gathered.append(one)
            if progress is not None:
                progress(one.number + 1, harvest.n_passes)
            if _bytes(gathered) >= told["shard_bytes"] or one.number + 1 == harvest.n_passes:
                _write_shard(folder, told, gathered)
                gathered = []
    return HarvestFolder.open(folder)


def _write_shard(folder: Path, told: dict[str, Any], passes: list[Pass]) -> None:
    columns = {str(site): torch.cat([one.values[site] for one in passes]).cpu() for site in passes[0].values}
    columns["token"] = torch.cat([one.token for one in passes])
    content = save({name: column.contiguous() for name, column in columns.items()})
    write_whole(folder / _shard(len(told["shards"])), content)
    told["shards"].append(len(columns["token"]))
    told["done"] = passes[-1].number + 1
    _FILE.write(folder, told)


def _bytes(passes: list[Pass]) -> int:
    return sum(value.nbytes for one in passes for value in one.values.values())


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
        told = _FILE.read(folder)
        shards = tuple(told["shards"])
        if told["done"] < told["passes"]:
            raise StoreError(
                f"{folder} is not finished ({told['done']} of {told['passes']} passes are there); resume the harvest"
            )
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
        for (token,) in self._columns("token"):
            yield token

    def values(self, site: Site | str) -> Iterator[Float[Tensor, "token d"]]:
        """Values at a site, shard by shard. Raises `InputError` for one that was not harvested."""
        for (value,) in self._columns(self._harvested(as_site(site))):
            yield value

    def attribution(self, site: Site | str) -> Iterator[Float[Tensor, "token d"]]:
        """Gradient times value, shard by shard: to first order, what the metric would lose without each number."""
        site = as_site(site)
        for value, gradient in self._columns(self._harvested(site), self._harvested(site.grad)):
            yield value * gradient

    def _harvested(self, site: Site) -> str:
        if site not in self.sites:
            raise InputError(f"{site} was not harvested; this folder holds {' '.join(map(str, self.sites))}")
        return str(site)

    def _columns(self, *names: str) -> Iterator[list[Tensor]]:
        """Some columns of each shard; the others are not read."""
        for number, length in enumerate(self.shards):
            path = self.folder / _shard(number)
            try:
                with safe_open(path, framework="pt") as file:
                    lengths = {name: file.get_slice(name).get_shape()[0] for name in file.keys()}  # noqa: SIM118
                    if lengths != dict.fromkeys(("token", *map(str, self.sites)), length):
                        raise StoreError(
                            f"{path} does not belong to this harvest; restore it from a copy, or harvest anew"
                        )
                    found = [file.get_tensor(name) for name in names]
            except (OSError, SafetensorError) as error:
                raise StoreError(
                    f"{path} cannot be read ({error}); restore it from a copy, or harvest anew"
                ) from error
            yield found


def _shard(number: int) -> str:
    return f"shard-{number:05d}.safetensors"
