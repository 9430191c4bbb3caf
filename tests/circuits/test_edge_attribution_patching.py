"""Estimates of edges against cutting them: identities, a planted path, errors told, and what is refused."""

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from tests.circuits.planted import pairs_of, planted, random_pairs
from tests.models import families

import microtome
from microtome.circuits import edge_attribution_patching as method
from microtome.circuits.edge_cut import AblationKind
from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_pairs import Direction, EdgePairs
from microtome.core.answers import EdgeScores, NodeScores
from microtome.core.errors import FamilyError, InputError
from microtome.core.result import Result
from microtome.evaluation.marks import auroc
from microtome.models.random_twin import random_twin
from microtome.testbeds.case import Case
from microtome.testbeds.programs import testbed as programs

PATH = [("embed", "z.0.h1", "v"), ("z.0.h1", "z.1.h2", "v"), ("z.1.h2", "logits", "logits")]


@pytest.mark.parametrize(
    ("integrate", "kind"),
    [
        ("no", "mean"),
        ("inputs", "resample"),
        ("activations", "resample"),
        ("layers", "mean"),
        ("edges", "mean"),
        ("ends", "resample"),
    ],
)
def test_a_planted_path_is_found_and_nothing_else(integrate: str, kind: str) -> None:
    model, pairs = planted()
    found = method.run(model, pairs, method.Config(integrate=integrate, kind=kind, checked=0, steps=2))
    circuit = found.circuit(3)
    assert {edge.ends for edge in circuit.edges} == set(PATH)
    assert all(edge.weight < 0 for edge in circuit.edges)
    effects = found.answers()[0]
    assert isinstance(effects, EdgeScores)
    rest = [abs(effect) for edge, effect in effects.scores.items() if edge not in PATH]
    assert max(rest) < 0.1 * min(abs(effects.scores[edge]) for edge in PATH)


def test_the_random_twin_has_no_such_path() -> None:
    model, pairs = planted()
    twin = method.run(random_twin(model), pairs, method.Config(checked=0))
    assert {edge.ends for edge in twin.circuit(3).edges} != set(PATH)


def test_on_a_linear_network_the_estimate_is_exact() -> None:
    """Attention patterns that see no difference, no norm, no MLP: every single cut is linear."""
    model, pairs = planted()
    found = method.run(model, pairs, method.Config(checked=60))
    exact, guess = found.data["sample_exact"].values, found.data["sample_estimated"].values
    at_values = [" v" in name or "logits" in name for name in found.data["sample_edge"].values.tolist()]
    assert sum(at_values) > 10
    np.testing.assert_allclose(guess[at_values], exact[at_values], atol=1e-4)


