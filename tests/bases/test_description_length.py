"""Bits against closed forms: coins, uniform levels, Gaussians; a planted dictionary is shortest at its true width."""

import math

import pytest
import torch
from torch import Tensor

from microtome.bases.description_length import description_length
from microtome.bases.linear import LinearBasis
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.dictionaries.activations import ReLU, TopK
from microtome.dictionaries.coders.coded_dictionary import CodedDictionary
from microtome.dictionaries.coders.pursuit import OrthogonalMatchingPursuit
from microtome.dictionaries.dictionary import Dictionary
from microtome.testbeds.toys.planted_dictionary import PlantedDictionary, Setting

SITE = Site.parse("path:activation")


def relu(directions: Tensor, k: int = 0) -> Dictionary:
    """Reads along its own directions, and writes them."""
    n, d = directions.shape
    activation = TopK(k) if k else ReLU()
    zeros = torch.zeros(n)
    return Dictionary(
        "d",
        (SITE,),
        (SITE,),
        (d,),
        (d,),
        activation,
        directions,
        zeros,
        directions,
        torch.zeros(d),
        torch.zeros(d),
    )


def test_coins_cost_their_entropy() -> None:
    source = torch.Generator().manual_seed(0)
    heads = (torch.rand(20_000, 4, generator=source) < 0.2).float()
    bits = description_length(relu(torch.eye(4)), heads)
    share = heads.mean(0).double()
    entropy = -(share * share.log2() + (1 - share) * (1 - share).log2()).sum()
    assert bits.which == pytest.approx(float(entropy), rel=1e-6)
    assert bits.how_much == pytest.approx(0.0, abs=1e-6)  # always 1: nothing to say
    assert bits.left_out == 0.0
    assert bits.basis == 16 * relu(torch.eye(4)).n_parameters
    assert bits.total(10) == bits.row + bits.basis / 10


def test_levels_cost_the_logarithm_of_their_number() -> None:
    source = torch.Generator().manual_seed(0)
    values = 1 + torch.rand(200_000, 1, generator=source)
    slack = 1e-3
    bits = description_length(relu(torch.eye(1)), values, slack=slack)
    step = math.sqrt(12 * slack / 2 * float(values.var(correction=0)))
    # Uniform over an interval of 1/step steps, up to one step more and what 200 000 rows do not tell.
    assert bits.how_much == pytest.approx(math.log2(1 / step), abs=2 * step)


def test_what_is_left_out_costs_what_a_gaussian_does() -> None:
    source = torch.Generator().manual_seed(0)
    spread = torch.tensor([4.0, 2.0, 0.01])
    values = torch.randn(50_000, 3, generator=source) * spread
    nothing = LinearBasis(SITE, torch.ones(1, 3), readers=torch.zeros(1, 3))
    bits = description_length(nothing, values, slack=0.1)
    # The smallest lies below the water; the two others share the distortion: allowed = 2 level + 0.0001.
    variance = spread.double().square()
    level = (0.05 * float(variance.sum()) - 1e-4) / 2
    assert bits.left_out == pytest.approx(float((variance[:2] / level).log2().sum()) / 2, abs=0.02)
    assert bits.codes == 0.0


def test_the_true_width_is_the_shortest_description() -> None:
    """Narrower: features are missing. Wider: units that are not needed. Extremes: a unit for each row, no structure."""
    planted = PlantedDictionary(Setting(features=64, dimensions=32, spread=50, highest=0.03, lowest=0.03), 0)
    values = planted.chunk(1, 1000).activations
    source = torch.Generator().manual_seed(1)
    random = torch.nn.functional.normalize(torch.randn(64, 32, generator=source), dim=-1)
    wide = torch.cat([planted.dictionary, random])

    def bits(directions: Tensor, k: int) -> float:
        coder = OrthogonalMatchingPursuit(k=k, nonnegative=True, tolerance=0.05)
        return description_length(CodedDictionary([SITE], [32], directions, coder), values).total()

    true, *others = (bits(wide[:width], 6) for width in (64, 16, 32, 60, 128))
    others += [bits(random, 6), description_length(LinearBasis(SITE, torch.eye(32)), values).total()]
    others.append(bits(values[values.norm(dim=-1) > 0].unique(dim=0), 1))
    assert true < min(others)


def test_bad_slack_and_constant_values_are_refused() -> None:
    basis = LinearBasis(SITE, torch.eye(3))
    with pytest.raises(InputError, match="between 0 and 1"):
        description_length(basis, torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), slack=1.0)
    with pytest.raises(InputError, match="all the same"):
        description_length(basis, torch.ones(5, 3))
