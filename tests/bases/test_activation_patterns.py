"""Units that come together are found as groups, and none where each goes its own way."""

import numpy as np
import pytest
import torch

from microtome.bases.activation_patterns import activation_patterns, basis_of_patterns
from microtome.bases.codes import SparseCodes
from microtome.bases.linear import LinearBasis
from microtome.core.errors import InputError


def codes(together: bool) -> torch.Tensor:
    """Two groups of four units, on with their group or each by itself; a unit that is never on, one that always is."""
    draw = torch.Generator().manual_seed(0)
    groups = (torch.rand(2000, 2, generator=draw) < 0.2).repeat_interleave(4, -1)
    alone = torch.rand(2000, 8, generator=draw) < 0.2
    on = (groups & (torch.rand(2000, 8, generator=draw) < 0.9)) if together else alone
    strength = torch.rand(2000, 8, generator=draw) + 0.1
    return torch.cat([on * strength, torch.zeros(2000, 1), torch.ones(2000, 1)], -1)


def test_vectors_are_those_of_the_correlations_of_on_and_off() -> None:
    dense = codes(True)
    found = activation_patterns(SparseCodes.of(dense), 8)
    other = np.linalg.eigvalsh(np.corrcoef((dense[:, :8] != 0).double().numpy().T))[::-1]
    np.testing.assert_allclose(found.values.double().square().numpy(), other, atol=1e-5)
    torch.testing.assert_close(found.vectors @ found.vectors.mT, torch.eye(8), atol=1e-5, rtol=0)
    assert found.used.tolist() == list(range(8))


def test_groups_that_come_together_are_found_and_accidents_are_not() -> None:
    found = activation_patterns(SparseCodes.of(codes(True)))
    assert found.above_chance == 2
    # Two groups of the same size share a plane: in it, each group is one point and the rest is at zero.
    plane = found.vectors[:2].mT @ found.vectors[:2]
    assert float(plane[:4, :4].mean()) == pytest.approx(0.25, abs=0.01)
    assert float(plane[:4, 4:].abs().max()) < 0.05
    assert activation_patterns(SparseCodes.of(codes(False))).above_chance <= 1


def test_groups_as_directions() -> None:
    basis = LinearBasis("resid_post.0", torch.randn(10, 12, generator=torch.Generator().manual_seed(0)))
    found = activation_patterns(SparseCodes.of(codes(True)), 2)
    grouped = basis_of_patterns(basis, found)
    torch.testing.assert_close(grouped.directions(), found.vectors @ basis.directions())
    assert grouped.name == "directions_patterns"


def test_nothing_to_see_is_refused() -> None:
    with pytest.raises(InputError, match="no patterns"):
        activation_patterns(SparseCodes.of(torch.ones(5, 3)))