@pytest.mark.parametrize(("name", "direction"), [("gptj", "denoise"), ("gemma2", "noise")])
def test_gradients_on_the_way_add_up_to_the_whole(name: str, direction: Direction) -> None:
    """Points are added until the estimates lack at most a hundredth of what the metric moves along the path."""
    model, pairs = families.model(name), random_pairs(2)
    graph = EdgeGraph.of(model)
    ((batch, ablation),) = EdgePairs(model, graph, pairs, "logit-difference", "resample", direction).batches()
    way = [
        float(batch.score(graph.allowed.float() * share, ablation).mean())
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    moved = sum(abs(after - before) for before, after in pairwise(way))
    config = method.Config(integrate="edges", steps=41, checked=0, direction=direction)
    found = method.run(model, pairs, config)
    assert np.nansum(found.data["effect"].values) == pytest.approx(way[-1] - way[0], abs=0.01 * moved)


def test_along_its_own_activations_the_edges_of_a_source_add_up_to_replacing_it() -> None:
    """Integrated gradients are complete on a straight way; the midpoint rule's error falls with the steps' square."""
    model, pairs = microtome.load(families.make("gptj", n_layer=2, n_head=2)), random_pairs(1)
    graph = EdgeGraph.of(model)
    ((batch, ablation),) = EdgePairs(model, graph, pairs, "logit-difference").batches()
    intact = batch.score(torch.zeros(graph.allowed.shape), ablation)
    replaced = []
    for column in range(len(graph.sources)):
        cut = torch.zeros(graph.allowed.shape)
        cut[:, column] = graph.allowed[:, column].float()
        replaced.append(float((batch.score(cut, ablation) - intact).mean()))
    errors = []
    for steps in (2, 8):
        config = method.Config(integrate="activations", steps=steps, checked=0)
        sums = np.nansum(method.run(model, pairs, config).data["effect"].values, axis=0)
        errors.append(np.abs(sums - np.array(replaced)).max())
    assert errors[1] < max(errors[0] / 4, 1e-3 * np.abs(replaced).max())


def test_at_both_ends_is_the_mean_of_two_gradients_with_the_plain_differences() -> None:
    model, pairs = families.model("gpt2"), random_pairs(3)
    graph = EdgeGraph.of(model)
    there, here = (
        method.run(model, pairs, method.Config(checked=0, direction=direction)).data["effect"].values
        for direction in ("denoise", "noise")
    )
    found = method.run(model, pairs, method.Config(checked=0, integrate="ends")).data["effect"].values
    # Of the reverse direction the differences have the other sign.
    np.testing.assert_allclose(found[graph.allowed], ((here - there) / 2)[graph.allowed], atol=1e-6)


def test_the_published_average_over_layers_is_the_mean_of_gradients_with_one_place_put_on_its_way() -> None:
    """With one step each place stands at what is added here: plain gradients, but for what lies behind the place."""
    model, pairs = families.model("gpt2"), random_pairs(2)
    layers = method.run(model, pairs, method.Config(integrate="layers", steps=1, checked=0))
    plain = method.run(model, pairs, method.Config(checked=0))
    places = 1 + 2 * model.n_layers
    for (source, target, kind), score in layers.scores().items():
        if kind == "logits":  # every place stands before it, and no gradient is stopped on the way
            assert score == pytest.approx(plain.scores()[source, target, kind], abs=1e-6)
    at = ("embed", f"mlp_out.{model.n_layers - 1}", "mlp")
    # The last MLP's own output is put in once among all places, and nothing comes back through it then.
    assert layers.scores()[at] == pytest.approx(plain.scores()[at] * (places - 1) / places, abs=1e-6)


def test_the_edges_out_of_a_node_sum_to_the_node() -> None:
    found = method.run(families.model("llama"), random_pairs(), method.Config(checked=0))
    edges, nodes = found.answers()
    assert isinstance(edges, EdgeScores)
    assert isinstance(nodes, NodeScores)
    for node, score in nodes.scores.items():
        assert sum(effect for edge, effect in edges.scores.items() if edge[0] == node) == pytest.approx(score)


@pytest.mark.parametrize("integrate", ["no", "inputs", "edges"])
def test_batches_make_no_difference(integrate: str) -> None:
    model, pairs = families.model("gpt2"), random_pairs(5)
    one, two = (
        method.run(model, pairs, method.Config(rows=rows, integrate=integrate, kind=kind, checked=8))
        for rows, kind in ((5, "resample"), (2, "resample"))
    )
    for name in ("effect", "sample_exact"):
        np.testing.assert_allclose(one.data[name].values, two.data[name].values, atol=1e-5)
    graph = EdgeGraph.of(model)
    means = [
        next(EdgePairs(model, graph, pairs, "logit-difference", "mean", rows=rows).batches())[1].writes[:, :1]
        for rows in (5, 2)
    ]
    torch.testing.assert_close(*means, rtol=0, atol=1e-6)


def test_the_result_tells_its_error_and_comes_back_equal(tmp_path: object) -> None:
    found = method.run(families.model("gpt2"), random_pairs(), method.Config(checked=10, integrate="inputs"))
    (row,) = found.errors().rows
    assert row[0] == f"10 of {len(found.graph)}"
    assert Result.load(found.save(str(tmp_path) + "/r")) == found
    assert found.cost.passes > 0
    assert "with all cut" in found.shapes()[1].caption


def test_the_first_order_fails_where_a_metric_is_flat_and_integrating_helps() -> None:
    """The divergence from the clean run has no slope at the clean run: plain estimates say nothing at all."""
    model, pairs = families.model("gpt2"), random_pairs()
    plain = method.run(model, pairs, method.Config(metric="kl", checked=0)).data["effect"].values
    along = (
        method.run(model, pairs, method.Config(metric="kl", integrate="edges", checked=0))
        .data["effect"]
        .values
    )
    assert np.nanmax(np.abs(plain)) < 1e-4 < np.nanmax(np.abs(along))


def test_what_cannot_be_attributed_is_refused() -> None:
    pairs = random_pairs()
    same = pairs_of(pairs.clean, pairs.clean, [3] * 4, [5] * 4)
    with pytest.raises(InputError, match="nothing to attribute"):
        method.run(families.model("gpt2"), same)
    with pytest.raises(FamilyError):
        method.run(families.model("bert"), pairs)
    path_only = microtome.load(families.make("gpt2"), family=None)
    with pytest.raises(InputError, match="module paths"):
        method.run(path_only, pairs)


@cache
def needed(program: str, kind: AblationKind) -> tuple[Case, dict[tuple[str, str, str], bool]]:
    """Every edge of a program's network, and whether cutting it alone moves an answer."""
    case = programs.build(program)
    assert case.pairs is not None
    graph = EdgeGraph.of(case.model, split_positions=True)
    pairs = EdgePairs(case.model, graph, case.pairs, "logit-difference", kind, rows=len(case.pairs))
    ((batch, ablation),) = pairs.batches()
    effects, _ = batch.effects([graph.place(edge) for edge in graph.edges()], ablation)
    whole = batch.score(torch.zeros(graph.allowed.shape), ablation).abs().max()
    moved = (effects.abs() > 1e-3 * whole).any(dim=1).tolist()
    return case, dict(zip(graph.edges(), moved, strict=True))


def recovered(program: str, kind: AblationKind, twin: bool = False, **way: Any) -> float:
    """The chance that a needed edge is ranked above another."""
    case, truth = needed(program, kind)
    assert case.pairs is not None
    model = random_twin(case.model, how="drawn") if twin else case.model
    config = method.Config(split_positions=True, checked=0, kind=kind, rows=len(case.pairs), **way)
    scores = method.run(model, case.pairs, config).scores()
    sizes = np.abs([scores[edge] for edge in truth])
    return auroc(rankdata(sizes.round(9)), np.array(list(truth.values())))


MASKS: dict[str, Any] = {"integrate": "edges", "steps": 41, "rounds": 10}


@pytest.mark.truth
@pytest.mark.training
@pytest.mark.parametrize("kind", ["resample", "zero"])
@pytest.mark.parametrize("program", ["reverse", "fraction_of_previous", "histogram", "sort", "dyck_1"])
def test_along_masks_the_edges_that_a_program_needs_stand_above_the_others(
    program: str, kind: AblationKind
) -> None:
    along = recovered(program, kind, **MASKS)
    assert along >= 0.95
    assert recovered(program, kind, twin=True, **MASKS) < along
    if program in ("histogram", "sort", "dyck_1"):  # steps that are saturated on both sides
        assert recovered(program, kind) < 0.7


@pytest.mark.truth
def test_one_gradient_fails_on_saturated_steps_and_points_at_the_jump_do_not() -> None:
    assert recovered("histogram", "resample") < 0.7
    along = recovered("histogram", "resample", integrate="edges", steps=21)
    assert along >= 0.95
    assert recovered("histogram", "resample", twin=True, integrate="edges", steps=21) < along


def test_rounds_end_when_cutting_what_is_left_changes_nothing() -> None:
    model, pairs = planted()
    once, twice, often = (
        method.run(model, pairs, method.Config(integrate="edges", rounds=rounds, checked=0))
        for rounds in (1, 2, 9)
    )
    scores = once.scores()
    kept = {edge: scores[edge] for edge in PATH}
    assert {edge: often.scores()[edge] for edge in PATH} == kept, "what is set aside keeps its estimate"
    assert often.scores() == twice.scores()
    assert often.cost.passes == twice.cost.passes > once.cost.passes
    graph = once.graph
    ((batch, ablation),) = EdgePairs(model, graph, pairs, "logit-difference").batches()
    rest = batch.score((graph.allowed & ~graph.mask(PATH)).float(), ablation)
    whole = batch.score(torch.zeros(graph.allowed.shape), ablation)
    left = sum(score for edge, score in often.scores().items() if edge not in PATH)
    assert left == pytest.approx(float((rest - whole).mean()), abs=1e-2 * abs(kept[PATH[0]]))
