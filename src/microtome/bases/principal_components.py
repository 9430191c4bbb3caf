"""Along which orthogonal directions do the values vary most? Principal components of the values at a site.

1. Mean and covariance of all rows, added up in double precision, chunk by chunk.
2. Directions are the eigenvectors of the covariance, largest eigenvalue first; those of no variance are left out.
3. Codes are the coordinates of a value, its mean taken off, along them.

Pearson (1901), Hotelling (1933). Misleads: directions of much variance need not be features, and features that are not
orthogonal, or of equal variance, are mixed.
"""

from typing import Any

import torch
from pydantic import Field

from microtome.bases import fitted
from microtome.bases.fitted import Result
from microtome.bases.linear import LinearBasis
from microtome.bases.rows import Rows, moments
from microtome.core.card import Card
from microtome.core.errors import InputError
from microtome.core.site import Site, as_site
from microtome.models.model import Model

__all__ = ["Config", "Result", "card", "fit", "grading", "run"]

grading = ({"control": False, "codes": True},)  # the grader has controls of its own

card = Card(
    name="principal_components",
    title="Principal component analysis",
    question="Along which orthogonal directions do the values at a site vary most?",
    steps=(
        "Read the values at the site and put some aside.",
        "Take the eigenvectors of the covariance of the others, largest eigenvalue first.",
        "Measure on those put aside, and on shuffled values.",
    ),
    reference="Hotelling (1933), Analysis of a complex of statistical variables into principal components",
    misleads=(
        "Directions of much variance need not be features; features not orthogonal, or that vary equally, are mixed."
    ),
    needs="tokens",
    causal="observation",
    locality="global",
    comprehensiveness="comprehensive",
    claims=("directions", "latents"),
)


class Config(fitted.Config):
    """Settings of principal components."""

    units: int | None = Field(None, ge=1, description="How many; by default all that vary.")


def fit(values: Rows, site: Site | str, config: Config | None = None) -> LinearBasis:
    """Orthonormal directions. Raises `InputError` where nothing varies, or fewer directions do than were asked for."""
    config = config or Config()
    _, mean, covariance = moments(values)
    variances, vectors = torch.linalg.eigh(covariance)
    # Below this a variance is the rounding of the values, or of their covariance.
    rounding = torch.finfo(torch.float32).eps ** 2 * float((covariance.diagonal() + mean.square()).max())
    rank = int((variances > max(rounding, torch.finfo(torch.double).eps * float(variances.sum()))).sum())
    if rank < (config.units or 1):
        raise InputError(
            f"the values at {site} vary along {rank} directions; {config.units or 1} were asked for"
        )
    directions = vectors.mT.flip(0)[: config.units or rank].float().contiguous()
    return LinearBasis(
        as_site(site), directions, readers=directions, centre=mean.float(), name="principal_components"
    )


def run(model: Model, data: Any, config: Config | None = None) -> Result:
    """Fit and measure; see `microtome.bases.fitted`."""
    return fitted.run(card, fit, model, data, config or Config())
