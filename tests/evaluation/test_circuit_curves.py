"""Curves over circuit size: the ends, the areas by hand, a planted path, and what cannot be ranked."""

import numpy as np
import pytest
import torch
from tests.circuits.planted import pairs_of, planted, random_pairs
from tests.models import families

from microtome.circuits.edge_graph import EdgeGraph
from microtome.core.answers import EdgeScores, NodeScores
from microtome.core.errors import InputError
from microtome.core.result import Result
from microtome.evaluation import circuit_curves
from microtome.evaluation.circuit_curves import Config
from microtome.evaluation.curve_areas import cmd, cpr, places
from microtome.evaluation.ranked_circuits import Ranking

PATH = {
    ("embed", "z.0.h1", "v"): -1.0,
    ("z.0.h1", "z.1.h2", "v"): -1.0,
    ("z.1.h2", "logits", "logits"): -1.0,
}


def test_areas_by_hand() -> None:
    k, f = np.array([0.25, 0.5, 1.0]), np.array([0.0, 1.0, 1.5])
    assert cpr(k, f) == pytest.approx(0.25 * 0.5 + 0.5 * 1.25)
    assert cmd(k, f) == pytest.approx(0.25 * 0.5 + 0.5 * 0.25)
    np.testing.assert_allclose(places("realised", k, np.array([2.0, 4.0, 8.0])), [0.25, 0.5, 1.0])
    assert places("asked", k, np.array([2.0, 4.0, 8.0])) is k
    with pytest.raises(InputError, match="rising order"):
        cpr(k[::-1], f)
    with pytest.raises(InputError, match="no edge"):
        places("realised", k, np.zeros(3))


def test_the_two_axes_give_different_numbers() -> None:
    """Asked for a tenth, a twentieth is realised: neither axis may be taken for the other."""
    asked, realised, f = np.array([0.1, 1.0]), np.array([5.0, 100.0]), np.array([0.0, 1.0])
    assert cpr(places("asked", asked, realised), f) == pytest.approx(0.45)
    assert cpr(places("realised", asked, realised), f) == pytest.approx(0.475)


@pytest.mark.parametrize("grain", ["edge", "node"])
def test_the_ends_of_the_curve_are_the_two_runs(grain: str) -> None:
    model, pairs = families.model("llama"), random_pairs(6)
    config = Config(grain=grain, sizes=(0.05, 0.3, 1.0), settings={"checked": 0}, random_orders=1, checked=3)
    found = circuit_curves.run(model, pairs, config)
    for order in circuit_curves.ORDERS:
        at = found.data.sel(order=order, size=1.0)
        assert float(at["share"]) == 1.0
        assert float(at["complement"]) == 0.0
        np.testing.assert_array_equal(at["score"].values, found.data["whole"].values)
        np.testing.assert_array_equal(at["complement_score"].values, found.data["empty"].values)
    assert (np.diff(found.data["realised"].values, axis=1) >= 0).all()
    assert int(found.data["realised"].sel(order="signed", size=1.0)) == len(EdgeGraph.of(model))
    assert float(found.data["random"].sel(size=1.0).item()) == 1.0


def test_a_planted_path_is_enough_and_its_complement_is_nothing() -> None:
    model, pairs = planted()
    edges = len(EdgeGraph.of(model))
    config = Config(sizes=(3 / edges, 0.5, 1.0), random_orders=4)
    found = circuit_curves.of(model, pairs, EdgeScores(PATH), config)
    at = found.data.sel(order="absolute", size=3 / edges)
    assert int(at["realised"]) == 3
    assert float(at["share"]) == pytest.approx(1, abs=0.05)
    assert float(at["complement"]) == pytest.approx(0, abs=0.05)
    np.testing.assert_allclose(found.data["loss"].values, 1, atol=0.05)
    assert "the 3 edges" in found.data.attrs["minimal"]
    assert found.area("CPR", "asked") > 0.9 * (1 - 3 / edges)
    assert found.area("CMD", "realised") < 0.06
    random = found.data["random"].mean("draw").values
    assert abs(random[0]) < 0.05
    assert found.area("CPR", "asked") > cpr(found.data["size"].values, random) + 0.2


