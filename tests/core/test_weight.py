"""A weight's address is its string, and refuses what no model has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microtome.core.errors import SiteError
from microtome.core.weight import WEIGHTS, Weight

UNLAYERED = {"W_E", "W_pos", "W_U", "b_U"}


@given(
    st.sampled_from(sorted(WEIGHTS)), st.integers(0, 99), st.lists(st.integers(0, 40), min_size=1, max_size=3)
)
def test_every_address_is_read_back_from_its_string(name: str, layer: int, heads: list[int]) -> None:
    weight = Weight(
        name, None if name in UNLAYERED else layer, tuple(heads) if "head" in WEIGHTS[name][0] else None
    )
    assert Weight.parse(str(weight)) == weight


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("W_Q", "belongs to a layer: write W_Q.0"),
        ("W_U.0", "belongs to no layer: write W_U"),
        ("W_X.0", "not a weight"),
        ("W_in.0.h1", "has no heads"),
        ("W_Q.0.h", "is not a weight"),
        ("W_Q.-1", "is not a weight"),
        ("", "is not a weight"),
    ],
)
def test_what_is_no_weight_says_what_to_write(text: str, says: str) -> None:
    with pytest.raises(SiteError, match=says):
        Weight.parse(text)


def test_no_heads_at_all_are_refused() -> None:
    with pytest.raises(SiteError, match="select nothing"):
        Weight("W_Q", 0, ())
