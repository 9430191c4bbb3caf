"""Answers from two factors are the answers of the matrix."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microtome.models.low_rank import LowRank, copying

shapes = st.tuples(st.integers(3, 9), st.integers(1, 3), st.integers(0, 1000))


def matrix(rows: int, rank: int, seed: int, columns: int | None = None) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(2, rows, rank, generator=generator, dtype=torch.float64),
        torch.randn(2, rank, columns or rows, generator=generator, dtype=torch.float64),
    )


@given(shapes)
def test_norm_singular_values_product_and_transpose(shape: tuple[int, int, int]) -> None:
    one, two = matrix(*shape), matrix(shape[0], 2, shape[2] + 1)
    dense = one.dense()
    torch.testing.assert_close(one.norm(), dense.norm(dim=(-2, -1)))
    torch.testing.assert_close(one.singular_values(), torch.linalg.svdvals(dense)[:, : shape[1]])
    torch.testing.assert_close((one @ two).dense(), dense @ two.dense())
    torch.testing.assert_close(one.transpose.dense(), dense.mT)


@given(shapes)
def test_eigenvalues_are_those_of_the_matrix_and_zeros(shape: tuple[int, int, int]) -> None:
    one = matrix(*shape)
    found = one.eigenvalues()
    every = torch.linalg.eigvals(one.dense())
    for few, all_of_them in zip(found, every, strict=True):
        # Every non-zero eigenvalue of the matrix is there, and nothing else.
        distance = (all_of_them[:, None] - few[None]).abs()
        assert distance.min(dim=0).values.max() < 1e-7
        assert int((all_of_them.abs() > 1e-7).sum()) <= shape[1]
    torch.testing.assert_close(found.real.sum(-1), one.dense().diagonal(dim1=-2, dim2=-1).sum(-1))


@given(shapes, st.integers(1, 20), st.integers(1, 4))
def test_largest_entries_whatever_the_block(shape: tuple[int, int, int], count: int, block: int) -> None:
    one = matrix(shape[0], shape[1], shape[2], columns=5)[0]
    values, rows, columns = one.largest(count, block)
    dense = one.dense()
    torch.testing.assert_close(values, dense.flatten().topk(min(count, dense.numel())).values)
    torch.testing.assert_close(values, dense[rows, columns])


def test_only_square_matrices_have_eigenvalues() -> None:
    with pytest.raises(ValueError, match="5 by 4"):
        matrix(5, 2, 0, columns=4).eigenvalues()


def test_copying_is_one_for_a_copy_minus_one_for_its_negative_zero_for_a_rotation() -> None:
    frame = torch.linalg.qr(torch.randn(8, 3)).Q
    assert copying(LowRank(frame, frame.T).eigenvalues()).item() == pytest.approx(1, abs=1e-5)
    assert copying(LowRank(-frame, frame.T).eigenvalues()).item() == pytest.approx(-1, abs=1e-5)
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    assert copying(LowRank(turn, torch.eye(2)).eigenvalues()).item() == pytest.approx(0, abs=1e-6)
    assert copying(torch.zeros(3, dtype=torch.complex64)).item() == 0
