"""Which directions let every row be made of k of them? K-SVD: code all rows, then renew the directions one by one.

1. Begin with rows drawn at random. 2. Code all rows by orthogonal matching pursuit.
3. For each direction, take the rows that use it and what they lack without it; its new course is the leading one of
   that (by power steps), and the rows' codes of it are fitted anew. The distance shrinks at each such step.
4. A direction that no row uses is put where a row is made worst. Repeat from 2.

Aharon, Elad and Bruckstein (2006); power steps after Rubinstein, Zibulevsky and Elad (2008).
It misleads where rows are few for the number of directions: it ends in rows, not in parts.
"""

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
from microtome.dictionaries.coders.pursuit import OrthogonalMatchingPursuit
from microtome.models.model import Model

__all__ = ["Config", "Result", "card", "drawn", "fit", "renew", "run", "usual_width"]

card = Card(
    name="k_svd",
    title="K-SVD",
    question="Which directions let every value be made of k of them, without an encoder to learn?",
    steps=(
        "Begin with values drawn at random as directions.",
        "Code all values by orthogonal matching pursuit.",
        "Renew each direction, and how much of it there is, to lack least with the others as they are.",
        "Put directions that are not used where a value is made worst, and repeat.",
    ),
    reference="Aharon, Elad and Bruckstein (2006), K-SVD; Rubinstein, Zibulevsky and Elad (2008)",
    misleads=(
        "Where values are few for the number of directions, it ends in values, not in parts. The network need "
        "not read what no encoder could read off."
    ),
    needs="tokens",
    causal="observation",
    locality="global",
    comprehensiveness="comprehensive",
    claims=("directions", "latents"),
)

grading = ({"control": False, "codes": True, "rounds": 6},)  # the grader has a control of its own

_POWER_STEPS = 3


class Config(fitted.Config):
    """Settings of K-SVD."""

    width: int | None = Field(
        None,
        ge=1,
        description="Directions; by default twice the numbers of a row, if rows are twice as many.",
    )
    k: int | None = Field(
        None, ge=1, description="How many a row may use; by default an eighth of its numbers."
    )
    rounds: int = Field(20, ge=1, description="How often all rows are coded.")
    nonnegative: bool = Field(True, description="Whether codes may not be negative.")
    centre: bool = Field(True, description="Whether the mean of the rows is taken away first.")


@torch.no_grad()
def fit(values: Float[Tensor, "row d"], site: Site | str, config: Config | None = None) -> CodedDictionary:
    """Directions of length 1, and the pursuit that codes with them. Raises `InputError` for fewer rows than units."""
    config = config or Config()
    centre = values.mean(0) if config.centre else torch.zeros_like(values[0])
    rows = values - centre
    coder = OrthogonalMatchingPursuit(config.k or max(1, min(8, values.shape[1] // 8)), config.nonnegative)
    decoder = drawn(rows, config.width or usual_width(rows), config.seed)
    for _ in range(config.rounds):
        renew(rows, decoder, coder.codes(rows, decoder), config.nonnegative)
    return CodedDictionary((site,), (decoder.shape[-1],), decoder, coder, centre, card.name)


def run(model: Model, data: Any, config: Config | None = None) -> Result:
    """Fit and measure; see `microtome.bases.fitted`."""
    return fitted.run(card, fit, model, data, config or Config())


def usual_width(rows: Float[Tensor, "row d"]) -> int:
    """Twice as many directions as dimensions; fewer where there are not twice as many rows again."""
    return max(1, min(2 * rows.shape[1], len(rows) // 2))


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
