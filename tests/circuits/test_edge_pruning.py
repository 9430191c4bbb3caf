"""Edge pruning on compiled programs: exactly the edges that are needed, by kind of ablation; and what is refused."""

import numpy as np
import pytest
import torch
from tests.circuits.planted import pairs_of, planted, random_pairs
from tests.models import families

from microtome.circuits import edge_pruning as method
from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_pairs import EdgePairs
from microtome.core.answers import EdgeScores, FoundCircuit
from microtome.core.errors import InputError
from microtome.core.result import Result
from microtome.testbeds.programs import testbed

QUICK = {"steps": 30, "rate": 0.4, "checked": 4, "split_positions": True}


@pytest.mark.truth
@pytest.mark.parametrize(
    "program", [pytest.param("reverse", marks=pytest.mark.training), "fraction_of_previous"]
)
def test_it_finds_a_programs_edges_and_no_other(program: str) -> None:
    case = testbed.build(program)
    assert case.truth.circuit is not None
    assert case.pairs is not None
    true = {edge.ends for edge in case.truth.circuit.edges} - case.truth.unshown
    found = method.run(case.model, case.pairs, method.Config(**QUICK))
    assert {edge.ends for edge in found.circuit().edges} == true
    assert all(edge.weight > 1 for edge in found.circuit().edges), "without any of them answers go wrong"
    assert found.data.attrs["left"] < 0.01 < found.data.attrs["empty"]
    circuit, scores = found.answers()
    assert isinstance(circuit, FoundCircuit)
    assert isinstance(scores, EdgeScores)
    assert min(scores.scores[ends] for ends in true) > max(
        score for ends, score in scores.scores.items() if ends not in true
    )


@pytest.mark.truth
@pytest.mark.training
def test_under_zero_what_it_keeps_suffices_and_none_of_it_can_be_spared() -> None:
    """Of the seven edges of `reverse` that are needed beside all others, six are enough: the seventh feeds a query
    whose head, cut off from what reads it, says nothing wrong. The noise of this seed shuts every gate on the way."""
    case = testbed.build("reverse")
    assert case.pairs is not None
    graph = EdgeGraph.of(case.model, split_positions=True)
    pairs = EdgePairs(case.model, graph, case.pairs, "logit-difference", "zero", rows=len(case.pairs))
    ((batch, ablation),) = pairs.batches()
    effects, _ = batch.effects([graph.place(ends) for ends in graph.edges()], ablation)
    needed = {
        ends for ends, moved in zip(graph.edges(), effects.abs().amax(dim=1) > 1e-2, strict=True) if moved
    }
    config = method.Config(kind="zero", split_positions=True, checked=0, seed=1)
    found = method.run(case.model, case.pairs, config)
    kept = {edge.ends for edge in found.circuit().edges}
    assert needed - kept == {("embed", "z.0.h0", "q")}
    assert kept < needed
    assert found.data.attrs["left"] <= config.most < min(edge.weight for edge in found.circuit().edges)
    right = batch.score((graph.allowed & ~graph.mask(kept)).float(), ablation)
    torch.testing.assert_close(right, batch.score(torch.zeros(graph.allowed.shape), ablation))


def test_a_node_grain_finds_the_planted_heads_and_tells_its_error(tmp_path: object) -> None:
    model, pairs = planted()
    config = method.Config(grain="nodes", steps=15, rate=0.6, checked=6, most=0.05)
    found = method.run(model, pairs, config)
    assert set(found.circuit().nodes) == {"z.0.h1", "z.1.h2"}
    (row,) = found.errors().rows
    assert row[0] == f"6 of {len(found.graph)}"
    assert all(isinstance(cell, float) and np.isnan(cell) for cell in row[3:5]), (
        "a chance is not an effect: it is compared by rank alone"
    )
    assert Result.load(found.save(str(tmp_path) + "/r")) == found
    short = method.Config(steps=2, checked=2, grain="nodes", most=1e9)
    assert method.run(model, pairs, short) == method.run(model, pairs, short)


@pytest.mark.parametrize(("name", "kind"), [("llama", "mean"), ("gemma2", "zero")])
def test_what_is_kept_does_as_it_says_on_any_family(name: str, kind: str) -> None:
    config = method.Config(steps=2, checked=0, kind=kind, grain="nodes", most=1e-3)
    found = method.run(families.model(name), random_pairs(2), config)
    assert found.data.attrs["left"] <= 1e-3 + 1e-6
    assert len(found.shapes()) == 4


def test_two_sides_that_do_the_same_are_refused() -> None:
    pairs = random_pairs()
    same = pairs_of(pairs.clean, pairs.clean, [3] * 4, [5] * 4)
    with pytest.raises(InputError, match="nothing to attribute"):
        method.run(families.model("gpt2"), same)
