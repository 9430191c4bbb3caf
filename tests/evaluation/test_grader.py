"""The grader from outside: a stranger's method on a stranger's testbed, one that guesses, and one that breaks."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from microtome.core import plugins
from microtome.core.errors import InputError, PluginError
from microtome.evaluation.cases import case as case_of
from microtome.evaluation.grader import Run, checkable, grade, plan, questions, quick
from microtome.evaluation.grades import Grades, Trouble
from microtome.testbeds.case import Truth


@pytest.fixture
def strangers(offer: Callable[..., None]) -> None:
    offer("methods", package="one", edge_guesses="edge_guesses")
    offer("testbeds", package="two", strange_bed="strange_bed")


@pytest.mark.usefixtures("strangers")
def test_a_strangers_method_is_graded_like_ours() -> None:
    runs = plan(["edge-guesses"], ["strange_bed"], seeds=2)
    assert [(run.case, run.seed) for run in runs][:3] == [
        ("strange_bed/one", 0), ("strange_bed/two", 0), ("strange_bed/broken", 0),
    ]  # fmt: skip
    found = Grades().with_more(grade(runs))
    standing = {one.method: one for one in found.standings()}
    looked = standing["edge_guesses"]
    assert looked.value == 1.0
    assert looked.verdict == "finds it"
    assert looked.passes == 2
    assert looked.control is not None
    assert looked.control < looked.limit

    # Negative control: it says the same of a network with nothing in it.
    assert standing["edge_guesses how=guess"].value == 1.0
    assert standing["edge_guesses how=guess"].verdict == "fails its control"

    # What raises has a row that says so, and the rest went on.
    broken = Trouble("edge_guesses how=fail", "strange_bed/one", 0, "RuntimeError: it broke in the middle")
    assert broken in found.troubles
    assert Trouble("", "strange_bed/broken", 0, "this case is broken") in found.troubles
    assert "it broke in the middle" in str(found.trouble().rows)


@pytest.mark.usefixtures("strangers")
def test_the_same_again_is_equal_and_what_is_done_is_not_planned() -> None:
    runs = plan(["edge_guesses"], ["strange_bed/one"])
    one, two = (Grades().with_more(grade(runs)) for _ in range(2))
    assert one.grades == two.grades
    assert plan(["edge_guesses"], ["strange_bed/one"], without=one.done) == ()
    assert plan(["edge_guesses"], ["strange_bed/one"], seeds=2, without=one.done) == (
        Run("strange_bed/one", 1, ("edge_guesses",)),
    )


@pytest.mark.usefixtures("strangers")
def test_settings_are_handed_to_every_method() -> None:
    found = Grades().with_more(grade(plan(["edge_guesses"], ["strange_bed/one"]), {"how": "guess"}))
    assert {one.control for one in found.grades if not one.held_out} == {1.0}


@pytest.mark.usefixtures("strangers")
def test_the_quick_ones_of_each_testbed() -> None:
    runs = plan(["edge_guesses"], ["strange_bed"])
    before = Grades().with_more(grade(runs))
    assert quick(runs, before, seconds=60.0, cases=1) == (runs[0],)
    assert quick(runs, before, seconds=-1.0) == ()
    # What moves with the last bits of sums is left to the full grading, and so is what found nothing before.
    for change in ({"moved": 0.1}, {"value": 0.0}):
        other = Grades(tuple(replace(one, **change) for one in before.grades if one.case == runs[0].case))
        assert quick(runs, other, seconds=60.0) == ()


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(InputError, match="names no claims"):
        plan(["progress_measures"])
    with pytest.raises(InputError, match="no testbed or case"):
        plan(["ablation"], ["programs/quicksort"])
    with pytest.raises(PluginError, match="no method"):
        plan(["abblation"])
    with pytest.raises(InputError, match="at least one seed"):
        plan(seeds=0)


def test_a_method_runs_only_where_the_key_knows_of_its_claims() -> None:
    from microtome.core.plugins import method

    lens, scorecard, sums = (
        method(name).card for name in ("logit_lens", "head_scorecard", "direct_logit_attribution")
    )
    knows = Truth(quantities={"top.resid_pre.0": 0.5})
    assert checkable(lens, knows)
    assert not checkable(sums, knows)
    assert checkable(scorecard, Truth(roles={"induction": ("z.0.h0",)}))
    assert not checkable(scorecard, Truth(roles={"name_mover": ("z.0.h0",)}))


def test_where_to_look_is_told_where_it_is_known_and_nobody_is_asked_where_it_is_not() -> None:
    """A network without a map of parts has no middle: its labels alone do not say where units are to be found."""
    found = case_of("superposition/square", 0)
    method = plugins.method("independent_components")
    assert questions(method, found, {}) == [{"site": "path:hidden"}]
    assert checkable(method.card, Truth(labels=found.truth.labels))
    latents = replace(method.card, claims=("latents",))
    assert checkable(latents, Truth(labels=found.truth.labels))
    assert not checkable(latents, found.truth)  # its directions are known, and tell more
    assert questions(method, replace(found, truth=Truth(labels=found.truth.labels)), {}) == []


def test_the_circuit_whose_worth_is_asked_for_is_named() -> None:
    found = case_of("interchange/first_is_last", 0)
    method = plugins.method("circuit_scores")
    (asked,) = questions(method, found, {})
    assert found.truth.circuit is not None
    assert set(asked["circuit"]) == {
        node for node in found.truth.circuit.nodes if node.startswith(("z.", "mlp_out."))
    }
    assert questions(method, found, {"circuit": ("z.0.h0",)}) == [{}]
    assert questions(plugins.method("ablation"), found, {}) == [{}]
    labels = replace(found, truth=Truth(labels=found.truth.labels))
    assert questions(plugins.method("independent_components"), labels, {}) == [{}]  # its middle
