"""Sums over chunks are sums over all rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microtome.bases.rows import chunks, moments, sample
from microtome.core.errors import InputError, NotFiniteError


@given(
    rows=st.integers(1, 40),
    size=st.integers(1, 17),
    mean=st.sampled_from([0.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_moments_do_not_depend_on_chunks(rows: int, size: int, mean: float, seed: int) -> None:
    values = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed)) + mean
    count, middle, covariance = moments(lambda: iter(values.split(size)))
    exact = values.double()
    assert count == rows
    torch.testing.assert_close(middle, exact.mean(0))
    torch.testing.assert_close(
        covariance, (exact - exact.mean(0)).mT @ (exact - exact.mean(0)) / rows, atol=1e-9, rtol=1e-7
    )


def test_a_sample_is_even_over_chunks_and_follows_the_seed() -> None:
    values = torch.arange(1000.0)[:, None]
    opened = lambda: iter(values.split(130))
    one, two = sample(opened, 200, 3), sample(opened, 200, 3)
    assert torch.equal(one, two)
    assert len(one.unique()) == 200
    # The mean of 200 of 0 … 999 without repeats: standard deviation 18.3; five of these.
    assert abs(float(one.mean()) - 499.5) < 92
    assert len(sample(values, 5000, 0)) == 1000


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(InputError, match="no rows"):
        list(chunks(torch.zeros(0, 3)))
    with pytest.raises(NotFiniteError, match="rows 4 … 5"):
        list(chunks(torch.tensor([[0.0]] * 5 + [[float("nan")]]), 4))
    with pytest.raises(InputError, match=r"\[row, d\]"):
        list(chunks(lambda: iter([torch.zeros(2, 3, 4)])))
