"""How right is an answer? Each of a method's claims is compared with what an answer key knows of the same thing.

    claim             key                      score                                        held out
    nodes, edges      circuit, roles           AUROC: does what is true rank higher?        average precision
    rules             rules                    share of the strongest that are true ones    average precision
    found circuit     circuit                  F1 of its nodes; of its edges                share of the true ones found
    directions        variables, features      mean cosine of each true one with its best; of a variable's
                                               subspace, how much of each lies inside      share with a cosine of 0.9
    unit values       labels alone             mean F1 of the best unit of each latent, chosen on
                                               one half of the rows, scored on the other   F1 of the best eight
    quantities        quantities               1 − size of the error / size of the truth    share within 1 %
    exact quantities  quantities               share equal up to rounding

Every score lies between 0 and 1, more is better, and comes with what luck gives: the same claims against a key whose
entries are dealt out anew, many times; of latents, what says always yes, or yes to as many rows as are true, whichever
scores more. Its mean is chance, its 99th percentile what a guess rarely reaches. Held-out
scores are not in the table that a method's author looks at (Goodhart).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from microtome.circuits.edge_graph import EdgeGraph
from microtome.core.answers import (
    Answer,
    Directions,
    EdgeScores,
    FoundCircuit,
    NodeScores,
    Quantities,
    RuleScores,
    UnitValues,
)
from microtome.core.errors import InputError
from microtome.evaluation.known_latents import binary, known_latents
from microtome.models.components import components
from microtome.models.model import Model
from microtome.testbeds.case import Truth

DRAWS: Final = 400
QUANTILE: Final = 0.99
ROUNDING: Final = 1e-4  # relative to the largest true quantity: sums over a network in float32
CLOSE: Final = 0.01
RECOVERED: Final = 0.9
FEW_UNITS: Final = (1, 8)

Name = TypeVar("Name")
Draws = Float[NDArray[np.float64], " draw"]
Scores = Float[NDArray[np.float64], " item"]
Hits = Bool[NDArray[np.bool_], " item"]


@dataclass(frozen=True)
class Mark:
    """A score of 0 … 1 with what luck gives. of: what was compared, with its denominator."""

    score: str
    value: float
    luck: Draws = field(compare=False)
    of: str
    held_out: bool = False

    @property
    def chance(self) -> float:
        """The mean of luck."""
        return float(self.luck.mean())

    @property
    def limit(self) -> float:
        """What 99 of 100 guesses do not reach."""
        return float(np.quantile(self.luck, QUANTILE))


def marks(answers: Sequence[Answer], truth: Truth, model: Model, seed: int = 0) -> tuple[Mark, ...]:
    """All comparisons that can be made. model: whose heads and MLPs are the candidates where the key names none."""
    random = np.random.default_rng(seed)
    found = [mark for answer in answers for mark in _compared(answer, truth, model, random, seed)]
    return tuple(_merged(found))


def _compared(
    answer: Answer, truth: Truth, model: Model, random: np.random.Generator, seed: int
) -> Iterator[Mark]:
    match answer:
        case NodeScores():
            yield from _nodes(answer, truth, model, random)
        case EdgeScores():
            if truth.circuit is not None and truth.circuit.edges:
                real = {edge.ends for edge in truth.circuit.edges} - truth.unshown
                edges = {ends: score for ends, score in answer.scores.items() if ends not in truth.unshown}
                yield from _ranked("edges", edges, real, random)
        case RuleScores():
            yield from _rules(answer, truth, model, random)
        case FoundCircuit():
            yield from _found(answer, truth, model, random)
        case Directions():
            # Streams of one network are much alike, so one guess has to do for all of its sites.
            yield from _directions(answer, truth, np.random.default_rng(seed))
        case UnitValues():
            yield from _latents(answer, truth, seed)
        case Quantities():
            yield from _quantities(answer, truth, random)


def _nodes(answer: NodeScores, truth: Truth, model: Model, random: np.random.Generator) -> Iterator[Mark]:
    if answer.role:
        real = set(truth.roles.get(answer.role, ()))
        heads = {name: score for name, score in answer.scores.items() if name.startswith("z.")}
        yield from _ranked(f"{answer.role.replace('_', '-')} heads", heads, real, random)
    elif truth.circuit is not None:
        candidates = set(_candidates(truth, model))
        among = {name: score for name, score in answer.scores.items() if name in candidates}
        yield from _ranked("nodes", among, set(truth.circuit.nodes) & candidates, random)


def _candidates(truth: Truth, model: Model) -> tuple[str, ...]:
    every = truth.candidates or tuple(map(str, components(model)))
    return tuple(name for name in every if name not in truth.unshown)


def _ranked(
    what: str, scores: Mapping[Name, float], real: set[Name], random: np.random.Generator
) -> Iterator[Mark]:
    """Do the true ones rank above the others? Nothing to say where there is only one kind."""
    names = list(scores)
    hits = np.array([name in real for name in names], dtype=bool)
    if not hits.any() or hits.all():
        return
    size = np.abs(np.array([scores[name] for name in names], dtype=np.float64))
    missed = len(real) - int(hits.sum())
    of = f"{hits.sum()} true of {len(hits)}" + (f", {missed} true ones not scored" if missed else "")
    shuffled = [random.permutation(hits) for _ in range(DRAWS)]
    ranks, above = rankdata(size), rankdata(-size, method="max").astype(np.float64)
    for name, score, given, held_out in (
        ("AUROC", auroc, ranks, False),
        ("average precision", average_precision, above, True),
    ):
        luck = np.array([score(given, one) for one in shuffled])
        yield Mark(f"{what}, {name}", score(given, hits), luck, of, held_out)


def auroc(ranks: Scores, hits: Hits) -> float:
    """The probability that a true one ranks above another; half where they tie. ranks: from 1, the last is the best."""
    true = int(hits.sum())
    return float((ranks[hits].sum() - true * (true + 1) / 2) / (true * (len(hits) - true)))


def average_precision(above: Scores, hits: Hits) -> float:
    """The mean, over the true ones, of the share of true ones among all that rank at least as high: `above` of them."""
    mine = np.sort(above[hits])
    return float((np.searchsorted(mine, mine, side="right") / mine).mean())


def _rules(answer: RuleScores, truth: Truth, model: Model, random: np.random.Generator) -> Iterator[Mark]:
    """Of n true rules, how many are among the n strongest? A guess takes any tokens of the vocabulary."""
    real = truth.rules.get(answer.kind, frozenset())
    if not real:
        return
    ranked = sorted(answer.scores, key=lambda rule: -answer.scores[rule])
    hits = np.array([rule in real for rule in ranked], dtype=bool)
    guess = len(real) / model.sizes["d_vocab"] ** len(next(iter(real)))
    drawn = random.random((DRAWS, len(hits))) < guess
    of = f"{hits.sum()} of {len(real)} true ones listed, {len(ranked)} in all"
    what = f"{answer.kind.replace('_', '-')} rules"
    for name, score, held_out in (
        ("among the strongest", _strongest, False),
        ("average precision", _listed_precision, True),
    ):
        luck = np.array([score(one, len(real)) for one in drawn])
        yield Mark(f"{what}, {name}", score(hits, len(real)), luck, of, held_out)


def _strongest(hits: Hits, true: int) -> float:
    return float(hits[:true].sum() / true)


def _listed_precision(hits: Hits, true: int) -> float:
    """The mean, over all true ones, of the share of true ones down to it; 0 for one that is not listed."""
    down = hits.cumsum() / np.arange(1, len(hits) + 1)
    return float((down * hits).sum() / true)


def _found(answer: FoundCircuit, truth: Truth, model: Model, random: np.random.Generator) -> Iterator[Mark]:
    if truth.circuit is None:
        return
    candidates = _candidates(truth, model)
    yield from _chosen("circuit nodes", candidates, answer.circuit.nodes, truth.circuit.nodes, random)
    if answer.circuit.edges and truth.circuit.edges:
        split = "pos_embed" in truth.circuit.nodes or "pos_embed" in answer.circuit.nodes
        every = [ends for ends in EdgeGraph.of(model, split).edges() if ends not in truth.unshown]
        mine, real = ([edge.ends for edge in one.edges] for one in (answer.circuit, truth.circuit))
        yield from _chosen("circuit edges", every, mine, real, random)


def _chosen(
    what: str, every: Sequence[Name], mine: Sequence[Name], real: Sequence[Name], random: np.random.Generator
) -> Iterator[Mark]:
    """Is what was chosen what is true?"""
    picked, hits = (np.array([name in set(one) for name in every], dtype=bool) for one in (mine, real))
    if not hits.any() or hits.all():
        return
    of = f"{picked.sum()} found, {hits.sum()} true of {len(hits)}"
    for name, score, held_out in (("F1", f1, False), ("recall", _recall, True)):
        luck = [score(picked, random.permutation(hits)) for _ in range(DRAWS)]
        yield Mark(f"{what}, {name}", score(picked, hits), np.array(luck), of, held_out)


def f1(picked: Hits, hits: Hits) -> float:
    """The harmonic mean of precision and recall."""
    return float(2 * (picked & hits).sum() / (picked.sum() + hits.sum()))


def _recall(picked: Hits, hits: Hits) -> float:
    return float((picked & hits).sum() / hits.sum())


def _directions(answer: Directions, truth: Truth, random: np.random.Generator) -> Iterator[Mark]:
    """Is each true direction among those found? Against as many random directions."""
    known = {
        variable.name: variable.directions
        for variable in truth.variables
        if variable.site == answer.site and answer.variable in ("", variable.name)
    }
    keys = {f"variable {name}": value for name, value in known.items()}
    if str(answer.site) in truth.features and not answer.variable:
        keys["features"] = truth.features[str(answer.site)]
    for what, real in keys.items():
        true = _unit(_told_apart(real, answer.variable))
        shape = answer.directions.shape
        if shape[1] != true.shape[1] or not len(true) or not shape[0]:
            continue
        # A subspace found for one variable is one answer, whatever directions it is written in.
        score, close = ("span", _inside) if answer.variable else ("cosine", _best)
        best = close(true, _unit(answer.directions.astype(np.float64)))
        luck = [close(true, _unit(random.standard_normal(shape))) for _ in range(DRAWS)]
        of = f"{shape[0]} found, {len(true)} true in {shape[1]} dimensions"
        what = what.split(" ", maxsplit=1)[0].removesuffix("s") + "s"
        yield Mark(f"{what}, {score}", float(best.mean()), np.array([one.mean() for one in luck]), of)
        recovered = np.array([(one > RECOVERED).mean() for one in luck])
        yield Mark(f"{what}, recovered", float((best > RECOVERED).mean()), recovered, of, True)


def _told_apart(real: Float[Tensor, "true d"], variable: str) -> Float[NDArray[np.float64], "true d"]:
    """The true directions; of one variable's values what tells them apart, since what they share says nothing."""
    rows: NDArray[np.float64] = real.detach().cpu().double().numpy()
    return rows - rows.mean(0) if variable and len(rows) > 1 else rows


