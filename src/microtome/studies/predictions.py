"""What do descriptions foretell, and does it come true? Predictions for held-out prompts, and their test.

From the measurements that a component's sentence states, on the prompts it was described on, follow predictions for
prompts never seen: the sign and size of its effects, where it matters, where it attends. They are registered before
the held-out prompts are measured. The control is the same set of predictions dealt out to the wrong components.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from microtome.core.claim import Prediction
from microtome.core.site import Site
from microtome.models.components import spoken
from microtome.studies.measurements import Measured

SMALL = 0.02
"""Effects below this share of the behaviour are too small to foretell a sign."""


@dataclass(frozen=True)
class Foretold:
    """A prediction about a component: which number of its measurements, and the bounds it must lie within."""

    component: str
    kind: str
    label: str
    low: float | None
    high: float | None

    @property
    def quantity(self) -> str:
        """In words, with the unit."""
        name = spoken(Site.parse(self.component))
        match self.kind:
            case "total":
                return f"share of the behaviour lost by replacing {name}"
            case "direct":
                return f"share of the behaviour that {name} writes to the logits directly"
            case "place":
                return f"share of the behaviour lost by replacing {name} at {self.label} alone"
            case _:
                return f"attention of {name} to {self.label}"

    def value(self, measured: Measured) -> float | None:
        """The number in other measurements, `None` where there is no such number."""
        match self.kind:
            case "total":
                return measured.total
            case "direct":
                return measured.direct
            case "place":
                return measured.places.get(self.label)
            case _:
                return measured.attends.get(self.label)

    def holds(self, measured: Measured) -> bool:
        """Whether other measurements are as foretold."""
        value = self.value(measured)
        if value is None:
            return False
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def prediction(self, claim: str, data_hash: str) -> Prediction:
        """As an entry of the ledger."""
        return Prediction(claim, self.quantity, data_hash, self.low, self.high)


def foretell(measured: Measured) -> list[Foretold]:
    """What the measurements of one component foretell for other prompts of the task."""
    found = []
    if abs(measured.total) >= SMALL:
        found.append(Foretold(measured.component, "total", "", *_within(measured.total, 0.5)))
    if abs(measured.direct) >= SMALL:
        found.append(Foretold(measured.component, "direct", "", *_within(measured.direct, 0.5)))
    else:
        found.append(Foretold(measured.component, "direct", "", -2 * SMALL, 2 * SMALL))
    there = measured.places.get(measured.place, 0.0)
    if abs(there) >= SMALL and len(measured.places) > 1:
        found.append(Foretold(measured.component, "place", measured.place, *_within(there, 0.6)))
    if target := attended(measured):
        found.append(
            Foretold(
                measured.component,
                "attends",
                target,
                max(0.6 * measured.attends[target], measured.even[target]),
                None,
            )
        )
    return found


def attended(measured: Measured) -> str:
    """The stretch that a head attends to most, beyond an even spread; empty where none stands out."""
    if not measured.attends:
        return ""
    label = max(measured.attends, key=lambda name: measured.attends[name])
    return label if measured.attends[label] >= 1.5 * measured.even[label] else ""


def _within(value: float, slack: float) -> tuple[float, float]:
    """Bounds around a value, as a share of it to each side."""
    ends = sorted((value * (1 - slack), value * (1 + slack)))
    return ends[0], ends[1]


def hits(foretold: Sequence[Foretold], measured: Sequence[Measured]) -> tuple[int, int]:
    """How many predictions came true, of how many."""
    by_name = {m.component: m for m in measured}
    return sum(f.holds(by_name[f.component]) for f in foretold), len(foretold)


def shuffled_hits(foretold: Sequence[Foretold], measured: Sequence[Measured]) -> tuple[int, int]:
    """The control: each prediction tested on every other component of the same kind. A prediction about a component
    that is alone of its kind has no control and is left out."""
    right = total = 0
    for one in foretold:
        is_head = bool(Site.parse(one.component).heads)
        others = [
            m
            for m in measured
            if m.component != one.component and bool(Site.parse(m.component).heads) == is_head
        ]
        right += sum(one.holds(other) for other in others)
        total += len(others)
    return right, total
