"""Codes without their zeros are the same codes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microtome.bases.codes import SparseCodes
from microtome.core.errors import InputError


@given(rows=st.integers(0, 6), units=st.integers(1, 7), seed=st.integers(0, 99))
def test_a_matrix_comes_back_and_multiplies_as_it_did(rows: int, units: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, units, generator=draw) * (torch.rand(rows, units, generator=draw) < 0.4)
    codes = SparseCodes.of(dense)
    assert torch.equal(codes.dense(), dense)
    assert bool((codes.value != 0).all())
    directions = torch.randn(units, 3, generator=draw)
    torch.testing.assert_close(codes.times(directions), dense @ directions)


def test_chosen_units_are_sorted_and_zeros_left_out() -> None:
    codes = SparseCodes.chosen(torch.tensor([[3, 1], [0, 2]]), torch.tensor([[1.0, 2.0], [0.0, 5.0]]), 4)
    assert codes.unit.tolist() == [1, 3, 2]
    assert codes.dense().tolist() == [[0, 2, 0, 1], [0, 0, 5, 0]]


def test_units_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match=r"has 0 … 3"):
        SparseCodes.chosen(torch.tensor([[4]]), torch.tensor([[1.0]]), 4)
    with pytest.raises(InputError, match="4 units; 3 directions"):
        SparseCodes.chosen(torch.tensor([[1]]), torch.tensor([[1.0]]), 4).times(torch.zeros(3, 2))
