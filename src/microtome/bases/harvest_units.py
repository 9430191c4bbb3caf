"""Which units are on, everywhere in a corpus? Codes of bases, harvested without keeping the values they are made of.

    stores = harvest_units(model, rows, [dictionary], "harvest")
    stores["dictionary"].top(7)

In the folder: the corpus once (`corpus/`), for each basis a folder with its name (`microtome.store.unit_files`), and
what is known of all units (`registry.sqlite`).
One pass of the model serves all bases. A kill loses a minute; going on gives the same sealed files, byte for byte.

With gradients, each entry carries the slope of the metric along the unit's direction where the basis writes: to first
order, by how much the metric grows when the unit is a little stronger.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from microtome.bases.basis import Basis
from microtome.bases.codes import SparseCodes
from microtome.bases.harvest import CorpusMetric, Harvest, Pass, next_token_loss
from microtome.core.errors import InputError
from microtome.core.provenance import hash_tensors
from microtome.data.corpus_rows import CorpusRows
from microtome.models.model import Model
from microtome.store.registry import Registry
from microtome.store.unit_store import UnitStore
from microtome.store.unit_writer import UnitWriter

CORPUS: Final = "corpus"
REGISTRY: Final = "registry.sqlite"
_NUMBERS: Final = 1 << 22
_LOST_AT_MOST: Final = 60.0  # seconds of work
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
Progress = Callable[[int, int], None]
"""Called with passes done and passes in all."""


def harvest_units(
    model: Model,
    rows: CorpusRows,
    bases: Sequence[Basis],
    folder: str | Path,
    *,
    gradients: bool = False,
    metric: CorpusMetric = next_token_loss,
    together: int = 16,
    progress: Progress | None = None,
) -> dict[str, UnitStore]:
    """Units of some bases on rows of a corpus, by the name of the basis; a harvest begun in the folder goes on.

    Raises `InputError` for bases of one name and rows that are shuffled, `StoreError` for a folder that holds other
    units, naming what differs, one that is being written, and a full disk; what was committed stays.
    """
    names = [basis.name for basis in bases]
    if not names or len({*names, CORPUS, REGISTRY}) < len(names) + 2 or not all(map(_NAME.fullmatch, names)):
        raise InputError(
            f"each basis needs a name of its own that a folder can have, not {CORPUS!r}; got {names or 'no basis'}"
        )
    sites = [site for basis in bases for site in basis.reads]
    if gradients:
        sites += [site.grad for basis in bases for site in basis.writes]
    harvest = Harvest.of(model, rows, list(dict.fromkeys(sites)), metric=metric, together=together)
    folder = Path(folder)
    rows.corpus.save(folder / CORPUS)
    told = harvest.identity()
    with ExitStack() as stack:
        writers = {}
        for basis in bases:
            # The sites that other bases read make no difference to this one.
            identity = told | {"sites": list(map(str, basis.reads)), "corpus_hash": rows.corpus.hash}
            identity |= {"basis": basis_identity(basis)}
            writer = UnitWriter.open(
                folder / basis.name,
                json.loads(json.dumps(identity)),
                n_units=basis.n_units,
                n_tokens=rows.corpus.n_tokens,
                gradients=gradients,
                corpus=f"../{CORPUS}",
            )
            writers[basis.name] = stack.enter_context(writer)
        open_ones = [basis for basis in bases if not writers[basis.name].sealed]
        first = min((writers[basis.name].batches for basis in open_ones), default=harvest.n_passes)
        committed = time.monotonic()
        for one in harvest.passes(first):
            for basis in open_ones:
                if writers[basis.name].batches == one.number:
                    writers[basis.name].append(*_entries(basis, one, gradients), seen=len(one.token))
            if time.monotonic() - committed > _LOST_AT_MOST:
                for writer in writers.values():
                    writer.commit()
                committed = time.monotonic()
            if progress is not None:
                progress(one.number + 1, harvest.n_passes)
        for writer in writers.values():
            writer.seal()
    stores = {name: UnitStore.open(folder / name) for name in names}
    with Registry.open(folder / REGISTRY) as registry:
        for basis in bases:
            _register(registry, basis, stores[basis.name])
    return stores


def _register(registry: Registry, basis: Basis, store: UnitStore) -> None:
    told = store.identity
    registry.add_basis(
        basis.name,
        model=told["model"],
        model_hash=told["model_hash"],
        reads=told["basis"]["reads"],
        writes=told["basis"]["writes"],
        n_units=basis.n_units,
        store=basis.name,
        told={"hash": told["basis"]["hash"], "corpus_hash": told["corpus_hash"]},
    )
    registry.set_statistics(basis.name, density=store.densities, mean=store.means, largest=store.largest)


@torch.no_grad()
def _entries(basis: Basis, one: Pass, gradients: bool) -> tuple[NDArray[Any], ...]:
    """Tokens, units and values of what is on in a pass, and gradients if asked."""
    codes = basis.encode_sparsely(basis.rows_of(one.values))
    columns = [one.token[codes.row.cpu()], codes.unit, codes.value.float()]
    if gradients:
        slopes = torch.cat([one.values[site.grad].float() for site in basis.writes], 1)
        columns.append(_along(codes, slopes, basis.directions().float()))
    return tuple(column.cpu().numpy() for column in columns)


def _along(
    codes: SparseCodes, slopes: Float[Tensor, "row d_write"], directions: Float[Tensor, "unit d_write"]
) -> Float[Tensor, " entry"]:
    """For each entry the slope of its row along the direction of its unit."""
    if 8 * len(codes.row) > codes.rows * codes.units:  # so many that all of them together are less work
        return (slopes @ directions.mT)[codes.row, codes.unit]
    step = max(1, _NUMBERS // slopes.shape[1])
    pieces = [
        (slopes[codes.row[at : at + step]] * directions[codes.unit[at : at + step]]).sum(1)
        for at in range(0, len(codes.row), step)
    ]
    return torch.cat(pieces) if pieces else slopes.new_zeros(0)


def basis_identity(basis: Basis) -> dict[str, Any]:
    """Which basis this is, in plain JSON: name, sites, and a hash of every number and setting it holds."""
    tensors: dict[str, Tensor] = {}
    plain: list[str] = []
    for path, value in _parts(basis, type(basis).__name__):
        if isinstance(value, Tensor):
            tensors[path] = value
        else:
            plain.append(f"{path}={value!r}")
    digest = hashlib.sha256(f"{hash_tensors(tensors)} {sorted(plain)}".encode())
    return {
        "name": basis.name,
        "units": basis.n_units,
        "reads": list(map(str, basis.reads)),
        "writes": list(map(str, basis.writes)),
        "hash": digest.hexdigest(),
    }


def _parts(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Tensors and plain values that an object is made of, with where they stand in it."""
    if value is None or isinstance(value, Tensor | str | int | float | bool):
        yield path, value
    elif isinstance(value, np.ndarray):
        yield path, torch.from_numpy(np.ascontiguousarray(value))
    elif isinstance(value, nn.Module):
        yield from _parts(value.state_dict(), f"{path}:{type(value).__name__}")
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _parts(part, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _parts(part, f"{path}.{number}")
    else:
        yield path, type(value).__name__
        # What a cached property has worked out is no part of it.
        for name, part in getattr(value, "__dict__", {}).items():
            if not hasattr(getattr(type(value), name, None), "__set_name__"):
                yield from _parts(part, f"{path}.{name}")
