"""Edges cut with linear algebra alone: the circuits' numbers, and every edge that a key leaves out idle."""

import pytest
import torch

import microtome
from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_run import EdgeRun
from microtome.core.errors import InputError
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.transformer import Transformer, TransformerConfig
from microtome.testbeds.edge_ablation import candidate_edges, cut, unshown, writes
from microtome.testbeds.hand_set import wired_heads
from microtome.testbeds.programs import testbed as programs
from microtome.testbeds.training import seeded

SIZES = {"vocab_size": 9, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 4}


def network(**sizes: object) -> microtome.Model:
    with seeded(0):
        module = Transformer(TransformerConfig(**SIZES, **sizes, initializer_range=0.3))
    return microtome.load(module.eval())


def test_cutting_an_edge_is_what_the_circuits_say_it_is() -> None:
    model = network(intermediate_size=10, norm="none")
    generator = torch.Generator().manual_seed(0)
    clean, corrupt = torch.randint(9, (2, 5, 6), generator=generator)
    metric = metrics.build("logit-difference", _pairs(clean, corrupt))
    graph = EdgeGraph.of(model, split_positions=True)
    run = EdgeRun(model, graph, clean, metric)
    here, there = writes(model, clean), writes(model, corrupt)
    change = {name: there[name] - wrote for name, wrote in here.items()}
    edges = candidate_edges(model)
    assert set(edges) == set(graph.edges())
    exact, _ = run.effects([graph.place(ends) for ends in edges], run.ablation("resample", corrupt))
    whole = model.run(clean, metric=metric).metric
    assert whole is not None
    for ends, effect in zip(edges, exact, strict=True):
        mine = model.run(clean, edit=[cut(model, change, ends)], metric=metric).metric
        assert mine is not None
        assert torch.allclose(mine - whole, effect.to(mine), atol=1e-5), ends


def test_what_sources_write_adds_up_to_the_stream() -> None:
    model = network(intermediate_size=10, norm="none", bias=False)
    tokens = torch.arange(8).view(2, 4)
    stream = model.run(tokens, [microtome.Site("resid_post", 1)])[microtome.Site("resid_post", 1)]
    assert torch.allclose(torch.stack(list(writes(model, tokens).values())).sum(0), stream, atol=1e-5)


@pytest.mark.parametrize("name", ["reverse", "histogram", "sort"])
def test_no_edge_outside_a_program_matters_and_every_shown_one_does(name: str) -> None:
    case = programs.build(name)
    circuit, pairs = case.truth.circuit, case.pairs
    assert circuit is not None
    assert pairs is not None
    real = {edge.ends for edge in circuit.edges}
    here, there = writes(case.model, pairs.clean), writes(case.model, pairs.corrupt)
    change = {source: there[source] - wrote for source, wrote in here.items()}
    whole = case.model.run(pairs.clean, logits=True).logits
    assert whole is not None
    for ends in candidate_edges(case.model):
        logits = case.model.run(pairs.clean, edit=[cut(case.model, change, ends)], logits=True).logits
        assert logits is not None
        moved = float((logits - whole)[:, -1].detach().abs().max())
        assert (moved > 1e-2) == (ends in real and ends not in case.truth.unshown), (ends, moved)


def test_shown_edges_depend_on_the_pairs() -> None:
    case = wired_heads.build("hand_set/wired_heads", 0)
    circuit, pairs = case.truth.circuit, case.pairs
    assert circuit is not None
    assert pairs is not None
    assert case.truth.unshown == frozenset()
    everything = {edge.ends for edge in circuit.edges} | set(circuit.nodes)
    assert unshown(case.model, circuit, _pairs(pairs.clean, pairs.clean)) == everything


def test_norms_are_refused() -> None:
    with pytest.raises(InputError, match="without norms"):
        candidate_edges(network(norm="layer"))


def _pairs(clean: torch.Tensor, corrupt: torch.Tensor) -> Pairs:
    count = len(clean)
    return Pairs(
        clean=clean,
        corrupt=corrupt,
        mask=None,
        answers=((1,),) * count,
        wrong=((2,),) * count,
        slots=({},) * count,
        texts=("",) * count,
        corrupt_texts=("",) * count,
        token_strings={token: str(token) for token in range(12)},
    )
