"""Scores of a circuit: of a planted one, of a wrong one, and the identities among them."""

import numpy as np
import pytest
from tests.circuits.planted import pairs_of, planted, random_pairs
from tests.models import families

from microtome.circuits.knockout import Knockout
from microtome.core.errors import InputError, SiteError
from microtome.core.result import Result
from microtome.evaluation import circuit_scores
from microtome.models.components import components

TRUE = ("z.0.h1", "z.1.h2")


def test_the_planted_circuit_is_faithful_complete_minimal_and_sufficient() -> None:
    model, pairs = planted()
    found = circuit_scores.run(model, pairs, circuit_scores.Config(circuit=TRUE))
    for kind in ("resample", "mean"):
        assert found.score("faithfulness", kind) == pytest.approx(1, abs=0.05)
        assert found.score("leftover", kind) == pytest.approx(0, abs=0.05)
        assert found.score("sufficiency", kind) == pytest.approx(1, abs=0.05)
        np.testing.assert_allclose(found.data["loss"].sel(kind=kind).values, 1, atol=0.1)
    assert float(found.data["right"].sel(which="circuit alone")) == 1
    divergence = found.data["kl"].sel(kind="resample").values
    assert divergence[0] < 0.05 < divergence[1]


def test_a_wrong_circuit_of_the_same_size_scores_nothing() -> None:
    model, pairs = planted()
    found = circuit_scores.run(model, pairs, circuit_scores.Config(circuit=("z.0.h0", "z.1.h3")))
    assert abs(found.score("faithfulness")) < 0.1
    assert found.score("leftover") > 0.9
    assert abs(found.score("sufficiency")) < 0.1


def test_random_circuits_are_the_control() -> None:
    model, pairs = planted()
    found = circuit_scores.run(model, pairs, circuit_scores.Config(circuit=TRUE, random_circuits=40))
    drawn = found.data["random"].sel(kind="resample").values
    # One pair of heads in 28 is the planted one; every other keeps nothing.
    assert len(drawn) == 40
    assert np.mean(np.abs(drawn) < 0.1) > 0.8


@pytest.mark.parametrize("name", ["gpt2", "gptj", "llama", "gemma2"])
def test_everything_is_faithful_and_leaves_nothing(name: str) -> None:
    model, pairs = families.model(name), random_pairs()
    every = tuple(map(str, components(model)))
    found = circuit_scores.run(model, pairs, circuit_scores.Config(circuit=every, random_circuits=1))
    assert found.score("faithfulness") == pytest.approx(1, abs=1e-5)
    assert found.score("leftover") == pytest.approx(0, abs=1e-5)
    knockout = Knockout(model, pairs)
    some = components(model)[:3]
    part = circuit_scores.run(
        model, pairs, circuit_scores.Config(circuit=tuple(map(str, some)), random_circuits=1)
    )
    assert part.score("faithfulness") == pytest.approx(float(knockout.shares([some])[0]), abs=1e-5)
    low, high = part.interval("faithfulness")
    assert low <= part.score("faithfulness") <= high


def test_it_comes_back_equal_and_tells_its_denominators(tmp_path: object) -> None:
    found = circuit_scores.run(
        families.model("gpt2"), random_pairs(), circuit_scores.Config(circuit=("z.0.h1",))
    )
    assert Result.load(found.save(str(tmp_path) + "/r")) == found
    assert "4 prompts, 1 of 15 components" in found.shapes()[0].caption


def test_bad_input() -> None:
    model, pairs = families.model("gpt2"), random_pairs()
    with pytest.raises(InputError, match="no circuit was given"):
        circuit_scores.run(model, pairs)
    with pytest.raises(SiteError, match=r"z\.9\.h0 is not a component"):
        circuit_scores.run(model, pairs, circuit_scores.Config(circuit=("z.9.h0",)))
    same = pairs_of(pairs.clean, pairs.clean, [3] * 4, [5] * 4)
    with pytest.raises(InputError, match="no behaviour"):
        circuit_scores.run(model, same, circuit_scores.Config(circuit=("z.0.h0",)))
