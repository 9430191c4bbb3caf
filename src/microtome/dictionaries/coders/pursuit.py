"""Which k directions make up a value? Greedy pursuits: take the direction that fits best what is left, again and again.

1. Of the directions not yet taken, take the one whose correlation with what is left is largest.
2. Orthogonal matching pursuit: fit all taken directions anew by least squares. Gradient pursuit: take one step along
   the gradient instead, as long as is best; nearly as good, and nothing is solved.
3. Where nothing may be negative, only positive correlations count, and what falls to zero is given back.
4. Stop a row with k directions, or once nothing but `tolerance` of its length is left.

Pati, Rezaiifar and Krishnaprasad (1993); Tropp (2004), Greed is good, for when it finds the true directions: always if
k < (1 + 1/μ)/2, with μ the largest cosine between two. Blumensath and Davies (2008), Gradient pursuits.
It misleads where directions are nearly parallel: a wrong first choice is never taken back.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from microtome.core.errors import InputError
from microtome.dictionaries.coders.coder import Coder, done
from microtome.dictionaries.coders.least_squares import fit


@dataclass(frozen=True)
class Pursuit(Coder):
    """At most k directions a row. tolerance: the share of a value's length that may be left."""

    k: int
    nonnegative: bool = False
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"a pursuit takes at least one direction; got k = {self.k}")

    def numbers_a_row(self, units: int, d: int) -> int:
        return 4 * units + self.k * d

    @abstractmethod
    def improve(
        self,
        values: Float[Tensor, "row d"],
        atoms: Float[Tensor, "row k d"],
        present: Float[Tensor, "row k"],
        on: Bool[Tensor, "row k"],
    ) -> tuple[Float[Tensor, "row k"], Bool[Tensor, "row k"]]:
        """Better coefficients of the directions taken, and which of them are still in use."""

    def solve(
        self,
        values: Float[Tensor, "row d"],
        directions: Float[Tensor, "unit d"],
        start: Float[Tensor, "row unit"] | None,
    ) -> Float[Tensor, "row unit"]:
        rows, slots = torch.arange(len(values), device=values.device), min(self.k, len(directions))
        pointing = directions / directions.norm(dim=-1, keepdim=True)
        chosen = torch.zeros(len(values), slots, dtype=torch.long, device=values.device)
        on = torch.zeros_like(chosen, dtype=torch.bool)
        present = values.new_zeros(len(values), slots)
        atoms = values.new_zeros(len(values), slots, values.shape[-1])
        if start is not None:
            present, chosen = _largest(start.clamp(min=0) if self.nonnegative else start, slots)
            on = present != 0
            atoms = torch.where(on[..., None], directions[chosen], 0.0)
            present, on = self.improve(values, atoms, present, on)
        # Without signs nothing is given back, and k steps fill every row; with them some slots are filled twice.
        for _ in range(3 * slots if self.nonnegative else slots):
            left = values - (present[:, None] @ atoms)[:, 0]
            fits = left @ pointing.T
            fits = fits if self.nonnegative else fits.abs()
            row, slot = on.nonzero(as_tuple=True)
            fits[row, chosen[row, slot]] = -torch.inf
            best, unit = fits.max(-1)
            grows = (best > 0) & ~on.all(-1) & ~done(left.square().sum(-1), values, self.tolerance)
            if not bool(grows.any()):
                break
            row = rows[grows]
            slot = (~on[row]).int().argmax(-1)
            chosen[row, slot], on[row, slot], present[row, slot] = unit[row], True, 0.0
            atoms[row, slot] = directions[unit[row]]
            present[row], on[row] = self.improve(values[row], atoms[row], present[row], on[row])
        codes = values.new_zeros(len(values), len(directions))
        row, slot = on.nonzero(as_tuple=True)
        codes[row, chosen[row, slot]] = present[row, slot]
        return codes


@dataclass(frozen=True)
class OrthogonalMatchingPursuit(Pursuit):
    """After each choice all coefficients are fitted anew."""

    def improve(
        self,
        values: Float[Tensor, "row d"],
        atoms: Float[Tensor, "row k d"],
        present: Float[Tensor, "row k"],
        on: Bool[Tensor, "row k"],
    ) -> tuple[Float[Tensor, "row k"], Bool[Tensor, "row k"]]:
        return fit(values, atoms, present, on, self.nonnegative)


@dataclass(frozen=True)
class GradientPursuit(Pursuit):
    """After each choice all coefficients take one step, of the best length, along the gradient."""

    def improve(
        self,
        values: Float[Tensor, "row d"],
        atoms: Float[Tensor, "row k d"],
        present: Float[Tensor, "row k"],
        on: Bool[Tensor, "row k"],
    ) -> tuple[Float[Tensor, "row k"], Bool[Tensor, "row k"]]:
        left = values - (present[:, None] @ atoms)[:, 0]
        slope = torch.where(on, (atoms @ left[..., None])[..., 0], 0.0)
        if self.nonnegative:
            slope = torch.where((present <= 0) & (slope < 0), 0.0, slope)
        along = (slope[:, None] @ atoms)[:, 0]
        length = slope.square().sum(-1) / along.square().sum(-1).clamp(min=torch.finfo(values.dtype).tiny)
        if not self.nonnegative:
            return present + length[:, None] * slope, on
        reach = torch.where(slope < 0, present / -slope, torch.inf)
        least, first = reach.min(-1)
        moved = present + torch.minimum(length, least)[:, None] * slope
        emptied = least <= length
        moved[emptied, first[emptied]] = 0.0
        moved = moved.clamp(min=0)
        return moved, on & (moved > 0)


def _largest(codes: Float[Tensor, "row unit"], k: int) -> tuple[Float[Tensor, "row k"], Tensor]:
    place = codes.abs().topk(k, -1).indices
    return codes.gather(-1, place), place
