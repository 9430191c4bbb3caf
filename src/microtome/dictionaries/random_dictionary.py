"""How much would directions explain that know nothing of the values? A dictionary drawn at random and never trained.

1. Directions are drawn evenly from the sphere.
2. The codes of a row are those of its best few directions, found greedily and refitted (orthogonal matching pursuit).
3. Measure as for any fitted basis.

The baseline of every claim about directions: with many of them and a good coder, random ones explain much. Heap et al.
(2025), Sparse Autoencoders Can Interpret Randomly Initialized Transformers.
"""

from typing import Any

import torch
from pydantic import Field

from microtome.bases import fitted
from microtome.bases.fitted import Result
from microtome.bases.rows import Rows, moments
from microtome.core.card import Card
from microtome.core.site import Site, as_site
from microtome.dictionaries.coders.coded_dictionary import CodedDictionary
from microtome.dictionaries.coders.pursuit import OrthogonalMatchingPursuit
from microtome.models.model import Model

__all__ = ["Config", "Result", "card", "fit", "grading", "run"]

grading = ({"control": False, "codes": True},)  # the grader has controls of its own

card = Card(
    name="random_dictionary",
    title="Random dictionary",
    question="How much do directions explain that were drawn at random?",
    steps=(
        "Draw directions evenly from the sphere.",
        "Code values by their best few directions (orthogonal matching pursuit).",
        "Measure on values put aside, and on shuffled values.",
    ),
    reference="Heap et al. (2025), Sparse Autoencoders Can Interpret Randomly Initialized Transformers",
    misleads="It is a baseline: whatever it finds was not learnt. A method that does no better has found nothing.",
    needs="tokens",
    causal="observation",
    locality="global",
    comprehensiveness="comprehensive",
    claims=("directions", "latents"),
)


class Config(fitted.Config):
    """Settings of a random dictionary."""

    units: int | None = Field(None, ge=1, description="How many; by default twice the dimensions.")
    l0: int = Field(4, ge=1, description="Units on in a row.")


def fit(values: Rows, site: Site | str, config: Config | None = None) -> CodedDictionary:
    """Only the mean and the width are taken from the values."""
    config = config or Config()
    _, mean, _ = moments(values)
    draw = torch.Generator().manual_seed(config.seed)
    directions = torch.randn(config.units or 2 * len(mean), len(mean), generator=draw)
    return CodedDictionary(
        [as_site(site)],
        [len(mean)],
        directions / directions.norm(dim=-1, keepdim=True),
        OrthogonalMatchingPursuit(config.l0),
        mean.float(),
        "random_dictionary",
    )


def run(model: Model, data: Any, config: Config | None = None) -> Result:
    """Fit and measure; see `microtome.bases.fitted`."""
    return fitted.run(card, fit, model, data, config or Config())
