"""Scores against answer keys: the same as a library's, what luck gives, and what is left out where nothing is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

import microtome
from microtome.core.answers import (
    Answer,
    Directions,
    EdgeScores,
    FoundCircuit,
    NodeScores,
    Quantities,
    RuleScores,
    UnitValues,
)
from microtome.core.circuit import Circuit, Edge
from microtome.core.site import Site
from microtome.evaluation import marks as module
from microtome.evaluation.marks import Mark, auroc, average_precision, closeness, f1, marks
from microtome.models.transformer import Transformer, TransformerConfig
from microtome.testbeds.case import Truth, Variable
from microtome.testbeds.training import seeded


@pytest.fixture(scope="module")
def model() -> microtome.Model:
    sizes = {"vocab_size": 7, "hidden_size": 8, "num_attention_heads": 4, "head_dim": 2}
    with seeded(0):
        return microtome.load(Transformer(TransformerConfig(**sizes, num_hidden_layers=2)).eval())


HEADS = tuple(f"z.{n}.h{h}" for n in range(2) for h in range(4))
CIRCUIT = Circuit.of(
    ["embed", "z.0.h1", "z.1.h2", "logits"],
    [Edge("embed", "z.0.h1", "v"), Edge("z.0.h1", "z.1.h2", "k"), Edge("z.1.h2", "logits", "logits")],
)


def named(found: tuple[Mark, ...]) -> dict[str, Mark]:
    return {mark.score: mark for mark in found}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=25))
def test_ranking_scores_are_the_librarys(items: list[tuple[int, bool]]) -> None:
    size = np.array([one for one, _ in items], dtype=np.float64)
    hits = np.array([hit for _, hit in items])
    if hits.all() or not hits.any():
        return
    assert auroc(rankdata(size), hits) == pytest.approx(roc_auc_score(hits, size))
    mine = average_precision(rankdata(-size, method="max").astype(float), hits)
    assert mine == pytest.approx(average_precision_score(hits, size))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_f1_is_the_librarys(items: list[tuple[bool, bool]]) -> None:
    picked, hits = (np.array(side) for side in zip(*items, strict=True))
    if picked.any() or hits.any():
        assert f1(picked, hits) == pytest.approx(f1_score(hits, picked))


def test_nodes_and_edges_rank_by_size_whatever_the_sign(model: microtome.Model) -> None:
    scores = {head: -5.0 if head in CIRCUIT.nodes else 0.1 for head in HEADS} | {"embed": 9.0}
    found = named(marks((NodeScores(scores),), Truth(circuit=CIRCUIT), model))
    assert found["nodes, AUROC"].value == found["nodes, average precision"].value == 1.0
    assert found["nodes, AUROC"].of == "2 true of 8"  # embed is no head or MLP, so it is not asked for
    assert found["nodes, average precision"].held_out
    assert abs(found["nodes, AUROC"].chance - 0.5) < 0.05
    edges = {edge.ends: 1.0 for edge in CIRCUIT.edges[:2]} | {("embed", "z.0.h0", "q"): 1.0}
    mark = named(marks((EdgeScores(edges),), Truth(circuit=CIRCUIT), model))["edges, AUROC"]
    assert mark.value == 0.5
    assert mark.of == "2 true of 3, 1 true ones not scored"


def test_what_pairs_cannot_show_is_neither_right_nor_wrong(model: microtome.Model) -> None:
    truth = Truth(circuit=CIRCUIT, unshown=frozenset({"z.0.h1", ("z.0.h1", "z.1.h2", "k")}))
    nodes = NodeScores({head: float(head == "z.1.h2") for head in HEADS})
    assert named(marks((nodes,), truth, model))["nodes, AUROC"].of == "1 true of 7"
    found = FoundCircuit(Circuit.of(["z.1.h2", "z.0.h1"], []))
    assert named(marks((found,), truth, model))["circuit nodes, F1"].value == 1.0


def test_a_circuit_is_marked_by_nodes_and_by_edges(model: microtome.Model) -> None:
    wrong = Circuit.of(
        ["embed", "z.0.h0", "z.1.h2"], [Edge("embed", "z.0.h0", "v"), Edge("embed", "z.1.h2", "v")]
    )
    found = named(marks((FoundCircuit(wrong),), Truth(circuit=CIRCUIT), model))
    assert found["circuit nodes, F1"].value == pytest.approx(0.5)
    assert found["circuit edges, F1"].value == 0.0
    right = named(marks((FoundCircuit(CIRCUIT),), Truth(circuit=CIRCUIT), model))
    assert right["circuit nodes, F1"].value == right["circuit edges, F1"].value == 1.0
    assert right["circuit edges, F1"].limit < 0.5


def test_roles_are_asked_of_heads(model: microtome.Model) -> None:
    truth = Truth(roles={"previous_token": ("z.0.h1",)})
    answers = (NodeScores({head: float(head == "z.0.h1") for head in HEADS}, "previous_token"),
               NodeScores(dict.fromkeys(HEADS, 1.0), "induction"))  # fmt: skip
    found = named(marks(answers, truth, model))
    assert set(found) == {"previous-token heads, AUROC", "previous-token heads, average precision"}
    assert found["previous-token heads, AUROC"].limit == 1.0  # one of eight is found by luck too often


def test_rules_are_the_strongest_or_not(model: microtome.Model) -> None:
    truth = Truth(rules={"bigram": frozenset({(0, 1), (2, 3), (4, 5)})})
    scores = {(0, 1): 5.0, (6, 6): 4.0, (2, 3): 3.0, (1, 1): 0.1}
    found = named(marks((RuleScores("bigram", scores),), truth, model))
    strongest, precision = (
        found["bigram rules, among the strongest"],
        found["bigram rules, average precision"],
    )
    assert strongest.value == pytest.approx(2 / 3)
    assert strongest.of == "2 of 3 true ones listed, 4 in all"
    assert precision.value == pytest.approx((1 + 2 / 3) / 3)
    assert precision.held_out
    assert strongest.chance == pytest.approx(3 / 49, abs=0.03)
    assert not marks((RuleScores("ngram", {(0, 1, 2): 1.0}),), truth, model)
    assert (
        named(marks((RuleScores("bigram", {}),), truth, model))["bigram rules, among the strongest"].value
        == 0
    )


def test_directions_beside_random_ones(model: microtome.Model) -> None:
    site = Site("resid_post", 0)
    true = torch.eye(8)[:3]
    truth = Truth(variables=(Variable("a", site, true, ("x", "y", "z")),), features={str(site): true})
    both = (Directions(site, -2 * true.numpy()),)
    found = named(marks(both, truth, model))
    assert found["variables, cosine"].value == found["features, recovered"].value == pytest.approx(1.0)
    assert 0.2 < found["features, cosine"].chance < 0.7
    only = named(marks((Directions(site, true.numpy(), variable="a"),), truth, model))
    assert "features, cosine" not in only
    assert set(only) == {"variables, span", "variables, recovered"}
    # Three values are told apart in two dimensions, in whatever directions these are written.
    turned = np.linalg.qr(np.random.default_rng(0).standard_normal((2, 2)))[0] @ np.linalg.svd(
        true.numpy() - true.numpy().mean(0)
    )[2][:2].astype(np.float64)
    whole = named(marks((Directions(site, turned, variable="a"),), truth, model))["variables, span"]
    half = named(marks((Directions(site, turned[:1], variable="a"),), truth, model))["variables, span"]
    assert whole.value == pytest.approx(1.0)
    assert half.value < 0.9
    assert not marks((Directions(Site("resid_pre", 0), true.numpy()),), truth, model)
    # Found in many alike streams, a guess is no better known than in one.
    sites = [Site("resid_post", layer) for layer in range(8)]
    alike = Truth(features={str(one): true for one in sites})
    once = marks((Directions(site, turned),), alike, model)
    often = marks(tuple(Directions(one, turned) for one in sites), alike, model)
    assert [one.limit for one in often] == pytest.approx([one.limit for one in once])
    assert not marks((Directions(site, true.numpy(), variable="b"),), truth, model)


def test_latents_are_told_by_single_units(model: microtome.Model) -> None:
    source = np.random.default_rng(0)
    rare, often = (source.random((80, 5)) < share for share in (0.1, 0.9))
    last = source.integers(0, 2, 80)
    codes = source.standard_normal((80, 5, 12)).astype(np.float32)
    codes[::2, 4] = np.nan  # every second row is shorter
    units = [rare, ~often, np.zeros((80, 5))]
    ends = np.where(np.arange(80) % 2, 4, 3)
    units[2][np.arange(80), ends] = last
    known = {"rare": rare, "often": often, "last": last}
    truth = Truth(labels={name: torch.from_numpy(label.astype(np.int64)) for name, label in known.items()})

    def asked(values: np.ndarray, truth: Truth = truth) -> dict[str, Mark]:
        return named(marks((UnitValues(Site("resid_post", 0), values),), truth, model))

    guess = asked(codes)["latents, F1 of the best unit"]
    assert guess.value < guess.limit
    assert guess.of == "3 latents, 360 rows, 12 units"
    told = codes.copy()
    for unit, value in enumerate(units):
        told[..., unit] = np.where(np.isnan(codes[..., unit]), np.nan, value)
    found = asked(told)
    one, eight = found["latents, F1 of the best unit"], found["latents, F1 of the best eight"]
    assert one.value == 1.0
    assert eight.held_out
    told[np.arange(80), ends, 2] = 0.0  # what is true of a row as a whole is asked of its last position
    assert guess.limit < asked(told)["latents, F1 of the best unit"].value < 1.0
    # What is nearly always true, whoever always says yes is nearly always right about.
    always = Truth(labels={"often": truth.labels["often"]})
    there = often[~np.isnan(codes[..., 0])].mean()
    assert asked(codes, always)["latents, F1 of the best unit"].chance >= 2 * there / (1 + there) - 0.05
    # Where directions are known, they are asked for.
    assert not asked(told, Truth(labels=truth.labels, features={"resid_pre.0": torch.eye(8)}))
    # Too rare to be scored, of other rows, or nothing known at all.
    seldom = torch.zeros(80, 5, dtype=torch.long)
    seldom[0, 0] = 1
    for label in (seldom, truth.labels["rare"][:30]):
        assert not asked(told, Truth(labels={"it": label}))
    assert not asked(told, Truth())


def test_quantities(model: microtome.Model) -> None:
    truth = Truth(quantities={"direct.a": 1.0, "direct.b": -2.0, "direct.c": 3.0, "share.a": 0.5})
    exact = Quantities(
        {"direct.a": 1.00001, "direct.b": -2.0, "direct.c": 2.9},
        frozenset({"direct.a", "direct.b", "direct.c"}),
    )
    rough = Quantities({"share.a": 0.4, "share.b": 1.0})
    found = named(marks((exact, rough), truth, model))
    assert found["quantities, equal"].value == pytest.approx(2 / 3)
    assert found["quantities, closeness"].value == pytest.approx(0.8)
    assert found["quantities, within 1 %"].value == 0.0
    assert found["quantities, equal"].of == "3 of 4 quantities"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6))
def test_closeness(values: list[float]) -> None:
    real = np.array(values)
    assert closeness(real, real) == 1.0
    if np.linalg.norm(real) > 0:
        assert closeness(np.zeros(len(real)), real) == 0.0
    assert 0.0 <= closeness(real[::-1].copy(), real) <= 1.0


def test_luck_is_reproducible_and_marks_of_one_score_are_one(model: microtome.Model) -> None:
    answers: tuple[Answer, ...] = tuple(
        NodeScores({head: float(h == i) for h, head in enumerate(HEADS)}) for i in (1, 6)
    )
    truth = Truth(circuit=CIRCUIT)
    one, again = (marks(answers, truth, model, seed=3) for _ in range(2))
    assert [mark.score for mark in one] == ["nodes, AUROC", "nodes, average precision"]
    assert all(np.array_equal(a.luck, b.luck) for a, b in zip(one, again, strict=True))
    each = [named(marks((answer,), truth, model))["nodes, AUROC"].value for answer in answers]
    assert one[0].value == pytest.approx(np.mean(each))
    assert len(one[0].luck) == module.DRAWS


def test_nothing_is_said_where_nothing_is_known(model: microtome.Model) -> None:
    answers = (
        NodeScores({"z.0.h1": 1.0}),
        EdgeScores({("embed", "z.0.h1", "v"): 1.0}),
        FoundCircuit(CIRCUIT),
    )
    assert marks(answers, Truth(), model) == ()
    assert marks((NodeScores({"z.0.h1": 1.0, "z.1.h2": 2.0}),), Truth(circuit=CIRCUIT), model) == ()
