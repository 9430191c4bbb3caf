"""Planted data are what they are said to be: who is on how often, with whom, how strong, and along which direction."""

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from microtome.core import plugins
from microtome.core.draws import generator
from microtome.core.errors import InputError
from microtome.testbeds.toys import planted_dictionary
from microtome.testbeds.toys.planted_dictionary import SITE, PlantedDictionary, Setting, spread

ROWS = 10_000
# Under the null the largest of n standard scores exceeds six with probability n · 2e-9.
LIMIT = 6.0


def dense(setting: Setting, seed: int = 0) -> tuple[PlantedDictionary, Tensor, Tensor]:
    planted = PlantedDictionary(setting, seed)
    chunk = planted.chunk(0, ROWS)
    return planted, chunk.coefficients(setting.features), chunk.signs


def scores(hits: Tensor, expected: Tensor) -> Tensor:
    """How many standard errors shares of rows lie from their probabilities."""
    return (hits.double().mean(0) - expected) / (expected * (1 - expected) / len(hits)).sqrt().clamp_min(1e-9)


EVERY = {
    "plain": Setting(),
    "steep": Setting(features=200, highest=0.9, lowest=1e-3, exponent=1.0),
    "correlated": Setting(highest=0.5, lowest=0.05, correlation=1.0, signs=2),
    "trees": Setting(roots=3, branching=2, depth=3, highest=0.6, inherited=1.0),
    "all": planted_dictionary.CASES["all_together"],
}


@pytest.mark.parametrize("name", EVERY)
def test_every_feature_is_on_as_often_as_it_should(name: str) -> None:
    planted, coefficients, _ = dense(EVERY[name])
    assert float(scores(coefficients != 0, planted.probability.double()).abs().max()) < LIMIT
    assert float((coefficients != 0).sum(1).float().mean()) == pytest.approx(planted.expected_on(), rel=0.05)


@pytest.mark.parametrize("correlation", [0.0, 0.6, 1.0])
def test_pairs_meet_as_often_as_their_signs_say(correlation: float) -> None:
    setting = Setting(features=12, highest=0.5, lowest=0.2, correlation=correlation, signs=2)
    planted, coefficients, signs = dense(setting)
    on = (coefficients != 0).double()
    seen = {0.0: 0, 1.0: 0, -1.0: 0}
    for one, other in combinations(range(12), 2):
        same = float(planted.sign[one] == planted.sign[other])
        lean = same * float(planted.lean[one] * planted.lean[other])
        expected = planted.probability[one] * planted.probability[other] * (1 + lean)
        z = scores((on[:, one] * on[:, other])[:, None], expected.double())
        assert abs(float(z)) < LIMIT
        seen[math.copysign(same, lean) if lean else 0.0] += 1
        if lean == -1:
            assert float((on[:, one] * on[:, other]).sum()) == 0, "opposite leanings at κ = 1 never meet"
    assert correlation == 0 or min(seen.values()) > 3
    # Given its sign, a feature has exactly p (1 ± κ).
    up = signs[:, planted.sign[0]] > 0
    given_up = planted.probability[0] * (1 + planted.lean[0])
    assert abs(float(scores(on[up, :1], given_up.double()))) < LIMIT


def test_children_are_on_only_with_their_parent_and_one_at_a_time() -> None:
    planted, coefficients, _ = dense(Setting(roots=3, branching=3, depth=2, highest=0.6, lowest=0.3))
    on = coefficients != 0
    assert planted.parent.tolist()[:12] == [-1] * 3 + [0] * 3 + [1] * 3 + [2] * 3
    assert int((planted.parent >= 0).sum()) == 3 * (3 + 9)
    for parent in planted.parent.unique().tolist()[1:]:
        children = (planted.parent == parent).nonzero().flatten()
        together = on[:, children].sum(1)
        assert int(together.max()) == 1
        assert bool(on[:, parent][together == 1].all())
        # The parent has one of them on as often as it should.
        share = together[on[:, parent]].double()
        assert abs(float(scores(share[:, None], torch.tensor(0.8).double()))) < LIMIT


@given(
    st.integers(1, 40),
    st.integers(1, 24),
    st.integers(0, 2),
    st.floats(0, 1),
    st.booleans(),
    st.floats(0, 0.5),
    st.floats(1, 10),
    st.integers(0, 10**6),
)
@settings(max_examples=20)
def test_activations_are_the_sum_of_what_is_on(
    features: int,
    d: int,
    roots: int,
    correlation: float,
    positive: bool,
    noise: float,
    norms: float,
    seed: int,
) -> None:
    setting = Setting(
        features=features,
        dimensions=d,
        roots=roots if features >= 14 else 0,
        branching=2,
        highest=0.5,
        correlation=correlation,
        positive=positive,
        noise=noise,
        norms=norms,
        bias=1.0,
    )
    planted = PlantedDictionary(setting, seed)
    chunk = planted.chunk(2, 50)
    coefficients = chunk.coefficients(features)
    rebuilt = coefficients @ planted.dictionary + planted.bias + (chunk.noise if noise else 0)
    torch.testing.assert_close(chunk.activations, rebuilt, rtol=1e-4, atol=1e-4)
    assert len(chunk.row) == int((coefficients != 0).sum()), "nothing is on twice"
    assert bool((chunk.row.diff() >= 0).all())
    assert not positive or bool((chunk.coefficient >= 0).all())
    assert float(planted.dictionary.norm(dim=-1).max()) <= norms * (1 + 1e-5)
    assert float(planted.bias.norm()) == pytest.approx(1.0, abs=1e-5)


