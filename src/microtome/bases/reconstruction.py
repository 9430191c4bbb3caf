"""How much of values does a basis keep, with how many units, how often each, and does it make them smaller?

1. Codes are computed some rows at a time, and only sums are kept.
2. A unit is dead that is on in none of the rows, dense that is on in at least a tenth of them (or as asked).
3. Error is what is left when what is rebuilt is taken off. The fraction of variance unexplained (FVU) is the mean
   squared error over the total variance of the target, so that always saying the mean gives 1. Explained variance here
   is 1 - FVU; a constant error counts as error.
4. Shrinkage: the mean ratio of norms (rebuilt over target), which what is left out lowers too; and the relative
   reconstruction bias, the number b for which rebuilt / b would have the least squared error. Below 1 everything that
   is rebuilt is too small, whatever is left out: a projection has b = 1 exactly.

Reference: Rajamanoharan et al. (2024), Gated SAEs, for the bias. Misleads where a few directions hold most variance:
they alone can make 0.99.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.bases.basis import Basis
from microtome.core.errors import InputError, NotFiniteError

CHUNK: Final = 1 << 23  # codes that are written at once
DENSE: Final = 0.1


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What was counted on `rows` rows. counts, total `[unit]`: rows in which a unit is on, and the sum of its codes.

    l0: units on in a row, on average. explained_variance, norm_ratio, relative_bias: see above; NaN where the target
    is constant, or nothing is rebuilt. cosine: mean cosine between target and what is rebuilt.
    """

    rows: int
    counts: Int[Tensor, " unit"]
    total: Float[Tensor, " unit"]
    explained_variance: float
    norm_ratio: float
    relative_bias: float
    cosine: float
    dense_from: float = DENSE

    @property
    def density(self) -> Float[Tensor, " unit"]:
        """In which share of rows each unit is on."""
        return self.counts.double() / self.rows

    @property
    def l0(self) -> float:
        return float(self.counts.sum()) / self.rows

    @property
    def dead(self) -> float:
        """Share of units that are never on."""
        return float((self.counts == 0).double().mean())

    @property
    def dense(self) -> float:
        """Share of units that are on in at least `dense_from` of the rows."""
        return float((self.density >= self.dense_from).double().mean())

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained."""
        return 1.0 - self.explained_variance

    def numbers(self) -> dict[str, float]:
        """The scores by name."""
        names = ("l0", "dead", "dense", "explained_variance", "fvu", "norm_ratio", "relative_bias", "cosine")
        return {name: getattr(self, name) for name in names}


@torch.no_grad()
def reconstruction(
    basis: Basis,
    values: Float[Tensor, "..."],
    target: Float[Tensor, "..."] | None = None,
    dense_from: float = DENSE,
) -> Reconstruction:
    """Measure a basis on values `[row, d_read]`. target `[row, d_write]`: what it should write; by default the values.

    Raises `InputError` for no rows, or a target that is missing or of another size; `NotFiniteError` for NaN.
    """
    target = check_rows(basis, values, target)
    counts = torch.zeros(basis.n_units, dtype=torch.int64)
    total = torch.zeros(basis.n_units, dtype=torch.float64)
    mean = target.double().mean(0)
    variance = error = written = product = 0.0
    ratios, cosines = [], []
    size = max(1, CHUNK // basis.n_units)
    for some, wanted in zip(values.split(size), target.split(size), strict=True):
        codes = basis.encode_sparsely(some)
        counts += torch.bincount(codes.unit, minlength=basis.n_units).cpu()
        total += torch.bincount(codes.unit, codes.value.double(), minlength=basis.n_units).cpu()
        back, real = basis.rebuilt_sparsely(some, codes).double(), wanted.double()
        variance += float((real - mean).square().sum())
        error += float((real - back).square().sum())
        written += float(back.square().sum())
        product += float((real * back).sum())
        norms, backs = real.norm(dim=-1), back.norm(dim=-1)
        some_norm = norms > 0
        ratios.append((backs / norms)[some_norm])
        cosines.append(((real * back).sum(-1) / (norms * backs).clamp_min(1e-30))[some_norm])
    return Reconstruction(
        len(values),
        counts,
        total.float(),
        1.0 - error / variance if variance > 0 else float("nan"),
        float(torch.cat(ratios).mean()),
        written / product if product else float("nan"),
        float(torch.cat(cosines).mean()),
        dense_from,
    )


def check_rows(
    basis: Basis, values: Float[Tensor, "..."], target: Float[Tensor, "..."] | None
) -> Float[Tensor, "row d_write"]:
    """The target, once it is certain that it fits. Raises `InputError` and `NotFiniteError` as told above."""
    if values.dim() != 2 or not len(values):
        raise InputError(f"expected values [row, d] with at least one row, got shape {list(values.shape)}")
    if values.shape[1] != sum(basis.read_widths):
        raise InputError(
            f"{basis.name} reads {sum(basis.read_widths)} numbers a row ({', '.join(map(str, basis.reads))}); "
            f"got {values.shape[1]}"
        )
    if target is None:
        if not basis.in_place:
            raise InputError(
                f"{basis.name} writes {', '.join(map(str, basis.writes))}; give the values there too"
            )
        target = values
    if target.shape != (len(values), sum(basis.write_widths)):
        raise InputError(
            f"{basis.name} writes {sum(basis.write_widths)} numbers for each of {len(values)} rows; got a target of "
            f"shape {list(target.shape)}"
        )
    for what, tensor in (("values", values), ("target", target)):
        if not bool(torch.isfinite(tensor).all()):
            raise NotFiniteError(
                f"the {what} for {basis.name} hold NaN or infinity; find out which run made them"
            )
    return target
