"""Along which directions are the values made of independent parts? Independent components (FastICA).

1. Whiten: mean off, principal components, each scaled to variance one.
2. Find the rotation in which parts are furthest from normal: fixed-point steps for the contrast log cosh, all
   components together, made orthonormal after each step, until no direction turns any more.
3. Codes are the parts; directions are what one more of each adds to the values.

Hyvärinen and Oja (2000), Independent component analysis: algorithms and applications. Misleads where parts are normal
(any rotation of these is as good), where they depend on each other, and where there are more than dimensions.
"""

from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.bases import fitted
from microtome.bases.fitted import Result
from microtome.bases.linear import LinearBasis
from microtome.bases.rows import Rows, chunks, moments
from microtome.core.card import Card
from microtome.core.errors import InputError
from microtome.core.site import Site, as_site
from microtome.models.model import Model

__all__ = ["Config", "Result", "card", "fit", "grading", "run"]

grading = ({"control": False, "codes": True},)  # the grader has controls of its own

card = Card(
    name="independent_components",
    title="Independent component analysis",
    question="Along which directions are the values at a site made of independent parts?",
    steps=(
        "Read the values at the site and put some aside.",
        "Whiten the others, and find the rotation in which parts are furthest from normal.",
        "Measure on those put aside, and on shuffled values.",
    ),
    reference="Hyvärinen and Oja (2000), Independent component analysis: algorithms and applications",
    misleads=(
        "Parts that are normal, depend on each other, or are more than there are dimensions, come out mixed."
    ),
    needs="tokens",
    causal="observation",
    locality="global",
    comprehensiveness="comprehensive",
    claims=("directions", "latents"),
)


class Config(fitted.Config):
    """Settings of independent components."""

    units: int | None = Field(None, ge=1, description="How many; by default as many as directions vary.")
    least: float = Field(
        1e-6,
        gt=0,
        lt=1,
        description="Directions with less than this share of the largest variance are left out.",
    )
    steps: int = Field(200, ge=1, description="Fixed-point steps at most.")
    tolerance: float = Field(1e-4, gt=0, description="Done when no direction turns by more: 1 − |cosine|.")


def fit(values: Rows, site: Site | str, config: Config | None = None) -> LinearBasis:
    """Directions that need not be orthogonal. Raises `InputError` where fewer directions vary than were asked for."""
    config = config or Config()
    count, mean, covariance = moments(values)
    variances, vectors = torch.linalg.eigh(covariance)
    rank = int((variances > config.least * variances[-1]).sum()) if variances[-1] > 0 else 0
    units = config.units or rank
    if rank < max(units, 1):
        raise InputError(f"the values at {site} vary along {rank} directions; {max(units, 1)} were asked for")
    scales = variances[-units:].sqrt()
    whiten = vectors[:, -units:] / scales
    white: Rows
    if isinstance(values, Tensor):
        white = ((values.double() - mean) @ whiten).float()
    else:
        white = lambda: (((chunk.double() - mean) @ whiten).float() for chunk in chunks(values))
    rotation, turned = _rotation(white, units, count, config)
    rotation = rotation.double()
    basis = LinearBasis(
        as_site(site),
        (rotation @ (vectors[:, -units:] * scales).mT).float(),
        readers=(rotation @ whiten.mT).float(),
        centre=mean.float(),
        name="independent_components",
    )
    if turned > config.tolerance:
        basis.notes = (
            f"Not converged: after {config.steps} steps a direction still turned by {turned:.1e} (1 − |cosine|).",
        )
    return basis


def _rotation(
    white: Rows, units: int, count: int, config: Config
) -> tuple[Float[Tensor, "unit unit"], float]:
    """The rotation, and by how much its last step still turned."""
    draw = torch.Generator().manual_seed(config.seed)
    rotation = torch.linalg.qr(torch.randn(units, units, generator=draw)).Q
    turned = 1.0
    for _ in range(config.steps):
        pull, slope = torch.zeros(units, units), torch.zeros(units)
        for chunk in chunks(white):
            parts = torch.tanh(chunk @ rotation.mT)
            pull += parts.mT @ chunk
            slope += (1 - parts.square()).sum(0)
        left, _, right = torch.linalg.svd((pull - slope[:, None] * rotation) / count)
        new = left @ right
        turned = float((1 - (new * rotation).sum(-1).abs()).max())
        rotation = new
        if turned < config.tolerance:
            break
    return rotation, turned


def run(model: Model, data: Any, config: Config | None = None) -> Result:
    """Fit and measure; see `microtome.bases.fitted`."""
    return fitted.run(card, fit, model, data, config or Config())
