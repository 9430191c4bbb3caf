"""Absorption made by hand is counted row by row; true codes have none, nor has a unit that is just bad."""

import pytest
import torch

from microtome.bases.codes import SparseCodes
from microtome.core.errors import InputError
from microtome.evaluation.absorption import absorption

EYE = torch.eye(4)
# Latent 0 is the parent of 1 and 2; 3 stands alone.
TRUE = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 1], [0, 0, 0, 1]]).bool()


def test_the_truth_has_no_holes() -> None:
    found = absorption(EYE, SparseCodes.of(TRUE.float()), EYE, TRUE)
    assert (found.rate, found.hole_rate) == (0.0, 0.0)
    assert found.unit.tolist() == [0, 1, 2, 3]


def test_a_child_that_speaks_for_its_parent_is_counted() -> None:
    units = EYE.clone()
    units[1, 0] = 0.9  # unit 1 says child 1 and parent at once
    codes = TRUE.float()
    codes[0, 0] = 0.0
    found = absorption(units, SparseCodes.of(codes), EYE, TRUE)
    assert found.holes.tolist() == [1, 0, 0, 0]
    assert found.absorbed.tolist() == [1, 0, 0, 0]
    assert found.by.tolist() == [1, -1, -1, -1]
    assert found.rate == pytest.approx(1 / int(TRUE.sum()))
    assert found.table(("parent", "one", "two", "alone")).rows[0][0] == "parent"


def test_a_hole_that_nobody_fills_is_no_absorption() -> None:
    codes = TRUE.float()
    codes[2, 0] = 0.0  # no other unit is on
    codes[0, 0] = 0.0  # unit 1 is on, but says nothing of the parent
    found = absorption(EYE, SparseCodes.of(codes), EYE, TRUE)
    assert found.holes.tolist() == [2, 0, 0, 0]
    assert found.absorbed.tolist() == [0, 0, 0, 0]


def test_a_unit_that_fills_the_hole_without_its_own_latent_is_no_absorption() -> None:
    units = EYE.clone()
    units[3, 0] = 0.9
    codes = TRUE.float()
    codes[2] = torch.tensor([0.0, 0.0, 0.0, 1.0])  # latent 3 is not true here
    found = absorption(units, SparseCodes.of(codes), EYE, TRUE)
    assert found.holes.tolist() == [1, 0, 0, 0]
    assert found.absorbed.tolist() == [0, 0, 0, 0]


def test_many_small_contributions_are_no_absorption() -> None:
    units = torch.cat([EYE, EYE, EYE])
    units[[1, 5, 9], 0] = 0.9
    codes = torch.zeros(5, 12)
    codes[0, [1, 5, 9]] = 1.0
    found = absorption(units, SparseCodes.of(codes), EYE, TRUE)
    assert int(found.absorbed[0]) == 0  # each makes a third, less than `share`
    assert int(absorption(units, SparseCodes.of(codes), EYE, TRUE, share=0.3).absorbed[0]) == 1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="expected codes of 5 rows"):
        absorption(EYE, SparseCodes.of(torch.ones(3, 4)), EYE, TRUE)