def test_coefficients_are_distributed_as_asked() -> None:
    uniform = PlantedDictionary(Setting(magnitude="uniform", highest=0.5)).chunk(0, ROWS).coefficient
    assert float(uniform.max()) < 1
    assert float(uniform.mean()) == pytest.approx(0.5, abs=6 * math.sqrt(1 / 12 / len(uniform)))
    signed = PlantedDictionary(Setting(positive=False, means=(3.0, 3.0))).chunk(0, ROWS).coefficient
    assert float(signed.mean()) == pytest.approx(0, abs=6 * 3.1 / math.sqrt(len(signed)))
    assert float(signed.abs().mean()) == pytest.approx(3, abs=6 * 0.25 / math.sqrt(len(signed)))
    sloped = PlantedDictionary(Setting(means=(5.0, 1.0), deviation=0.0, positive=True)).chunk(0, ROWS)
    expected = torch.linspace(5, 1, 64)[sloped.feature]
    torch.testing.assert_close(sloped.coefficient, expected)


def test_noise_is_as_strong_as_asked() -> None:
    chunk = PlantedDictionary(Setting(noise=0.3)).chunk(0, ROWS)
    assert float(chunk.noise.std()) == pytest.approx(0.3, rel=6 / math.sqrt(2 * chunk.noise.numel()))


def test_spreading_lowers_overlap_to_its_bound() -> None:
    start = functional.normalize(torch.randn(64, 16, generator=generator(1)), dim=-1)
    end = spread(start, 200)

    def potential(w: Tensor) -> float:
        return float(((w @ w.mT) ** 2).sum())

    # Of n unit vectors in d dimensions the sum of squared cosines is at least n²/d (Benedetto and Fickus 2003).
    assert potential(start) > 1.02 * 64**2 / 16
    assert potential(end) == pytest.approx(64**2 / 16, rel=1e-3)
    square = spread(functional.normalize(torch.randn(16, 16, generator=generator(2)), dim=-1), 200)
    torch.testing.assert_close(square @ square.mT, torch.eye(16), rtol=0, atol=1e-3)


def test_a_chunk_is_a_function_of_seed_and_number() -> None:
    setting = EVERY["all"]
    one, two = PlantedDictionary(setting, 5), PlantedDictionary(setting, 5)
    one.chunk(0, 100)  # what was asked before makes no difference
    first, second = one.chunk(7, 300), two.chunk(7, 300)
    assert torch.equal(first.activations, second.activations)
    assert torch.equal(first.feature, second.feature)
    assert not torch.equal(first.activations, one.chunk(8, 300).activations)
    assert not torch.equal(one.dictionary, PlantedDictionary(setting, 6).dictionary)


@pytest.mark.parametrize(
    ("settings_", "said"),
    [
        ({"features": 0}, "features"),
        ({"lowest": 0.2, "highest": 0.1}, "above the highest"),
        ({"highest": 0.8, "correlation": 0.5}, "must not exceed 1"),
        ({"features": 10, "roots": 1}, "use fewer roots"),
        ({"feature": 10}, "feature"),
        ({"noise": math.nan}, "noise"),
    ],
)
def test_impossible_settings_are_refused(settings_: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Setting.read(settings_)


def test_a_chunk_has_rows() -> None:
    with pytest.raises(InputError, match="at least one row"):
        PlantedDictionary(Setting()).chunk(0, 0)


@pytest.mark.parametrize("name", planted_dictionary.cases())
def test_a_case_runs_and_its_features_are_the_dictionary(name: str) -> None:
    case = planted_dictionary.build(name, 1)
    assert set(case.truth.kinds) == set(planted_dictionary.card.kinds)
    found = case.model.run(case.tokens, read=[SITE])[SITE]
    features = case.truth.features[SITE]
    planted = PlantedDictionary(planted_dictionary.CASES[name], 1)
    noise = case.tokens.get("noise", 0)
    sums = found - noise - planted.bias
    coefficients = case.tokens["coefficients"]
    torch.testing.assert_close(sums, coefficients @ features, rtol=1e-4, atol=1e-4)
    if len(features) <= 64:
        # Least squares gives back every direction, which says that they are all there is.
        solved = torch.linalg.lstsq(coefficients.double(), sums.double()).solution
        torch.testing.assert_close(solved.float(), features, rtol=0, atol=1e-3)
    for number in range(planted_dictionary.LABELS):
        assert torch.equal(case.truth.labels[f"feature {number} on"] == 1, coefficients[:, number] != 0)
    control = case.control.run(case.tokens, read=[SITE])[SITE]
    assert float((control - found).std() / found.std()) > 0.5, "the twin's activations are other ones"


def test_unknown_cases_are_refused() -> None:
    with pytest.raises(InputError, match="no case"):
        planted_dictionary.build("dense")
    assert plugins.load("testbeds", "planted_dictionary") is planted_dictionary
