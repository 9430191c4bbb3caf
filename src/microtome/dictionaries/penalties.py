"""What does it cost a unit to be on? Penalties on how strongly units are on, and how far each makes them undershoot.

    l1     Σ z                       lp     Σ zᵖ, p < 1
    tanh   Σ tanh(z / width)         log    Σ log(1 + z / width)

A penalty is paid for strength, so what is rebuilt is too weak: `suppressed(x)` is the z ≥ 0 that minimises
(x − z)² + λ · penalty(z), which is what an ideal unit with a direction of norm 1 gives back of a feature of strength x.
For L1 it is max(0, x − λ/2). Penalties that flatten pull less at large strength, and cut off small ones altogether.

Wright and Sharkey (2024), Addressing feature suppression in SAEs.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Penalty = Literal["l1", "lp", "tanh", "log"]
_FLOOR = 1e-6  # strengths below it cost as if they had it, so that zᵖ has a slope at zero


def cost(kind: Penalty, z: Tensor, p: float = 1.0, width: float = 1.0) -> Tensor:
    """The penalty of each strength, which is not below zero. p: the power of `lp`; width: where `tanh`, `log` bend."""
    if kind == "l1":
        return z
    if kind == "lp":
        return (z + _FLOOR) ** p - _FLOOR**p
    return (z / width).tanh() if kind == "tanh" else (z / width).log1p()


def slope(kind: Penalty, z: Tensor, p: float = 1.0, width: float = 1.0) -> Tensor:
    """Its derivative."""
    if kind == "l1":
        return torch.ones_like(z)
    if kind == "lp":
        return p * (z + _FLOOR) ** (p - 1)
    return (1 - (z / width).tanh() ** 2) / width if kind == "tanh" else 1 / (width + z)


def suppressed(
    x: Float[Tensor, "*any"], coefficient: float, kind: Penalty, p: float = 1.0, width: float = 1.0
) -> Float[Tensor, "*any"]:
    """What an ideal unit gives back of features of strength x ≥ 0, to double precision.

    z falls from x: the slope of the penalty only grows on the way down, so z ← x − λ/2 · slope(z) falls to the largest
    point of rest, or past zero, where there is none. That point is kept if it costs less than zero does.
    """
    exact = x.double()
    z = exact.clone()
    for _ in range(500):
        z = (exact - coefficient / 2 * slope(kind, z, p, width)).clamp_min(0.0)
    at_rest = (exact - z).square() + coefficient * cost(kind, z, p, width)
    return torch.where((z > 0) & (at_rest < exact.square()), z, 0.0)
