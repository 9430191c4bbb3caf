"""Which units of a basis are on together? Singular vectors of its on-and-off patterns.

1. Take which units are on, in which rows: ones and zeros, how strongly left aside.
2. Take off each unit's own frequency, so that what is left is what units have to do with each other, and divide by its
   standard deviation, so that frequent units count no more than rare ones.
3. The singular vectors of that are groups of units that come together (one sign) or avoid each other (the other).
4. The control: the same with each unit's pattern shuffled over the rows. Vectors whose singular value is above the
   largest of the control are no accident.

Never written out: the pattern is kept sparse, and only sums over what is on are taken.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from microtome.bases.basis import Basis
from microtome.bases.codes import SparseCodes
from microtome.bases.linear import LinearBasis
from microtome.core.errors import InputError


@dataclass(frozen=True, eq=False)
class Patterns:
    """values `[vector]`: squares are shares of the variance of all patterns, times the number of units; largest first.
    vectors `[vector, unit]`, orthonormal. used `[unit]`: units that are on in some rows and not in all; others have
    zeros. chance: the largest value with patterns shuffled."""

    values: Float[Tensor, " vector"]
    vectors: Float[Tensor, "vector unit"]
    used: Int[Tensor, " used"]
    chance: float

    @property
    def above_chance(self) -> int:
        """How many vectors are no accident."""
        return int((self.values > self.chance).sum())


def activation_patterns(codes: SparseCodes, vectors: int = 16, seed: int = 0) -> Patterns:
    """Singular vectors of what is on. Raises `InputError` where no unit is on in some rows and off in others."""
    count = torch.bincount(codes.unit, minlength=codes.units).double()
    used = ((count > 0) & (count < codes.rows)).nonzero().flatten()
    if not len(used):
        raise InputError("no unit is on in some rows and off in others, so there are no patterns")
    draw = torch.Generator().manual_seed(seed)
    # Each unit keeps how often it is on; which rows these are is drawn anew.
    shuffled = [torch.randperm(codes.rows, generator=draw)[: int(n)] for n in count[used]]
    mixed_unit = used.repeat_interleave(count[used].long())
    chance = torch.linalg.eigvalsh(_correlations(torch.cat(shuffled), mixed_unit, codes, used))[-1]
    variances, found = torch.linalg.eigh(_correlations(codes.row, codes.unit, codes, used))
    chosen = found.mT.flip(0)[:vectors]
    spread = torch.zeros(len(chosen), codes.units)
    spread[:, used] = chosen.float()
    values = variances.flip(0)[:vectors].clamp_min(0).sqrt().float()
    return Patterns(values, spread, used, float(chance.clamp_min(0).sqrt()))


def basis_of_patterns(basis: Basis, patterns: Patterns) -> LinearBasis:
    """The groups as directions: for each vector, the sum of its units' directions, weighted."""
    if len(basis.writes) != 1:
        raise InputError(f"{basis.name} writes {len(basis.writes)} sites; groups as directions need one")
    return LinearBasis(basis.writes[0], patterns.vectors @ basis.directions(), name=f"{basis.name}_patterns")


def _correlations(
    row: Int[Tensor, " entry"], unit: Int[Tensor, " entry"], codes: SparseCodes, used: Int[Tensor, " used"]
) -> Float[Tensor, "used used"]:
    """Correlations of on and off between the units used, from where they are on."""
    place = torch.full((codes.units,), -1)
    place[used] = torch.arange(len(used))
    kept = place[unit] >= 0
    ones = np.ones(int(kept.sum()))
    where = (row[kept].cpu().numpy(), place[unit[kept]].cpu().numpy())
    on = csr_array((ones, where), shape=(codes.rows, len(used)))
    together = torch.from_numpy((on.T @ on).toarray()) / codes.rows
    share = together.diagonal()
    deviation = (share * (1 - share)).sqrt()
    return (together - torch.outer(share, share)) / torch.outer(deviation, deviation)
