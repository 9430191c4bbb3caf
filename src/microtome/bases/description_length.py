"""How many bits does it take to say a value in a basis, and to say the basis? Minimum description length.

1. All is said to one accuracy: a share of the target's variance (`slack`) may be wrong in the end. Half of it is for
   codes, half for what they leave out.
2. Which units are on costs the entropy of each unit's being on or off. How strongly costs the entropy of the codes,
   rounded to steps; a step's error, once through the unit's direction, adds up over the units on in a row to the half
   of the slack.
3. What the basis leaves out is said as a Gaussian with its covariance: half the logarithm of each eigenvalue over the
   error allowed, where it is larger (reverse water-filling).
4. The basis itself costs its numbers times `bits_a_number`.

Entropies are what an arithmetic coder reaches on long data; they are estimated from the same rows, units taken as
independent, so that a basis whose units come in groups could be coded shorter. Bases are compared at equal slack: one
with fewer units on says less by codes and more by what is left out, and the sum has a minimum.

Reference: Ayonrinde, Pearce and Sharkey (2024), Interpretability as compression. Misleads with few rows, whose
entropies come out low.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.bases.basis import Basis
from microtome.bases.reconstruction import CHUNK, check_rows
from microtome.core.errors import InputError

SLACK: Final = 0.01
BITS_A_NUMBER: Final = 16


@dataclass(frozen=True)
class DescriptionLength:
    """Bits a row: for which units are on, for how strongly, for what they leave out; and bits of the basis."""

    which: float
    how_much: float
    left_out: float
    basis: float
    rows: int
    slack: float

    @property
    def codes(self) -> float:
        """Bits a row for the codes."""
        return self.which + self.how_much

    @property
    def row(self) -> float:
        """Bits a row, to the accuracy that `slack` says."""
        return self.codes + self.left_out

    def total(self, rows: int | None = None) -> float:
        """Bits a row with the basis shared out over so many rows; by default those that were measured."""
        return self.row + self.basis / (rows or self.rows)

    def numbers(self) -> dict[str, float]:
        """The bits by name."""
        return {
            "bits_which": self.which,
            "bits_how_much": self.how_much,
            "bits_left_out": self.left_out,
            "bits_a_row": self.row,
            "bits_basis": self.basis,
        }


@torch.no_grad()
def description_length(
    basis: Basis,
    values: Float[Tensor, "..."],
    target: Float[Tensor, "..."] | None = None,
    slack: float = SLACK,
    bits_a_number: int = BITS_A_NUMBER,
) -> DescriptionLength:
    """Measure a basis on values; arguments as in `reconstruction`. Raises `InputError` for a slack outside 0 … 1."""
    target = check_rows(basis, values, target)
    if not 0 < slack < 1:
        raise InputError(f"slack is the share of variance that may be wrong, between 0 and 1; got {slack}")
    size = max(1, CHUNK // basis.n_units)
    some = values.split(size)
    parts = [basis.encode_sparsely(rows) for rows in some]
    errors = [
        (wanted - basis.rebuilt_sparsely(rows, codes)).double()
        for rows, codes, wanted in zip(some, parts, target.split(size), strict=True)
    ]
    unit = torch.cat([part.unit for part in parts])
    strength = (
        torch.cat([part.value for part in parts]).double() * basis.directions().double().norm(dim=-1)[unit]
    )
    variance = float((target - target.mean(0)).double().square().sum()) / len(values)
    if variance == 0:
        raise InputError("the values are all the same; there is nothing to say")
    allowed = slack * variance / 2
    rows, on = len(values), len(unit)
    share = torch.bincount(unit, minlength=basis.n_units).double() / rows
    which = float(-(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share)).sum()) / math.log(2)
    # Rounding to steps of s has a variance of s²/12 for each unit that is on.
    step = math.sqrt(12 * allowed * rows / on) if on else 1.0
    return DescriptionLength(
        which,
        _entropy_of_levels(unit, (strength / step).round().long()) / rows,
        _gaussian_bits(torch.cat(errors), allowed),
        float(basis.n_parameters * bits_a_number),
        rows,
        slack,
    )


def _entropy_of_levels(unit: Tensor, level: Tensor) -> float:
    """Bits for the levels of all entries, each unit with its own distribution."""
    if not len(unit):
        return 0.0
    level = level - level.min()
    counts = torch.unique(unit * (int(level.max()) + 1) + level, return_counts=True)[1].double()
    units = torch.unique(unit, return_counts=True)[1].double()
    return float(torch.xlogy(units, units).sum() - torch.xlogy(counts, counts).sum()) / math.log(2)


def _gaussian_bits(errors: Float[Tensor, "row d"], allowed: float) -> float:
    """Bits a row to say Gaussian errors so that in the end no more than `allowed` of their variance is wrong."""
    eigenvalues = (
        torch.linalg.eigvalsh(errors.mT @ errors / len(errors)).clamp_min(0).sort(descending=True).values
    )
    if float(eigenvalues.sum()) <= allowed:
        return 0.0
    # The level of the water: errors below it are left, those above are said down to it.
    below = eigenvalues.flip(0).cumsum(0).flip(0)
    count = torch.arange(1, len(eigenvalues) + 1)
    level = (allowed - torch.cat([below[1:], below.new_zeros(1)])) / count
    fits = (level > 0) & (level <= eigenvalues)
    said = int(fits.nonzero().max()) + 1 if fits.any() else 1
    return float((eigenvalues[:said] / level[said - 1]).log2().clamp_min(0).sum()) / 2
