"""Does a method find what is known to be there? Run it on networks whose answer is known, and on their controls.

1. Take each method whose card names claims, and each case whose key knows of such a thing.
2. Run the method on the case's network, with its own defaults, or with each of the settings that its module names as
   `grading`; a second of these is a row of its own. A method that finds directions and has a setting `site` is run at
   every site where the key knows some: it is told where to look, and nothing of what is there.
3. Compare its answers with the key (`microtome.evaluation.marks`).
4. Run it again on the same network with random weights, on the same data, and compare with the same key.

    grades = Grades().with_more(grade(plan(methods=["path_patching"], testbeds=["programs"])))

A method is anything registered as one; a stranger's is graded like ours once its package is installed. Whatever it
raises becomes its row, and the rest goes on.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from microtome.core import plugins
from microtome.core.answers import Answer
from microtome.core.card import Card
from microtome.core.cost import Cost
from microtome.core.errors import InputError, MicrotomeError
from microtome.core.result import Result
from microtome.evaluation.cases import case as case_of
from microtome.evaluation.cases import library, testbed
from microtome.evaluation.grades import FALL, Grade, Grades, Trouble
from microtome.evaluation.marks import Mark, marks
from microtome.models.components import components
from microtome.models.model import Model
from microtome.testbeds.case import Case, Truth

QUICK = 0.7  # seconds of a run
KINDS = {
    "nodes": ("circuit",),
    "edges": ("circuit",),
    "circuit": ("circuit",),
    "directions": ("variables", "features"),
    "latents": ("labels",),
    "role": ("roles",),
    "rule": ("rules",),
    "quantity": ("quantities",),
}


@dataclass(frozen=True)
class Run:
    """One case at one seed, and the methods to run on it."""

    case: str
    seed: int
    methods: tuple[str, ...]


def plan(
    methods: Sequence[str] = (),
    testbeds: Sequence[str] = (),
    seeds: int = 1,
    without: Collection[tuple[str, str, int]] = (),
) -> tuple[Run, ...]:
    """What to run: by default every method that claims something, on every case of every testbed that could check it.

    testbeds: names of testbeds or of single cases. without: method, case and seed of what is not to be run again.
    Raises `PluginError` or `InputError` for names that do not exist, and for a method that claims nothing.
    """
    if seeds < 1:
        raise InputError(f"grading needs at least one seed, got {seeds}")
    cards = {name: plugins.method(name).card for name in methods or plugins.names("methods")}
    if silent := [name for name in methods if not cards[name].claims]:
        raise InputError(
            f"{silent[0]} cannot be graded: its card names no claims that an answer key could check"
        )
    known = library()
    chosen = [name for name in known if not testbeds or any(_within(name, bed) for bed in testbeds)]
    for bed in testbeds:
        if not any(_within(name, bed) for name in known):
            raise InputError(f"no testbed or case is called {bed!r}; `microtome testbeds` lists them")
    found = []
    for seed in range(seeds):
        for name in chosen:
            kinds = set(testbed(name.partition("/")[0]).card.kinds)
            fitting = tuple(
                card.name
                for card in cards.values()
                if any(kinds & set(KINDS[claim.partition(":")[0]]) for claim in card.claims)
                and (card.name, name, seed) not in without
            )
            if fitting:
                found.append(Run(name, seed, fitting))
    return tuple(found)


def quick(runs: Sequence[Run], before: Grades, seconds: float = QUICK, cases: int = 1) -> tuple[Run, ...]:
    """Of these runs, for each method and testbed the first `cases` where it passed luck before, in no more than
    `seconds`, with all its settings, and where what came out does not hang on the last bits of sums (`Grade.moved`)."""
    told: dict[tuple[str, str], set[str]] = {}
    for name, case, _ in before.done:
        told.setdefault((name.partition(" ")[0], case), set()).add(name)
    unfit = {_row(g) for g in before.grades if g.seconds > seconds or g.moved > FALL}
    passed = {_row(g) for g in before.grades if g.value > g.limit} - unfit
    fit = {row for row in passed if {name for name, _ in variants(plugins.method(row[0]))} <= told[row]}
    taken: Counter[tuple[str, str]] = Counter()
    found = []
    for run in runs:
        bed = run.case.partition("/")[0]
        some = tuple(name for name in run.methods if (name, run.case) in fit and taken[name, bed] < cases)
        if some:
            taken.update((name, bed) for name in some)
            found.append(Run(run.case, run.seed, some))
    return tuple(found)


def _row(grade: Grade) -> tuple[str, str]:
    return grade.method.split()[0], grade.case


def grade(runs: Sequence[Run], settings: Mapping[str, Any] | None = None) -> Iterator[Grade | Trouble]:
    """Do what is planned; yields as it goes. settings: of every method, over its `grading` and its defaults."""
    for run in runs:
        try:
            case = case_of(run.case, run.seed)
        except MicrotomeError as error:
            yield Trouble("", run.case, run.seed, str(error))
            continue
        for name in run.methods:
            module = plugins.method(name)
            if checkable(module.card, case.truth) and (
                module.card.needs not in ("pairs", "hypothesis")
                or getattr(case, module.card.needs) is not None
            ):
                for name, given in variants(module):
                    yield from _graded(module, name, case, run, {**given, **(settings or {})})


def variants(module: ModuleType) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """With which settings a method is graded; the first bears its name, the others say what they do otherwise."""
    first, *others = getattr(module, "grading", ({},))
    yield module.card.name, first
    for given in others:
        told = [f"{key}={value}" for key, value in given.items() if first.get(key) != value]
        yield f"{module.card.name} {' '.join(told)}", given


def checkable(card: Card, truth: Truth) -> bool:
    """Whether the key knows of anything that the method claims."""
    for claim in card.claims:
        kind, _, name = claim.partition(":")
        if (kind == "role" and name in truth.roles) or (kind == "rule" and name in truth.rules):
            return True
        if kind == "quantity" and any(one.startswith(f"{name}.") for one in truth.quantities):
            return True
        if kind == "directions" and not sites(truth):
            continue  # variables of which nobody knows the directions
        if kind == "latents" and sites(truth):
            continue  # the directions tell more
        if not name and any(getattr(truth, part) for part in KINDS[kind]):
            return True
    return False


def _graded(
    module: ModuleType, name: str, case: Case, run: Run, settings: Mapping[str, Any]
) -> Iterator[Grade | Trouble]:
    try:
        cost, found = _run(module, case, case.model, settings)
    except Exception as error:  # a stranger's method may raise anything; its row says so and the rest goes on
        yield Trouble(name, run.case, run.seed, _told(error))
        return
    if not found:
        return
    control: dict[str, Mark] = {}
    said = ""
    try:
        control = {mark.score: mark for mark in _run(module, case, case.control, settings)[1]}
    except MicrotomeError as error:
        said = _told(error)
    except Exception as error:
        yield Trouble(name, run.case, run.seed, f"on the control: {_told(error)}")
        said = _told(error)
    for mark in found:
        beside = control.get(mark.score)
        yield Grade(
            name,
            run.case,
            run.seed,
            mark.score,
            mark.value,
            mark.chance,
            float(mark.luck.std()),
            mark.limit,
            None if beside is None else beside.value,
            said,
            mark.of,
            mark.held_out,
            cost.passes,
            cost.seconds,
        )


def _run(
    module: ModuleType, case: Case, model: Model, settings: Mapping[str, Any]
) -> tuple[Cost, tuple[Mark, ...]]:
    given = dict(settings)
    if "seed" in module.Config.model_fields:
        given = {"seed": case.seed, **given}
    cost, answers = Cost(), list[Answer]()
    for asked in questions(module, case, given):
        config = module.Config.read({**given, **asked})
        result: Result = module.run(model, case.data(module.card.needs), config)
        cost += result.cost
        answers += result.answers()
    return cost, marks(answers, case.truth, model, case.seed)


def questions(module: ModuleType, case: Case, given: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What is asked for, and is not the answer: at which site directions are wanted, of which circuit the worth."""
    asks = {name for name in ("site", "circuit") if name in module.Config.model_fields and name not in given}
    if "site" in asks and {"directions", "latents"} & set(module.card.claims):
        known = [{"site": site} for site in sites(case.truth)]
        # Where nobody knows a site, a model with a map of parts has its middle; another has nowhere to look.
        return known or ([{}] if case.model.anatomies else [])
    if "circuit" in asks and "quantity:circuit" in module.card.claims and case.truth.circuit is not None:
        parts = set(map(str, components(case.model)))
        return [{"circuit": tuple(node for node in case.truth.circuit.nodes if node in parts)}]
    return [{}]


def sites(truth: Truth) -> tuple[str, ...]:
    """Where the key knows directions."""
    held = [*truth.features, *(str(known.site) for known in truth.variables if len(known.directions))]
    return tuple(dict.fromkeys(held))


def _within(name: str, bed: str) -> bool:
    bed = bed.replace("-", "_") if "/" not in bed else bed
    return name == bed or name.partition("/")[0] == bed


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, MicrotomeError) else f"{type(error).__name__}: {error}"
