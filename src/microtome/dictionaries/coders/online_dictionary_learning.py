"""Which directions let rows be made of few, when rows never end? Online dictionary learning, a batch at a time.

1. Code a batch by the lasso.
2. Add the codes' products with each other, and with the rows, to two running sums: all that the rows seen so far say
   about the directions. The past is forgotten at a fixed rate, for its codes were made with worse directions.
3. Renew the directions one by one: each is the best there is with the others as they are, no longer than 1.
4. One that no row uses is put where a row of the batch is made worst.

Mairal, Bach, Ponce and Sapiro (2010), Online learning for matrix factorization and sparse coding.
It misleads as the lasso does: codes are shrunk by the penalty, so compare at equal L0 only after a refit.
"""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.bases import fitted
from microtome.bases.fitted import Result
from microtome.core.card import Card
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.dictionaries.coders.coded_dictionary import CodedDictionary
from microtome.dictionaries.coders.coder import batches
from microtome.dictionaries.coders.k_svd import drawn, usual_width
from microtome.dictionaries.coders.lasso import Lasso
from microtome.models.model import Model

__all__ = ["Config", "Result", "card", "fit", "learn", "run"]

card = Card(
    name="online_dictionary_learning",
    title="Online dictionary learning",
    question="Which directions let values be made of few, learnt a batch at a time with codes solved for?",
    steps=(
        "Code a batch by the lasso.",
        "Add the codes' products with each other, and with the values, to two running sums.",
        "Renew each direction to the best with the others as they are, no longer than 1.",
        "Put directions that are not used where a value is made worst, and take the next batch.",
    ),
    reference="Mairal, Bach, Ponce and Sapiro (2010), Online learning for matrix factorization and sparse coding",
    misleads=(
        "Codes are shrunk by the penalty, so compare at equal L0 only after a refit. The network need not read "
        "what no encoder could read off."
    ),
    needs="tokens",
    causal="observation",
    locality="global",
    comprehensiveness="comprehensive",
    claims=("directions", "latents"),
)

grading = ({"control": False, "codes": True},)  # the grader has a control of its own


class Config(fitted.Config):
    """Settings of online dictionary learning."""

    width: int | None = Field(
        None,
        ge=1,
        description="Directions; by default twice the numbers of a row, if rows are twice as many.",
    )
    penalty: float = Field(0.1, gt=0, description="Of the lasso, in root mean square lengths of a row.")
    nonnegative: bool = Field(True, description="Whether codes may not be negative.")
    batch: int = Field(256, ge=1, description="How many rows at a time.")
    passes: int = Field(2, ge=1, description="How often all rows are gone through.")
    forget: float = Field(0.99, gt=0, le=1, description="How much of the sums is kept from batch to batch.")
    centre: bool = Field(True, description="Whether the mean of the rows is taken away first.")


def fit(values: Float[Tensor, "row d"], site: Site | str, config: Config | None = None) -> CodedDictionary:
    """A basis of directions no longer than 1, and the lasso that codes with them."""
    config = config or Config()
    centre = values.mean(0) if config.centre else torch.zeros_like(values[0])
    rows = values - centre
    order = torch.Generator().manual_seed(config.seed)
    stream = (batch for _ in range(config.passes) for batch in batches(rows, config.batch, order))
    length = float(rows.square().sum(-1).mean().sqrt())
    if not length > 0:
        raise InputError("the values are the same in all rows; there is nothing to be found in them")
    lasso = Lasso(config.penalty * length, config.nonnegative)
    start = drawn(rows, config.width or usual_width(rows), config.seed)
    decoder = learn(stream, start, lasso, config.forget)
    return CodedDictionary((site,), (decoder.shape[-1],), decoder, lasso, centre, card.name)


def run(model: Model, data: Any, config: Config | None = None) -> Result:
    """Fit and measure; see `microtome.bases.fitted`."""
    return fitted.run(card, fit, model, data, config or Config())


@torch.no_grad()
def learn(
    stream: Iterable[Float[Tensor, "row d"]],
    start: Float[Tensor, "unit d"],
    lasso: Lasso,
    forget: float = 0.99,
) -> Float[Tensor, "unit d"]:
    """Better directions than those to start from, after one pass over a stream of batches."""
    if not 0 < forget <= 1:
        raise InputError(f"what is kept from batch to batch lies above 0 and at most at 1; got {forget}")
    decoder = start.clone()
    together = decoder.new_zeros(len(decoder), len(decoder))
    wanted = torch.zeros_like(decoder)
    for rows in stream:
        codes = lasso.codes(rows, decoder)
        together = forget * together + codes.T @ codes
        wanted = forget * wanted + codes.T @ rows
        strength = together.diagonal()
        used = strength > 1e-6 * strength.max()
        for unit in used.nonzero()[:, 0].tolist():
            course = decoder[unit] + (wanted[unit] - together[unit] @ decoder) / strength[unit]
            decoder[unit] = course / course.norm().clamp(min=1.0)
        idle = (~used).nonzero()[:, 0]
        if len(idle):
            left = rows - codes @ decoder
            worst = left.square().sum(-1).topk(min(len(idle), len(rows))).indices
            lacking = left[worst]
            apart = lacking.norm(dim=-1) > 0
            decoder[idle[: len(worst)][apart]] = torch.nn.functional.normalize(lacking[apart], dim=-1)
    return decoder
