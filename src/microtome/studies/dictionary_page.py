"""What does a training of dictionaries tell on one page? Frontier, curves, scores beside nulls, and units at random.

Units are drawn by a seed, never chosen: whoever looks at them sees what a unit of the dictionary is like, not the best
ones. Contexts are those of the held-out text in which a unit is on most strongly, and as many others at random beside
them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from microtome.bases.codes import SparseCodes
from microtome.core.shapes import Cell, Curve, Shape, Strip, Table
from microtome.dictionaries.trainer import Trained
from microtome.evaluation.dictionary_scores import AGAINST, Result
from microtome.evaluation.matching_tree import MatchingTree, matching_tree
from microtome.studies.dictionary_training import Training
from microtome.view.lettering import visible
from microtome.view.page import Section, page

UNITS: Final = 6
CONTEXTS: Final = 3  # strongest ones of a unit, and as many others at random
AROUND: Final = 10  # tokens before, and half as many after
FAMILIES: Final = 6
_ALWAYS: Final = ("l0", "dead", "explained_variance", "bits_a_row")
_PLAIN: Final = ("l0", "dead")  # of which random directions say nothing
_SOMETIMES: Final = ("cross_entropy_recovered", "mcc", "f1", "best_unit_f1")
_SEEDS: Final = "lines: means over seeds; bands: from the least to the greatest"
_FRONTIER: Final = ("explained_variance", "divergence_recovered", *_SOMETIMES)
_SHORT: Final = {
    "explained_variance": "explained",
    "cross_entropy_recovered": "loss recovered",
    "divergence_recovered": "KL recovered",
    "f1": "F1",
    "best_unit_f1": "best unit F1",
}
_MEANS: Final = {
    "l0": "l0: units on in a row",
    "dead": "dead: share of units that are never on, in the rows scored",
    "explained_variance": "explained: share of the variance",
    "bits_a_row": "bits a row: to say a row to within 1 % of its variance",
    "cross_entropy_recovered": "loss recovered: share of what the cross-entropy loses by zero in place of the values",
    "divergence_recovered": "KL recovered: share of the divergence that zero in place of the values makes",
    "mcc": "mcc: mean cosine of units paired with planted features",
    "f1": "F1: of a unit being on where its planted feature is",
    "best_unit_f1": "best unit F1: mean over known latents",
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
        *source.notes,
    )
    return page(f"Dictionaries of {source.name}", sections(training), lead)


def sections(training: Training) -> list[Section]:
    """What stands on the page, in its order."""
    return [
        Section("All of them", (_reading(training),), (_summary(training), *_frontier(training))),
        Section("How they were trained", (), _curves(training)),
        *_stability(training),
        Section("Scores and nulls", (), (), tuple(_scored(one) for one in training.scores)),
        *_units(training),
        Section("Where this comes from", (), (_origin(training),)),
    ]


def summary(training: Training) -> Table:
    """What a terminal shows."""
    return _summary(training, ("l0", "dead", "explained_variance"), ("cross_entropy_recovered", "mcc"))


def _reading(training: Training) -> str:
    numbers = sorted({one.recipe.on for one in training.trained if one.recipe.controlled})
    asked = f" ({', '.join(f'{k:g}' for k in numbers)} asked for)" if numbers else ""
    return f"L0: units on in a row{asked}. A row is one token, or one sample of a testbed."


def _summary(
    training: Training, always: Sequence[str] = _ALWAYS, sometimes: Sequence[str] = _SOMETIMES
) -> Table:
    """Each dictionary, and beside each score the one of random directions."""
    names = [*always, *(name for name in sometimes if _has(training, name))]
    shown = [
        (name, against)
        for name in names
        for against in AGAINST[: 2 if training.plan.nulls and name not in _PLAIN else 1]
    ]
    rows: list[tuple[Cell, ...]] = [
        (one.recipe.name, *(_number(scores, *cell) for cell in shown))
        for one, scores in zip(training.trained, training.scores, strict=True)
    ]
    heads = (_label(name) if against == AGAINST[0] else "random" for name, against in shown)
    caption = "; ".join([*(_MEANS[name] for name in names), "random: the same of random directions"])
    return Table("the dictionaries", ("dictionary", *heads), tuple(rows), caption)


def _frontier(training: Training) -> tuple[Curve, ...]:
    """Each quality over the number of units on, or of units, if that alone varies: a line for each kind, those that
    differ in their seed alone together; and what random directions have."""
    if len(training.trained) < 2:
        return ()
    several = len(training.plan.seeds) > 1
    by_width = len({(one.recipe.l0, one.recipe.coefficient) for one in training.trained}) == 1
    groups: dict[tuple[str, str], list[tuple[float, Result, str]]] = {}
    for one, scores in zip(training.trained, training.scores, strict=True):
        for against in AGAINST[: 2 if training.plan.nulls else 1]:
            own, on = against == AGAINST[0], scores.score("l0", against)
            kind = one.recipe.activation if own else against
            line = kind if by_width else f"{kind}, {one.recipe.width} units"
            alike = (
                one.recipe.model_dump_json(exclude={"name", "seed"}) if own else f"{one.recipe.width} {on}"
            )
            place = one.recipe.width if by_width else on
            groups.setdefault((line, alike), []).append((place, scores, against))
    lines = list(dict.fromkeys(line for line, _ in groups))
    of = [lines.index(line) for line, _ in groups]
    x, at = np.unique(
        [np.mean([place for place, _, _ in some]) for some in groups.values()], return_inverse=True
    )
    across = "units" if by_width else "units on in a row"
    found = []
    for name in (name for name in _FRONTIER if _has(training, name)):
        score = [[scores.score(name, against) for _, scores, against in some] for some in groups.values()]
        y, band = np.full((len(lines), len(x)), np.nan), np.full((len(lines), len(x), 2), np.nan)
        y[of, at] = [np.mean(some) for some in score]
        band[of, at] = [(min(some), max(some)) for some in score]
        if np.isfinite(y).any():
            title, means = f"{_label(name)} over {across}", _MEANS[name].partition(": ")[2]
            found.append(
                Curve(
                    title,
                    x,
                    y,
                    tuple(lines),
                    across,
                    means,
                    band if several else None,
                    _SEEDS if several else "",
                )
            )
    return tuple(found)


def _curves(training: Training) -> tuple[Shape, ...]:
    """How training went, those that differ in their seed alone as one line."""
    groups = list(_alike(training.trained, "seed").values())
    several = len(training.plan.seeds) > 1
    x = np.array(sorted({entry.step for one in training.trained for entry in one.log}), dtype=float)
    names = tuple(some[0].recipe.name.removesuffix(f"-s{some[0].recipe.seed}") for some in groups)

    def curve(title: str, what: str, caption: str) -> Curve:
        y, band = np.full((len(groups), len(x)), np.nan), np.full((len(groups), len(x), 2), np.nan)
        for line, some in enumerate(groups):
            place = np.searchsorted(x, [entry.step for entry in some[0].log])
            values = np.array([[getattr(entry, what) for entry in one.log] for one in some])
            y[line, place] = values.mean(0)
            band[line, place] = np.stack([values.min(0), values.max(0)], -1)
        told = f"{caption}; {_SEEDS}" if several else caption
        return Curve(title, x, y, names, "step", title, band if several else None, told)

    held = f"on {len(training.source.held_out)} rows held out, as the dictionary would be used"
    return (
        curve("share of the variance explained", "explained", held),
        curve("units on in a row", "on", held),
        curve(
            "share of units that are dead",
            "dead",
            "while training: never on for as many rows as make a unit dead (`dead_after`)",
        ),
        curve(
            "loss",
            "loss",
            "of the batch: squared error of a row as prepared (`centring`, `scaling`), and what is added to it",
        ),
    )


def _stability(training: Training) -> list[Section]:
    """Dictionaries of other seeds beside each other, and of the first seed from width to width."""
    first = [one for one in training.trained if one.recipe.seed == training.plan.seeds[0]]
    seeds = [some for some in _alike(training.trained, "seed").values() if len(some) > 1]
    widths = [some for some in _alike(first, "width").values() if len(some) > 1]
    if not seeds and not widths:
        return []
    across, along = (
        [matching_tree([one.dictionary for one in some]) for some in all_] for all_ in (seeds, widths)
    )
    text: list[str] = []
    shapes: list[Shape] = []
    if across:
        text.append(
            "Dictionaries that differ in their seed alone would be the same if the values said which units there are."
        )
        shapes.append(replace(across[0].table(), title="from seed to seed", rows=_rows(across)))
    if along:
        text.append(
            "From width to width, units recur, split into several, merge, or vanish, and others are new."
        )
        shapes.append(replace(along[0].table(), title="from width to width", rows=_rows(along)))
        draw = torch.Generator().manual_seed(training.plan.seed)
        some = torch.randperm(along[0].widths[0], generator=draw)[:FAMILIES].tolist()
        shapes.append(along[0].graph(some))
    return [Section("Do units recur?", tuple(text), tuple(shapes))]


def _rows(trees: Sequence[MatchingTree]) -> tuple[tuple[Cell, ...], ...]:
    return tuple(row for tree in trees for row in tree.table().rows)


def _alike(trained: Sequence[Trained], field: str) -> dict[str, list[Trained]]:
    """Dictionaries whose recipes differ in this field alone."""
    found: dict[str, list[Trained]] = {}
    for one in trained:
        found.setdefault(one.recipe.model_dump_json(exclude={"name", field}), []).append(one)
    return found


def _scored(scores: Result) -> Section:
    return Section(scores.data.attrs["name"], (), scores.shapes())


def _units(training: Training) -> list[Section]:
    """Units drawn at random of the dictionary in the middle of the list, with what they are on for."""
    if not training.source.tokens:
        return []
    one = training.trained[len(training.trained) // 2]
    width = sum(one.dictionary.read_widths)
    dictionary = one.dictionary.mapped(lambda tensor: tensor.cpu())
    codes = dictionary.encode_sparsely(training.source.held_out[:, :width])
    draw = torch.Generator().manual_seed(training.plan.seed)
    units = torch.randperm(one.recipe.width, generator=draw)[:UNITS].tolist()
    silent = [unit for unit in units if not (codes.unit == unit).any()]
    text = (
        f"{len(units)} units of {one.recipe.name}, drawn at random; for each the {CONTEXTS} places of the held-out "
        f"text where it is on most strongly, and {CONTEXTS} at random of the others where it is on. The colour is its "
        "code.",
        *([f"Never on in the held-out text: {', '.join(f'u{unit}' for unit in silent)}."] if silent else []),
    )
    shapes = tuple(_contexts(training, codes, unit, draw) for unit in units if unit not in silent)
    return [Section("Units at random", text, shapes)]


def _contexts(training: Training, codes: SparseCodes, unit: int, draw: torch.Generator) -> Strip:
    """A line of text for each place."""
    mine = codes.unit == unit
    strength = torch.zeros(codes.rows)
    strength[codes.row[mine]] = codes.value[mine].float()
    order = codes.row[mine][codes.value[mine].argsort(descending=True)]
    strongest, others = order[:CONTEXTS], order[CONTEXTS:]
    some = others[torch.randperm(len(others), generator=draw)[:CONTEXTS]]
    ends = np.cumsum([len(row) for row in training.source.tokens])
    tokens: list[str] = []
    shown: list[float] = []
    for kind, places in (("strongest  ", strongest), ("random     ", some)):
        for place in places.tolist():
            text, values = _around(training, place, strength, ends)
            tokens += [kind, *text, "\n"]
            shown += [np.nan, *values.tolist(), np.nan]
    return Strip(
        f"unit {unit}",
        tuple(tokens[:-1]),
        np.array([shown[:-1]]),
        ("code",),
        "code",
        f"on at {len(order)} of {len(strength)} tokens; largest code {float(strength.max()):.3g}",
    )


def _around(training: Training, place: int, strength: Tensor, ends: np.ndarray) -> tuple[list[str], Tensor]:
    """The tokens about a place, those of its own row, and a unit's codes there."""
    row = int(np.searchsorted(ends, place, "right"))
    start = int(ends[row]) - len(training.source.tokens[row])
    first, last = max(start, place - AROUND), min(int(ends[row]), place + AROUND // 2 + 1)
    text = [
        token.replace("\n", visible("\n"))
        for token in training.source.tokens[row][first - start : last - start]
    ]
    return text, strength[first:last]


def _origin(training: Training) -> Table:
    plan, told = training.plan.model_dump(mode="json"), training.source.provenance
    rows: list[tuple[Cell, ...]] = [
        (name.replace("_", " "), _plain(value))
        for name, value in plan.items()
        if value not in ("", [], {}, None)
    ]
    rows += [("model hash", told.model_hash), ("data hash", told.data_hash)]
    rows += [(f"file of {path.stem}", str(path)) for path in training.paths]
    return Table("the plan", ("what", "value"), tuple(row for row in rows if row[1]))


def _plain(value: object) -> str:
    """A setting in words."""
    match value:
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(map(_plain, value))
        case dict():
            return ", ".join(f"{name} {_plain(one)}" for name, one in value.items())
        case _:
            return f"{value:g}" if isinstance(value, float) else str(value)


def _has(training: Training, name: str) -> bool:
    return all(name in scores.data["score"].values for scores in training.scores)


def _label(name: str) -> str:
    return _SHORT.get(name, name.replace("_", " "))


def _number(scores: Result, name: str, against: str) -> float | None:
    found = scores.score(name, against)
    return None if np.isnan(found) else found
