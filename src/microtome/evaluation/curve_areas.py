"""How good is a whole family of circuits, from the smallest to the full network, in one number?

Faithfulness f over circuit size k, by the trapezoid rule over k:

    CPR = ∫ f dk          how much of the behaviour circuits keep: more is better; of signed rankings
    CMD = ∫ |1 - f| dk    how far they are from the whole network: less is better; of absolute rankings

Two x-axes are in use, and they give different numbers for the same circuits:

* `asked`: the fractions of edges that were asked for. They begin at the smallest, so a perfect CPR is 1 - that.
* `realised`: the edges really in each circuit, once those on no path are gone, over those of the largest.

Reference: Mueller et al. (2025), MIB.
"""

from typing import Final, Literal, get_args

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from microtome.core.errors import InputError

Axis = Literal["asked", "realised"]
AXES: Final[tuple[Axis, ...]] = get_args(Axis)
FRACTIONS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

Sizes = Float[NDArray[np.floating], " size"]


def places(axis: Axis, asked: Sizes, realised: Sizes) -> Sizes:
    """Where the circuits stand on an axis. asked: fractions; realised: counts of edges."""
    if axis == "asked":
        return asked
    if not realised[-1] > 0:
        raise InputError("the largest circuit has no edge, so there is no axis of realised sizes")
    return realised / realised[-1]


def cpr(k: Sizes, faithfulness: Sizes) -> float:
    """Circuit performance ratio: the area under faithfulness."""
    return _area(k, faithfulness)


def cmd(k: Sizes, faithfulness: Sizes) -> float:
    """Circuit–model distance: the area between faithfulness and one."""
    return _area(k, np.abs(1 - faithfulness))


def _area(k: Sizes, height: Sizes) -> float:
    if len(k) < 2 or (np.diff(k) < 0).any():
        raise InputError(f"an area needs at least two sizes in rising order, got {k.tolist()}")
    return float(np.trapezoid(height, k))
