"""Which networks are understood, and how is one had? The cases of every registered testbed, in one form.

    from microtome.evaluation import cases
    cases.library()                       # names of all cases, none of them built
    case = cases.case("programs/sort")    # its model, data, truth and evidence
    method.run(case.model, case.data(method.card.needs))

A stranger's testbed appears here once its package is installed.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from types import ModuleType

from microtome.core import plugins
from microtome.core.errors import InputError, PluginError
from microtome.core.shapes import Cell, Table
from microtome.testbeds.case import Case, TestbedCard


def testbed(name: str) -> ModuleType:
    """A testbed by name. Raises `PluginError` for an unknown one, or one that does not keep its contract."""
    module = plugins.load("testbeds", name)
    if not isinstance(getattr(module, "card", None), TestbedCard):
        raise PluginError(f"the testbed {name!r} has no card: it must be a module with card = TestbedCard(…)")
    missing = [part for part in ("cases", "build") if not callable(getattr(module, part, None))]
    if missing:
        raise PluginError(
            f"the testbed {name!r} lacks {' and '.join(missing)}(); see microtome.testbeds.case"
        )
    return module


def library() -> tuple[str, ...]:
    """`testbed/case` of every case of every testbed. Nothing is built."""
    return tuple(f"{name}/{case}" for name in plugins.names("testbeds") for case in testbed(name).cases())


def case(name: str, seed: int = 0) -> Case:
    """Build one case. Raises `InputError` for an unknown name, `TruthError` where its evidence does not hold."""
    bed, _, which = name.partition("/")
    if bed.replace("-", "_") not in plugins.names("testbeds") or not which:
        close = get_close_matches(name, library(), n=1)
        hint = f"Did you mean {close[0]}?" if close else "`microtome testbeds` lists them."
        raise InputError(f"no case is called {name!r}; a case is written TESTBED/CASE. {hint}")
    module = testbed(bed)
    if which not in module.cases():
        raise InputError(f"the testbed {bed} has no case {which!r}; it has {', '.join(module.cases())}")
    built: Case = module.build(which, seed)
    return built


def menu() -> Table:
    """The testbeds: what each asks, what its cases know, and how many there are."""
    rows: list[tuple[Cell, ...]] = []
    for name in plugins.names("testbeds"):
        module = testbed(name)
        card = module.card
        rows.append((name, len(module.cases()), ", ".join(card.kinds), card.question, card.reference))
    total = sum(int(row[1] or 0) for row in rows)
    return Table(
        "testbeds",
        ("testbed", "cases", "known", "question", "reference"),
        tuple(rows),
        caption=f"{total} cases; `microtome testbeds NAME` lists the cases of one, NAME/CASE tells one in full",
    )


def described(one: Case) -> tuple[Table, ...]:
    """What a case is, what is known of it, and on which measurements that rests."""
    evidence: list[tuple[Cell, ...]] = [
        (each.what, each.value, each.least, each.most, each.n) for each in one.evidence
    ]
    truth = one.truth
    known: list[tuple[Cell, ...]] = []
    if truth.circuit is not None:
        nodes, edges = len(truth.circuit), len(truth.circuit.edges)
        known.append(("circuit", f"{nodes} nodes, {edges} edges: {_listed(truth.circuit.nodes)}"))
    known += [(f"role {role}", _listed(nodes)) for role, nodes in truth.roles.items()]
    known += [
        (
            f"variable {variable.name}",
            f"at {variable.site}{f' by {variable.writer}' if variable.writer else ''}, {_size(len(variable.values))}",
        )
        for variable in truth.variables
    ]
    known += [(f"features at {site}", f"{len(found)} directions") for site, found in truth.features.items()]
    known += [(f"label {name}", f"{tuple(found.shape)}") for name, found in truth.labels.items()]
    known += [(f"quantity {name}", f"{value:.6g}") for name, value in truth.quantities.items()]
    return (
        Table(f"{one.name}: {one.task}", ("evidence", "value", "at least", "at most", "n"), tuple(evidence)),
        Table("what is known", ("what", "which"), tuple(known), caption=repr(one.model)),
    )


def _listed(names: Iterable[str], most: int = 12) -> str:
    found = list(names)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


def _size(values: int) -> str:
    return f"one direction for each of {values} values" if values else "one direction for the number"
