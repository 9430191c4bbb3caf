"""What if the parts simply add up? Bases that write a sum of directions, each as strongly as its unit is on.

    value ≈ Σ code · direction + centre

How codes are found differs: by one product (`LinearBasis`), by the nearest centroid, by solving for them. What they
make does not.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from microtome.bases.basis import Basis
from microtome.core.site import Site, as_site


class AdditiveBasis(Basis):
    """A basis that writes where it reads. decoder `[unit, d]`: the directions. centre `[d]`: what no units make."""

    def __init__(
        self,
        sites: Sequence[Site | str],
        widths: Sequence[int],
        decoder: Float[Tensor, "unit d"],
        centre: Float[Tensor, " d"] | None = None,
    ) -> None:
        """widths: the numbers a row of each site. centre: zero if not given, and then no parameter of the basis."""
        self.reads = self.writes = tuple(map(as_site, sites))
        self.read_widths = self.write_widths = tuple(widths)
        self.n_units = len(decoder)
        self.n_parameters = decoder.numel() + (0 if centre is None else centre.numel())
        self.decoder = decoder
        self.centre = decoder.new_zeros(decoder.shape[1]) if centre is None else centre

    def decode(self, codes: Float[Tensor, "*rows unit"]) -> Float[Tensor, "*rows d_write"]:
        return codes @ self.decoder + self.centre

    def direction(self, unit: int) -> Float[Tensor, " d_write"]:
        self.unit(unit)
        return self.decoder[unit]

    def directions(self) -> Float[Tensor, "unit d_write"]:
        return self.decoder
