"""Edges by position: the same edges taken apart, and a planted circuit shows itself only where it works."""

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from tests.circuits.planted import planted, random_pairs
from tests.models import families
from torch import Tensor

from microtome.circuits import edge_attribution_patching as method
from microtome.circuits.edge_graph import EdgeGraph, members
from microtome.circuits.edge_pairs import EdgePairs
from microtome.circuits.edge_run import EdgeRun
from microtome.core.answers import EdgeScores, NodeScores
from microtome.core.circuit import Circuit
from microtome.core.errors import InputError
from microtome.core.result import Result
from microtome.core.shapes import Table
from microtome.data import metrics
from microtome.models.model import Model
from microtome.models.random_twin import random_twin

FEW = ("gptj", "llama", "gemma2")
COLUMNS = families.COLUMNS
# Of six tokens the last but one is carried to the end: read as a value there, written one further, sent on from there.
PATH = {
    ("embed", "z.0.h1", "v@4"),
    ("z.0.h1", "z.1.h2", "v@5"),
    ("z.1.h2", "logits", "logits@5"),
}


def setting(model: Model, positions: int | None = COLUMNS) -> tuple[EdgeGraph, EdgeRun, Tensor]:
    pairs = random_pairs(2)
    graph = EdgeGraph.of(model, positions=positions)
    return graph, EdgeRun(model, graph, pairs.clean, metrics.build(None, pairs)), pairs.corrupt


def drawn(graph: EdgeGraph, share: float, seed: int = 0) -> Tensor:
    values = torch.rand(graph.allowed.shape, generator=torch.Generator().manual_seed(seed))
    return (values < share) & graph.allowed


@pytest.mark.parametrize("name", FEW)
def test_scores_by_position_add_up_to_those_without(name: str) -> None:
    model, pairs = families.model(name), random_pairs(2)
    apart, whole = (
        method.run(model, pairs, method.Config(per_position=per, checked=0)) for per in (True, False)
    )
    assert apart.data["effect"].dims == ("position", "receiver", "source")
    expected = whole.data["effect"].values
    scale = np.nanmax(np.abs(apart.data["effect"].values))
    np.testing.assert_allclose(apart.data["effect"].values.sum(axis=0), expected, atol=1e-5 * scale)
    for one, other in zip(apart.answers(), whole.answers(), strict=True):
        assert isinstance(one, EdgeScores | NodeScores)
        assert isinstance(other, type(one))
        assert dict(one.scores) == pytest.approx(dict(other.scores), abs=1e-4 * scale)


@pytest.mark.parametrize("name", FEW)
def test_an_edge_cut_at_all_positions_is_cut(name: str) -> None:
    model = families.model(name)
    graph, batch, corrupt = setting(model)
    plain, whole, _ = setting(model, None)
    ablation = batch.ablation("resample", corrupt)
    cut = drawn(plain, 0.5).float()
    found = batch.score(cut.expand(COLUMNS, -1, -1), ablation)
    torch.testing.assert_close(found, whole.score(cut, ablation), rtol=0, atol=1e-5)
    every, none = graph.allowed.float(), torch.zeros(graph.allowed.shape)
    for cut, tokens in ((every, corrupt), (none, batch.tokens)):
        expected = model.run(tokens, metric=batch.metric).metric
        assert expected is not None
        assert torch.equal(batch.score(cut, ablation), expected)


@pytest.mark.parametrize("name", FEW)
def test_single_edges_by_sweep_are_those_of_whole_passes(name: str) -> None:
    graph, batch, corrupt = setting(families.model(name))
    ablation = batch.ablation("resample", corrupt)
    places = [tuple(place) for place in drawn(graph, 0.003).nonzero().tolist()][:8]
    places.append((COLUMNS - 1, len(graph.receivers) - 1, 0))
    found, _ = batch.effects(places, ablation)
    base = batch.score(torch.zeros(graph.allowed.shape), ablation)
    for place, effect in zip(places, found, strict=True):
        cut = torch.zeros(graph.allowed.shape)
        cut[place] = 1
        torch.testing.assert_close(effect, batch.score(cut, ablation) - base, rtol=0, atol=1e-5)


def test_the_gradient_is_what_a_small_cut_does() -> None:
    graph, batch, corrupt = setting(families.model("gpt2"))
    ablation = batch.ablation("resample", corrupt)
    start = 0.5 * drawn(graph, 0.5).float()
    direction = drawn(graph, 0.5, seed=1).float()
    _, gradient = batch.gradient(ablation, cut=start)
    step = 4e-3
    up, down = (batch.score(start + sign * step * direction, ablation) for sign in (1, -1))
    expected = float((up - down).double().sum() / (2 * step))
    scale = float((gradient * direction).abs().sum())
    assert float((gradient * direction).sum()) == pytest.approx(expected, abs=1e-2 * scale)


