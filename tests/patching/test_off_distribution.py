"""The guard: natural values are spread evenly over the percentiles, what is off lies beyond them."""

import pytest
import torch
from scipy.spatial.distance import mahalanobis
from scipy.stats import kstest
from sklearn.covariance import LedoitWolf

from microtome.core.edits import Scale, Set, Zero
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.models.batch import Batch
from microtome.patching.off_distribution import Natural, Reference, distance, median

SITE = Site("resid_post", 0)


def gaussian(n: int, seed: int) -> torch.Tensor:
    """Correlated values with very different spreads, far from zero."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, 8)
    return torch.randn(n, 8, generator=generator) @ mixing + 20


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.fit(gaussian(2000, 1)[::2], gaussian(2000, 1)[1::2])


def test_distance_is_mahalanobis_by_the_shrunk_covariance(reference: Reference) -> None:
    fitted = gaussian(2000, 1)[::2].double().numpy()
    shrunk = LedoitWolf().fit(fitted)
    values = gaussian(5, 2)
    expected = [mahalanobis(v, shrunk.location_, shrunk.precision_) for v in values.double().numpy()]
    assert distance(values, reference).distance.tolist() == pytest.approx(expected, rel=1e-6)
    assert reference.n_fit == 1000
    assert len(reference.held_out) == 1000


def test_natural_values_are_spread_evenly_and_rarely_marked(reference: Reference) -> None:
    found = distance(gaussian(2000, 3), reference)
    # Two samples of 1000 and 2000 from one distribution: Kolmogorov–Smirnov at 1 % is 1.63 · sqrt(1/1000 + 1/2000).
    assert kstest(found.percentile.numpy() / 100, "uniform").statistic < 0.064
    assert 0.001 < float(found.beyond.double().mean()) < 0.03


def test_unnatural_values_are_marked_where_euclid_sees_nothing(reference: Reference) -> None:
    values = gaussian(50, 4)
    thin = torch.linalg.eigh(torch.cov(gaussian(2000, 1).T)).eigenvectors[:, 0]
    moved = values + 6.0 * thin  # far along the direction in which natural values hardly vary
    assert float((moved - values).norm(dim=1).max()) < 0.2 * float(gaussian(2000, 1).std(dim=0).norm())
    assert distance(moved, reference).beyond.all()
    assert distance(torch.zeros(1, 8), reference).beyond.all()


def test_values_that_never_vary(reference: Reference) -> None:
    still = Reference.fit(torch.ones(5, 3), torch.ones(5, 3))
    assert distance(torch.ones(1, 3), still).percentile.tolist() == [0.0]
    assert distance(torch.full((1, 3), 1.001), still).beyond.all()


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0)])
def test_refuses_nothing_to_fit_or_hold_out(sizes: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="give more prompts"):
        Reference.fit(torch.randn(sizes[0], 2), torch.randn(sizes[1], 2))


def test_refuses_another_width(reference: Reference) -> None:
    with pytest.raises(InputError, match="values have 7 units, the natural ones 8"):
        distance(torch.zeros(2, 7), reference)


def natural(rows: int = 40, columns: int = 6) -> tuple[Natural, torch.Tensor]:
    values = gaussian(rows * columns, 5).view(rows, columns, 8)
    values[:, 0] *= 100  # the first token is unlike all others
    return Natural(({SITE: values}, {SITE: values.flip(0)}), Batch(rows, columns)), values


def test_own_values_are_natural_although_they_are_in_the_sample() -> None:
    """Each row is judged by the other half: in 3 rows of 8 units, judging by all would give near-zero distances."""
    guard, values = natural(rows=8)
    assert 25 < guard.of_edits([Set(SITE, value=values)], {SITE: values}) < 75


def test_edits_are_judged_by_what_they_put_in() -> None:
    guard, values = natural()
    assert guard.of_edits([Zero(SITE)], {SITE: values}) == 100.0
    assert guard.of_edits([Scale(SITE.at(2), (1, 3), factor=1.5)], {SITE: values}) == 100.0
    assert 20 < guard.of_edits([Scale(SITE.at(2), factor=1.0)], {SITE: values}) < 80


def test_the_last_token_is_ranked_among_last_tokens() -> None:
    """Natural last tokens may lie apart from all others; that alone marks nothing."""
    values = gaussian(60 * 6, 8).view(60, 6, 8)
    values[:, -1] = values[:, -1] * 0.5 + 60
    guard = Natural(({SITE: values},), Batch(60, 6))
    assert 35 < median(guard.percentiles(values[:, -1:], SITE.at(-1))) < 65
    assert median(guard.percentiles(values[:, -1:], SITE.at(5))) > 65
    assert median(guard.percentiles(values[:, -1:] + 100, SITE.at(-1))) == 100


def test_the_first_token_is_not_judged() -> None:
    guard, values = natural()
    assert guard.percentiles(values[:, :1], SITE.at(0)) == []
    assert median(guard.percentiles(values, SITE)) < 75


def test_padding_is_not_judged() -> None:
    values = gaussian(20 * 6, 6).view(20, 6, 8)
    mask = torch.arange(6) < torch.tensor([4, 6] * 10)[:, None]
    values[~mask] = 1e6
    guard = Natural(({SITE: values},), Batch.of(20, 6, mask.long()))
    found = guard.percentiles(values, SITE)
    assert len(found) == 10 * 3 + 10 * 5
    assert median(found) < 75


def test_one_prompt_judges_nothing() -> None:
    values = gaussian(6, 7).view(1, 6, 8)
    guard = Natural(({SITE: values},), Batch(1, 6))
    assert not guard.judges
    assert guard.percentiles(values, SITE) == []