def _inside(
    true: Float[NDArray[np.float64], "true d"], mine: Float[NDArray[np.float64], "found d"]
) -> Float[NDArray[np.float64], " true"]:
    """How much of each true direction lies in the span of those found."""
    _, sizes, frame = np.linalg.svd(mine, full_matrices=False)
    inside = frame[sizes > 1e-6 * sizes.max(initial=0.0)]
    found: NDArray[np.float64] = np.linalg.norm(true @ inside.T, axis=1)
    return found


def _unit(rows: Float[NDArray[np.float64], "row d"]) -> Float[NDArray[np.float64], "row d"]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1.0)


def _best(
    true: Float[NDArray[np.float64], "true d"], mine: Float[NDArray[np.float64], "found d"]
) -> Float[NDArray[np.float64], " true"]:
    found: NDArray[np.float64] = np.abs(true @ mine.T).max(axis=1)
    return found


def _latents(answer: UnitValues, truth: Truth, seed: int) -> Iterator[Mark]:
    """Is there a unit, or a few, for each thing that is known to be true of a row? Asked where no directions are known:
    what data hold passes through any weights, and directions tell more."""
    if truth.features or any(len(variable.directions) for variable in truth.variables):
        return
    codes = torch.tensor(answer.values, dtype=torch.float32)
    there = codes.isfinite().all(-1)
    labels = {
        name: _of_positions(label, there)[there]
        for name, label in truth.labels.items()
        if label.shape in (there.shape, there.shape[:1])
    }
    if not labels:
        return
    latents = binary(labels)
    try:
        found = known_latents(codes[there], latents, FEW_UNITS, seed)
    except InputError:  # each is too rare, or too common, to be scored
        return
    always = found.chance.double().numpy()
    scored = np.array([int(latents[name].isfinite().sum()) for name in found.names]) / 2
    # Always saying yes has F1 = 2 true / (scored + true).
    true = np.maximum(1, np.rint(scored * always / (2 - always))).astype(np.int64)
    false = np.maximum(0, np.rint(scored) - true).astype(np.int64)
    hits = np.random.default_rng(seed).hypergeometric(true, false, true, (DRAWS, len(true)))
    luck = np.maximum(always, hits / true).mean(-1)
    of = f"{len(always)} latents, {found.rows} rows, {codes.shape[-1]} units"
    for name, values, held_out in (
        ("best unit", found.best_unit, False),
        ("best eight", found.best_k[:, -1], True),
    ):
        yield Mark(f"latents, F1 of the {name}", float(values.double().mean()), luck, of, held_out)


