"""Which methods may be trusted, and where? What grading found, put together and compared.

1. A `Grade` is one score of one method on one case, beside what luck gives and what the same method says of the case's
   network with random weights, against the same key (the negative control).
2. A `Standing` is the mean over the cases of a testbed and their seeds, with a 95 % interval over these. Luck's limit
   is that of a mean over cases; seeds of one case count as one, since their networks may be alike.
3. The verdict: *fails its control* where the control passes luck's limit and the score does not pass the control, by
   the interval of their differences (networks of one shape have much in common, whatever they compute: their last
   parts matter most); *too few to tell* where even a perfect score could be luck; *no better than luck* where the
   score does not pass it; else *finds it*.
4. Methods with one score on one testbed are compared on the cases both have; a difference whose interval holds zero is
   none.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from scipy.stats import t as student

from microtome.core.errors import StoreError
from microtome.core.provenance import versions
from microtome.core.shapes import Cell, Table
from microtome.store.whole_file import write_whole

Verdict = Literal["finds it", "too few to tell", "no better than luck", "fails its control"]
FALL: Final = 0.02
LEGEND: Final = (
    "Luck: what 99 of 100 guesses do not reach. Control: the score of the same method on the network with random "
    "weights, against the same key; no answer: the method refused it or found nothing there. 95 %: of the mean over "
    "cases and seeds; – of a single one. Vs best (of the methods with most cases): the mean difference on the "
    "cases both have; ≈ where its 95 % interval holds zero. Seconds and passes: of a run."
)
BRIEF: Final = ("method", "value", "luck", "control", "verdict")
COLUMNS: Final = (
    *BRIEF,
    "95 %",
    "chance",
    "vs best",
    "cases",
    "seconds",
    "passes",
)
_NORMAL_99: Final = 2.3263  # of one side
_NORMAL_95: Final = 1.96
FEW: Final = 5  # grades; the interval of fewer is too wide to tell anything
_FORMAT: Final = "microtome.grades"


@dataclass(frozen=True)
class Grade:
    """One score. chance, spread, limit: mean, standard deviation and 99th percentile of luck.

    control: the same score on the network with random weights; None where the method refused it (`control_said`) or
    found nothing there. moved: how far score or control came out elsewhere, where the last bits of sums are others.
    """

    method: str
    case: str
    seed: int
    score: str
    value: float
    chance: float
    spread: float
    limit: float
    control: float | None
    control_said: str = ""
    of: str = ""
    held_out: bool = False
    passes: int = 0
    seconds: float = field(default=0.0, compare=False)
    moved: float = field(default=0.0, compare=False)

    @property
    def testbed(self) -> str:
        return self.case.partition("/")[0]


@dataclass(frozen=True)
class Trouble:
    """What went wrong with a method on a case, or with the case itself (`method` is then empty)."""

    method: str
    case: str
    seed: int
    said: str


@dataclass(frozen=True)
class Standing:
    """The mean of one score of a method on the cases of a testbed. interval: 95 %, NaN of a single grade.

    gain: the 95 % interval of the score minus the control's.
    """

    method: str
    testbed: str
    score: str
    cases: int
    grades: int
    value: float
    interval: tuple[float, float]
    chance: float
    limit: float
    control: float | None
    gain: tuple[float, float]
    passes: int
    seconds: float
    beside: str = ""

    @property
    def verdict(self) -> Verdict:
        if self.control is not None and self.control > self.limit and not self.gain[0] > 0.0:
            return "fails its control"
        if self.limit >= 1.0:
            return "too few to tell"
        return "finds it" if self.value > self.limit else "no better than luck"


@dataclass(frozen=True)
class Grades:
    """All that was graded; in the order of their names, so that equal grades are equal."""

    grades: tuple[Grade, ...] = ()
    troubles: tuple[Trouble, ...] = ()
    versions: Mapping[str, str] = field(default_factory=versions, compare=False)

    def __post_init__(self) -> None:
        order = sorted(self.grades, key=lambda g: (g.method, g.case, g.score, g.seed))
        object.__setattr__(self, "grades", tuple(order))
        told = sorted(self.troubles, key=lambda trouble: (trouble.method, trouble.case, trouble.seed))
        object.__setattr__(self, "troubles", tuple(told))

    def with_more(self, more: Iterable[Grade | Trouble]) -> "Grades":
        """These and others."""
        found = list(more)
        return Grades(
            (*self.grades, *(one for one in found if isinstance(one, Grade))),
            (*self.troubles, *(one for one in found if isinstance(one, Trouble))),
        )

    def with_newer(self, newer: "Grades") -> "Grades":
        """These, and in place of each run that `newer` has, what came out there."""
        grades = tuple(one for one in self.grades if _run(one) not in newer.done)
        troubles = tuple(one for one in self.troubles if _run(one) not in newer.done)
        return Grades((*grades, *newer.grades), (*troubles, *newer.troubles), newer.versions)

    def elsewhere(self, again: "Grades") -> "Grades":
        """These, knowing how far each moved when it was graded again on another machine or with other kernels."""
        there = {(*_run(one), one.score): one for one in again.grades}
        found = []
        for one in self.grades:
            other = there.get((*_run(one), one.score))
            apart = 0.0 if other is None else abs(other.value - one.value)
            if other is not None and one.control is not None and other.control is not None:
                apart = max(apart, abs(other.control - one.control))
            found.append(replace(one, moved=max(one.moved, apart)))
        return Grades(tuple(found), self.troubles, self.versions)

    @property
    def done(self) -> frozenset[tuple[str, str, int]]:
        """Method, case and seed of everything that was run."""
        return self.graded | {(one.method, one.case, one.seed) for one in self.troubles}

    @property
    def graded(self) -> frozenset[tuple[str, str, int]]:
        """Method, case and seed of every grade; what came to nothing is left out, so that it is tried again."""
        return frozenset((grade.method, grade.case, grade.seed) for grade in self.grades)

    def without_troubles(self, cases: Iterable[tuple[str, int]]) -> "Grades":
        """These, without what came to nothing on cases (by name and seed) that are about to be run again."""
        again = set(cases)
        left = tuple(one for one in self.troubles if (one.case, one.seed) not in again)
        return Grades(self.grades, left, self.versions)

    def standings(self, held_out: bool = False) -> tuple[Standing, ...]:
        """Means by testbed, score and method; the best method of each score first."""
        groups: dict[tuple[str, str, str], list[Grade]] = {}
        for grade in self.grades:
            if grade.held_out == held_out:
                groups.setdefault((grade.testbed, grade.score, grade.method), []).append(grade)
        found: list[Standing] = []
        for testbed, score in dict.fromkeys(key[:2] for key in sorted(groups)):
            rivals = {key[2]: group for key, group in groups.items() if key[:2] == (testbed, score)}
            best = max(
                rivals, key=lambda name: (len(rivals[name]), _mean(g.value for g in rivals[name]), name)
            )
            ranked = sorted(rivals, key=lambda name: (-_mean(g.value for g in rivals[name]), name))
            found += [
                _standing(name, testbed, score, rivals[name], _beside(rivals[name], rivals[best]))
                for name in ranked
            ]
        return tuple(found)

    def tables(self, held_out: bool = False, brief: bool = False) -> tuple[Table, ...]:
        """One table for each testbed and score, a row for each method; `brief`: the columns that fit a terminal."""
        groups: dict[tuple[str, str], list[Standing]] = {}
        for one in self.standings(held_out):
            groups.setdefault((one.testbed, one.score), []).append(one)
        return tuple(
            _table(testbed, score, found, BRIEF if brief else COLUMNS)
            for (testbed, score), found in groups.items()
        )

    def told(self) -> str:
        """What was run, and how the tables are to be read."""
        standings = [*self.standings(), *self.standings(held_out=True)]
        failed = sum(1 for one in standings if one.verdict == "fails its control")
        return (
            f"{len(self.done)} runs on {len({grade.case for grade in self.grades})} cases; {failed} of "
            f"{len(standings)} standings fail their control, {len(self.troubles)} runs came to nothing. {LEGEND}"
        )

    def trouble(self) -> Table:
        """What could not be graded, and why."""
        rows = tuple((one.method or "(the case)", one.case, one.seed, one.said) for one in self.troubles)
        return Table("runs that came to nothing", ("method", "case", "seed", "said"), rows)

    def falls(self, before: "Grades", least: float = FALL) -> tuple[str, ...]:
        """In words, every grade that was better `before`, of the runs that both have; nothing where all holds.

        least: a fall by no more is none; nor is one by no more than twice what the grade is known to move by.
        """
        earlier = {(g.method, g.case, g.seed, g.score): g for g in before.grades}
        now = {(g.method, g.case, g.seed, g.score): g for g in self.grades}
        lost = []
        for key, old in sorted(earlier.items()):
            method, case, seed, score = key
            if (method, case, seed) not in self.done:
                continue
            name = f"{method} on {case}, seed {seed}, {score}"
            new, slack = now.get(key), max(least, 2.0 * old.moved)
            if new is None:
                said = [t.said for t in self.troubles if (t.method, t.case, t.seed) == (method, case, seed)]
                lost.append(
                    f"{name}: was {old.value:.3f}, now there is none{f' ({said[0]})' if said else ''}"
                )
            elif new.value < old.value - slack:
                lost.append(f"{name}: was {old.value:.3f}, is {new.value:.3f}")
            elif new.control is not None and new.control > max(new.limit, (old.control or 0.0) + slack):
                lost.append(f"{name}: its control was {old.control or 0.0:.3f}, is {new.control:.3f}")
        return tuple(lost)

    def save(self, path: Path) -> None:
        """Write as JSON, sorted, a grade a line, whole or not at all."""
        parts = {
            "format": json.dumps(_FORMAT),
            "versions": json.dumps(dict(self.versions)),
            "grades": _lines([_rounded(asdict(one)) for one in self.grades]),
            "troubles": _lines([asdict(one) for one in self.troubles]),
        }
        told = ",\n".join(f'"{name}": {part}' for name, part in parts.items())
        write_whole(path, f"{{{told}}}\n".encode())

    @staticmethod
    def load(path: Path) -> "Grades":
        """Read what `save` wrote. Raises `StoreError` for anything else."""
        try:
            told = json.loads(path.read_bytes())
            if told["format"] != _FORMAT:
                raise ValueError(f"its format is {told['format']!r}")
            return Grades(
                tuple(_read(Grade, one) for one in told["grades"]),
                tuple(_read(Trouble, one) for one in told["troubles"]),
                told["versions"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path} holds no grades ({type(error).__name__}: {error}); give a file that "
                "`microtome grade --json` wrote"
            ) from error


def _table(testbed: str, score: str, found: Sequence[Standing], columns: tuple[str, ...]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for one in found:
        low, high = one.interval
        cells: dict[str, Cell] = {
            "method": one.method,
            "value": round(one.value, 3),
            "luck": round(one.limit, 3),
            "control": "no answer" if one.control is None else round(one.control, 3),
            "verdict": one.verdict,
            "95 %": f"± {(high - low) / 2:.3f}" if math.isfinite(low) else "–",
            "chance": round(one.chance, 3),
            "vs best": one.beside,
            "cases": one.cases,
            "seconds": round(one.seconds, 2),
            "passes": one.passes,
        }
        rows.append(tuple(cells[column] for column in columns))
    counts = sorted({one.cases for one in found})
    cases = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return Table(
        f"{testbed}: {score}",
        columns,
        tuple(rows),
        caption="one case" if cases == "1" else f"mean over {cases} cases",
    )


def _standing(method: str, testbed: str, score: str, group: Sequence[Grade], beside: str) -> Standing:
    by_case: dict[str, list[Grade]] = {}
    for grade in group:
        by_case.setdefault(grade.case, []).append(grade)
    chance = _mean(_mean(g.chance for g in some) for some in by_case.values())
    spread = math.sqrt(sum(_mean(g.spread for g in some) ** 2 for some in by_case.values())) / len(by_case)
    limit = _mean(g.limit for g in group) if len(by_case) == 1 else min(1.0, chance + _NORMAL_99 * spread)
    controls = [g.control for g in group if g.control is not None]
    return Standing(
        method,
        testbed,
        score,
        cases=len(by_case),
        grades=len(group),
        value=_mean(g.value for g in group),
        interval=_interval([g.value for g in group]),
        chance=chance,
        limit=limit,
        control=_mean(controls) if controls else None,
        gain=_gain([g for g in group if g.control is not None]),
        passes=round(_mean(g.passes for g in group)),
        seconds=_mean(g.seconds for g in group),
        beside=beside,
    )


def _beside(group: Sequence[Grade], best: Sequence[Grade]) -> str:
    """How far a method lies behind the best one, on the cases and seeds that both have."""
    if group is best or group == best:
        return "best"
    there = {(g.case, g.seed): g.value for g in best}
    gaps = [g.value - there[g.case, g.seed] for g in group if (g.case, g.seed) in there]
    if not gaps:
        return "no case in common"
    low, high = _interval(gaps)
    if all(abs(gap) < 1e-9 for gap in gaps):
        return "the same"
    if low <= 0.0 <= high:
        return f"{_mean(gaps):+.2f} ≈"
    return f"{_mean(gaps):+.2f}"


def _gain(group: Sequence[Grade]) -> tuple[float, float]:
    """The interval of score minus control; of fewer than five grades, what luck would give two such means."""
    gaps = [g.value - (g.control or 0.0) for g in group]
    if len(gaps) >= FEW or not gaps:
        return _interval(gaps)
    half = _NORMAL_95 * math.sqrt(2.0 * sum(g.spread**2 for g in group)) / len(group)
    return _mean(gaps) - half, _mean(gaps) + half


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of a mean; NaN of fewer than two."""
    if len(values) < 2:
        return math.nan, math.nan
    half = float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return _mean(values) - half, _mean(values) + half


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _run(one: Grade | Trouble) -> tuple[str, str, int]:
    return one.method, one.case, one.seed


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "[" + ",".join(f"\n {json.dumps(row, ensure_ascii=False)}" for row in rows) + "]"


def _rounded(told: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in told.items()}


def _read(kind: type, told: Mapping[str, Any]) -> Any:
    known = {one.name for one in fields(kind)}
    return kind(**{name: value for name, value in told.items() if name in known})