def test_a_twin_orders_the_model_no_better_than_luck() -> None:
    model, pairs = planted()
    edges = len(EdgeGraph.of(model))
    found = circuit_curves.run(model, pairs, Config(sizes=(3 / edges, 0.05, 1.0), settings={"checked": 0}))
    assert float(found.data["share"].sel(order="absolute").values[1]) > 0.9
    assert abs(float(found.data["twin"].values[0])) < 0.1


def test_signs_are_a_convention_that_is_told() -> None:
    """The same scores the other way round put what helps last."""
    model, pairs = planted()
    graph = EdgeGraph.of(model)
    some = EdgeScores({edge: PATH.get(edge, 1.0) for edge in graph.edges()})
    negative, positive = (
        Ranking.of(graph, some, sign, True).ordered("signed")[:3] for sign in ("negative", "positive")
    )
    assert {tuple(graph.edges()[i]) for i in _numbers(graph, negative)} == set(PATH)
    assert not {tuple(graph.edges()[i]) for i in _numbers(graph, positive)} & set(PATH)
    told = circuit_curves.of(model, pairs, some, Config(random_orders=0)).conventions()
    for word in ("logit-difference", "ratio of means", "8 pairs", "noise", "other side", "edges", "negative"):
        assert word in told


def _numbers(graph: EdgeGraph, places_: torch.Tensor) -> list[int]:
    flat = graph.allowed.flatten().nonzero().flatten().tolist()
    return [flat.index(int(place)) for place in places_]


def test_shares_do_not_depend_on_the_size_of_batches() -> None:
    model, pairs = families.model("gpt2"), random_pairs(3)
    edges = EdgeGraph.of(model).edges()
    scores = EdgeScores(dict(zip(edges, torch.linspace(-1, 1, len(edges)).tolist(), strict=True)))
    two, three = (
        circuit_curves.of(
            model, pairs, scores, Config(sizes=(0.2, 1.0), random_orders=0, checked=0, rows=rows)
        )
        for rows in (2, 3)
    )
    np.testing.assert_allclose(two.data["share"].values, three.data["share"].values, atol=1e-5)


def test_it_comes_back_equal_and_says_what_its_numbers_rest_on(tmp_path: object) -> None:
    model, pairs = families.model("gpt2"), random_pairs()
    config = Config(sizes=(0.1, 1.0), settings={"checked": 0}, kind="zero")
    found = circuit_curves.run(model, pairs, config)
    assert Result.load(found.save(str(tmp_path) + "/r")) == found
    for shape in found.shapes():
        assert "cut edges carry zero" in shape.caption
    assert [row[0] for row in found.shapes()[1].rows] == ["asked", "realised"]


def test_bad_input() -> None:
    model, pairs = families.model("gpt2"), random_pairs()
    scores = EdgeScores({("embed", "logits", "logits"): 1.0})
    for sizes in ((0.5, 0.1), (0.0, 1.0), (0.5, 1.5)):
        with pytest.raises(InputError, match="rising order"):
            circuit_curves.of(model, pairs, scores, Config(sizes=sizes))
    with pytest.raises(InputError, match=r"no edge of this network.*no source 'z\.9\.h0'"):
        circuit_curves.of(model, pairs, EdgeScores({("z.9.h0", "logits", "logits"): 1.0}), Config())
    with pytest.raises(InputError, match=r"z\.9\.h0 is no node of this network"):
        circuit_curves.of(model, pairs, NodeScores({"z.9.h0": 1.0}), Config())
    with pytest.raises(InputError, match="no scores to rank by"):
        circuit_curves.of(model, pairs, EdgeScores({}), Config())
    same = pairs_of(pairs.clean, pairs.clean, [3] * 4, [5] * 4)
    with pytest.raises(InputError, match="nothing to attribute"):
        circuit_curves.of(model, same, scores, Config())
    with pytest.raises(InputError, match="no scores of edges"):
        circuit_curves.run(model, pairs, Config(method="ablation"))
