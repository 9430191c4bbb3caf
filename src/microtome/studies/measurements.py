"""What does each component of a circuit do, in numbers? The measurements from which it is described, and tested again.

On one set of prompts, for each head and MLP:

1. *Total effect*: what replacing it by its value on the corrupt twin does; *direct effect*: the part that reaches the
   logits by no other component (mediation). Both as shares of the behaviour that are lost: positive where it helps.
2. *Place*: the stretch of the prompt (a slot, the last token, …) at which replacing it alone does most.
3. *Attention* (heads): from the last token of that stretch, how much goes to each stretch, beside an even spread.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.patching import activation_patching, mediation
from microtome.patching.stretches import By, Stretch, stretches


@dataclass(frozen=True)
class Measured:
    """One component on one set of prompts. Effects are shares of the behaviour; attention is between 0 and 1.

    places: the effect at each stretch of the prompt alone. attends, even: by stretch, from the last token of `place`.
    """

    component: str
    total: float
    direct: float
    place: str
    places: dict[str, float]
    attends: dict[str, float]
    even: dict[str, float]

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def columns(pairs: Pairs) -> By:
    """Slots where the prompts share some, else whatever they allow."""
    try:
        stretches(pairs, "slots")
    except InputError:
        return "auto" if len(set(pairs.lengths)) == 1 else "all"
    return "slots"


def measure(
    model: Model, pairs: Pairs, sites: Sequence[Site], metric: str, places: dict[str, str] | None = None
) -> list[Measured]:
    """Measure these components.

    places: where to look from, by component; by default where each matters most. Given, measurements on other prompts
    can be compared.
    """
    by = columns(pairs)
    both = mediation.Config(components=tuple(map(str, sites)), metric=metric, guard=False)
    effects = mediation.run(model, pairs, both).data["normalised"]
    parts = tuple(dict.fromkeys(site.part for site in sites))
    settings = activation_patching.Config(
        parts=parts, direction="noise", metric=metric, positions=by, by_position=True, guard=False
    )
    placed = activation_patching.run(model, pairs, settings).data
    labels = placed["token"].values.tolist()
    columns_of = stretches(pairs, by)
    found = []
    for site in sites:
        name = str(site)
        at = placed[f"{site.part}_normalised"].sel(direction="noise", layer=site.layer)
        at = at.sel(head=site.heads[0]) if site.heads else at
        by_place = _summed(labels, at.values)
        place = (places or {}).get(name) or max(by_place, key=lambda label: abs(by_place[label]))
        attends: dict[str, float] = {}
        even: dict[str, float] = {}
        if site.heads:
            attends, even = _attention(model, pairs, site, columns_of, place)
        found.append(
            Measured(
                name,
                float(effects.sel(effect="total", component=name)),
                float(effects.sel(effect="direct", component=name)),
                place,
                by_place,
                attends,
                even,
            )
        )
    return found


def _summed(labels: Sequence[str], values: np.ndarray) -> dict[str, float]:
    """Values by label; several columns may share one."""
    found: dict[str, float] = {}
    for label, value in zip(labels, values.tolist(), strict=True):
        found[label] = found.get(label, 0.0) + float(value)
    return found


def _attention(
    model: Model, pairs: Pairs, site: Site, held: Sequence[Stretch], place: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Mean attention of a head from the last token of a stretch to each stretch, and what an even spread would give."""
    assert site.layer is not None
    pattern = model.run(pairs.clean, read=[Site("pattern", site.layer, heads=site.heads)], mask=pairs.mask)[
        Site("pattern", site.layer, heads=site.heads)
    ][:, 0]
    batch = model.inputs(pairs.clean, pairs.mask).batch
    attends: dict[str, list[float]] = {}
    even: dict[str, list[float]] = {}
    for row, length in enumerate(pairs.lengths):
        spans = [(s.label, tuple(range(length)) if s.positions is None else s.positions[row]) for s in held]
        here = [p for label, span in spans if label == place for p in span]
        if not here:
            continue
        query = max(here)
        weights = pattern[row, batch.column(row, query)]
        for label, span in _with_first_apart(spans):
            seen = [p for p in span if p <= query]
            mass = float(sum(weights[batch.column(row, p)] for p in seen))
            attends.setdefault(label, []).append(mass)
            even.setdefault(label, []).append(len(seen) / (query + 1))
    return _merged(attends), _merged(even)


def _with_first_apart(spans: Sequence[tuple[str, tuple[int, ...]]]) -> list[tuple[str, tuple[int, ...]]]:
    """The same spans with the first token apart: heads often rest there."""
    rest = [(label, tuple(p for p in span if p != 0)) for label, span in spans]
    return [("first token", (0,)), *((label, span) for label, span in rest if span)]


def _merged(found: dict[str, list[float]]) -> dict[str, float]:
    """Means over rows; where several columns share a label, their sum."""
    rows = max(map(len, found.values()), default=0)
    least = min(map(len, found.values()), default=0)
    return {label: sum(values) / (least if len(values) > least else rows) for label, values in found.items()}
