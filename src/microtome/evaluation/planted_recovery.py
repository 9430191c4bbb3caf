"""Which of the features that are known to be there does a dictionary have, and is each unit on when its feature is?

1. Directions are compared by the size of their cosine. Mean correlation coefficient (MCC): each unit is paired with at
   most one feature so that the cosines add up to the most (the Hungarian algorithm); their mean over pairs.
2. Mean max cosine: for each feature the cosine of the unit next to it, on average. Where there are fewer units than
   features it cannot be 1.
3. Each unit is held to the feature nearest to it. Uniqueness: different features among these, over units. Precision,
   recall and F1 of the unit being on where that feature is on; 0 where a unit is never on, or its feature never is;
   averaged over units.
4. Undershoot: where both are on, how much a paired unit's code falls short of the feature's coefficient, in proportion
   (least squares through the origin); the mean over pairs that are close.

Reference: Chanin and Garriga-Alonso (2026), SynthSAEBench, for 1, 3; Sharkey, Braun and Millidge (2022) for 2. Misleads
where planted features are not what a network has.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from microtome.bases.codes import SparseCodes
from microtome.core.errors import InputError

CLOSE: Final = 0.9  # a cosine from which a pair counts as found


@dataclass(frozen=True, eq=False)
class Recovery:
    """Scores of 0 … 1, more is better, except `undershoot`, whose best is 0 (NaN where no pair is close).

    cosine `[feature]`: of the nearest unit. unit_of, feature_of `[pair]`: the pairs of the Hungarian matching;
    pair_cosine `[pair]`. f1_of `[unit]`: with the nearest feature.
    """

    mcc: float
    mean_max_cosine: float
    found: float
    uniqueness: float
    precision: float
    recall: float
    f1: float
    undershoot: float
    cosine: Float[Tensor, " feature"]
    unit_of: Int[Tensor, " pair"]
    feature_of: Int[Tensor, " pair"]
    pair_cosine: Float[Tensor, " pair"]
    f1_of: Float[Tensor, " unit"]

    def numbers(self) -> dict[str, float]:
        """The scores by name."""
        names = (
            "mcc",
            "mean_max_cosine",
            "found",
            "uniqueness",
            "precision",
            "recall",
            "f1",
            "undershoot",
        )
        return {name: getattr(self, name) for name in names}


def planted_recovery(
    directions: Float[Tensor, "unit d"],
    codes: SparseCodes,
    features: Float[Tensor, "feature d_there"],
    coefficients: SparseCodes,
) -> Recovery:
    """Compare units with planted features. codes, coefficients: of the same rows.

    Raises `InputError` where sizes do not fit each other.
    """
    if directions.shape[1] != features.shape[1]:
        raise InputError(
            f"units have directions in {directions.shape[1]} dimensions, features in {features.shape[1]}; "
            "compare them at one site"
        )
    if (codes.rows, codes.units, coefficients.units) != (coefficients.rows, len(directions), len(features)):
        raise InputError(
            f"expected codes of {coefficients.rows} rows and {len(directions)} units and coefficients of "
            f"{len(features)} features; got {codes.rows} rows, {codes.units} units, {coefficients.units} features"
        )
    signed = functional.normalize(directions, dim=-1) @ functional.normalize(features, dim=-1).mT
    alike = signed.abs()
    unit_of, feature_of = (
        torch.from_numpy(ends) for ends in linear_sum_assignment(-alike.cpu().double().numpy())
    )
    pair, cosine, nearest = alike[unit_of, feature_of], alike.amax(0), alike.argmax(-1)
    place, both = _places(codes, nearest, coefficients)
    shared = torch.bincount(codes.unit[both], minlength=codes.units).double()
    fires = torch.bincount(codes.unit, minlength=codes.units).double()
    present = torch.bincount(coefficients.unit, minlength=coefficients.units).double()[nearest]
    numbers = {
        "mcc": pair.mean(),
        "mean_max_cosine": cosine.mean(),
        "found": (cosine > CLOSE).double().mean(),
        "precision": (shared / fires.clamp_min(1)).mean(),
        "recall": (shared / present.clamp_min(1)).mean(),
        "f1": (f1 := 2 * shared / (fires + present).clamp_min(1)).mean(),
    }
    close = torch.zeros(codes.units, dtype=torch.bool)
    close[unit_of] = (signed[unit_of, feature_of] > CLOSE) & (nearest[unit_of] == feature_of)
    mine = codes.value[both] * directions.norm(dim=-1)[codes.unit[both]]
    real = (coefficients.value * features.norm(dim=-1)[coefficients.unit])[place[both]]
    slope = _summed(mine * real, codes.unit[both], codes.units) / _summed(
        real**2, codes.unit[both], codes.units
    )
    close &= slope.isfinite()
    return Recovery(
        **{name: float(number) for name, number in numbers.items()},
        uniqueness=len(nearest.unique()) / len(directions),
        undershoot=float(1 - slope[close].mean()) if close.any() else float("nan"),
        cosine=cosine,
        unit_of=unit_of,
        feature_of=feature_of,
        pair_cosine=pair,
        f1_of=f1.float(),
    )


def _places(
    codes: SparseCodes, nearest: Int[Tensor, " unit"], coefficients: SparseCodes
) -> tuple[Int[Tensor, " entry"], Bool[Tensor, " entry"]]:
    """For each entry of the codes, where its unit's nearest feature stands in the same row, and whether it does."""
    there = coefficients.row * coefficients.units + coefficients.unit
    wanted = codes.row * coefficients.units + nearest[codes.unit]
    if not len(there):
        return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    place = torch.searchsorted(there, wanted).clamp_max(len(there) - 1)
    return place, there[place] == wanted


def _summed(
    values: Float[Tensor, " entry"], unit: Int[Tensor, " entry"], units: int
) -> Float[Tensor, " unit"]:
    return torch.zeros(units, dtype=torch.float64).index_add_(0, unit, values.double())
