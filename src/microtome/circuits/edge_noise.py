"""What does an edge carry that is drowned in noise? What its source writes, and Gaussian numbers as wide as it varies.

A source's spread is the root mean square, over units, of the standard deviation over all real tokens. Every row draws
from the seed and its own number alone, so that batches make no difference. Misleads: noise goes in every direction,
most of which the source never writes in.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from microtome.circuits.edge_cut import Ablation
from microtome.circuits.edge_ends import Writes
from microtome.core.draws import generator


def spread(batches: Iterable[tuple[Writes, Bool[Tensor, "row position"]]]) -> Float[Tensor, " source"]:
    """How far what each source writes varies over all batches, with the tokens that are real in each."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for writes, real in batches:
        values = writes[:, real].double()
        count += values.shape[1]
        total = total.to(values) + values.sum(dim=1)
        squares = squares.to(values) + values.square().sum(dim=1)
    variance = squares / count - (total / count).square()
    return variance.clamp(min=0).mean(dim=1).sqrt().float()


def noisy(writes: Writes, scale: Float[Tensor, " source"], seed: int, first: int = 0) -> Ablation:
    """Cut edges carry these writes with noise of each source's scale. first: the number of the first row."""
    drawn = [
        torch.randn(writes[:, row].shape, generator=generator(seed, first + row))
        for row in range(writes.shape[1])
    ]
    return Ablation(
        "noise", writes + scale[:, None, None, None] * torch.stack(drawn, dim=1).to(writes.device)
    )
