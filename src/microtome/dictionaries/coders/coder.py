"""How much of which direction makes up a value? A `Coder` solves for it, where an encoder would guess in one product.

All rows are solved at once; a coder loops over its own steps, never over rows. No gradient passes through a solution.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from microtome.core.errors import InputError, NotFiniteError

_NUMBERS_AT_ONCE = 1 << 24


class Coder(ABC):
    """A rule from values and directions to codes."""

    @abstractmethod
    def solve(
        self,
        values: Float[Tensor, "row d"],
        directions: Float[Tensor, "unit d"],
        start: Float[Tensor, "row unit"] | None,
    ) -> Float[Tensor, "row unit"]:
        """Codes of values that were checked."""

    def numbers_a_row(self, units: int, d: int) -> int:
        """How many numbers a row needs while it is solved, so that as many rows go at once as memory allows."""
        return 4 * units

    @torch.no_grad()
    def codes(
        self,
        values: Float[Tensor, "row d_values"],
        directions: Float[Tensor, "unit d"],
        start: Float[Tensor, "row_start unit_start"] | None = None,
    ) -> Float[Tensor, "row unit"]:
        """Codes whose sum of directions comes near the values. start: codes to begin with.

        Raises `InputError` for shapes that do not fit or a direction of length 0, `NotFiniteError` for NaN or infinity.
        """
        check(values, directions)
        if start is not None and start.shape != (len(values), len(directions)):
            raise InputError(
                f"codes to start from have shape {list(start.shape)}; expected {[len(values), len(directions)]}"
            )
        step = max(1, _NUMBERS_AT_ONCE // self.numbers_a_row(*directions.shape))
        found = values.new_zeros(len(values), len(directions))
        for first in range(0, len(values), step):
            part = slice(first, first + step)
            found[part] = self.solve(values[part], directions, None if start is None else start[part])
        return found


def check(values: Float[Tensor, "row d_values"], directions: Float[Tensor, "unit d"]) -> None:
    """Refuse what has no codes."""
    if values.shape[-1] != directions.shape[-1]:
        raise InputError(
            f"values have {values.shape[-1]} numbers a row, directions {directions.shape[-1]}; they must agree"
        )
    if not (bool(values.isfinite().all()) and bool(directions.isfinite().all())):
        raise NotFiniteError("values or directions hold NaN or infinity; leave such rows out")
    if bool((directions == 0).all(-1).any()):
        raise InputError("a direction has length 0, so nothing can be made of it; leave it out")


def batches(
    values: Float[Tensor, "row d"], size: int, order: torch.Generator
) -> Iterator[Float[Tensor, "batch d"]]:
    """All rows once, in a random order, `size` at a time."""
    for chosen in torch.randperm(len(values), generator=order).split(size):
        yield values[chosen.to(values.device)]


def done(
    left: Float[Tensor, " row"], values: Float[Tensor, "row d"], tolerance: float
) -> Bool[Tensor, " row"]:
    """Rows of which no more than this share of their length is left."""
    return left <= tolerance**2 * values.square().sum(-1)
