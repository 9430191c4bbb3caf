"""The tests of circuits reject what is false, and what is true no more often than they say."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from microtome.core.errors import InputError
from microtome.evaluation.hypothesis_statistics import better, equivalence, holm, independence, needless

LEVEL = 0.05


def at_most(rejected: int, runs: int, rate: float) -> bool:
    """Whether so many rejections are no evidence (1 in 10 000) that the rate is exceeded."""
    return float(stats.binom.sf(rejected - 1, runs, rate)) > 1e-4


@pytest.mark.parametrize("rate", [0.4, 0.5, 0.6])
def test_equivalence_is_falsely_rejected_no_more_often_than_the_level(rate: float) -> None:
    random = np.random.default_rng(0)
    runs = 2000
    above = random.random((runs, 40)) < rate
    rejected = sum(equivalence(np.where(row, 1.0, -1.0), 0.1)[1] <= LEVEL for row in above)
    assert at_most(rejected, runs, LEVEL)


def test_equivalence_is_rejected_where_the_circuit_nearly_always_scores_above() -> None:
    random = np.random.default_rng(1)
    differences = np.where(random.random((200, 60)) < 0.9, 1e-3, -5.0)
    assert np.mean([equivalence(row, 0.1)[1] <= LEVEL for row in differences]) > 0.95


def test_equivalence_looks_at_how_often_and_not_at_how_much() -> None:
    """A mean difference in the place of the proportion, as in a released version of this test, does the reverse."""
    half_but_far = np.array([100.0, -0.1] * 30)
    always_but_near = np.full(60, 1e-3)
    assert equivalence(half_but_far, 0.1)[1] > 0.5
    assert equivalence(always_but_near, 0.1)[1] < 1e-6


def test_equivalence_by_hand() -> None:
    # 10 of 10 above, or 0 of 10, were the true share 0.6.
    share, p = equivalence(np.ones(10), 0.1)
    assert share == 1.0
    assert p == pytest.approx(0.6**10 + 0.4**10)
    assert equivalence(np.array([1.0, -1.0] * 5), 0.1)[1] == pytest.approx(1.0)


def test_a_circuit_that_is_the_network_is_equivalent_though_it_is_never_above() -> None:
    rejected = sum(equivalence(np.zeros(40), 0.1, seed)[1] <= LEVEL for seed in range(500))
    assert at_most(rejected, 500, LEVEL)
    assert equivalence(np.full(40, 1e-9), 0.1, tie=1e-6)[1] > LEVEL


def test_independence_is_falsely_rejected_no_more_often_than_the_level_and_finds_dependence() -> None:
    random = np.random.default_rng(2)
    runs = 300
    one, other = random.normal(size=(2, runs, 24))
    rejected = sum(
        independence(a, b, 99, seed)[1] <= LEVEL for seed, (a, b) in enumerate(zip(one, other, strict=True))
    )
    assert at_most(rejected, runs, LEVEL)
    # Dependent without being correlated.
    found = [independence(a, a**2 + 0.1 * b, 99)[1] for a, b in zip(one[:60], other[:60], strict=True)]
    assert np.mean(np.array(found) <= LEVEL) > 0.9


def test_a_constant_score_depends_on_nothing() -> None:
    assert independence(np.zeros(20), np.arange(20.0), 200)[1] == 1.0


def test_minimality_is_falsely_rejected_for_any_edge_no_more_often_than_the_level() -> None:
    """Edges exactly at the quantile: of twelve, any is called needless in at most one of twenty circuits."""
    random = np.random.default_rng(3)
    runs, draws, quantile = 1500, 40, 0.9
    edge = float(stats.norm.ppf(quantile))
    rejected = 0
    for _ in range(runs):
        # Independent references for each edge: no correlation may help the correction.
        p = np.concatenate(
            [
                stats.binom.cdf([int((row < edge).sum())], draws, quantile)
                for row in random.normal(size=(12, draws))
            ]
        )
        rejected += bool((holm(p) <= LEVEL).any())
    assert at_most(rejected, runs, LEVEL)
    shared = random.normal(size=draws)
    assert (needless(np.full(12, shared.max() + 1), shared, quantile) == 1).all()
    assert (needless(np.full(12, shared.min() - 1), shared, quantile) < 1e-6).all()


def test_an_edge_that_does_nothing_is_needless_though_added_ones_do_nothing_either() -> None:
    assert needless(np.array([0.0, 1.0]), np.zeros(40), 0.9)[0] < LEVEL
    assert needless(np.array([0.0, 1.0]), np.zeros(40), 0.9)[1] == 1.0


def test_being_better_than_luck_is_claimed_no_more_often_than_the_level() -> None:
    random = np.random.default_rng(4)
    runs, value = 3000, float(stats.norm.ppf(0.1))
    claimed = sum(better(value, row, 0.9)[1] <= LEVEL for row in random.normal(size=(runs, 40)))
    assert at_most(claimed, runs, LEVEL)
    assert better(-9.0, np.zeros(40), 0.9) == (1.0, pytest.approx(0.9**40))
    assert better(0.0, np.zeros(40), 0.9)[1] == 1.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_correction_never_lowers_p_and_keeps_its_order(values: list[float]) -> None:
    p = np.array(values)
    found = holm(p)
    assert (found >= p).all()
    assert (found <= 1).all()
    assert (np.diff(found[np.argsort(p, kind="stable")]) >= 0).all()
    assert found.min() == pytest.approx(min(1.0, len(p) * p.min()))


def test_bad_input() -> None:
    for bad in (np.array([]), np.array([math.nan])):
        with pytest.raises(InputError, match="finite numbers"):
            equivalence(bad, 0.1)
    with pytest.raises(InputError, match="margin"):
        equivalence(np.ones(3), 0.5)
    with pytest.raises(InputError, match="same inputs"):
        independence(np.ones(3), np.ones(4), 10)
