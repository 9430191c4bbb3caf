"""Circuits are sets with weights: their algebra, comparison, JSON and drawing."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microtome.core.circuit import Circuit, Edge
from microtome.core.errors import InputError, StoreError
from microtome.core.site import Site

NAMES = ["embed", "z.0.h0", "z.0.h1", "mlp_out.0", "z.1.h0", "mlp_out.1", "logits"]
WEIGHTS = st.floats(-3, 3, allow_nan=False)


@st.composite
def circuits(draw: st.DrawFn) -> Circuit:
    nodes = draw(st.dictionaries(st.sampled_from(NAMES), WEIGHTS))
    ends = st.tuples(
        st.sampled_from(sorted(nodes)), st.sampled_from(sorted(nodes)), st.sampled_from(["", "q", "v"])
    )
    chosen = draw(st.sets(ends, max_size=6)) if nodes else set()
    return Circuit.of(nodes, [Edge(*end, draw(WEIGHTS)) for end in sorted(chosen)])


@given(circuits())
def test_json_reads_back_equal(circuit: Circuit) -> None:
    assert Circuit.from_json(circuit.to_json()) == circuit


@given(circuits(), circuits())
def test_set_laws(a: Circuit, b: Circuit) -> None:
    nodes_a, nodes_b = set(a.nodes), set(b.nodes)
    assert set((a & b).nodes) == nodes_a & nodes_b
    assert set((a | b).nodes) == nodes_a | nodes_b
    assert set((a - b).nodes) == nodes_a - nodes_b
    assert a & a == a | a == a
    assert len(a - a) == 0
    assert a & b <= a <= a | b
    assert b <= a | b
    assert all(edge in a.edges for edge in (a & b).edges)
    assert (a <= b and b <= a) == ((a.nodes, a._ends) == (b.nodes, b._ends))


@given(circuits(), circuits())
def test_comparison(a: Circuit, b: Circuit) -> None:
    found, other = a.compare(b), b.compare(a)
    both = (found.node_precision, other.node_recall), (found.edge_recall, other.edge_precision)
    assert all(x == y or (math.isnan(x) and math.isnan(y)) for x, y in both)
    own = a.compare(a)
    assert all(x == 1 or math.isnan(x) for x in (own.node_precision, own.node_recall, own.edge_precision))


def test_comparison_worked() -> None:
    truth = Circuit.of(["a", "b", "c", "d"], [Edge("a", "b"), Edge("b", "c"), Edge("c", "d")])
    found = Circuit.of(
        ["a", "b", "x"], [Edge("a", "b", weight=-5), Edge("b", "x"), Edge("a", "x"), Edge("x", "b")]
    )
    overlap = found.compare(truth)
    assert (overlap.node_precision, overlap.node_recall) == (2 / 3, 1 / 2)
    assert (overlap.edge_precision, overlap.edge_recall) == (1 / 4, 1 / 3)
    assert math.isnan(Circuit.of([]).compare(truth).node_precision)
    assert Circuit.of([]).compare(truth).node_recall == 0


def test_order_does_not_matter() -> None:
    edges = [Edge("a", "b"), Edge("a", "c", "q", -1.0)]
    assert Circuit.of({"a": 1, "b": 2, "c": 3}, edges) == Circuit.of({"c": 3, "b": 2, "a": 1}, edges[::-1])
    assert hash(Circuit.of(["a", "b"])) == hash(Circuit.of(["b", "a"]))


def test_sites_and_their_strings_are_the_same_node() -> None:
    site = Site.parse("z.1.h0")
    circuit = Circuit.of({site: 0.5})
    assert circuit == Circuit.of({"z.1.h0": 0.5})
    assert site in circuit
    assert circuit.weight(site) == 0.5
    with pytest.raises(InputError, match=r"mlp_out\.0 is not in the circuit"):
        circuit.weight("mlp_out.0")


def test_the_strongest_are_chosen_by_size_not_sign() -> None:
    circuit = Circuit.of({"a": 0.1, "b": -3.0, "c": 1.0}, [Edge("b", "c"), Edge("a", "c")])
    assert circuit.strongest(2) == Circuit.of({"b": -3.0, "c": 1.0}, [Edge("b", "c")])
    assert circuit.strongest(9) == circuit


@pytest.mark.parametrize(
    ("nodes", "edges", "told"),
    [
        (["a", "a"], [], "twice"),
        (["a"], [Edge("a", "b")], "'b', which is no node"),
        (["a", "b"], [Edge("a", "b"), Edge("a", "b", weight=2)], "twice"),
        ({"a": math.nan}, [], "finite"),
        (["a", "b"], [Edge("a", "b", "", math.inf)], "finite"),
    ],
)
def test_what_is_no_circuit_is_refused(nodes: list[str], edges: list[Edge], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Circuit.of(nodes, edges)
    with pytest.raises(InputError, match="one weight a node"):
        Circuit(("a", "b"), (1.0,))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": "else"}',
        '{"format": "microtome.circuit/1", "nodes": {"a": "x"}, "edges": []}',
    ],
)
def test_what_is_no_circuits_json_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    path.write_text(text)
    for source in (text, path):
        with pytest.raises(StoreError, match=r"circuit"):
            Circuit.from_json(source)
    with pytest.raises(StoreError, match="no circuit"):
        Circuit.from_json(tmp_path / "gone.json")


def test_drawn_in_the_order_of_the_forward_pass() -> None:
    circuit = Circuit.of(dict.fromkeys(NAMES, -0.5), [Edge("z.0.h0", "z.1.h0", "q", -2.0)])
    graph = circuit.shape("found", "logits")
    layers = {node.id: node.layer for node in graph.nodes}
    assert sorted(layers, key=lambda name: (layers[name], NAMES.index(name))) == NAMES
    assert layers["z.0.h0"] == layers["z.0.h1"] < layers["mlp_out.0"]
    assert (graph.arcs[0].source, graph.arcs[0].kind, graph.arcs[0].weight) == ("z.0.h0", "q", -2.0)
    assert {node.weight for node in graph.nodes} == {-0.5}


def test_drawn_by_longest_path_where_nodes_are_no_sites() -> None:
    edges = [Edge("feature 3", "feature 9"), Edge("feature 9", "out"), Edge("feature 3", "out")]
    graph = Circuit.of(["feature 3", "feature 9", "out", "alone"], edges).shape()
    assert {n.id: n.layer for n in graph.nodes} == {"feature 3": 0, "feature 9": 1, "out": 2, "alone": 0}
    loop = Circuit.of(["a!", "b!", "c!"], [Edge("a!", "b!"), Edge("b!", "a!"), Edge("b!", "c!")]).shape()
    assert {n.id: n.layer for n in loop.nodes} == {"a!": 0, "b!": 0, "c!": 1}
