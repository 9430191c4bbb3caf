"""Which colour does a value get?

1. The span is taken from the finite values and always holds zero: symmetric about it when diverging, else from
   the least to the greatest.
2. The value's place in the span, between 0 and 1, is looked up in a list of anchor colours, linearly between
   them.

The anchors stand in `static/palette.js`, one file for Python and the browser. Positive is blue and negative
orange, which stay apart for colour-blind eyes; lightness changes monotonically from the middle outwards.
"""

import json
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]
Mode = Literal["light", "dark"]
MODES: tuple[Mode, ...] = ("light", "dark")


@dataclass(frozen=True)
class Scale:
    """Colours for the values between `low` and `high`."""

    low: float
    high: float
    diverging: bool

    @staticmethod
    def over(values: NDArray[np.floating], diverging: bool) -> "Scale":
        """The scale that the finite part of `values` spans; 0 to 1 where nothing is finite."""
        finite = values[np.isfinite(values)].astype(float)
        if not finite.size:
            return Scale(-1.0 if diverging else 0.0, 1.0, diverging)
        low, high = float(finite.min()), float(finite.max())
        if diverging:
            bound = max(-low, high) or 1.0
            return Scale(-bound, bound, True)
        low, high = min(low, 0.0), max(high, 0.0)
        return Scale(low, high if high > low else 1.0, False)

    def place(self, value: float) -> float:
        """Where `value` lies between `low` (0) and `high` (1), clipped; NaN stays NaN."""
        if math.isnan(value):
            return value
        return min(1.0, max(0.0, (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)))

    def colour(self, value: float, mode: Mode = "light") -> Colour:
        """Red, green and blue, 0 to 255, of a value that is not NaN."""
        anchors = palette()[mode]["diverging" if self.diverging else "sequential"]
        at = self.place(value) * (len(anchors) - 1)
        left = min(int(at), len(anchors) - 2)
        red, green, blue = (
            round(a + (b - a) * (at - left)) for a, b in zip(anchors[left], anchors[left + 1], strict=True)
        )
        return red, green, blue


@cache
def palette() -> dict[Mode, dict[str, list[Colour]]]:
    """The anchor colours of `static/palette.js`, by mode and kind of scale."""
    text = (files("microtome.view") / "static" / "palette.js").read_text("utf-8")
    raw = json.loads(text.removeprefix("export const palette = ").rstrip().removesuffix(";"))
    return {
        mode: {kind: [_parse(anchor) for anchor in anchors] for kind, anchors in kinds.items()}
        for mode, kinds in raw.items()
    }


def _parse(colour: str) -> Colour:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def luminance(colour: Colour) -> float:
    """Relative luminance, 0 to 1, as WCAG defines it."""
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def ink(ground: Colour) -> Colour:
    """Black or white, whichever reads better on `ground`; the contrast is at least 4.5."""
    return (0, 0, 0) if luminance(ground) > 0.179 else (255, 255, 255)
