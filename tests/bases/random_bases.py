"""Bases made of random numbers, for tests: what a splice must hold to does not depend on what a basis was fitted to."""

import torch
from torch import Tensor
from torch.nn import functional

from microtome.bases.basis import Basis
from microtome.core.site import as_site
from microtome.models.model import Model


class RandomUnits(Basis):
    """ReLU units with random weights, reading some sites and writing some."""

    def __init__(self, reads: dict[str, int], writes: dict[str, int], units: int = 11, seed: int = 0) -> None:
        self.name = "random_units"
        self.reads, self.writes = (tuple(as_site(site) for site in named) for named in (reads, writes))
        self.read_widths, self.write_widths = tuple(reads.values()), tuple(writes.values())
        self.n_units = units
        draw = torch.Generator().manual_seed(seed)
        self.encoder = (
            torch.randn(sum(self.read_widths), units, generator=draw) / sum(self.read_widths) ** 0.5
        )
        self.decoder = torch.randn(units, sum(self.write_widths), generator=draw) / units**0.5
        self.bias = 0.1 * torch.randn(sum(self.write_widths), generator=draw)
        self.n_parameters = self.encoder.numel() + self.decoder.numel() + self.bias.numel()

    def encode(self, values: Tensor) -> Tensor:
        return functional.relu(values @ self.encoder)

    def decode(self, codes: Tensor) -> Tensor:
        return codes @ self.decoder + self.bias

    def direction(self, unit: int) -> Tensor:
        return self.decoder[unit]


def width(model: Model, site: str) -> int:
    """Numbers a row at a site."""
    value = model.run(torch.tensor([[5, 6]]), read=[site])[site]
    return int(value[0, 0].numel())


def random_units(
    model: Model, reads: list[str], writes: list[str], units: int = 11, seed: int = 0
) -> RandomUnits:
    """For the sites of a model."""
    return RandomUnits(
        {site: width(model, site) for site in reads},
        {site: width(model, site) for site in writes},
        units,
        seed,
    )
