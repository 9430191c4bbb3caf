"""Areas of recovery: by hand, against brute force, and apart where conventions differ."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import families

from microtome.circuits import edge_attribution_patching
from microtome.circuits.edge_graph import EdgeGraph
from microtome.core.answers import EdgeScores, NodeScores
from microtome.core.circuit import Circuit, Edge
from microtome.core.errors import InputError
from microtome.evaluation.circuit_recovery import grown, recovery
from microtome.testbeds.programs import testbed as programs

Ends = tuple[str, str, str]
PATH: tuple[Ends, ...] = (
    ("embed", "z.0.h1", "v"),
    ("z.0.h1", "mlp_out.1", "mlp"),
    ("mlp_out.1", "logits", "logits"),
)


def circuit(*edges: Ends) -> Circuit:
    return Circuit.of(sorted({end for edge in edges for end in edge[:2]}), [Edge(*edge) for edge in edges])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_the_exact_area_is_the_share_of_pairs_in_order(seed: int, levels: int) -> None:
    graph = EdgeGraph.of(families.model("gpt2"))
    drawn = torch.Generator().manual_seed(seed)
    edges = graph.edges()
    values = torch.randint(-levels, levels, (len(edges),), generator=drawn).tolist()
    found = recovery(graph, EdgeScores(dict(zip(edges, map(float, values), strict=True))), circuit(*PATH))
    size = {edge: abs(value) for edge, value in zip(edges, values, strict=True)}
    pairs = [
        (size[a] > size[b]) + 0.5 * (size[a] == size[b])
        for a, b in itertools.product(PATH, edges)
        if b not in PATH
    ]
    assert found.auroc == pytest.approx(float(np.mean(pairs)))
    assert found.recall[-1] == 1
    assert found.precision[-1] == pytest.approx(3 / len(edges))
    assert (np.diff(found.recall) >= 0).all()


def test_perfect_scores_are_perfect_and_ten_points_are_another_number() -> None:
    graph = EdgeGraph.of(families.model("gpt2"))
    perfect = recovery(graph, EdgeScores(dict.fromkeys(PATH, -1.0)), circuit(*PATH))
    assert perfect.auroc == perfect.average_precision == 1
    assert perfect.unscored == len(graph) - 3
    # Between its points of two and of more than three edges the line cuts a corner off.
    n = len(graph)
    assert (int(0.01 * n), int(0.02 * n)) == (2, 5)
    assert perfect.auroc_ten_points == pytest.approx(1 - (5 - 3) / (n - 3) * (1 - 2 / 3) / 2)
    one_wrong = dict.fromkeys(PATH, 1.0) | {("embed", "logits", "logits"): 2.0}
    found = recovery(graph, EdgeScores(one_wrong), circuit(*PATH))
    assert found.auroc == pytest.approx(1 - 1 / (len(graph) - 3))
    assert found.auroc_ten_points < 1
    assert found.auroc != found.auroc_ten_points


def test_a_true_edge_without_a_score_is_missed_and_never_found() -> None:
    graph = EdgeGraph.of(families.model("gpt2"))
    scores = EdgeScores(dict.fromkeys(PATH[:2], 1.0))
    found = recovery(graph, scores, circuit(*PATH))
    assert found.recall[1] == pytest.approx(2 / 3)
    assert found.auroc < 1


def test_a_grown_circuit_always_reaches_the_logits() -> None:
    graph = EdgeGraph.of(families.model("llama"))
    values = torch.randn(graph.allowed.shape, generator=torch.Generator().manual_seed(0))
    for edges in (1, 5, 40):
        kept = grown(graph, values, edges)
        assert int(kept.sum()) == edges
        for row, _ in kept.nonzero().tolist():
            fed = [column for column, rows in enumerate(graph.feeds) if row in rows]
            assert row == len(graph.receivers) - 1 or bool(kept[:, fed].any())
    assert torch.equal(grown(graph, values, len(graph)), graph.allowed)


def test_compiled_programs_are_recovered_at_both_grains() -> None:
    case = programs.build("previous_token")
    assert case.pairs is not None
    assert case.truth.circuit is not None
    config = edge_attribution_patching.Config(split_positions=True, checked=0, integrate="edges")
    answers = edge_attribution_patching.run(case.model, case.pairs, config).answers()
    graph = EdgeGraph.of(case.model, split_positions=True)
    for answer in answers:
        assert isinstance(answer, EdgeScores | NodeScores)
        found = recovery(graph, answer, case.truth.circuit, case.truth.unshown)
        assert found.auroc > 0.95
        assert "true of" in found.shapes()[0].caption


def test_bad_input() -> None:
    graph = EdgeGraph.of(families.model("gpt2"))
    with pytest.raises(InputError, match="no edge of this network"):
        recovery(graph, EdgeScores({PATH[0]: 1.0}), circuit(("z.9.h0", "logits", "logits")))
    with pytest.raises(InputError, match="no edge of this network"):
        recovery(graph, EdgeScores({("z.9.h0", "logits", "logits"): 1.0}), circuit(*PATH))
    with pytest.raises(InputError, match=r"z\.9\.h0 is no node"):
        recovery(graph, NodeScores({"z.9.h0": 1.0}), circuit(*PATH))
    with pytest.raises(InputError, match="nothing to tell apart"):
        recovery(graph, EdgeScores({PATH[0]: 1.0}), circuit(*graph.edges()))
