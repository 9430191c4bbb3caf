"""What if the parts are the neurons themselves? The basis that changes nothing: unit i is dimension i.

It is the one to beat: where a site has a privileged basis, because a nonlinearity acts on each dimension alone, single
dimensions may already be what the network computes with. At sites of the residual stream nothing singles them out.

Codes are the values, not a copy of them, so that reading a site in its neurons costs what reading the site does.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.bases.basis import Basis
from microtome.bases.rows import Rows, chunks
from microtome.core.config import Config as BaseConfig
from microtome.core.errors import InputError
from microtome.core.site import Site, as_site


class Config(BaseConfig):
    """Nothing to set."""


class Neurons(Basis):
    """Each number of a row is a unit; nothing had to be said of it, so there are no parameters."""

    n_parameters = 0

    def __init__(self, site: Site | str, width: int, name: str = "neurons") -> None:
        if width < 1:
            raise InputError(f"{site} with {width} numbers a row has no neurons")
        self.name = name
        self.reads = self.writes = (as_site(site),)
        self.read_widths = self.write_widths = (width,)
        self.n_units = width

    def encode(self, values: Float[Tensor, "*rows d_read"]) -> Float[Tensor, "*rows unit"]:
        if values.shape[-1] != self.n_units:
            raise InputError(f"{self.name} has {self.n_units} units; rows of {values.shape[-1]} numbers came")
        return values

    def decode(self, codes: Float[Tensor, "*rows unit"]) -> Float[Tensor, "*rows d_write"]:
        return codes

    def drives(
        self, units: Int[Tensor, " some"]
    ) -> tuple[Float[Tensor, "some d_read"], Float[Tensor, " some"]]:
        chosen = torch.nn.functional.one_hot(units, self.n_units).float()
        return chosen, chosen.new_zeros(len(units))

    def direction(self, unit: int) -> Float[Tensor, " d_write"]:
        self.unit(unit)
        return torch.nn.functional.one_hot(torch.tensor(unit), self.n_units).float()

    def directions(self) -> Float[Tensor, "unit d_write"]:
        return torch.eye(self.n_units)


def fit(values: Rows, site: Site | str, config: Config | None = None) -> Neurons:
    """Only the width is taken from the values. Raises `InputError` where there are none."""
    return Neurons(site, next(chunks(values)).shape[1])
