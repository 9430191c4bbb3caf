"""What is a switch that can be learned? Hard concrete gates: between 0 and 1, often exactly one of the two.

A gate is drawn as `clamp(s · (ζ - γ) + γ, 0, 1)` with `s = sigmoid((log u - log(1 - u) + a) / β)`, `u` uniform and `a`
learned. It is differentiable in `a` wherever it is neither 0 nor 1, and the chance that it is not 0 is a formula.
Reference: Louizos, Welling, Kingma (2018), Learning Sparse Neural Networks through L0 Regularization.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

BETA: Final = 2 / 3
LOW: Final = -0.1
HIGH: Final = 1.1
_SHIFT: Final = BETA * math.log(-LOW / HIGH)


@dataclass(frozen=True, eq=False)
class Gates:
    """Gates by their learned `location`, a leaf that requires a gradient."""

    location: Float[Tensor, " gate"]

    @staticmethod
    def of(count: int, location: float) -> "Gates":
        """Gates that all start at one location: 0 is open and shut alike, 2.4 open without noise, 6 even with most."""
        return Gates(torch.full((count,), location, requires_grad=True))

    def drawn(self, generator: torch.Generator) -> Float[Tensor, " gate"]:
        """One draw of every gate."""
        uniform = torch.rand(len(self.location), generator=generator).clamp(1e-6, 1 - 1e-6)
        noise = torch.logit(uniform).to(self.location)
        return self._stretched(torch.sigmoid((noise + self.location) / BETA))

    def settled(self) -> Float[Tensor, " gate"]:
        """The gates without noise."""
        return self._stretched(torch.sigmoid(self.location))

    def chance(self) -> Float[Tensor, " gate"]:
        """The chance that each is not 0."""
        return torch.sigmoid(self.location - _SHIFT)

    def _stretched(self, share: Tensor) -> Tensor:
        return (share * (HIGH - LOW) + LOW).clamp(0, 1)
