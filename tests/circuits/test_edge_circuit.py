"""The circuit of edges that is found: a planted one exactly, on trained weights enough and needed, on a twin none."""

import numpy as np
import pytest
import torch
from tests.circuits.planted import pairs_of, planted, random_pairs
from tests.models import families

from microtome.circuits import edge_circuit
from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_knockout import EdgeKnockout
from microtome.circuits.edge_pairs import EdgePairs
from microtome.core.errors import FamilyError, InputError
from microtome.core.result import Result
from microtome.data import metrics
from microtome.testbeds.programs import testbed as programs


def test_the_planted_path_is_found_exactly() -> None:
    model, pairs = planted()
    found = edge_circuit.run(model, pairs)
    assert {edge.ends for edge in found.circuit.edges} == {
        ("embed", "z.0.h1", "v"),
        ("z.0.h1", "z.1.h2", "v"),
        ("z.1.h2", "logits", "logits"),
    }
    assert all(edge.weight == pytest.approx(1, abs=0.05) for edge in found.circuit.edges)


@pytest.mark.parametrize("name", ["reverse", "previous_token"])
def test_the_edges_of_compiled_programs_are_found(name: str) -> None:
    """Of a program's own edges all that any pair can show, and no other."""
    case = programs.build(name)
    assert case.pairs is not None
    assert case.truth.circuit is not None
    found = edge_circuit.run(case.model, case.pairs, edge_circuit.Config(split_positions=True, target=0.99))
    shown = {edge.ends for edge in case.truth.circuit.edges} - case.truth.unshown
    assert {edge.ends for edge in found.circuit.edges} == shown


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj"])
def test_what_is_found_keeps_the_target_on_paths_alone(name: str) -> None:
    model, pairs = families.model(name), random_pairs(2)
    found = edge_circuit.run(model, pairs)
    knockout = EdgeKnockout(EdgePairs(model, EdgeGraph.of(model), pairs, metrics.DEFAULT))
    kept = knockout.graph.mask(found.circuit)
    share = float(knockout.shares([kept])[0])
    assert share == pytest.approx(found.data.attrs["kept_share"], abs=1e-6)
    assert share >= 0.9
    assert torch.equal(knockout.graph.connected(kept), kept)
    assert len(found.circuit.edges) < len(knockout.graph)
    sizes = found.data["size"].values
    assert len(sizes) == len(np.unique(sizes))


def test_it_comes_back_equal(tmp_path: object) -> None:
    model, pairs = planted()
    found = edge_circuit.run(model, pairs)
    again = Result.load(found.save(str(tmp_path) + "/r"))
    assert again == found
    assert isinstance(again, edge_circuit.Result)
    assert again.circuit == found.circuit
    assert "3 of" in found.shapes()[0].caption


def test_bad_input() -> None:
    model, pairs = families.model("gpt2"), random_pairs()
    same = pairs_of(pairs.clean, pairs.clean, [3] * 4, [5] * 4)
    with pytest.raises(InputError, match="nothing to attribute"):
        edge_circuit.run(model, same)
    with pytest.raises(FamilyError):
        edge_circuit.run(families.model("opt_post_norm"), pairs)
