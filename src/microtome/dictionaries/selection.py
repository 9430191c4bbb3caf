"""Which entries of rows × units are on? Chosen chunk by chunk, so that the whole matrix is never written.

    top_k         the k largest of each row
    batch_top_k   the largest of all rows together, so many
    above         all that exceed a floor of their unit

Nothing here is differentiated. Each returns `Entries` and the pre-activations at them. half: products in bfloat16 say
what is looked at, float32 what is chosen (`screening`).

The k largest of a row lie in the k blocks whose largest members are largest: so blocks are compared first, and only
their members after that. It is exact, and twice as fast as comparing all.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.dictionaries.drive import Entries
from microtome.dictionaries.screening import Screen, largest_of

_CHUNK: Final = 1 << 21  # pre-activations written at once: 8 MB, which stay in a processor's cache
_BLOCK: Final = 16


@dataclass(frozen=True, eq=False)
class Selection:
    """Entries that were chosen. pre `[entry]`. least: the smallest that was chosen."""

    entries: Entries
    pre: Float[Tensor, " entry"]
    least: float = 0.0


def chunks(rows: int, units: int) -> int:
    """Rows whose pre-activations are written at once."""
    return max(1, min(rows, _CHUNK // units))


@torch.no_grad()
def top_k(
    x: Float[Tensor, "row d"],
    encoder: Float[Tensor, "unit d"],
    bias: Float[Tensor, " unit"],
    k: int,
    half: bool = False,
) -> Selection:
    """The k largest pre-activations of each row, whatever their sign."""
    count, size = len(x), chunks(len(x), len(encoder))
    if not half:
        unit, values = _largest_of(x, encoder, bias, k, size)
    else:
        unit, values, certified = largest_of(Screen(x, encoder, bias), k, size)
        doubtful = (~certified).nonzero()[:, 0]
        if len(doubtful):
            unit[doubtful], values[doubtful] = _largest_of(x[doubtful], encoder, bias, k, size)
    row = torch.arange(count, device=x.device).repeat_interleave(k)
    return Selection(Entries(row, unit.flatten(), count, len(encoder)), values.flatten())


def _largest_of(
    x: Float[Tensor, "row d"],
    encoder: Float[Tensor, "unit d"],
    bias: Float[Tensor, " unit"],
    k: int,
    size: int,
) -> tuple[Int[Tensor, "row k"], Float[Tensor, "row k"]]:
    units, values = [], []
    for rows in x.split(size):
        pre = torch.addmm(bias, rows, encoder.mT)
        units.append(largest(pre, k).sort(-1).values)
        values.append(pre.gather(1, units[-1]))
    return torch.cat(units), torch.cat(values)


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
    half: bool = False,
) -> Selection:
    """All pre-activations larger than their unit's floor."""
    size = chunks(len(x), len(encoder))
    screen = Screen(x, encoder, bias) if half else None
    found = []
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        if screen is not None:
            found.append(screen.above(rows, floor))
            continue
        pre = torch.addmm(bias, x[rows], encoder.mT)
        # One number for each place: half the memory of two, and twice as fast.
        place = (pre > floor).flatten().nonzero()[:, 0]
        found.append((place // len(bias) + start, place % len(bias), pre.flatten()[place]))
    row, unit, pre = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Selection(Entries(row, unit, len(x), len(encoder)), pre, float(pre.min()) if len(pre) else 0.0)


@torch.no_grad()
def batch_top_k(
    x: Float[Tensor, "row d"],
    encoder: Float[Tensor, "unit d"],
    bias: Float[Tensor, " unit"],
    count: int,
    guess: float = 0.0,
    half: bool = False,
) -> Selection:
    """The `count` largest of all pre-activations that are positive; fewer where fewer are.

    guess: something below the smallest that will be chosen makes it faster; it never changes what is chosen. Without
    one, it is made from the first rows. One that is too high is noticed, and all rows are looked at again.
    """
    size = chunks(len(x), len(encoder))
    floor = guess
    if floor <= 0:
        sample = torch.addmm(bias, x[:size], encoder.mT).flatten()
        twice = min(len(sample), 2 * count * min(size, len(x)) // len(x) + 1)
        floor = max(0.0, float(sample.topk(twice, sorted=False).values.min()))
    whole = above(x, encoder, bias, torch.full_like(bias, floor), half)
    if floor > 0 and len(whole.pre) < count:
        whole = above(x, encoder, bias, torch.zeros_like(bias), half)
    if len(whole.pre) <= count:
        return whole
    best = whole.pre.topk(count, sorted=False).indices.sort().values
    entries, pre = whole.entries, whole.pre[best]
    kept = Entries(entries.row[best], entries.unit[best], entries.rows, entries.units)
    return Selection(kept, pre, float(pre.min()))
