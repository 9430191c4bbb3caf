import numpy as np
import pytest

from microtome.core.answers import Directions, EdgeScores, NodeScores, Quantities, UnitValues
from microtome.core.errors import InputError, NotFiniteError
from microtome.core.site import Site


def test_what_was_not_measured_is_left_out() -> None:
    assert NodeScores({"z.0.h1": -0.5}, role="induction").scores["z.0.h1"] == -0.5
    with pytest.raises(NotFiniteError, match=r"z\.0\.h1 scores nan"):
        NodeScores({"z.0.h0": 1.0, "z.0.h1": float("nan")})
    with pytest.raises(NotFiniteError, match="inf"):
        EdgeScores({("embed", "z.0.h0", "q"): float("inf")})
    with pytest.raises(NotFiniteError, match="quantity"):
        Quantities({"loss": float("nan")})


def test_directions_stand_at_a_site() -> None:
    stream = Site.parse("resid_post.1")
    assert Directions(stream, np.eye(3)).variable == ""
    with pytest.raises(InputError, match=r"expected \[direction, d\]"):
        Directions(stream, np.zeros((2, 2, 2)))
    with pytest.raises(NotFiniteError):
        Directions(stream, np.full((1, 2), np.nan))


def test_units_have_values_by_row_and_position() -> None:
    stream = Site("resid_post", 0)
    values = np.ones((2, 3, 4))
    values[1, 2] = np.nan  # the second row has ended
    assert UnitValues(stream, values).site == stream
    with pytest.raises(InputError, match=r"expected \[row, position, unit\]"):
        UnitValues(stream, values[0])
    for wrong in (np.nan, np.inf):
        values[0, 0, 1] = wrong
        with pytest.raises(NotFiniteError, match="NaN where others have values"):
            UnitValues(stream, values)
