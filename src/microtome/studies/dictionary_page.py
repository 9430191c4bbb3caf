"""What does a training of dictionaries tell on one page? Frontier, curves, scores beside nulls, and units at random.

Units are drawn by a seed, never chosen: whoever looks at them sees what a unit of the dictionary is like, not the best
ones. Contexts are those of the held-out text in which a unit is on most strongly, as many as there are of other
strengths beside them.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from microtome.core.shapes import Cell, Curve, Shape, Strip, Table
from microtome.dictionaries.trainer import Trained
from microtome.evaluation.dictionary_scores import AGAINST, Result
from microtome.studies.dictionary_training import Training
from microtome.view.page import Section, page

UNITS: Final = 6
CONTEXTS: Final = 3  # strongest ones of a unit, and as many at random
AROUND: Final = 10  # tokens before, and half as many after
_ALWAYS: Final = ("l0", "dead", "explained_variance", "relative_bias", "bits_a_row")
_SOMETIMES: Final = ("cross_entropy_recovered", "mcc", "f1", "best_unit_f1")
_FRONTIER: Final = ("explained_variance", *_SOMETIMES)
_SHORT: Final = {
    "explained_variance": "explained",
    "cross_entropy_recovered": "recovered",
    "best_unit_f1": "best unit",
}


def report(training: Training) -> str:
    """A self-contained HTML page."""
    source = training.source
    rows = training.scores[0].data.attrs["rows"]
    lead = (
        f"{len(training.trained)} dictionaries at {' '.join(map(str, source.stream.sites))} of {source.name}: "
        f"{training.plan.steps} batches of {source.stream.batch_rows} rows; scored on {rows} rows that none was "
        "trained on.",
        "Beside each score stands what a dictionary scores that has learned nothing. No score says that units mean "
        "anything to the network.",
    )
    sections = [
        Section("All of them", (_reading(training),), (_summary(training), *_frontier(training))),
        Section("How they were trained", (), _curves(training.trained)),
        *([_stability(training)] if training.tree else []),
        Section("Scores and nulls", (), (), tuple(_scored(one) for one in training.scores)),
        *_units(training),
        Section("Where this comes from", (), (_origin(training),)),
    ]
    return page(f"Dictionaries of {source.name}", sections, lead)


def summary(training: Training) -> Table:
    """What a terminal shows."""
    return _summary(training, ("l0", "dead", "explained_variance"))


def _reading(training: Training) -> str:
    numbers = sorted({one.recipe.on for one in training.trained if one.recipe.controlled})
    asked = f" ({', '.join(f'{k:g}' for k in numbers)} asked for)" if numbers else ""
    return f"L0: units on in a row{asked}. A row is one token, or one sample of a testbed."


def _summary(training: Training, always: Sequence[str] = _ALWAYS) -> Table:
    names = [*always, *(name for name in _SOMETIMES if _has(training, name))]
    rows: list[tuple[Cell, ...]] = [
        (one.recipe.name, one.recipe.width, *(_number(scores, name) for name in names))
        for one, scores in zip(training.trained, training.scores, strict=True)
    ]
    columns = ("dictionary", "width", *(_SHORT.get(name, name.replace("_", " ")) for name in names))
    caption = (
        "l0: units on in a row; dead: share of units that are never on; explained: share of the variance; recovered: "
        "share of the cross-entropy; a relative bias below 1: what is rebuilt is too small"
    )
    return Table("the dictionaries", columns, tuple(rows), caption)


def _frontier(training: Training) -> tuple[Curve, ...]:
    """Each quality over the number of units on, a line for each kind and width."""
    if len(training.trained) < 2:
        return ()
    lines: dict[str, list[int]] = {}
    for number, one in enumerate(training.trained):
        lines.setdefault(f"{one.recipe.activation}, {one.recipe.width} units", []).append(number)
    l0 = [scores.score("l0") for scores in training.scores]
    x = np.array(sorted(set(l0)))
    found = []
    for name in (name for name in _FRONTIER if _has(training, name)):
        y = np.full((len(lines), len(x)), np.nan)
        for line, numbers in enumerate(lines.values()):
            for number in numbers:
                y[line, int(np.searchsorted(x, l0[number]))] = training.scores[number].score(name)
        label = name.replace("_", " ")
        found.append(Curve(f"{label} over units on", x, y, tuple(lines), "units on in a row", label))
    return tuple(found)


def _curves(trained: Sequence[Trained]) -> tuple[Shape, ...]:
    x = np.array(sorted({entry.step for one in trained for entry in one.log}), dtype=float)
    names = tuple(one.recipe.name for one in trained)

    def curve(title: str, what: str) -> Curve:
        y = np.full((len(trained), len(x)), np.nan)
        for line, one in enumerate(trained):
            for entry in one.log:
                y[line, int(np.searchsorted(x, entry.step))] = getattr(entry, what)
        return Curve(title, x, y, names, "step", title)

    return (
        curve("variance explained", "explained"),
        curve("units on in a row", "on"),
        curve("share of units that are dead", "dead"),
        curve("loss", "loss"),
    )


def _stability(training: Training) -> Section:
    assert training.tree is not None
    text = (
        "Each dictionary is matched with the next in the list, by what their units write. Two that differ in their "
        "seed alone would be the same if the values said which units there are.",
    )
    return Section("Do units recur?", text, (training.tree.table(),))


def _scored(scores: Result) -> Section:
    return Section(scores.data.attrs["name"], (), scores.shapes())


def _units(training: Training) -> list[Section]:
    """Units drawn at random of the dictionary in the middle of the list, with what they are on for."""
    if not training.source.tokens:
        return []
    one = training.trained[len(training.trained) // 2]
    values = training.source.held_out
    width = sum(one.dictionary.read_widths)
    codes = one.dictionary.mapped(lambda tensor: tensor.cpu()).encode_sparsely(values[:, :width])
    draw = torch.Generator().manual_seed(training.plan.seed)
    units = torch.randperm(one.recipe.width, generator=draw)[:UNITS].tolist()
    lengths = [len(row) for row in training.source.tokens]
    ends = np.cumsum(lengths)
    shapes: list[Shape] = []
    for unit in units:
        mine = codes.unit == unit
        strength = torch.zeros(codes.rows)
        strength[codes.row[mine]] = codes.value[mine]
        count = int(mine.sum())
        if not count:
            shapes.append(Table(f"unit {unit}", ("",), (("never on in the held-out text",),)))
            continue
        strongest = strength.topk(min(CONTEXTS, count)).indices.tolist()
        on = codes.row[mine]
        others = on[torch.randperm(count, generator=draw)[:CONTEXTS]].tolist()
        for kind, places in (("strongest", strongest), ("random", others)):
            shapes.append(_context(training, unit, kind, places, strength, ends, count))
    text = (
        f"{UNITS} units of {one.recipe.name}, drawn at random; for each the {CONTEXTS} places of the held-out text "
        f"where it is on most strongly, and {CONTEXTS} at random of those where it is on. The colour is its code.",
    )
    return [Section("Units at random", text, tuple(shapes))]


def _context(
    training: Training,
    unit: int,
    kind: str,
    places: Sequence[int],
    strength: Tensor,
    ends: np.ndarray,
    count: int,
) -> Strip:
    tokens: list[str] = []
    shown: list[float] = []
    for place in places:
        row = int(np.searchsorted(ends, place, "right"))
        start = int(ends[row]) - len(training.source.tokens[row])
        first, last = max(start, place - AROUND), min(int(ends[row]), place + AROUND // 2 + 1)
        tokens += [*training.source.tokens[row][first - start : last - start], " ‖ "]
        shown += [*strength[first:last].tolist(), 0.0]
    return Strip(
        f"unit {unit}: {kind} places",
        tuple(tokens[:-1]),
        np.array([shown[:-1]]),
        ("code",),
        "code",
        f"on at {count} of {len(strength)} tokens; largest code {float(strength.max()):.3g}",
    )


def _origin(training: Training) -> Table:
    plan, told = training.plan.model_dump(mode="json"), training.source.provenance
    rows: list[tuple[Cell, ...]] = [
        (name, str(value)) for name, value in plan.items() if value not in ("", [], {}, None)
    ]
    rows += [("model hash", told.model_hash), ("data hash", told.data_hash)]
    rows += [(f"file of {path.stem}", str(path)) for path in training.paths]
    return Table("the plan", ("what", "value"), tuple(rows))


def _has(training: Training, name: str) -> bool:
    return all(name in scores.data["score"].values for scores in training.scores)


def _number(scores: Result, name: str) -> float | None:
    found = scores.score(name, AGAINST[0])
    return None if np.isnan(found) else round(found, 4)
