"""How much better could codes be, with the decoder as it is? Inference-time optimisation of given codes.

1. Keep the units that are on, and fit their strengths by least squares (nothing below zero, if so asked).
2. Beside it, choose as many units as the row had on by orthogonal matching pursuit.
3. Of the two, keep for each row what is nearer to the value. No row ends farther than it began, or with more units.

Smith (2024), Replacing SAE encoders with inference-time optimisation.
It misleads as a fault of the encoder: codes that are nearer are not always more meaningful.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core.errors import InputError
from microtome.dictionaries.coders.coder import check
from microtome.dictionaries.coders.least_squares import fit
from microtome.dictionaries.coders.pursuit import OrthogonalMatchingPursuit


@torch.no_grad()
def refit(
    values: Float[Tensor, "row d"],
    directions: Float[Tensor, "unit d"],
    codes: Float[Tensor, "row unit"],
    nonnegative: bool = True,
) -> Float[Tensor, "row unit"]:
    """The best strengths of the units that are on. values: less what the decoder adds whatever the codes."""
    check(values, directions)
    if nonnegative and bool((codes < 0).any()):
        raise InputError("some codes are below zero; improve them with nonnegative=False")
    on = codes != 0
    new = torch.zeros_like(codes)
    for count in on.sum(-1).unique().tolist():
        rows = (on.sum(-1) == count).nonzero()[:, 0]
        if count:
            units = on[rows].nonzero()[:, 1].view(len(rows), count)
            start = codes[rows].gather(-1, units)
            fitted, _ = fit(values[rows], directions[units], start, start != 0, nonnegative)
            new[rows[:, None], units] = fitted
    return new


@torch.no_grad()
def improve(
    values: Float[Tensor, "row d"],
    directions: Float[Tensor, "unit d"],
    codes: Float[Tensor, "row unit"],
    nonnegative: bool = True,
) -> Float[Tensor, "row unit"]:
    """Codes with no more units on, of which no row is farther from its value."""
    best = refit(values, directions, codes, nonnegative)
    left = (values - best @ directions).square().sum(-1)
    counts = (codes != 0).sum(-1)
    for count in counts.unique().tolist():
        rows = (counts == count).nonzero()[:, 0]
        if count:
            other = OrthogonalMatchingPursuit(count, nonnegative).codes(values[rows], directions)
            nearer = (values[rows] - other @ directions).square().sum(-1) < left[rows]
            best[rows[nearer]] = other[nearer]
    return best
