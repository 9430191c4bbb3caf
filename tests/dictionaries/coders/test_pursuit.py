"""Pursuits find exact codes where theory says so, agree with scikit-learn elsewhere, and never leave the cone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp
from torch import Tensor

from microtome.core.errors import InputError, NotFiniteError
from microtome.dictionaries.coders.inference_time import improve, refit
from microtome.dictionaries.coders.least_squares import fit
from microtome.dictionaries.coders.pursuit import GradientPursuit, OrthogonalMatchingPursuit


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spikes_and_waves() -> Tensor:
    """Identity beside a Hadamard matrix, 64 numbers: the largest cosine between two directions is 1/8."""
    return torch.cat([torch.eye(64), torch.tensor(hadamard(64), dtype=torch.float32) / 8])


def sparse(seed: int, rows: int, units: int, k: int, positive: bool) -> Tensor:
    codes = torch.zeros(rows, units)
    generator = torch.Generator().manual_seed(seed)
    for row in range(rows):
        chosen = torch.randperm(units, generator=generator)[:k]
        size = 0.5 + torch.rand(k, generator=generator)
        sign = torch.randint(0, 2, (k,), generator=generator) * 2.0 - 1
        codes[row, chosen] = size if positive else size * sign
    return codes


@pytest.mark.parametrize("nonnegative", [False, True])
def test_sparse_codes_are_found_exactly_below_the_coherence_bound(nonnegative: bool) -> None:
    # k < (1 + 1/μ)/2 = 4.5 (Tropp 2004, theorem 3.5), whatever the signs and strengths.
    directions = spikes_and_waves()
    for k in (1, 2, 3, 4):
        true = sparse(k, 200, 128, k, nonnegative)
        found = OrthogonalMatchingPursuit(k, nonnegative).codes(true @ directions, directions)
        assert torch.equal(found != 0, true != 0)
        torch.testing.assert_close(found, true, atol=1e-5, rtol=0)


def test_it_stops_when_nothing_is_left() -> None:
    directions = spikes_and_waves()
    true = sparse(9, 50, 128, 3, positive=False)
    found = OrthogonalMatchingPursuit(20).codes(true @ directions, directions)
    assert torch.equal(found != 0, true != 0)


def test_choices_and_strengths_are_scikit_learns() -> None:
    directions = torch.nn.functional.normalize(drawn(0, 60, 20), dim=-1)
    values = drawn(1, 100, 20)
    found = OrthogonalMatchingPursuit(6, tolerance=0).codes(values, directions)
    told = orthogonal_mp(directions.double().numpy().T, values.double().numpy().T, n_nonzero_coefs=6).T
    np.testing.assert_allclose(found.numpy(), told, atol=1e-4)


def test_long_directions_are_not_preferred() -> None:
    directions = torch.nn.functional.normalize(drawn(0, 60, 20), dim=-1)
    lengths = 0.1 + 10 * torch.rand(60, 1, generator=torch.Generator().manual_seed(4))
    values = drawn(1, 100, 20)
    plain = OrthogonalMatchingPursuit(5).codes(values, directions)
    long = OrthogonalMatchingPursuit(5).codes(values, directions * lengths)
    torch.testing.assert_close(long * lengths.T, plain, atol=1e-4, rtol=1e-4)


@given(
    st.integers(0, 10_000),
    st.integers(1, 8),
    st.sampled_from([OrthogonalMatchingPursuit, GradientPursuit]),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_no_pursuit_uses_too_many_or_makes_worse(
    seed: int, k: int, kind: type[OrthogonalMatchingPursuit | GradientPursuit], nonnegative: bool
) -> None:
    directions, values = drawn(seed, 30, 8), drawn(seed + 1, 20, 8)
    previous = values.square().sum(-1)
    found = kind(k, nonnegative).codes(values, directions)
    left = (values - found @ directions).square().sum(-1)
    assert int((found != 0).sum(-1).max()) <= k
    assert not nonnegative or float(found.min()) >= 0
    assert bool((left <= previous * (1 + 1e-5)).all())
    # From codes to start from, too.
    again = kind(k, nonnegative).codes(values, directions, found)
    assert bool(((values - again @ directions).square().sum(-1) <= left + 1e-5 * previous).all())


def test_one_gradient_step_on_orthogonal_directions_is_the_whole_way() -> None:
    turned, _ = torch.linalg.qr(drawn(0, 16, 16))
    values = drawn(1, 30, 16)
    found = GradientPursuit(4).codes(values, turned)
    torch.testing.assert_close(
        found, OrthogonalMatchingPursuit(4).codes(values, turned), atol=1e-5, rtol=1e-4
    )


def test_without_signs_the_strengths_are_the_best_there_are() -> None:
    atoms, values = drawn(0, 40, 6, 10).abs(), drawn(1, 40, 10)
    start, on = torch.zeros(40, 6), torch.ones(40, 6, dtype=torch.bool)
    found, kept = fit(values, atoms, start + 1e-3, on, nonnegative=True)
    assert float(found.min()) >= 0
    assert torch.equal(kept, found > 0)
    for row in range(40):
        used = kept[row].nonzero()[:, 0]
        if len(used):
            told, _ = nnls(atoms[row, used].double().numpy().T, values[row].double().numpy())
            np.testing.assert_allclose(found[row, used].numpy(), told, atol=1e-4)


def test_directions_that_depend_on_each_other_are_no_trouble() -> None:
    atoms = drawn(0, 5, 1, 10).expand(5, 3, 10)
    values = drawn(1, 5, 10)
    start, on = torch.zeros(5, 3), torch.ones(5, 3, dtype=torch.bool)
    found, _ = fit(values, atoms, start, on, nonnegative=False)
    one, _ = fit(values, atoms[:, :1], start[:, :1], on[:, :1], nonnegative=False)
    torch.testing.assert_close(found.sum(-1), one[:, 0], atol=1e-4, rtol=1e-4)


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=30, deadline=None)
def test_inference_time_optimisation_never_explains_less(seed: int, nonnegative: bool) -> None:
    directions, values = drawn(seed, 24, 8), drawn(seed + 1, 30, 8)
    scores = values @ directions.T / directions.square().sum(-1)
    scores = scores.clamp(min=0) if nonnegative else scores
    kept = scores.abs() >= scores.abs().topk(5, -1).values[:, -1:]
    codes = torch.where(kept, scores, 0.0)
    before = (values - codes @ directions).square().sum(-1)
    for better in (refit, improve):
        new = better(values, directions, codes, nonnegative)
        after = (values - new @ directions).square().sum(-1)
        assert bool((after <= before * (1 + 1e-5) + 1e-6).all())
        assert bool(((new != 0).sum(-1) <= (codes != 0).sum(-1)).all())
        assert not nonnegative or float(new.min()) >= 0


def test_bad_input() -> None:
    coder, directions, values = OrthogonalMatchingPursuit(2), drawn(0, 6, 4), drawn(1, 3, 4)
    with pytest.raises(InputError, match="at least one"):
        OrthogonalMatchingPursuit(0)
    with pytest.raises(InputError, match="must agree"):
        coder.codes(values[:, :3], directions)
    with pytest.raises(NotFiniteError):
        coder.codes(values / 0, directions)
    with pytest.raises(InputError, match="length 0"):
        coder.codes(values, directions * 0)
    with pytest.raises(InputError, match="start from"):
        coder.codes(values, directions, torch.zeros(3, 5))
    with pytest.raises(InputError, match="below zero"):
        refit(values, directions, -torch.ones(3, 6))
    assert coder.codes(values[:0], directions).shape == (0, 6)
    assert not coder.codes(values * 0, directions).any()