def _of_positions(label: Tensor, there: Bool[Tensor, "row position"]) -> Float[Tensor, "row position"]:
    """A label by position, NaN where undefined; what is true of a row as a whole is asked of its last position."""
    value = label.double()
    if not label.is_floating_point():
        value = value.masked_fill(label == -1, float("nan"))
    if value.dim() == 2:
        return value
    ends = there.long().cumsum(1).argmax(1)
    found = torch.full(there.shape, float("nan"), dtype=value.dtype)
    found[torch.arange(len(ends)), ends] = value
    return found


def _quantities(answer: Quantities, truth: Truth, random: np.random.Generator) -> Iterator[Mark]:
    shared = sorted(set(answer.values) & set(truth.quantities))
    exact = [name for name in shared if name in answer.exact]
    rough = [name for name in shared if name not in answer.exact]
    for names, scores in ((exact, _EXACT), (rough, _ROUGH)):
        if not names:
            continue
        mine, real = (np.array([one[name] for name in names]) for one in (answer.values, truth.quantities))
        for name, score, held_out in scores:
            luck = [score(random.permutation(mine), real) if len(names) > 1 else 0.0 for _ in range(DRAWS)]
            of = f"{len(names)} of {len(truth.quantities)} quantities"
            yield Mark(f"quantities, {name}", score(mine, real), np.array(luck), of, held_out)


