"""Flows: shares add up, a silent part has none, one unit runs through, and a planted route always comes back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.circuits.planted import planted
from tests.models import families

from microtome.circuits import information_flow_routes as method
from microtome.circuits.information_flow import proximity
from microtome.core.errors import FamilyError, InputError
from microtome.core.result import Result
from microtome.models.random_twin import random_twin

ROUTE = "embed [v] z.0.h1 [v] z.1.h2 [logits] logits"


@settings(max_examples=30, deadline=None)
@given(parts=st.integers(1, 6), seed=st.integers(0, 2**31), least=st.floats(0, 0.3))
def test_shares_are_of_one_and_silence_has_none(parts: int, seed: int, least: float) -> None:
    drawn = torch.randn(parts, 3, 8, generator=torch.Generator().manual_seed(seed))
    silent = torch.cat([drawn, torch.zeros(1, 3, 8)])
    shares = proximity(silent, silent.sum(dim=0), least)
    total = shares.sum(dim=0)
    assert bool(((total - 1).abs() < 1e-5).logical_or(total == 0).all())
    assert not shares[-1].any()
    assert bool((shares >= 0).all())


def test_a_part_that_is_the_whole_has_all_and_one_against_it_nothing() -> None:
    whole = torch.tensor([[3.0, -1.0]])
    shares = proximity(torch.stack([2 * whole, -whole, torch.zeros_like(whole)]), whole, 0.0)
    assert shares[:, 0].tolist() == [1.0, 0.0, 0.0] or shares[1, 0] == 0
    assert proximity(whole[None], whole, 0.0).tolist() == [[1.0]]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj", "gemma2"])
@pytest.mark.parametrize("patterns", [False, True])
def test_what_reaches_a_part_leaves_it(name: str, patterns: bool) -> None:
    model = families.model(name)
    config = method.Config(patterns=patterns, checked=4, routes=3)
    found = method.run(model, families.ids(3, seed=0), config)
    flow, graph = found.data["prompt_flow"].values, found.graph
    np.testing.assert_allclose(flow[:, -1].sum(axis=-1), 1, atol=1e-5)
    assert found.data.attrs["arrived"] == pytest.approx(flow[:, :, 0].sum() / 3, abs=1e-5)
    assert 0.9 < found.data.attrs["arrived"] <= 1 + 1e-5
    for source in graph.sources[1:]:
        into = [row for row, (target, _) in enumerate(graph.receivers) if target == source]
        if not into or (not source.startswith("mlp") and name in ("llama", "gemma2")):
            continue  # heads that share a key are one receiver
        out = flow[:, :, graph.sources.index(source)].sum(axis=1)
        assert bool((flow[:, into].sum(axis=(1, 2)) <= out + 1e-5).all())
    if not patterns:
        kinds = [kind in "qk" for _, kind in graph.receivers]
        assert not flow[:, kinds].any()


def test_a_planted_route_comes_back_in_every_prompt(tmp_path: object) -> None:
    model, pairs = planted()
    found = method.run(model, pairs, method.Config(checked=6))
    often = dict(
        zip(found.data["route"].values.tolist(), found.data["route_frequency"].values.tolist(), strict=True)
    )
    assert often[ROUTE] == 1.0
    assert max(found.scores(), key=lambda edge: found.scores()[edge]) == ("z.1.h2", "logits", "logits")
    assert found.prompt(0) <= found.graph.circuit(found.graph.allowed)
    twin = method.run(random_twin(model), pairs, method.Config(checked=0))
    assert (
        dict(zip(twin.data["route"].values.tolist(), twin.data["route_frequency"].values, strict=True)).get(
            ROUTE, 0.0
        )
        < 1.0
    )
    assert Result.load(found.save(str(tmp_path) + "/r")) == found
    assert np.isnan(found.errors().rows[0][3])


def test_prompts_padded_on_the_right_flow_as_alone() -> None:
    model = families.model("gpt2")
    ids = families.ids(1, seed=0)
    graph = method.edges_of(model, False)
    flow = method.Flow(model, graph, 0.02, True)
    alone = flow.along_edges(ids[:, :6], None)
    mask = (torch.arange(ids.shape[1]) < 6).long()[None]
    torch.testing.assert_close(flow.along_edges(ids, mask), alone, rtol=1e-4, atol=1e-5)


def test_what_has_no_flow_is_refused() -> None:
    with pytest.raises(InputError, match="got nothing"):
        method.run(families.model("gpt2"), [])
    with pytest.raises(FamilyError):
        method.run(families.model("bert"), families.ids(2, seed=0))
