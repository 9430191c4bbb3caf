"""Which codes are near the value and small in sum? The lasso: ½‖x − zD‖² + λ‖z‖₁, solved by (F)ISTA.

1. Step against the gradient by 1/L, with L the largest eigenvalue of D Dᵀ, and shrink every code by λ/L (ISTA).
2. Start each step not from the codes but from where they were heading (FISTA); a row that was led astray loses its
   momentum. A row that would end with a larger objective than it began with keeps its codes.
3. A row is done when it keeps the optimality conditions to `tolerance` λ: for a code that is on, gradient = −λ sign;
   for one that is off, |gradient| ≤ λ.

Daubechies, Defrise and De Mol (2004); Beck and Teboulle (2009); restarts after O'Donoghue and Candès (2015).
It misleads by its shrinkage: codes that are on are too small by about λ over the squared length of their direction.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core.errors import InputError
from microtome.dictionaries.coders.coder import Coder

_CHECK_EVERY = 10


@dataclass(frozen=True)
class Lasso(Coder):
    """penalty: λ. momentum: FISTA, without it ISTA. steps: the most it takes. tolerance: of the conditions, in λ."""

    penalty: float
    nonnegative: bool = False
    momentum: bool = True
    steps: int = 2000
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if not self.penalty > 0:
            raise InputError(f"the penalty of a lasso is above 0; got {self.penalty}")

    def solve(
        self,
        values: Float[Tensor, "row d"],
        directions: Float[Tensor, "unit d"],
        start: Float[Tensor, "row unit"] | None,
    ) -> Float[Tensor, "row unit"]:
        length = 1.0 / curvature(directions)
        found = values.new_zeros(len(values), len(directions)) if start is None else start.clone()
        if self.nonnegative:
            found.clamp_(min=0)
        began = self.objective(values, directions, found)
        rows, x, codes = torch.arange(len(values), device=values.device), values, found
        ahead, age = codes, torch.ones_like(began)
        for step in range(1, self.steps + 1):
            moved = self._shrink(ahead - length * ((ahead @ directions - x) @ directions.T), length)
            if self.momentum:
                # Where the step went against the momentum, the momentum led astray.
                astray = ((ahead - moved) * (moved - codes)).sum(-1) > 0
                age = torch.where(astray, 1.0, age)
                older = (1 + (1 + 4 * age.square()).sqrt()) / 2
                ahead = moved + ((age - 1) / older)[:, None] * (moved - codes)
                age = older
            else:
                ahead = moved
            codes = moved
            if step % _CHECK_EVERY == 0 or step == self.steps:
                going = self.violation(x, directions, codes) > self.tolerance * self.penalty
                found = found.index_copy(
                    0, rows, self._nearer(x, directions, codes, found[rows], began[rows])
                )
                rows, x, codes, ahead, age = rows[going], x[going], codes[going], ahead[going], age[going]
                if not len(rows):
                    break
        return found

    def _nearer(
        self,
        values: Float[Tensor, "row d"],
        directions: Float[Tensor, "unit d"],
        codes: Float[Tensor, "row unit"],
        kept: Float[Tensor, "row unit"],
        began: Float[Tensor, " row"],
    ) -> Float[Tensor, "row unit"]:
        """The new codes of each row, unless they are worse than those it began with."""
        return torch.where((self.objective(values, directions, codes) <= began)[:, None], codes, kept)

    def objective(
        self,
        values: Float[Tensor, "row d"],
        directions: Float[Tensor, "unit d"],
        codes: Float[Tensor, "row unit"],
    ) -> Float[Tensor, " row"]:
        """½‖x − zD‖² + λ‖z‖₁ of each row."""
        left = (values - codes @ directions).square().sum(-1)
        return left / 2 + self.penalty * codes.abs().sum(-1)

    def violation(
        self,
        values: Float[Tensor, "row d"],
        directions: Float[Tensor, "unit d"],
        codes: Float[Tensor, "row unit"],
    ) -> Float[Tensor, " row"]:
        """By how much each row misses the conditions for being the best (Karush, Kuhn and Tucker)."""
        slope = (codes @ directions - values) @ directions.T
        on = (slope + self.penalty * codes.sign()).abs()
        off = (-slope if self.nonnegative else slope.abs()) - self.penalty
        return torch.where(codes != 0, on, off.clamp(min=0)).amax(-1)

    def _shrink(self, codes: Float[Tensor, "row unit"], length: float) -> Float[Tensor, "row unit"]:
        by = length * self.penalty
        return (codes - by).clamp(min=0) if self.nonnegative else torch.nn.functional.softshrink(codes, by)


def curvature(directions: Float[Tensor, "unit d"]) -> float:
    """The largest eigenvalue of D Dᵀ: how sharply the squared distance bends at most."""
    small = directions if len(directions) < directions.shape[-1] else directions.T
    return float(torch.linalg.eigvalsh((small @ small.T).double())[-1])