def closeness(mine: Scores, real: Scores) -> float:
    """One minus the size of the error over the size of the truth, at least 0: saying nothing but zeros gives 0."""
    size = float(np.linalg.norm(real))
    return (
        max(0.0, 1.0 - float(np.linalg.norm(mine - real)) / size)
        if size
        else float(np.array_equal(mine, real))
    )


def _equal(mine: Scores, real: Scores) -> float:
    return float((np.abs(mine - real) <= ROUNDING * max(1e-30, float(np.abs(real).max()))).mean())


def _close(mine: Scores, real: Scores) -> float:
    return float((np.abs(mine - real) <= CLOSE * np.abs(real)).mean())


_EXACT: Final = (("equal", _equal, False),)
_ROUGH: Final[tuple[tuple[str, Callable[[Scores, Scores], float], bool], ...]] = (
    ("closeness", closeness, False),
    ("within 1 %", _close, True),
)


def _merged(found: Sequence[Mark]) -> Iterator[Mark]:
    """Marks of one score, such as of several variables, as one: their mean."""
    for score in dict.fromkeys(mark.score for mark in found):
        same = [mark for mark in found if mark.score == score]
        yield replace(
            same[0],
            value=float(np.mean([mark.value for mark in same])),
            luck=np.mean([mark.luck for mark in same], axis=0),
            of="; ".join(dict.fromkeys(mark.of for mark in same)),
        )
