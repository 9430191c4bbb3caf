"""What if the parts are the attention heads? Each head's own axes, most varied first, and no other head's.

A head is not one unit but a subspace: `units_of(head)` are its units, and together they say all that the head holds.
Within a head the axes are its principal components, so that its first units are its first parts of variance.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.bases.linear import LinearBasis
from microtome.bases.rows import Rows, moments
from microtome.core.config import Config as BaseConfig
from microtome.core.errors import InputError
from microtome.core.site import Site, as_site


class Config(BaseConfig):
    """How the row is divided."""

    n_heads: int = Field(
        description="Heads at the site; the numbers of a row are theirs, side by side.", ge=1
    )


class Heads(LinearBasis):
    """Units of heads, head after head. directions: orthonormal, each zero outside its head, where only heads' own
    blocks are multiplied."""

    def __init__(
        self,
        site: Site | str,
        directions: Float[Tensor, "unit d"],
        centre: Float[Tensor, " d"],
        n_heads: int,
    ) -> None:
        super().__init__(site, directions, readers=directions, centre=centre, name="heads")
        self.n_heads = n_heads
        each = self.n_units // n_heads
        self.n_parameters = self.n_units * each + len(centre)
        self._axes = torch.stack(
            [directions[at : at + each, at : at + each] for at in range(0, len(directions), each)]
        )

    def encode(self, values: Float[Tensor, "*rows d_read"]) -> Float[Tensor, "*rows unit"]:
        heads = (values - self.centre).unflatten(-1, (self.n_heads, -1))
        return torch.einsum("...hd,hud->...hu", heads, self._axes).flatten(-2)

    def decode(self, codes: Float[Tensor, "*rows unit"]) -> Float[Tensor, "*rows d_write"]:
        heads = codes.unflatten(-1, (self.n_heads, -1))
        return torch.einsum("...hu,hud->...hd", heads, self._axes).flatten(-2) + self.centre

    def units_of(self, head: int) -> tuple[int, ...]:
        """The units of one head. Raises `InputError` for one that is not there."""
        if not 0 <= head < self.n_heads:
            raise InputError(
                f"head {head} is out of range; there are {self.n_heads} (0 … {self.n_heads - 1})"
            )
        each = self.n_units // self.n_heads
        return tuple(range(head * each, (head + 1) * each))

    def unit(self, index: int) -> str:
        each = self.n_units // self.n_heads
        super().unit(index)
        return f"{self.name}.h{index // each}.u{index % each}"


def fit(values: Rows, site: Site | str, config: Config) -> Heads:
    """Raises `InputError` for a row that does not divide into so many heads."""
    _, mean, covariance = moments(values)
    width = len(mean)
    if width % config.n_heads:
        raise InputError(f"rows of {width} numbers do not divide into {config.n_heads} heads")
    each = width // config.n_heads
    directions = torch.zeros(width, width, dtype=torch.double)
    for start in range(0, width, each):
        block = slice(start, start + each)
        directions[block, block] = torch.linalg.eigh(covariance[block, block]).eigenvectors.mT.flip(0)
    return Heads(as_site(site), directions.float(), mean.float(), config.n_heads)
