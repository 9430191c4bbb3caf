"""ACDC against a plain loop that runs the model anew for each edge, against brute force, and against answer keys."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import ClassVar

import numpy as np
import pytest
import torch
from tests.circuits.planted import pairs_of, planted, random_pairs
from tests.models import families
from torch import Tensor

import microtome
from microtome.circuits import acdc as method
from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_pairs import EdgePairs
from microtome.core.answers import EdgeScores, FoundCircuit
from microtome.core.errors import FamilyError, InputError
from microtome.core.logits import LogitSelection
from microtome.core.result import Result
from microtome.core.shapes import Curve, Graph, Table
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.models.random_twin import random_twin
from microtome.testbeds.hand_set import wired_heads
from microtome.testbeds.programs import testbed as programs

PATH = {("embed", "z.0.h1", "v"), ("z.0.h1", "z.1.h2", "v"), ("z.1.h2", "logits", "logits")}
CLOSE = 2e-6


SMALL = {
    "gpt2": {"n_layer": 2, "n_head": 2},
    "gptj": {"n_layer": 2, "n_head": 2},
    "llama": {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
    "gemma2": {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
}
SETTINGS = {
    "gpt2": method.Config(threshold=0.02),
    "llama": method.Config(threshold=0.3, kind="zero", direction="denoise", metric="logit-difference"),
    "gptj": method.Config(threshold=0.1, kind="mean", order="random", seed=4),
    "gemma2": method.Config(threshold=0.02, order="earliest", direction="denoise"),
}


@cache
def small(name: str) -> Model:
    return microtome.load(families.make(name, **SMALL[name]))


@cache
def on_planted(threshold: float) -> method.Result:
    return method.run(*planted(), method.Config(threshold=threshold))


def plainly(model: Model, pairs: Pairs, config: method.Config) -> Callable[[Tensor], float]:
    """The divergence with edges cut, from plain passes of all pairs at once, and KL by hand."""
    graph = EdgeGraph.of(model, config.split_positions)
    metric = "logit-difference" if config.metric == "kl" else config.metric
    every = EdgePairs(model, graph, pairs, metric, config.kind, config.direction, rows=64)
    ((batch, ablation),) = every.batches()
    if config.metric == "kl":
        batch = replace(batch, metric=Said())

    def said(cut: Tensor) -> Tensor:
        found = batch.score(cut, ablation)
        return Said.last if config.metric == "kl" else found

    uncut = said(torch.zeros(graph.allowed.shape))

    def divergence(cut: Tensor) -> float:
        now = said(cut)
        terms = uncut.exp() * (uncut - now) if config.metric == "kl" else (now - uncut).abs()
        return float(terms.double().sum() / len(pairs))

    return divergence


class Said:
    """Leaves the log-probabilities of the whole vocabulary behind."""

    name = "said"
    needs = LogitSelection((-1,))
    last: ClassVar[Tensor]

    def __call__(self, logits: Tensor) -> Tensor:
        Said.last = logits[:, -1].double().log_softmax(-1)
        return logits[:, -1, 0]

    def for_rows(self, rows: list[int]) -> "Said":
        return self


@pytest.mark.parametrize("name", list(SETTINGS))
def test_it_decides_as_a_plain_loop_over_every_edge_does(name: str) -> None:
    """The loop knows nothing of parts that nobody reads, and runs the whole model each time."""
    model, pairs, config = small(name), random_pairs(2), SETTINGS[name]
    data = method.run(model, pairs, config).data
    graph, divergence = EdgeGraph.of(model), plainly(model, pairs, config)
    outcome, rise, order = (data[key].values for key in ("outcome", "rise", "order"))
    assert {"kept", "cut"} <= set(outcome.ravel().tolist())
    assert ("unread" in outcome) == (name != "gemma2")
    assert np.abs(rise[order >= 0] - config.threshold).min() > CLOSE, (
        "too near the threshold to prove anything"
    )
    cut, now = torch.zeros(graph.allowed.shape), 0.0
    for row in reversed(range(len(graph.receivers))):
        columns = [column for column in range(len(graph.sources)) if graph.allowed[row, column]]
        for column in sorted(columns, key=lambda one: order[row, one]):
            cut[row, column] = 1
            then = divergence(cut)
            expected = rise[row, column] if order[row, column] >= 0 else 0.0
            assert then - now == pytest.approx(expected, abs=CLOSE)
            stays = then - now < config.threshold
            assert outcome[row, column] in (("cut", "unread", "unfed") if stays else ("kept", "unfed"))
            if stays:
                now = then
            else:
                cut[row, column] = 0
    assert data["divergence"].values[-1] == pytest.approx(now, abs=CLOSE)


@pytest.mark.parametrize(
    ("order", "expected"), [("latest", [2, 1, 0]), ("earliest", [0, 1, 2]), ("random", None)]
)
def test_sources_are_tried_in_the_order_asked_for(order: str, expected: list[int] | None) -> None:
    model, pairs = planted()
    found = method.run(model, pairs, method.Config(order=order, threshold=0))
    places = found.data["order"].values
    mine = places[-1, :3].argsort().tolist()
    assert sorted(places[places >= 0].tolist()) == list(range(len(found.graph)))
    if expected is not None:
        assert mine == expected
        return
    other = method.run(model, pairs, method.Config(order=order, threshold=0, seed=1)).data["order"].values
    assert (places != other).any()


@pytest.mark.parametrize(
    ("name", "kind", "untested"),
    [
        ("gpt2", "resample", {"unread"}),
        ("gptj", "resample", {"unfed"}),
        ("gptj", "mean", {"unread"}),
        ("llama", "zero", set()),
        ("gemma2", "zero", set()),
    ],
)
def test_the_circuit_alone_is_as_near_as_the_last_test_says(name: str, kind: str, untested: set[str]) -> None:
    """So what went without a test, unread or unfed, was not needed."""
    model, pairs = small(name), random_pairs(3)
    config = method.Config(kind=kind, threshold=0.1)
    found = method.run(model, pairs, config)
    cut = (found.graph.allowed & ~found.graph.mask(found.circuit())).float()
    assert found.data["divergence"].values[-1] == pytest.approx(plainly(model, pairs, config)(cut), abs=CLOSE)
    assert {"unread", "unfed"} & set(found.data["outcome"].values.ravel().tolist()) == untested


@pytest.mark.parametrize("kind", ["resample", "zero"])
@pytest.mark.parametrize("name", ["reverse", "histogram"])
def test_on_compiled_programs_it_finds_what_brute_force_finds_necessary(name: str, kind: str) -> None:
    case = programs.build(name)
    assert case.pairs is not None
    assert case.truth.circuit is not None
    graph = EdgeGraph.of(case.model, split_positions=True)
    ((batch, ablation),) = EdgePairs(case.model, graph, case.pairs, "kl", kind, rows=64).batches()
    edges = graph.edges()
    effects, _ = batch.effects([graph.place(edge) for edge in edges], ablation)
    alone = dict(zip(edges, effects.double().mean(dim=1).tolist(), strict=True))
    necessary = {edge for edge, effect in alone.items() if effect > 1e-3}
    assert max(effect for edge, effect in alone.items() if edge not in necessary) < 1e-4
    found = method.run(case.model, case.pairs, method.Config(kind=kind, threshold=1e-3, split_positions=True))
    kept = {edge.ends for edge in found.circuit().edges}
    # Without the positions in its query, the first head of `reverse` looks the same way whatever the embedding says.
    depends = {("embed", "z.0.h0", "q")} if (name, kind) == ("reverse", "zero") else set()
    assert necessary - kept == depends
    assert kept <= necessary
    assert found.data["divergence"].values[-1] < 1e-3


@pytest.mark.parametrize("kind", ["resample", "zero"])
def test_wires_are_found_exactly_and_not_with_random_weights(kind: str) -> None:
    case = wired_heads.build("hand_set/wired_heads", 0)
    assert case.pairs is not None
    config = method.Config(kind=kind, threshold=1e-3)
    circuit, scores = method.run(case.model, case.pairs, config).answers()
    true = {edge.ends for edge in case.truth.circuit.edges} if case.truth.circuit else set()
    assert isinstance(circuit, FoundCircuit)
    assert isinstance(scores, EdgeScores)
    assert {edge.ends for edge in circuit.circuit.edges} == true
    least = min(scores.scores[edge] for edge in true)
    assert max(score for edge, score in scores.scores.items() if edge not in true) < 1e-3 * least
    if kind == "resample":
        twin = method.run(case.control, case.pairs, config).circuit()
        assert len({edge.ends for edge in twin.edges} - true) > len(true)


@pytest.mark.parametrize("kind", ["resample", "mean"])
def test_a_planted_path_is_all_that_is_kept(kind: str) -> None:
    model, pairs = planted()
    found = method.run(model, pairs, method.Config(threshold=1e-3, kind=kind))
    assert {edge.ends for edge in found.circuit().edges} == PATH
    twin = method.run(random_twin(model), pairs, method.Config(threshold=1e-3, kind=kind))
    assert {edge.ends for edge in twin.circuit().edges} != PATH


def test_a_threshold_of_zero_keeps_what_matters_and_a_huge_one_nothing() -> None:
    everything, nothing = on_planted(0), on_planted(1e9)
    assert {edge.ends for edge in everything.circuit().edges} >= PATH
    assert (everything.data["rise"].values[everything.data["outcome"].values == "cut"] < 0).all()
    assert len(nothing.circuit()) == 0
    assert nothing.data["divergence"].values[-1] == pytest.approx(nothing.data.attrs["empty"])
    # Once the logits read nothing, nothing else is tested.
    assert nothing.data.sizes["test"] == len(nothing.graph.sources)
    assert (nothing.data["outcome"].values[:-1] != "cut").all()


@pytest.mark.parametrize("threshold", [0.0, 1e-3])
def test_looking_ahead_changes_no_decision(threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = on_planted(threshold)
    monkeypatch.setattr(method, "_MOST_AHEAD", 1)
    one_by_one = method.run(*planted(), method.Config(threshold=threshold))
    for name in ("outcome", "order"):
        np.testing.assert_array_equal(ahead.data[name].values, one_by_one.data[name].values)
    np.testing.assert_allclose(ahead.data["rise"].values, one_by_one.data["rise"].values, atol=1e-6)
    assert one_by_one.cost.passes <= ahead.cost.passes


def test_what_nothing_reads_takes_no_pass() -> None:
    few, many = on_planted(1e-3), on_planted(0)
    outcome, order = few.data["outcome"].values, few.data["order"].values
    unread = outcome == "unread"
    receivers = np.array([name.split()[0] for name in few.data["receiver"].values])
    assert unread[np.isin(receivers, ("z.1.h0", "z.1.h1", "z.1.h3"))].sum() == 3 * 3 * 5
    assert (order[unread] == -1).all()
    assert np.isnan(few.data["rise"].values[unread]).all()
    saved = int(unread.sum())
    assert many.data.sizes["test"] - few.data.sizes["test"] == saved
    assert few.cost.passes < many.cost.passes
    assert few.data["edges_cut"].values[-1] <= len(few.graph) - 3


def test_batches_make_no_difference() -> None:
    model, pairs = small("gpt2"), random_pairs(3)
    one, two = (
        method.run(model, pairs, method.Config(threshold=0.05, rows=rows, kind="mean")).data
        for rows in (3, 2)
    )
    assert (one["outcome"].values == two["outcome"].values).all()
    np.testing.assert_allclose(one["rise"].values, two["rise"].values, atol=1e-5)


def test_the_result_shows_itself_and_comes_back_equal(tmp_path: object) -> None:
    found = on_planted(1e-3)
    again = Result.load(found.save(str(tmp_path) + "/r"))
    assert again == found
    assert isinstance(again, method.Result)
    assert again.circuit() == found.circuit()
    drawn, table, curve = again.shapes()
    assert isinstance(drawn, Graph)
    assert len(drawn.arcs) == 3
    assert isinstance(table, Table)
    assert [row[4] for row in table.rows[:4]] == ["kept", "kept", "kept", "cut"]
    assert isinstance(curve, Curve)
    assert (np.diff(curve.x) >= 0).all()
    assert curve.y[0, 0] == 0
    for shape in (drawn, table, curve):
        assert "3 of 81 edges kept" in shape.caption


def test_what_cannot_be_cut_is_refused() -> None:
    pairs = random_pairs()
    same = pairs_of(pairs.clean, pairs.clean, [3] * 4, [5] * 4)
    with pytest.raises(InputError, match="nothing to attribute"):
        method.run(families.model("gpt2"), same)
    with pytest.raises(InputError, match="no metric is called"):
        method.run(families.model("gpt2"), pairs, method.Config(metric="beauty"))
    for family in ("bert", "t5", "opt_post_norm"):
        with pytest.raises(FamilyError):
            method.run(families.model(family), pairs)
    with pytest.raises(InputError, match="module paths"):
        method.run(microtome.load(families.make("gpt2"), family=None), pairs)
    for wrong in ({"threshold": -0.1}, {"threshold": float("nan")}, {"order": "alphabetical"}, {"rows": 0}):
        with pytest.raises(InputError, match="do not fit"):
            method.Config.read(wrong)
