"""Which rows is a basis fitted to? A matrix in memory, or chunks that can be gone through again and again.

What does not fit into memory is given as a function that starts over: `lambda: harvest.values()`, a generator of
chunks `[row, d]`. Everything a classical fit needs of all rows (mean, covariance, sums by cluster) is then added up
chunk by chunk.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core.errors import InputError, NotFiniteError

Rows = Float[Tensor, "row d"] | Callable[[], Iterable[Tensor]]


def chunks(rows: Rows, size: int = 1 << 14) -> Iterator[Float[Tensor, "some d"]]:
    """Chunks of at most `size` rows. Raises `InputError` where there are none, `NotFiniteError` for NaN or infinity."""
    parts: Iterable[Tensor] = [rows] if isinstance(rows, Tensor) else rows()
    seen = 0
    for part in parts:
        if part.dim() != 2:
            raise InputError(f"expected rows of numbers [row, d]; got a tensor of shape {list(part.shape)}")
        for chunk in part.split(size):
            if not bool(torch.isfinite(chunk).all()):
                raise NotFiniteError(
                    f"the values to fit hold NaN or infinity, in rows {seen} … {seen + len(chunk) - 1}"
                )
            seen += len(chunk)
            if len(chunk):
                yield chunk
    if not seen:
        raise InputError("there are no rows to fit a basis to")


def moments(rows: Rows) -> tuple[int, Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """How many rows there are, their mean, and their covariance, in double precision and in one go."""
    count, total, products = 0, None, None
    origin: Tensor | None = None  # near the mean, so that little is lost when it is taken off
    for chunk in chunks(rows):
        exact = chunk.double()
        origin = exact.mean(0) if origin is None else origin
        exact = exact - origin
        total = exact.sum(0) if total is None else total + exact.sum(0)
        products = exact.mT @ exact if products is None else products.addmm_(exact.mT, exact)
        count += len(chunk)
    assert origin is not None
    assert total is not None
    assert products is not None
    mean = total / count
    return count, origin + mean, products / count - torch.outer(mean, mean)


def sample(rows: Rows, count: int, seed: int) -> Float[Tensor, "some d"]:
    """At most so many rows, drawn evenly from all of them."""
    draw = torch.Generator().manual_seed(seed)
    kept: Tensor | None = None
    keys = torch.zeros(0)
    for chunk in chunks(rows):
        key = torch.rand(len(chunk), generator=draw)
        kept = chunk.clone() if kept is None else torch.cat([kept, chunk])
        keys = torch.cat([keys, key])
        if len(keys) > count:
            keys, chosen = keys.topk(count)
            kept = kept[chosen]
    assert kept is not None
    return kept