@pytest.mark.parametrize("integrate", ["no", "layers", "edges"])
def test_a_planted_circuit_shows_only_where_it_works(integrate: str) -> None:
    model, pairs = planted()
    config = method.Config(per_position=True, integrate=integrate, checked=0, steps=1)
    found = method.run(model, pairs.rows([0, 1]), config)
    assert {edge.ends for edge in found.circuit(3).edges} == PATH
    scores = found.scores()
    rest = [abs(score) for edge, score in scores.items() if edge not in PATH]
    assert max(rest) < 0.1 * min(abs(scores[edge]) for edge in PATH)


def test_the_random_twin_has_no_such_circuit_and_the_result_comes_back_equal(tmp_path: object) -> None:
    model, pairs = planted()
    twin = method.run(random_twin(model), pairs, method.Config(per_position=True, checked=6))
    assert {edge.ends for edge in twin.circuit(3).edges} != PATH
    assert Result.load(twin.save(str(tmp_path) + "/r")) == twin
    table = twin.shapes()[1]
    assert isinstance(table, Table)
    assert all("@" in str(row[2]) for row in table.rows)


def test_a_circuit_kept_at_its_positions_is_the_behaviour() -> None:
    model, pairs = planted()
    graph = EdgeGraph.of(model, positions=pairs.clean.shape[1])
    edges = EdgePairs(model, graph, pairs, "logit-difference")
    kept = graph.mask(PATH)
    elsewhere = graph.mask([(s, t, f"{k.partition('@')[0]}@{p}") for s, t, k in PATH for p in range(4)])
    whole, small, wrong, empty = (
        float(edges.scores((graph.allowed & ~one).float()).mean())
        for one in (graph.allowed, kept, elsewhere, torch.zeros_like(kept))
    )
    assert small == pytest.approx(whole, abs=0.1 * (whole - empty))
    assert wrong == pytest.approx(empty, abs=0.1 * (whole - empty))


@pytest.mark.parametrize(("name", "share"), [("gptj", 0.02), ("llama", 0.1)])
def test_paths_are_those_of_the_graph_written_out(name: str, share: float) -> None:
    graph = EdgeGraph.of(families.model(name), positions=3)
    kept = drawn(graph, share, seed=5)
    written = nx.DiGraph([("start", ("embed", p)) for p in range(3)])
    arcs = {}
    for place in kept.nonzero().tolist():
        p = place[0]
        source, target, kind = graph.edge(place)
        arc = (source, p), (target, kind, p)
        written.add_edge(*arc)
        arcs[tuple(place)] = arc
        for one in members(target):
            last = 3 if kind[0] in "kv" else p + 1
            written.add_edges_from((arc[1], (one, later)) for later in range(p, last))
    written.add_edges_from((node, "end") for node in [*written] if node[0] == "logits")
    if "end" not in written:
        assert not graph.connected(kept).any()
        return
    live = nx.descendants(written, "start") & nx.ancestors(written, "end")
    found = {tuple(place) for place in graph.connected(kept).nonzero().tolist()}
    assert found == {place for place, arc in arcs.items() if {*arc} <= live}


def test_circuits_and_matrices_are_the_same_thing() -> None:
    graph = EdgeGraph.of(families.model("llama"), positions=4)
    kept = drawn(graph, 0.1)
    circuit = graph.circuit(kept)
    assert torch.equal(graph.mask(circuit), kept)
    assert Circuit.from_json(circuit.to_json()) == circuit
    assert len(graph.edges()) == len(graph) == 4 * len(EdgeGraph.of(families.model("llama")))
    everywhere = graph.mask([("embed", "logits", "logits")])
    assert torch.equal(everywhere, graph.mask([("embed", "logits", f"logits@{p}") for p in range(4)]))


def test_what_is_at_no_position_is_refused() -> None:
    model, pairs = families.model("gpt2"), random_pairs()
    graph = EdgeGraph.of(model, positions=4)
    for kind in ("logits@4", "logits@-1", "logits@x", "logits@"):
        with pytest.raises(InputError, match="they are 0 … 3"):
            graph.mask([("embed", "logits", kind)])
    with pytest.raises(InputError, match="leave the @ out"):
        EdgeGraph.of(model).mask([("embed", "logits", "logits@1")])
    with pytest.raises(InputError, match="prompts of one length"):
        EdgePairs(model, graph, pairs, "logit-difference")
    mask = torch.ones_like(pairs.clean)
    mask[0, 0] = 0
    uneven = replace(pairs, mask=mask)
    with pytest.raises(InputError, match="prompts of one length"):
        method.run(model, uneven, method.Config(per_position=True))
