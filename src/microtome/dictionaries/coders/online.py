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

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.core.config import Config as BaseConfig
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.dictionaries.coders.coded_dictionary import CodedDictionary
from microtome.dictionaries.coders.coder import batches
from microtome.dictionaries.coders.k_svd import drawn
from microtome.dictionaries.coders.lasso import Lasso


class Config(BaseConfig):
    """Settings of online dictionary learning."""

    units: int = Field(256, ge=1, description="how many directions")
    penalty: float = Field(0.1, gt=0, description="of the lasso, in units of the values")
    nonnegative: bool = Field(True, description="whether codes may not be negative")
    batch: int = Field(256, ge=1, description="how many rows at a time")
    passes: int = Field(2, ge=1, description="how often all rows are gone through")
    forget: float = Field(0.99, gt=0, le=1, description="how much of the sums is kept from batch to batch")
    centre: bool = Field(True, description="whether the mean of the rows is taken away first")
    seed: int = Field(0, description="of the rows it begins with, and of their order")


def fit(values: Float[Tensor, "row d"], site: Site | str, config: Config | None = None) -> CodedDictionary:
    """A basis of directions no longer than 1, and the lasso that codes with them."""
    config = config or Config()
    centre = values.mean(0) if config.centre else torch.zeros_like(values[0])
    rows = values - centre
    order = torch.Generator().manual_seed(config.seed)
    stream = (batch for _ in range(config.passes) for batch in batches(rows, config.batch, order))
    lasso = Lasso(config.penalty, config.nonnegative)
    decoder = learn(stream, drawn(rows, config.units, config.seed), lasso, config.forget)
    return CodedDictionary((site,), (decoder.shape[-1],), decoder, lasso, centre, "online")


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
