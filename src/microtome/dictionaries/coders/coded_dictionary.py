"""What if the encoder were as good as can be? A basis whose codes are solved for, on given directions.

The directions come from anywhere: learnt by K-SVD or online, or the decoder of a trained dictionary, whose encoder is
then seen to be the bottleneck or not.
"""

from collections.abc import Sequence
from typing import Self

from jaxtyping import Float
from torch import Tensor

from microtome.bases.additive import AdditiveBasis
from microtome.bases.basis import Basis
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.dictionaries.coders.coder import Coder, check


class CodedDictionary(AdditiveBasis):
    """Directions, and a coder that finds how much of each. Its encoding lets no gradient through."""

    def __init__(
        self,
        reads: Sequence[Site | str],
        widths: Sequence[int],
        directions: Float[Tensor, "unit d"],
        coder: Coder,
        centre: Float[Tensor, " d"] | None = None,
        name: str = "coded",
    ) -> None:
        """centre: taken away before coding, and added again; none if not given.

        Raises `InputError` for sites that do not hold the directions' numbers, and for a direction of length 0.
        """
        d = directions.shape[1]
        middle = directions.new_zeros(d) if centre is None else centre
        if sum(widths) != d or len(widths) != len(reads) or middle.shape != (d,):
            raise InputError(
                f"directions have {d} numbers each; the {len(reads)} sites hold {list(widths)}, the centre "
                f"{list(middle.shape)}"
            )
        check(middle[None], directions)
        super().__init__(reads, widths, directions, middle)
        self.name, self.coder = name, coder

    @classmethod
    def of(cls, basis: Basis, coder: Coder) -> Self:
        """Another basis's directions, and for a centre what it makes of no units at all.

        Raises `InputError` for one that writes elsewhere than it reads: what it writes is not there to be solved for.
        """
        if not basis.in_place:
            raise InputError(
                f"{basis.name} writes elsewhere than it reads, so its codes cannot be solved for"
            )
        directions = basis.directions().detach()
        centre = basis.decode(directions.new_zeros(1, basis.n_units))[0].detach()
        return cls(basis.reads, basis.read_widths, directions, coder, centre, basis.name)

    def encode(self, values: Float[Tensor, "*rows d_read"]) -> Float[Tensor, "*rows unit"]:
        """Codes as the coder finds them."""
        rows = values.detach().reshape(-1, values.shape[-1])
        return self.coder.codes(rows - self.centre, self.decoder).reshape(*values.shape[:-1], self.n_units)
