import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from microtome.view.scale import MODES, Colour, Mode, Scale, ink, luminance

# How a colour looks without one of the three cones, in linear RGB (Machado et al. 2009, severity 1).
BLINDNESS = {
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def linear(colour: Colour) -> np.ndarray:
    part = np.array(colour) / 255
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("mode", MODES)
def test_lightness_changes_steadily_away_from_the_middle(mode: Mode) -> None:
    steps = np.linspace(0, 1, 200)
    for scale, side in ((Scale(-1, 1, True), 1), (Scale(-1, 1, True), -1), (Scale(0, 1, False), 1)):
        light = np.array([luminance(scale.colour(side * step, mode)) for step in steps])
        away = np.diff(light) if mode == "dark" else -np.diff(light)
        assert (away > -0.004).all()
        assert abs(light[-1] - light[0]) > 0.5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("blindness", BLINDNESS)
def test_plus_and_minus_stay_apart_for_colour_blind_eyes(mode: Mode, blindness: str) -> None:
    scale = Scale(-1, 1, True)
    for size in np.linspace(0.3, 1, 8):
        plus, minus = (np.array(BLINDNESS[blindness]) @ linear(scale.colour(v, mode)) for v in (size, -size))
        assert np.abs(np.cbrt(plus.clip(0)) - np.cbrt(minus.clip(0))).max() > 0.1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("diverging", [True, False])
def test_ink_reads_on_every_colour(mode: Mode, diverging: bool) -> None:
    scale = Scale(-1.0 if diverging else 0.0, 1.0, diverging)
    for value in np.linspace(scale.low, 1, 300):
        ground = scale.colour(float(value), mode)
        high, low = sorted((luminance(ground), luminance(ink(ground))), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5


@given(arrays(np.float64, st.integers(0, 8), elements=st.floats(width=64)), st.booleans())
def test_every_finite_value_has_its_place(values: np.ndarray, diverging: bool) -> None:
    scale = Scale.over(values, diverging)
    assert scale.low < scale.high
    assert not diverging or scale.low == -scale.high
    for value in values[np.isfinite(values)]:
        assert scale.low <= value <= scale.high
        assert 0 <= scale.place(float(value)) <= 1
        assert all(0 <= part <= 255 for part in scale.colour(float(value)))


def test_zero_is_in_the_middle_and_the_strongest_at_the_end() -> None:
    scale = Scale.over(np.array([-1.0, 4.0, np.nan]), diverging=True)
    assert [scale.place(v) for v in (-4.0, 0.0, 4.0)] == [0.0, 0.5, 1.0]
    assert math.isnan(scale.place(math.nan))


def test_a_sequential_scale_holds_zero() -> None:
    for values, span in (([2.0, 4.0], (0.0, 4.0)), ([-1.0, 2.0], (-1.0, 2.0)), ([-3.0, -2.0], (-3.0, 0.0))):
        assert Scale.over(np.array(values), diverging=False) == Scale(*span, False)
