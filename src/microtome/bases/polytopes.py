"""In which linear pieces of the network does a value lie? Which neurons are on is a code; a code is a polytope.

Between the switching points of its neurons a network of ReLUs is affine. Which neurons are on, all together, names the
piece: inside one, everything that is computed is one matrix and one offset. As parts of a basis:

    exact          a unit for each code that was seen, the most frequent first
    clusters       a unit for each cluster of codes that differ in few neurons (k-means on zeros and ones)
    compositional  a unit for each group of neurons that are on together; a code is a sum of several (non-negative
                   factors), so that few groups name many polytopes

What a unit writes is the mean of the values in its polytopes; of compositional ones, the least-squares share of them.
Black et al. (2022), Interpreting Neural Networks through the Polytope Lens. Misleads: of GELU, SiLU and other smooth
neurons the sign of what they are driven by is no boundary, only a place where they turn.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from microtome.bases import k_means, nonnegative_factors
from microtome.bases.additive import AdditiveBasis
from microtome.bases.rows import Rows, chunks
from microtome.core.config import Config as BaseConfig
from microtome.core.config import Seed
from microtome.core.errors import InputError
from microtome.core.site import Site


class Config(BaseConfig):
    """How codes become units."""

    kind: Literal["exact", "clusters", "compositional"] = Field("clusters", description="See the module.")
    units: int = Field(32, ge=1, description="Units; of exact ones, at most.")
    seed: Seed = Field(0, description="Of clusters and factors.")


class Polytopes(AdditiveBasis):
    """Reads what neurons are driven by, before they switch. patterns `[unit, neuron]`: the share of each neuron that is
    on in a unit's polytopes. written `[unit, neuron]` and centre: what units make of the values."""

    name = "polytopes"

    def __init__(
        self,
        site: Site | str,
        patterns: Float[Tensor, "unit neuron"],
        written: Float[Tensor, "unit neuron"],
        centre: Float[Tensor, " neuron"],
        compositional: bool,
    ) -> None:
        super().__init__((site,), (patterns.shape[1],), written, centre)
        self.n_parameters += patterns.numel()
        self.patterns, self.compositional = patterns, compositional

    def encode(self, values: Float[Tensor, "*rows d_read"]) -> Float[Tensor, "*rows unit"]:
        on = (values > 0).to(values.dtype)
        if self.compositional:
            return nonnegative_factors.nonnegative_least_squares(on, self.patterns, 200)
        chosen = k_means.nearest(on.reshape(-1, on.shape[-1]), self.patterns)
        codes = on.new_zeros(len(chosen), self.n_units)
        codes[torch.arange(len(chosen)), chosen] = 1.0
        return codes.reshape(*on.shape[:-1], self.n_units)


def fit(values: Rows, site: Site | str, config: Config | None = None) -> Polytopes:
    """values: what neurons are driven by, `[row, neuron]`. Raises `InputError` for fewer rows than units, where units
    are not exact."""
    config = config or Config()
    rows = torch.cat([chunk.float() for chunk in chunks(values)])
    on = (rows > 0).float()
    centre = rows.mean(0)
    if config.kind == "compositional":
        factors = nonnegative_factors.fit(
            on, site, nonnegative_factors.Config(units=config.units, seed=config.seed)
        )
        codes = nonnegative_factors.nonnegative_least_squares(on, factors.directions(), 200)
        mean = codes.mean(0)
        # By "gelsd", since factors may depend on each other.
        solved = torch.linalg.lstsq((codes - mean).double(), (rows - centre).double(), driver="gelsd")
        written = solved.solution.float()
        return Polytopes(site, factors.directions(), written, centre - mean @ written, True)
    if config.kind == "exact":
        patterns, counts = on.unique(dim=0, return_counts=True)
        patterns = patterns[counts.argsort(descending=True, stable=True)[: config.units]]
    else:
        given = k_means.Config(units=config.units, seed=config.seed)
        patterns = k_means.clusters(on, config.units, given, config.seed)
    chosen = k_means.nearest(on, patterns)
    sums = torch.zeros_like(patterns).index_add_(0, chosen, rows - centre)
    counts = torch.bincount(chosen, minlength=len(patterns))
    return Polytopes(site, patterns, sums / counts.clamp_min(1)[:, None], centre, False)


def numbered(on: Bool[Tensor, "row neuron"]) -> Int[Tensor, " row"]:
    """The polytope of each row, by number: the same number where exactly the same neurons are on."""
    found: Tensor = on.unique(dim=0, return_inverse=True)[1]
    return found


def bits_to_name(on: Bool[Tensor, "row neuron"]) -> dict[str, float]:
    """Bits a row to say which polytope it is in.

    `polytope`: from the list of those seen, each as often as it comes (entropy). `neurons`: neuron by neuron, each with
    its own frequency, as if they switched independently. What the first saves is what neurons have to do with each
    other. `seen`: how many polytopes there are, of `rows`: where the two are near, the list has not been seen in full,
    and its entropy is too small.
    """
    if not len(on):
        raise InputError("no rows, so no polytopes to count")
    share = torch.bincount(numbered(on)).double() / len(on)
    frequency = on.double().mean(0)
    switching = torch.special.entr(frequency) + torch.special.entr(1 - frequency)
    return {
        "polytope": float(torch.special.entr(share).sum()) / math.log(2),
        "neurons": float(switching.sum()) / math.log(2),
        "seen": float(len(share)),
        "rows": float(len(on)),
    }
