"""On what footing is a dictionary trained? What is subtracted from values, and by what they are multiplied, first.

1. The centre: the mean of some rows, or their geometric median, which a few enormous rows do not move.
2. The scale: one number for each site, so that the mean square of its values is 1; or a matrix that makes all
   directions alike (whitening: where variance is less than 1e-4 of the largest, as if it were that much).
3. When training is over, both go into encoder and decoder (`Learner.dictionary`), so nobody need know of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core.errors import InputError, NotFiniteError


@dataclass(frozen=True, eq=False)
class Preparation:
    """`prepared = (values − centre) · matrix`, or times a number for each dimension.

    centre `[d]`; scale `[d]`, where it is not a matrix; matrix, inverse `[d, d]`: both symmetric.
    """

    centre: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]
    matrix: Float[Tensor, "d d"] | None = None
    inverse: Float[Tensor, "d d"] | None = None

    def apply(self, values: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """Values on this footing."""
        return self.forth(values - self.centre)

    def forth(self, vectors: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """Differences of values."""
        return vectors * self.scale if self.matrix is None else vectors @ self.matrix

    def back(self, vectors: Float[Tensor, "*row d"]) -> Float[Tensor, "*row d"]:
        """The way back, for differences of values."""
        return vectors / self.scale if self.inverse is None else vectors @ self.inverse

    def undo(self, prepared: Float[Tensor, "*row d"]) -> Float[Tensor, "*row d"]:
        """Values again."""
        return self.back(prepared) + self.centre

    def tensors(self) -> dict[str, Tensor]:
        """What has to be kept to make it again."""
        held = {"centre": self.centre, "scale": self.scale, "matrix": self.matrix, "inverse": self.inverse}
        return {name: tensor for name, tensor in held.items() if tensor is not None}


def prepare(
    rows: Float[Tensor, "row d"],
    widths: Sequence[int],
    centring: Literal["mean", "median", "no"],
    scaling: Literal["rms", "whiten", "no"],
) -> Preparation:
    """From some rows. widths: of the sites that lie side by side in a row.

    Raises `NotFiniteError` for NaN or infinity among them, `InputError` for values that do not vary at a site.
    """
    if not rows.isfinite().all():
        raise NotFiniteError(
            "the values to train on hold NaN or infinity; find out where they come from first"
        )
    exact = rows.double()
    centre = torch.zeros_like(exact[0])
    if centring != "no":
        centre = exact.mean(0) if centring == "mean" else geometric_median(exact)
    away = exact - centre
    scale = torch.ones_like(centre)
    if scaling == "no":
        return Preparation(centre.to(rows.dtype), scale.to(rows.dtype))
    sizes = torch.stack([part.square().mean().sqrt() for part in away.split(list(widths), -1)])
    if not bool((sizes > 0).all()):
        raise InputError(
            "the values of a site are the same in all rows; there is nothing to be found in them"
        )
    if scaling == "rms":
        scale = (1 / sizes).repeat_interleave(torch.tensor(widths, device=rows.device))
        return Preparation(centre.to(rows.dtype), scale.to(rows.dtype))
    variance, axes = torch.linalg.eigh(away.mT @ away / len(away))
    roots = variance.clamp_min(1e-4 * float(variance[-1])).sqrt()
    matrix, inverse = (axes / roots) @ axes.mT, (axes * roots) @ axes.mT
    return Preparation(*(tensor.to(rows.dtype) for tensor in (centre, scale, matrix, inverse)))


def geometric_median(rows: Float[Tensor, "row d"], steps: int = 100) -> Float[Tensor, " d"]:
    """The point whose distances to all rows add up to least (Weiszfeld: means weighted by one over distance)."""
    middle = rows.mean(0)
    for _ in range(steps):
        weight = 1 / (rows - middle).norm(dim=-1).clamp_min(1e-12)
        following = (weight[:, None] * rows).sum(0) / weight.sum()
        if float((following - middle).norm()) <= 1e-10 * float(middle.norm()):
            return following
        middle = following
    return middle
