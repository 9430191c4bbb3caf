"""Which entries of rows × units are on? Chosen chunk by chunk, so that the whole matrix is never written.

    top_k         the k largest of each row
    batch_top_k   the largest of all rows together, so many
    above         all that exceed a floor of their unit

Nothing here is differentiated. Each returns `Entries` and the pre-activations at them.

The k largest of a row lie in the k blocks whose largest members are largest: so blocks are compared first, and only
their members after that. It is exact, and twice as fast as comparing all.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.dictionaries.drive import Entries

_CHUNK: Final = 1 << 21  # pre-activations written at once: 8 MB, which stay in a processor's cache
_BLOCK: Final = 16
_ROUND: Final = 2.0**-8  # half the distance of neighbours in bfloat16, relative


@dataclass(frozen=True, eq=False)
class Selection:
    """Entries that were chosen. pre `[entry]`. least: the smallest that was chosen; retried: rows chosen twice."""

    entries: Entries
    pre: Float[Tensor, " entry"]
    least: float = 0.0
    retried: int = 0


def chunks(rows: int, units: int) -> int:
    """Rows whose pre-activations are written at once."""
    return max(1, min(rows, _CHUNK // units))


@torch.no_grad()
def top_k(
    x: Float[Tensor, "row d"], encoder: Float[Tensor, "unit d"], bias: Float[Tensor, " unit"], k: int
) -> Selection:
    """The k largest pre-activations of each row, whatever their sign."""
    units = []
    values = []
    for rows in x.split(chunks(len(x), len(encoder))):
        pre = torch.addmm(bias, rows, encoder.mT)
        unit = largest(pre, k)
        unit = unit.sort(-1).values
        units.append(unit)
        values.append(pre.gather(1, unit))
    return _of(torch.cat(units), torch.cat(values), len(encoder))


def _of(
    unit: Int[Tensor, "row k"], values: Float[Tensor, "row k"], units: int, retried: int = 0
) -> Selection:
    row = torch.arange(len(unit), device=unit.device).repeat_interleave(unit.shape[1])
    return Selection(Entries(row, unit.flatten(), len(unit), units), values.flatten(), retried=retried)


def largest(pre: Float[Tensor, "row unit"], k: int) -> Int[Tensor, "row k"]:
    """Where the k largest of each row are, in any order."""
    count, units = pre.shape
    blocks = units // _BLOCK
    if units % _BLOCK or k * 4 > blocks:
        return pre.topk(k, sorted=False).indices
    # Members of a block stand `blocks` apart, so that maxima are taken over whole stretches of memory.
    best = pre.view(count, _BLOCK, blocks).amax(1).topk(k, sorted=False).indices
    members = (best[:, None, :] + blocks * torch.arange(_BLOCK, device=pre.device)[:, None]).flatten(1)
    return members.gather(1, pre.gather(1, members).topk(k, sorted=False).indices)


@torch.no_grad()
def above(
    x: Float[Tensor, "row d"],
    encoder: Float[Tensor, "unit d"],
    bias: Float[Tensor, " unit"],
    floor: Float[Tensor, " unit"],
) -> Selection:
    """All pre-activations larger than their unit's floor."""
    found = [
        _above(torch.addmm(bias, rows, encoder.mT), floor) for rows in x.split(chunks(len(x), len(encoder)))
    ]
    return _joined(found, chunks(len(x), len(encoder)), len(x), len(encoder))


@torch.no_grad()
def batch_top_k(
    x: Float[Tensor, "row d"],
    encoder: Float[Tensor, "unit d"],
    bias: Float[Tensor, " unit"],
    count: int,
    guess: float = 0.0,
) -> Selection:
    """The `count` largest of all pre-activations that are positive; fewer where fewer are.

    guess: something below the smallest that will be chosen makes it faster; it never changes what is chosen. A guess
    that is too high is noticed, and all rows are looked at again.
    """
    size = chunks(len(x), len(encoder))
    floor = max(guess, 0.0)
    while True:
        level = torch.full_like(bias, floor)
        found = [_above(torch.addmm(bias, rows, encoder.mT), level) for rows in x.split(size)]
        if floor == 0 or sum(len(pre) for _, _, pre in found) >= count:
            break
        floor = 0.0
    whole = _joined(found, size, len(x), len(encoder))
    if len(whole.pre) <= count:
        return whole
    best = whole.pre.topk(count, sorted=False).indices.sort().values
    entries = whole.entries
    pre = whole.pre[best]
    return Selection(
        Entries(entries.row[best], entries.unit[best], entries.rows, entries.units), pre, float(pre.min())
    )


def _above(pre: Float[Tensor, "row unit"], floor: Float[Tensor, " unit"]) -> tuple[Tensor, Tensor, Tensor]:
    place = (pre > floor).flatten().nonzero()[:, 0]
    return place // pre.shape[1], place % pre.shape[1], pre.flatten()[place]


def _joined(found: list[tuple[Tensor, Tensor, Tensor]], size: int, rows: int, units: int) -> Selection:
    row = torch.cat([row + number * size for number, (row, _, _) in enumerate(found)])
    unit = torch.cat([unit for _, unit, _ in found])
    pre = torch.cat([pre for _, _, pre in found])
    return Selection(Entries(row, unit, rows, units), pre, float(pre.min()) if len(pre) else 0.0)
