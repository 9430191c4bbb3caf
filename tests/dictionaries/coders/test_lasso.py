"""The lasso keeps its optimality conditions, agrees with scikit-learn, and no start is made worse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import sparse_encode
from sklearn.linear_model import Lasso as Oracle
from torch import Tensor

from microtome.core.errors import InputError
from microtome.dictionaries.coders.lasso import Lasso, curvature


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("momentum", [False, True])
def test_the_conditions_for_the_best_hold(nonnegative: bool, momentum: bool) -> None:
    directions, values = drawn(0, 50, 20), drawn(1, 60, 20)
    lasso = Lasso(2.0, nonnegative, momentum, steps=20_000, tolerance=1e-6)
    codes = lasso.codes(values, directions)
    assert float(lasso.violation(values, directions, codes).max()) <= 1e-6 * 2.0
    assert 0 < int((codes != 0).sum()) < codes.numel() / 2


@pytest.mark.parametrize("nonnegative", [False, True])
def test_it_is_scikit_learns(nonnegative: bool) -> None:
    directions, values = drawn(0, 30, 40), drawn(1, 10, 40)
    mine = Lasso(1.5, nonnegative, tolerance=1e-8, steps=20_000).codes(values, directions)
    # Its objective is divided by the number of numbers.
    oracle = Oracle(alpha=1.5 / 40, fit_intercept=False, positive=nonnegative, tol=1e-12, max_iter=100_000)
    told = oracle.fit(directions.numpy().T, values.numpy().T).coef_
    np.testing.assert_allclose(mine.numpy(), told, atol=1e-6)
    if not nonnegative:
        told = sparse_encode(values.numpy(), directions.numpy(), algorithm="lasso_lars", alpha=1.5)
        np.testing.assert_allclose(mine.numpy(), told, atol=1e-5)


def test_orthonormal_directions_have_a_closed_form() -> None:
    turned, _ = torch.linalg.qr(drawn(0, 16, 16))
    values = drawn(1, 30, 16)
    inner = values @ turned.T
    expected = inner.sign() * (inner.abs() - 0.4).clamp(min=0)
    torch.testing.assert_close(Lasso(0.4, tolerance=1e-9).codes(values, turned), expected)


@given(st.integers(0, 10_000), st.booleans(), st.booleans(), st.integers(1, 25))
@settings(max_examples=40, deadline=None)
def test_no_start_is_made_worse(seed: int, nonnegative: bool, momentum: bool, steps: int) -> None:
    directions, values = drawn(seed, 20, 8), drawn(seed + 1, 10, 8)
    lasso = Lasso(0.5, nonnegative, momentum, steps=steps)
    start = drawn(seed + 2, 10, 20)
    start = start.clamp(min=0) if nonnegative else start
    before = lasso.objective(values, directions, start)
    after = lasso.objective(values, directions, lasso.codes(values, directions, start))
    assert bool((after <= before * (1 + 1e-12)).all())


def test_momentum_and_a_near_start_save_steps() -> None:
    directions, values = drawn(0, 50, 20), drawn(1, 60, 20)
    best = Lasso(1.0, tolerance=1e-9, steps=50_000).codes(values, directions)

    def missed(momentum: bool, start: Tensor | None) -> float:
        short = Lasso(1.0, momentum=momentum, steps=60, tolerance=1e-12)
        found = short.codes(values, directions, start)
        return float(
            (short.objective(values, directions, found) - short.objective(values, directions, best)).mean()
        )

    assert missed(True, None) < missed(False, None) / 10
    assert missed(True, best + 1e-3) < missed(True, None)


def test_curvature_is_the_largest_eigenvalue() -> None:
    for shape in ((5, 9), (9, 5)):
        directions = drawn(3, *shape)
        assert curvature(directions) == pytest.approx(float(torch.linalg.svdvals(directions)[0] ** 2))


def test_a_penalty_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="above 0"):
        Lasso(0.0)
