"""Of which sparse features are the values at a site made? A sparse autoencoder, trained on the values themselves.

1. Read the values at the site and put some aside.
2. Unless k is given: train dictionaries with 2, 4, 8, … units on in a row for a short while, and take the k in whose
   dictionary other rows are said in the fewest bits (`description_length`). Fewer units on leave much to be said
   otherwise, more have to be named and measured themselves. One alone would only sort rows into clusters.
3. Train a dictionary of `width` units, k of them on in a row, on batches in random order.
4. Measure on the rows put aside, and do it all again on shuffled values for a control.

Reference: Cunningham et al. (2023), Sparse autoencoders find highly interpretable features; Gao et al. (2024), Scaling
and evaluating sparse autoencoders; for 2, Ayonrinde, Pearce and Sharkey (2024), Interpretability as compression.
Misleads: a dictionary fits any values; beside what it explains stands what it explains of shuffled ones, and units
need not be what the network computes with.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.bases import fitted
from microtome.bases.description_length import description_length
from microtome.bases.fitted import Result
from microtome.bases.streams import ArrayStream
from microtome.core.card import Card
from microtome.core.site import Site, as_site
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.recipe import Kind, Recipe
from microtome.dictionaries.trainer import train
from microtome.models.model import Model

__all__ = ["Config", "Result", "card", "fit", "run", "shortest"]

card = Card(
    name="sparse_autoencoder",
    title="Sparse autoencoder",
    question="Of which sparse features are the values at a site made?",
    steps=(
        "Read the values at the site and put some aside.",
        "Take the number k of units on in a row that lets values be said in the fewest bits.",
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
    claims=("directions", "latents"),
)

grading = ({"control": False, "codes": True},)  # the grader has a control of its own

TRIED: Final = 0.2
"""The share of the steps for which each number of units on is tried."""
ASIDE: Final = 5
"""One row in so many is put aside to be said."""
ENOUGH: Final = 10
"""Of fewer rows, all are said."""


class Config(fitted.Config):
    """Settings of a sparse autoencoder; `microtome train` has more."""

    width: int | None = Field(None, ge=1, description="Units; by default four times the numbers of a row.")
    k: float | None = Field(
        None,
        gt=0,
        description="Units on in a row; by default the power of two, up to a quarter of a row's numbers, with "
        "the shortest description after a short training.",
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
    recipe = Recipe.read(
        {
            "name": card.name,
            "width": config.width or 4 * values.shape[1],
            "activation": config.activation,
            "l0": config.k or shortest(values, site, config),
            "steps": config.steps,
            "rate": config.rate,
            "seed": config.seed,
        }
    )
    return _trained(values, site, config, [recipe])[0]


def shortest(values: Float[Tensor, "row d"], site: Site | str, config: Config | None = None) -> int:
    """How many units are to be on in a row, so that rows take the fewest bits to say.

    Top-k dictionaries are tried, whatever is to be trained: they have just so many units on from the first step.
    Misleads where many units are on and much training is needed to tell them apart: it then says too few.
    """
    config = config or Config()
    d = values.shape[1]
    width = config.width or 4 * d
    tried = [2**n for n in range(1, d.bit_length()) if 2**n <= min(d // 4, width)] or [1]
    if len(tried) == 1:
        return tried[0]
    same = {"name": card.name, "width": width, "rate": config.rate, "seed": config.seed, "initial": "data"}
    steps = max(1, round(TRIED * config.steps))
    recipes = [Recipe.read({**same, "steps": steps, "l0": k}) for k in tried]
    aside = torch.arange(len(values)) % ASIDE == 0
    others = values[aside] if len(values) >= ENOUGH else values
    found = _trained(values[~aside], site, config, recipes)
    bits = [description_length(one, others).row for one in found]
    return tried[bits.index(min(bits))]


def _trained(
    values: Float[Tensor, "row d"], site: Site | str, config: Config, recipes: Sequence[Recipe]
) -> list[Dictionary]:
    stream = ArrayStream(values, min(config.batch, len(values)), config.seed, sites=(as_site(site),))
    with torch.enable_grad():  # whoever measures needs none
        return [one.dictionary for one in train(stream, recipes)]


def run(model: Model, data: Any, config: Config | None = None) -> Result:
    """Train and measure; see `microtome.bases.fitted`."""
    return fitted.run(card, fit, model, data, config or Config())
