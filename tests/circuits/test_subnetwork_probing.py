"""Subnetwork probing: planted heads for their price, nothing for too high a price, everything for none."""

import pytest
from tests.circuits.planted import planted

from microtome.circuits import subnetwork_probing as method
from microtome.core.answers import NodeScores
from microtome.models.random_twin import random_twin

QUICK = {"steps": 15, "rate": 0.6, "checked": 0, "most": 0.05}


def test_planted_heads_and_edges_are_worth_their_price() -> None:
    model, pairs = planted()
    nodes = method.run(model, pairs, method.Config(**QUICK))
    assert set(nodes.circuit().nodes) == {"z.0.h1", "z.1.h2"}
    scores = nodes.answers()[1]
    assert isinstance(scores, NodeScores)
    assert all(scores.scores[name] > 0.5 for name in ("z.0.h1", "z.1.h2"))
    twin = method.run(random_twin(model), pairs, method.Config(**QUICK))
    assert set(twin.circuit().nodes) != {"z.0.h1", "z.1.h2"}


@pytest.mark.parametrize(("price", "some"), [(100.0, False), (0.0, True)])
def test_a_price_decides_how_many_gates_stay_open(price: float, some: bool) -> None:
    model, pairs = planted()
    found = method.run(model, pairs, method.Config(**QUICK | {"price": price}))
    assert (found.data["open"].values[-1] > 1) == some


@pytest.mark.training
def test_planted_edges_are_worth_their_price() -> None:
    model, pairs = planted()
    found = method.run(model, pairs, method.Config(grain="edges", **QUICK | {"steps": 60, "rate": 0.2}))
    path = {("embed", "z.0.h1", "v"), ("z.0.h1", "z.1.h2", "v"), ("z.1.h2", "logits", "logits")}
    assert {edge.ends for edge in found.circuit().edges} == path
