"""What is written along which direction? Bases whose codes are linear in the values, and the other way round.

    code = (value − centre) · reader        value ≈ code · direction + centre

Neurons, heads' coordinates, principal and independent components, singular vectors, probes and rotations are of this
kind; they differ in where their directions come from.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.bases.additive import AdditiveBasis
from microtome.core.errors import InputError
from microtome.core.site import Site


class LinearBasis(AdditiveBasis):
    """Units along directions at one site.

    directions `[unit, d]`: what one more of each adds. readers `[unit, d]`: by what the values are multiplied to give
    the codes; by default the pseudo-inverse, so that the codes are those of least squares. centre `[d]`: what is taken
    off before, and put back after.
    """

    def __init__(
        self,
        site: Site | str,
        # Shapes stand above and are checked below, so that the error speaks the user's words.
        directions: Tensor,
        *,
        readers: Tensor | None = None,
        centre: Tensor | None = None,
        name: str = "directions",
    ) -> None:
        if directions.dim() != 2 or not len(directions):
            raise InputError(
                f"a basis at {site} has at least one direction, [unit, d]; got shape {list(directions.shape)}"
            )
        for part, given, wanted in (
            ("readers", readers, directions.shape),
            ("centre", centre, directions.shape[1:]),
        ):
            if given is not None and given.shape != wanted:
                raise InputError(
                    f"{part} at {site}: the directions ask for shape {list(wanted)}, got {list(given.shape)}"
                )
        if not bool(torch.isfinite(directions).all()):
            raise InputError(f"the directions at {site} hold NaN or infinity")
        super().__init__((site,), (directions.shape[1],), directions, centre)
        self.name = name
        self.readers = torch.linalg.pinv(directions).mT if readers is None else readers
        if readers is not None:
            self.n_parameters += readers.numel()

    def encode(self, values: Float[Tensor, "*rows d_read"]) -> Float[Tensor, "*rows unit"]:
        return (values - self.centre) @ self.readers.mT

    def drives(
        self, units: Int[Tensor, " some"]
    ) -> tuple[Float[Tensor, "some d_read"], Float[Tensor, " some"]]:
        readers = self.readers[units]
        return readers, -(readers @ self.centre)
