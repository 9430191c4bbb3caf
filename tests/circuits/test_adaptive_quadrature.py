"""Means of gradients along a path: exact on cubics, found where the metric jumps, at no more points than allowed."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microtome.circuits.adaptive_quadrature import FIRST, Point, mean_gradient

cubics = st.lists(st.floats(-3, 3), min_size=4, max_size=4)


@given(cubics)
def test_a_cubic_slope_is_integrated_exactly_at_the_first_points(terms: list[float]) -> None:
    """Simpson's rule has no error up to the third power."""

    def point(at: float) -> Point:
        slope = sum(term * at**power for power, term in enumerate(terms))
        metric = sum(term * at ** (power + 1) / (power + 1) for power, term in enumerate(terms))
        return Point(at, metric, slope, torch.tensor([slope], dtype=torch.float64))

    mean = mean_gradient(point, FIRST)
    whole = sum(term / (power + 1) for power, term in enumerate(terms))
    assert mean.points == FIRST
    assert float(mean.gradient) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("jump", [0.003, 0.37, 0.9])
def test_a_narrow_jump_is_found_and_shared_out_between_those_that_make_it(jump: float) -> None:
    """A step of width 1/500 is made by two gates, three parts of it by one; 41 equal steps see next to nothing."""
    seen: list[float] = []

    def point(at: float) -> Point:
        seen.append(at)
        level = 1 / (1 + math.exp(-(at - jump) * 4000)) if abs(at - jump) < 0.1 else float(at > jump)
        slope = 4000 * level * (1 - level)
        return Point(at, level, slope, torch.tensor([0.75 * slope, 0.25 * slope, 0.0]))

    start, end = point(0.0).metric, point(1.0).metric
    seen.clear()
    mean = mean_gradient(point, 61)
    assert len(seen) == mean.points <= 61
    # It stops where errors are a hundredth of what the metric moves.
    torch.testing.assert_close(
        mean.gradient / (end - start), torch.tensor([0.75, 0.25, 0.0]), atol=0.01, rtol=0.0
    )
    assert mean.moved == pytest.approx(end - start)
    equal = sum(point((step + 0.5) / 41).slope for step in range(41)) / 41
    assert abs(equal - (end - start)) > 0.3


def test_a_path_on_which_nothing_happens_costs_the_first_points() -> None:
    mean = mean_gradient(lambda at: Point(at, 2.0, 0.0, torch.zeros(3)), 99)
    assert (mean.points, mean.moved) == (FIRST, 0.0)
    assert not mean.gradient.any()
