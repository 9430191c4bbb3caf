"""Which directions let every row be made of k of them? K-SVD: code all rows, then renew the directions one by one.

1. Begin with rows drawn at random. 2. Code all rows by orthogonal matching pursuit.
3. For each direction, take the rows that use it and what they lack without it; its new course is the leading one of
   that (by power steps), and the rows' codes of it are fitted anew. The distance shrinks at each such step.
4. A direction that no row uses is put where a row is made worst. Repeat from 2.

Aharon, Elad and Bruckstein (2006); power steps after Rubinstein, Zibulevsky and Elad (2008).
It misleads where rows are few for the number of directions: it ends in rows, not in parts.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.core.config import Config as BaseConfig
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.dictionaries.coders.coded_dictionary import CodedDictionary
from microtome.dictionaries.coders.pursuit import OrthogonalMatchingPursuit

_POWER_STEPS = 3


class Config(BaseConfig):
    """Settings of K-SVD."""

    units: int = Field(256, ge=1, description="how many directions")
    k: int = Field(8, ge=1, description="how many of them a row may use")
    rounds: int = Field(20, ge=1, description="how often all rows are coded")
    nonnegative: bool = Field(True, description="whether codes may not be negative")
    centre: bool = Field(True, description="whether the mean of the rows is taken away first")
    seed: int = Field(0, description="of the rows it begins with")


@torch.no_grad()
def fit(values: Float[Tensor, "row d"], site: Site | str, config: Config | None = None) -> CodedDictionary:
    """Directions of length 1, and the pursuit that codes with them. Raises `InputError` for fewer rows than units."""
    config = config or Config()
    centre = values.mean(0) if config.centre else torch.zeros_like(values[0])
    rows = values - centre
    coder = OrthogonalMatchingPursuit(config.k, config.nonnegative)
    decoder = drawn(rows, config.units, config.seed)
    for _ in range(config.rounds):
        renew(rows, decoder, coder.codes(rows, decoder), config.nonnegative)
    return CodedDictionary((site,), (decoder.shape[-1],), decoder, coder, centre, "k_svd")


def drawn(rows: Float[Tensor, "row d"], units: int, seed: int) -> Float[Tensor, "unit d"]:
    """Different rows as directions of length 1."""
    usable = rows[rows.norm(dim=-1) > 0]
    if len(usable) < units:
        raise InputError(
            f"{units} directions need at least as many rows that are not zero; got {len(usable)}"
        )
    order = torch.randperm(len(usable), generator=torch.Generator().manual_seed(seed))[:units]
    return torch.nn.functional.normalize(usable[order.to(rows.device)], dim=-1)


def renew(
    rows: Float[Tensor, "row d"],
    decoder: Float[Tensor, "unit d"],
    codes: Float[Tensor, "row unit"],
    nonnegative: bool,
) -> None:
    """Each direction in turn, and its codes, in place."""
    left = rows - codes @ decoder
    for unit in range(len(decoder)):
        users = codes[:, unit].nonzero()[:, 0]
        if not len(users):
            worst = left.square().sum(-1).argmax()
            if float(left[worst].norm()) > 0:
                decoder[unit] = torch.nn.functional.normalize(left[worst], dim=-1)
                # Once a place is taken, the next idle direction goes elsewhere.
                left[worst] = 0.0
            continue
        code, lacking = codes[users, unit], left[users] + codes[users, unit, None] * decoder[unit]
        course = decoder[unit]
        for _ in range(_POWER_STEPS):
            pull = code @ lacking
            if not float(pull.norm()) > 0:
                break
            course = pull / pull.norm()
            code = lacking @ course
            code = code.clamp(min=0) if nonnegative else code
        decoder[unit], codes[users, unit] = course, code
        left[users] = lacking - code[:, None] * course
