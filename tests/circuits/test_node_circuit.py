"""The circuit of heads and MLPs: a planted one is found, its twin's is not; its shares are those of plain passes."""

import numpy as np
import pytest
from tests.circuits.planted import pairs_of, planted, random_pairs
from tests.models import families

import microtome
from microtome.circuits import node_circuit
from microtome.circuits.knockout import Knockout
from microtome.core.edits import Set
from microtome.core.errors import InputError
from microtome.core.result import Result
from microtome.models.random_twin import random_twin


def test_the_planted_heads_are_the_circuit() -> None:
    model, pairs = planted()
    found = node_circuit.run(model, pairs, node_circuit.Config(target=0.9))
    assert set(found.circuit.nodes) == {"z.0.h1", "z.1.h2"}
    # Each is the only way: without it nothing is left.
    assert all(
        weight == pytest.approx(found.data.attrs["kept_share"], abs=0.05) for weight in found.circuit.weights
    )


def test_the_twin_has_another_circuit_or_none() -> None:
    model, pairs = planted()
    found = node_circuit.run(random_twin(model), pairs, node_circuit.Config(target=0.9))
    assert set(found.circuit.nodes) != {"z.0.h1", "z.1.h2"}


@pytest.mark.parametrize("name", ["gpt2", "gptj", "llama", "gemma2"])
def test_every_component_of_the_circuit_is_needed_for_its_share(name: str) -> None:
    model, pairs = families.model(name), random_pairs()
    config = node_circuit.Config(target=0.8)
    found = node_circuit.run(model, pairs, config)
    knockout = Knockout(model, pairs)
    kept = node_circuit.kept_of(model, found.circuit)
    assert float(knockout.shares([kept])[0]) == pytest.approx(found.data.attrs["kept_share"], abs=1e-5)
    assert found.data.attrs["kept_share"] >= 0.8
    without = knockout.shares([[other for other in kept if other != site] for site in kept])
    assert bool((without < 0.8).all())
    lost = [found.circuit.weight(site) for site in kept]
    np.testing.assert_allclose(found.data.attrs["kept_share"] - without, lost, atol=1e-5)


def test_the_estimate_is_the_slope_of_replacing() -> None:
    """A hundredth of the way from a component's value to its replacement does a hundredth of the estimate."""
    model, pairs = families.model("gpt2"), random_pairs()
    knockout = Knockout(model, pairs)
    estimate = node_circuit.attribution(knockout)
    found = node_circuit.run(model, pairs)
    np.testing.assert_allclose(found.data["estimate"].values, estimate)
    here, there = (model.run(side, knockout.components) for side in (pairs.clean, pairs.corrupt))
    step = 1e-2
    for site, expected in zip(knockout.components, estimate, strict=True):
        value = here[site] + step * (there[site] - here[site])
        moved = model.run(pairs.clean, edit=[Set(site, value=value)], metric=knockout.metric).metric
        assert moved is not None
        slope = float((moved - knockout.whole).double().mean()) / step
        assert slope == pytest.approx(expected, rel=0.05, abs=2e-3)


def test_components_are_kept_in_the_order_of_their_estimates() -> None:
    found = node_circuit.run(families.model("gpt2"), random_pairs())
    estimate, order = found.data["estimate"].values, found.data["order"].values
    assert np.all(np.diff(np.abs(estimate[np.argsort(order)])) <= 0)
    np.testing.assert_allclose(found.data["share"].values[[0, -1]], [0.0, 1.0], atol=1e-6)


def test_it_comes_back_equal_and_tells_its_size(tmp_path: object) -> None:
    found = node_circuit.run(families.model("llama"), random_pairs())
    assert Result.load(found.save(str(tmp_path) + "/r")) == found
    table = found.shapes()[0]
    assert f"{len(found.circuit)} of {found.data.sizes['component']}" in table.caption


def test_what_has_no_behaviour_is_refused() -> None:
    pairs = random_pairs()
    with pytest.raises(InputError, match="no behaviour to explain"):
        node_circuit.run(families.model("gpt2"), pairs_of(pairs.clean, pairs.clean, [3] * 4, [5] * 4))
    with pytest.raises(InputError, match="module paths"):
        node_circuit.run(microtome.load(families.make("gpt2"), family=None), pairs)
