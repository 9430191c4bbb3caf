"""Of which parts are values sums, with nothing ever taken away? Non-negative factors, and half non-negative ones.

    value ≈ Σ code · direction, codes ≥ 0, and directions ≥ 0 too where no value is negative

1. Start from rows that point far apart, as those made of one part alone do.
2. Codes of all rows: non-negative least squares, by accelerated projected gradient steps.
3. Directions: each in turn the best one, of what the codes' sums say; of signed values all together, by least squares.
4. Go on until the error falls no further.

Lee and Seung (1999), Learning the parts of objects; Ding, Li, Jordan (2010), Convex and Semi-Nonnegative Matrix
Factorizations, for signed values. Misleads: the answer depends on the start; too many units split
what is one; and of signed values any wider cone of directions that holds them does as well.
"""

from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.bases import fitted
from microtome.bases.additive import AdditiveBasis
from microtome.bases.fitted import Result
from microtome.bases.k_means import far_apart
from microtome.bases.rows import Rows, chunks, sample
from microtome.core.card import Card
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.models.model import Model

__all__ = ["Config", "NonnegativeFactors", "Result", "card", "fit", "grading", "run"]

grading = ({"control": False, "codes": True},)  # the grader has controls of its own

card = Card(
    name="nonnegative_factors",
    title="Non-negative matrix factorization",
    question="Of which parts are the values at a site sums, with nothing ever taken away?",
    steps=(
        "Read the values at the site and put some aside.",
        "In turn solve for non-negative codes and for directions, non-negative too where no value is negative.",
        "Measure on those put aside, and on shuffled values.",
    ),
    reference="Lee and Seung (1999), Learning the parts of objects by non-negative matrix factorization",
    misleads="The answer depends on the start; with more units than parts, parts are split, with fewer, merged.",
    needs="tokens",
    causal="observation",
    locality="global",
    comprehensiveness="comprehensive",
    claims=("directions", "latents"),
)


class Config(fitted.Config):
    """Settings of non-negative factors."""

    units: int | None = Field(None, ge=1, description="How many; by default twice the dimensions.")
    rounds: int = Field(100, ge=1, description="Rounds of codes and directions at most.")
    tolerance: float = Field(1e-4, ge=0, description="Done when a round lowers the error by a smaller share.")
    steps: int = Field(
        50, ge=1, description="Gradient steps for the codes of a round; four times as many at the end."
    )


class NonnegativeFactors(AdditiveBasis):
    """Codes by non-negative least squares on fixed directions; gradients flow through its steps."""

    name = "nonnegative_factors"

    def __init__(self, site: Site | str, directions: Float[Tensor, "unit d"], steps: int = 200) -> None:
        super().__init__((site,), (directions.shape[1],), directions)
        self.steps = steps

    def encode(self, values: Float[Tensor, "*rows d_read"]) -> Float[Tensor, "*rows unit"]:
        return nonnegative_least_squares(values, self.decoder, self.steps)


def nonnegative_least_squares(
    values: Float[Tensor, "*rows d"], directions: Float[Tensor, "unit d"], steps: int
) -> Float[Tensor, "*rows unit"]:
    """Codes ≥ 0 whose sum of directions comes closest to each value, by so many accelerated gradient steps."""
    gram, target = directions @ directions.mT, values @ directions.mT
    size = torch.linalg.matrix_norm(gram, 2).clamp_min(torch.finfo(gram.dtype).tiny)
    codes = ahead = torch.zeros_like(target)
    momentum = 1.0
    for _ in range(steps):
        new = (ahead - (ahead @ gram - target) / size).clamp_min(0)
        faster = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = new + (momentum - 1) / faster * (new - codes)
        codes, momentum = new, faster
    return codes


def fit(values: Rows, site: Site | str, config: Config | None = None) -> NonnegativeFactors:
    """Directions of norm one. Raises `InputError` where all values are zero or there are fewer rows than units."""
    config = config or Config()
    signed = any(bool((chunk < 0).any()) for chunk in chunks(values))
    units = config.units or 2 * next(chunks(values)).shape[1]
    drawn = sample(values, 10 * units, config.seed).float()
    pointing = _unit(drawn[drawn.any(-1)])
    if len(drawn) < units or not len(pointing):
        raise InputError(f"{units} units need as many rows, not all of them zero; got {len(drawn)} rows")
    directions = far_apart(pointing, units, torch.Generator().manual_seed(config.seed))
    before = float("inf")
    for _ in range(config.rounds):
        error, total = 0.0, 0.0
        among, along = torch.zeros(units, units), torch.zeros_like(directions)
        for chunk in chunks(values):
            rows = chunk.float()
            codes = nonnegative_least_squares(rows, directions, config.steps)
            among += codes.mT @ codes
            along += codes.mT @ rows
            error += float((rows - codes @ directions).square().sum())
            total += float(rows.square().sum())
        if error > before - config.tolerance * total:
            break
        before = error
        directions = _unit(_better(directions, among, along, signed))
    return NonnegativeFactors(site, directions, 4 * config.steps)


def _better(
    directions: Float[Tensor, "unit d"],
    among: Float[Tensor, "unit unit"],
    along: Float[Tensor, "unit d"],
    signed: bool,
) -> Float[Tensor, "unit d"]:
    """Directions that fit the codes best, given the sums of codes times codes and of codes times values."""
    used = among.diagonal() > 0
    if signed:
        weight = 1e-6 * among.diagonal().mean()
        return torch.where(
            used[:, None], torch.linalg.solve(among + weight * torch.eye(len(among)), along), directions
        )
    better = directions.clone()
    for unit in used.nonzero().flatten().tolist():
        step = (along[unit] - among[unit] @ better) / among[unit, unit]
        moved = (better[unit] + step).clamp_min(0)
        better[unit] = torch.where(moved.any(), moved, better[unit])
    return better


def _unit(directions: Float[Tensor, "unit d"]) -> Float[Tensor, "unit d"]:
    norms = directions.norm(dim=-1, keepdim=True)
    return directions / torch.where(norms > 0, norms, 1.0)


def run(model: Model, data: Any, config: Config | None = None) -> Result:
    """Fit and measure; see `microtome.bases.fitted`."""
    return fitted.run(card, fit, model, data, config or Config())
