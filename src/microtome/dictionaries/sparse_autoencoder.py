"""Of which sparse features are the values at a site made? A sparse autoencoder, trained on the values themselves.

1. Read the values at the site and put some aside.
2. Train a dictionary of `width` units, k of them on in a row, on batches in random order.
3. Measure on the rows put aside, and train again on shuffled values for a control.

Reference: Cunningham et al. (2023), Sparse autoencoders find highly interpretable features; Gao et al. (2024), Scaling
and evaluating sparse autoencoders. Misleads: a dictionary fits any values; beside what it explains stands what it
explains of shuffled ones, and units need not be what the network computes with.
"""

from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.bases import fitted
from microtome.bases.fitted import Result
from microtome.bases.streams import ArrayStream
from microtome.core.card import Card
from microtome.core.site import Site, as_site
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.recipe import Kind, Recipe
from microtome.dictionaries.trainer import train
from microtome.models.model import Model

__all__ = ["Config", "Result", "card", "fit", "run"]

card = Card(
    name="sparse_autoencoder",
    title="Sparse autoencoder",
    question="Of which sparse features are the values at a site made?",
    steps=(
        "Read the values at the site and put some aside.",
        "Train a dictionary with k units on in a row.",
        "Measure on the rows put aside, and train again on shuffled values for a control.",
    ),
    reference="Cunningham et al. (2023); Gao et al. (2024), Scaling and evaluating sparse autoencoders",
    misleads=(
        "A dictionary fits any values, those of random networks too; its units need not be what the network computes "
        "with. More units split features, fewer mix them."
    ),
    needs="tokens",
    causal="observation",
    locality="global",
    comprehensiveness="comprehensive",
    claims=("directions",),
)

grading = ({"control": False},)  # the grader has a control of its own


class Config(fitted.Config):
    """Settings of a sparse autoencoder; `microtome train` has more."""

    width: int | None = Field(None, ge=1, description="Units; by default four times the numbers of a row.")
    k: float | None = Field(
        None, gt=0, description="Units on in a row; by default the shortest description says."
    )
    activation: Kind = Field(
        "topk", description="Which units are on: topk, batch_topk, jumprelu, relu, gated, matching_pursuit."
    )
    steps: int = Field(1000, ge=1, description="Batches to train on.")
    batch: int = Field(512, ge=1, description="Rows in a batch, where there are as many.")
    rate: float | None = Field(None, gt=0, description="Learning rate; by default it follows from the width.")


def fit(values: Float[Tensor, "row d"], site: Site | str, config: Config | None = None) -> Dictionary:
    """A trained dictionary. Raises `InputError` where k does not fit the width, or all units die."""
    config = config or Config()
    d = values.shape[1]
    recipe = Recipe.read(
        {
            "name": card.name,
            "width": config.width or 4 * d,
            "activation": config.activation,
            "l0": config.k or max(1, d // 8),
            "steps": config.steps,
            "rate": config.rate,
            "seed": config.seed,
        }
    )
    stream = ArrayStream(values, min(config.batch, len(values)), config.seed, sites=(as_site(site),))
    with torch.enable_grad():  # whoever measures needs none
        return train(stream, [recipe])[0].dictionary


def run(model: Model, data: Any, config: Config | None = None) -> Result:
    """Train and measure; see `microtome.bases.fitted`."""
    return fitted.run(card, fit, model, data, config or Config())
