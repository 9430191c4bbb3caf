"""Waves are orthonormal; shares are found in planted tables and not in random ones; cuts add up; bad sizes are told."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microtome.bases import modular_fourier as fourier
from microtome.core.errors import InputError


def planted(p: int, waves: dict[int, float]) -> torch.Tensor:
    """Logits that are a sum of these multiples of cos w(a + b − c)."""
    a, b, c = torch.meshgrid(*[torch.arange(p, dtype=torch.double)] * 3, indexing="ij")
    return sum(size * torch.cos(2 * math.pi * k * (a + b - c) / p) for k, size in waves.items())


@pytest.mark.parametrize("p", [3, 5, 12 + 1, 53])
def test_the_waves_are_an_orthonormal_basis(p: int) -> None:
    basis = fourier.waves(p)
    assert basis.shape == (p, p)
    assert torch.allclose(basis @ basis.T, torch.eye(p, dtype=torch.double), atol=1e-12)


@pytest.mark.parametrize("p", [-1, 0, 1, 2, 4, 100])
def test_sizes_that_do_not_pair_up_are_refused(p: int) -> None:
    with pytest.raises(InputError, match="odd number"):
        fourier.frequencies(p)


@given(st.sampled_from([5, 7, 11]), st.lists(st.floats(0.1, 3), min_size=2, max_size=2), st.integers(0, 99))
def test_planted_shares_are_found_exactly(p: int, sizes: list[float], seed: int) -> None:
    waves = {1: sizes[0], 2: sizes[1]}
    noise = torch.randn(p, p, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    shares = fourier.logit_shares(planted(p, waves) + noise)  # the same for every answer: no softmax sees it
    power = torch.tensor([sizes[0] ** 2, sizes[1] ** 2], dtype=torch.double)
    assert torch.allclose(shares[:2], power / power.sum(), atol=1e-9)
    assert float(shares[2:].abs().max() if p > 5 else 0) < 1e-12


def test_a_wave_out_of_phase_does_not_count() -> None:
    p = 7
    a, b, c = torch.meshgrid(*[torch.arange(p, dtype=torch.double)] * 3, indexing="ij")
    assert fourier.logit_shares(torch.sin(2 * math.pi * (a + b - c) / p)).max() < 1e-12
    assert fourier.logit_shares(torch.cos(2 * math.pi * (a - b - c) / p)).max() < 1e-12
    assert fourier.logit_shares(torch.zeros(p, p, p)).max() == 0


def test_random_logits_have_no_key_frequency() -> None:
    drawn = torch.randn(11, 11, 11, generator=torch.Generator().manual_seed(0))
    shares = fourier.logit_shares(drawn)
    # Each is one of about p³ directions.
    assert float(shares.mean()) < 10 / 11**3
    assert fourier.key_frequencies(shares, 0.01, 0.5) == ()


def test_key_frequencies_hold_enough_alone_and_together() -> None:
    shares = torch.tensor([0.1, 0.5, 0.0, 0.3])
    assert fourier.key_frequencies(shares, 0.01, 0.5) == (1, 2, 4)
    assert fourier.key_frequencies(shares, 0.2, 0.5) == (2, 4)
    assert fourier.key_frequencies(shares, 0.2, 0.85) == ()
    assert fourier.key_frequencies(shares, 0.01, 0.95) == ()


def test_the_cuts_add_up_and_find_what_was_planted() -> None:
    p = 11
    logits = planted(p, {2: 3.0, 4: 1.0}) + torch.randn(p, p, p, generator=torch.Generator().manual_seed(1))
    mean = logits.mean((0, 1), keepdim=True)
    assert torch.allclose(
        fourier.restricted(logits, (2, 4)) - mean + fourier.excluded(logits, (2, 4)), logits
    )
    pure = planted(p, {2: 3.0})
    assert torch.allclose(fourier.restricted(pure, (2,)), pure, atol=1e-9)
    assert fourier.excluded(pure, (2,)).abs().max() < 1e-9
    assert torch.allclose(fourier.excluded(pure, (1,)), pure, atol=1e-9)


def test_all_frequencies_leave_only_what_is_not_of_the_sum() -> None:
    p = 7
    drawn = torch.randn(p, p, p, generator=torch.Generator().manual_seed(2)).double()
    total = torch.arange(p)[:, None] + torch.arange(p)
    kept = fourier.restricted(drawn, fourier.frequencies(p))
    for s in range(p):  # what is kept is the mean over the pairs of each sum
        on = total % p == s
        assert torch.allclose(kept[on], drawn[on].mean(0).expand(p, -1), atol=1e-9)


def test_a_neuron_of_one_frequency_is_explained_by_it() -> None:
    p = 13
    a, b = torch.meshgrid(*[torch.arange(p, dtype=torch.double)] * 2, indexing="ij")
    angle = lambda k, x: 2 * math.pi * k * x / p
    neurons = torch.stack(
        [
            torch.cos(angle(3, a)) + 0.5 * torch.sin(angle(3, b)) + 2,
            torch.cos(angle(5, a)) * torch.sin(angle(5, b)),
            torch.ones(p, p, dtype=torch.double),
            torch.cos(angle(1, a)) + torch.cos(angle(2, b)),
        ],
        -1,
    )
    shares = fourier.neuron_shares(neurons)
    assert shares[2, 0] == pytest.approx(1)
    assert shares[4, 1] == pytest.approx(1)
    assert shares[:, 2].max() == 0
    assert shares[:2, 3].tolist() == pytest.approx([0.5, 0.5])


def test_the_norm_of_an_embedding_on_one_circle_is_on_two_waves() -> None:
    p = 9
    angle = 2 * math.pi * 2 * torch.arange(p) / p
    norms = fourier.wave_norms(torch.stack([angle.cos(), angle.sin()], 1))
    assert norms[3:5].tolist() == pytest.approx([(p / 2) ** 0.5] * 2)
    assert float(norms.square().sum()) == pytest.approx(p)


@pytest.mark.parametrize(("values", "found"), [([1, 1, 1, 1], 0.0), ([0, 0, 0, 1], 0.75), ([1, 3], 0.25)])
def test_gini(values: list[float], found: float) -> None:
    assert fourier.gini(torch.tensor(values, dtype=torch.float)) == pytest.approx(found)
    assert math.isnan(fourier.gini(torch.zeros(3)))


def test_losses_of_the_cuts() -> None:
    p = 5
    given = torch.rand(p, p, generator=torch.Generator().manual_seed(0)) < 0.5
    losses = fourier.cut_losses(planted(p, {1: 40.0, 2: 40.0}), given, (1, 2))
    guess = math.log(p)
    assert losses[:2].max() < 1e-9
    assert losses[2].tolist() == pytest.approx([guess, guess])
    assert fourier.cut_losses(planted(p, {1: 1.0}), ~torch.zeros_like(given), ()).isnan()[:, 1].all()
