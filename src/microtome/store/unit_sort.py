"""How do entries that come token by token get sorted unit by unit, when they do not fit in memory?

1. Each shard is put in the order of its units, stably, and written as a run: one 64-bit number an entry, and where
   each unit begins.
2. Unit by unit, its slices of all runs are laid together, sorted, and written where the counts say.
3. A unit that is on too often for memory is cut by value first: its slices are sorted where they are, and cuts are
   taken from samples of them, so that no piece holds more than the limit.

Memory: one shard, or one piece. Keys are unique, so the outcome does not depend on shards or pieces.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from microtome.core.tensor_file import filled, mapped
from microtome.store.unit_files import BY_TOKEN, BY_UNIT, packed, unit_dtype, unpacked

AT_ONCE: Final = 1 << 22
_RUN: Final = "run-{:05d}.safetensors"


def write_by_token(folder: Path, shards: Sequence[Path], n_units: int, n_tokens: int) -> None:
    """Entries as they came, with the place where each token begins."""
    dtype = unit_dtype(n_units)[0]
    columns = [mapped(shard)[0] for shard in shards]
    entries = sum(len(one["unit"]) for one in columns)
    spec = {"starts": ("I64", (n_tokens + 1,)), "value": ("F16", (entries,)), "unit": (dtype, (entries,))}
    with filled(folder / BY_TOKEN, spec) as arrays:
        counts = arrays["starts"][1:]
        at = 0
        for one in columns:
            stop = at + len(one["unit"])
            arrays["value"][at:stop] = one["value"]
            arrays["unit"][at:stop] = one["unit"]
            if stop > at:
                first, last = int(one["token"][0]), int(one["token"][-1])
                counts[first : last + 1] += np.bincount(one["token"] - first, minlength=last + 1 - first)
            at = stop
        np.cumsum(counts, out=counts)


def write_by_unit(
    folder: Path, shards: Sequence[Path], n_units: int, gradients: bool, at_once: int = AT_ONCE
) -> None:
    """Entries by unit, largest value first, with the sums that means and correlations need."""
    runs = [_write_run(folder / _RUN.format(number), shard, n_units) for number, shard in enumerate(shards)]
    starts = np.sum([run["starts"] for run in runs], axis=0) if runs else np.zeros(n_units + 1, np.int64)
    entries = int(starts[-1])
    spec = {
        "starts": ("I64", (n_units + 1,)),
        "sum": ("F64", (n_units,)),
        "squares": ("F64", (n_units,)),
        "token": ("U32", (entries,)),
        "value": ("F16", (entries,)),
    } | ({"gradient": ("BF16", (entries,))} if gradients else {})
    with filled(folder / BY_UNIT, spec) as arrays:
        arrays["starts"][:] = starts
        at = 0
        for unit in range(n_units):
            first = at
            slices = [run["key"][run["starts"][unit] : run["starts"][unit + 1]] for run in runs]
            for piece in _in_order([one for one in slices if len(one)], at_once):
                value, token, gradient = unpacked(piece)
                stop = at + len(piece)
                arrays["value"][at:stop] = value
                arrays["token"][at:stop] = token
                if gradients:
                    arrays["gradient"][at:stop] = gradient
                at = stop
            # Of stretches that are always the same: the last bits of a sum depend on its order.
            for low in range(first, at, AT_ONCE):
                wide = arrays["value"][low : min(low + AT_ONCE, at)].astype(np.float64)
                arrays["sum"][unit] += wide.sum()
                arrays["squares"][unit] += np.square(wide).sum()
    for path in folder.glob("run-*"):
        path.unlink()


def _write_run(path: Path, shard: Path, n_units: int) -> dict[str, NDArray[Any]]:
    columns, _ = mapped(shard)
    unit = columns["unit"]
    order = _stable_order(unit)
    with filled(path, {"starts": ("I64", (n_units + 1,)), "key": ("U64", (len(unit),))}) as arrays:
        arrays["starts"][0] = 0
        np.cumsum(np.bincount(unit, minlength=n_units), out=arrays["starts"][1:])
        keys = packed(columns["value"], columns["token"], columns.get("gradient"))
        np.take(keys, order, out=arrays["key"])
    return {"starts": arrays["starts"], "key": arrays["key"]}


def _stable_order(unit: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.int64]:
    """Entries by unit. numpy sorts by counting when numbers have 16 bits, so longer ones are sorted by halves."""
    if unit.dtype == np.uint16:
        return np.argsort(unit, kind="stable")
    low = np.argsort(unit.astype(np.uint16), kind="stable")
    return low[np.argsort((unit >> 16).astype(np.uint16)[low], kind="stable")]


def _in_order(slices: list[NDArray[np.uint64]], at_once: int) -> Iterator[NDArray[np.uint64]]:
    """Entries of one unit in ascending order, in pieces of no more than `at_once`."""
    if sum(map(len, slices)) <= at_once:
        if slices:
            yield np.sort(np.concatenate(slices))
        return
    for one in slices:
        one.sort()
    # Between two cuts lie, of each slice, fewer than its own samples there plus one, times the stride.
    stride = max(1, at_once // (2 * len(slices)))
    samples = np.sort(np.concatenate([one[stride - 1 :: stride] for one in slices]))
    cuts = samples[len(slices) - 1 :: len(slices)]
    places = [np.concatenate([[0], np.searchsorted(one, cuts), [len(one)]]) for one in slices]
    for number in range(len(cuts) + 1):
        piece = [one[where[number] : where[number + 1]] for one, where in zip(slices, places, strict=True)]
        if any(map(len, piece)):
            yield np.sort(np.concatenate(piece))
