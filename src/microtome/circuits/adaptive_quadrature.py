"""What is the mean of a gradient along a path on which the metric may jump? Simpson's rule, refined where it jumps.

A compiled step or a hard attention pattern gives way within a hundredth of the path; on the rest of it all gradients
are zero, and equal steps fall beside the jump. But each point tells the metric too, so the error of a panel can be
seen without knowing the truth: what the metric really changes from one end to the other, less what the slopes along
the path add up to.

1. Two panels of equal width, each with its ends and its middle.
2. The panel with the largest such error is split into two, at two more points, until there are as many points as may
   be, or the errors together are below a hundredth of what the metric moves.

Misleads where the metric goes and comes back between two of the first five points: nothing shows that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from torch import Tensor

FIRST: Final = 5
SETTLED: Final = 0.01
_NARROWEST: Final = 2.0**-20


@dataclass(frozen=True, eq=False)
class Point:
    """On a path from 0 to 1: the metric there, its slope along the path, and the gradient that is to be averaged."""

    at: float
    metric: float
    slope: float
    gradient: Tensor


@dataclass(frozen=True, eq=False)
class _Panel:
    start: Point
    middle: Point
    end: Point

    @property
    def width(self) -> float:
        return self.end.at - self.start.at

    @property
    def moved(self) -> float:
        return self.end.metric - self.start.metric

    @property
    def error(self) -> float:
        slope = (self.start.slope + 4 * self.middle.slope + self.end.slope) / 6
        return abs(self.moved - self.width * slope)

    def sum(self) -> Tensor:
        gradients = self.start.gradient + 4 * self.middle.gradient + self.end.gradient
        return gradients * (self.width / 6)

    def split(self, point: Callable[[float], Point]) -> "tuple[_Panel, _Panel]":
        quarter = self.width / 4
        left, right = point(self.start.at + quarter), point(self.end.at - quarter)
        return _Panel(self.start, left, self.middle), _Panel(self.middle, right, self.end)


@dataclass(frozen=True, eq=False)
class Mean:
    """The mean gradient over a path, at how many points it was taken, and how far the metric went, up and down."""

    gradient: Tensor
    points: int
    moved: float


def mean_gradient(point: Callable[[float], Point], points: int) -> Mean:
    """The mean gradient over the path from 0 to 1, at `points` points at most and five at least.

    point: the path at a place between 0 and 1.
    """
    taken = FIRST
    panels = list(_Panel(point(0.0), point(0.5), point(1.0)).split(point))
    while taken + 2 <= points:
        errors = [panel.error if panel.width > _NARROWEST else 0.0 for panel in panels]
        if sum(errors) <= SETTLED * sum(abs(panel.moved) for panel in panels):
            break
        worst = errors.index(max(errors))
        panels[worst : worst + 1] = panels[worst].split(point)
        taken += 2
    total = panels[0].sum()
    for panel in panels[1:]:
        total = total + panel.sum()
    return Mean(total, taken, sum(abs(panel.moved) for panel in panels))
