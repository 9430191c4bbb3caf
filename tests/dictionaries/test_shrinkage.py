"""Is what a penalty took measured, and given back?"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from microtome.bases.basis import Basis
from microtome.bases.codes import SparseCodes
from microtome.bases.streams import ArrayStream
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.dictionaries.activations import Gated, JumpReLU, ReLU
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.recipe import Recipe
from microtome.dictionaries.refitted_dictionary import RefittedDictionary
from microtome.dictionaries.shrinkage import corrected, undershoot
from microtome.dictionaries.trainer import train
from microtome.testbeds.toys.planted_dictionary import PlantedDictionary, Setting
from microtome.testbeds.toys.planted_stream import PlantedStream

LAMBDA = 0.3


def planted(d: int, features: int, spread: int = 100) -> tuple[PlantedDictionary, Tensor, SparseCodes]:
    setting = Setting(features=features, dimensions=d, highest=0.1, lowest=0.05, spread=spread, bias=0.5)
    made = PlantedDictionary(setting, 0)
    chunk = made.chunk(0, 4096)
    return made, chunk.activations, SparseCodes(chunk.row, chunk.feature, chunk.coefficient, 4096, features)


def ideal(made: PlantedDictionary, taken: float = LAMBDA / 2, scale: float = 1.0) -> Dictionary:
    """The best dictionary that a penalty of twice what is taken allows, where features are orthonormal."""
    features, d = made.dictionary.shape
    site = Site.module("activation")
    return Dictionary(
        "ideal", (site,), (site,), (d,), (d,), ReLU(), made.dictionary * scale,
        torch.full((features,), -taken), made.dictionary.clone(), made.bias.clone(), made.bias.clone(),
    )  # fmt: skip


def test_what_the_penalty_takes_is_measured_and_given_back() -> None:
    made, values, coefficients = planted(24, 24)
    shrunk = ideal(made)
    before = undershoot(shrunk, values, made.dictionary, coefficients).whole
    # z = x − λ/2: of coefficients about 1, a share λ/2 is missing where the unit is on.
    mean = torch.stack([coefficients.value[coefficients.unit == unit].mean() for unit in range(24)])
    assert torch.allclose(before, LAMBDA / 2 / mean, atol=0.02)
    mended = corrected(shrunk, values)
    after = undershoot(mended, values, made.dictionary, coefficients).whole
    assert float(after.abs().max()) < 1e-3
    assert isinstance(mended.activation, Gated)
    assert torch.allclose(mended.activation.shift, torch.full((24,), LAMBDA / 2), atol=5e-3)
    on, still = shrunk.encode(values) > 0, mended.encode(values) > 0
    assert torch.equal(on, still)


@pytest.mark.parametrize("kind", ["jumprelu", "gated"])
def test_a_scale_too_small_is_put_right_whatever_the_activation(kind: str) -> None:
    made, values, coefficients = planted(24, 24)
    ones = torch.ones(24)
    activation = JumpReLU(0.2 * ones) if kind == "jumprelu" else Gated(0.5 * ones, 0.1 * ones)
    weak = replace(ideal(made, 0.0, 0.7), activation=activation)
    assert float(undershoot(weak, values, made.dictionary, coefficients).whole.mean()) > 0.25
    mended = corrected(weak, values)
    assert type(mended.activation) is type(activation)
    assert float(undershoot(mended, values, made.dictionary, coefficients).whole.abs().max()) < 5e-3


def test_nothing_is_changed_where_nothing_is_missing() -> None:
    made, values, _ = planted(24, 24)
    whole = ideal(made, 0.0)
    error = (corrected(whole, values).reconstruct(values) - values).square().mean()
    assert float(error) < 1e-8
    only = values[:1].expand(64, -1)  # units that are never on stay as they are
    assert torch.isfinite(corrected(whole, only).decoder).all()
    with pytest.raises(InputError, match="writes other sites"):
        corrected(replace(whole, writes=(Site.module("other"),)), values)


@pytest.mark.truth
def test_the_correction_of_a_trained_dictionary_removes_the_undershoot() -> None:
    made, values, coefficients = planted(24, 24)
    recipe = Recipe(width=24, activation="relu", coefficient=2.0, steps=400, rate=1e-2, dead_units="no")
    (one,) = train(ArrayStream(values, 256), [recipe])
    before = undershoot(one.dictionary, values, made.dictionary, coefficients).whole
    found = before.isfinite()
    assert int(found.sum()) >= 20
    assert float(before[found].mean()) > 0.1
    after = undershoot(corrected(one.dictionary, values), values, made.dictionary, coefficients).whole
    assert abs(float(after[found].mean())) <= 0.2 * float(before[found].mean())


def test_the_measure_says_who_has_what_the_unit_has_not() -> None:
    """Two parallel units share a feature: the value has all of it, the nearest unit half."""
    made, values, coefficients = planted(24, 24)
    whole = ideal(made, 0.0)
    doubled = replace(
        whole,
        encoder=whole.encoder.repeat(2, 1) / 2,
        encoder_bias=whole.encoder_bias.repeat(2),
        decoder=whole.decoder.repeat(2, 1),
    )
    half = undershoot(doubled, values, made.dictionary, coefficients)
    assert torch.allclose(half.whole, torch.full((24,), 0.5), atol=1e-3)
    assert torch.allclose(half.by_others, torch.full((24,), 0.5), atol=1e-3)
    alone = undershoot(ideal(made, 0.1), values, made.dictionary, coefficients)
    assert torch.allclose(alone.lost, alone.whole, atol=0.02)


def test_strengths_solved_for_are_exact_where_the_units_that_are_on_suffice() -> None:
    """Far more features than dimensions and a bias that keeps all true units on: nothing is missing after the fit."""
    made, values, coefficients = planted(24, 40)
    shrunk = ideal(made, 0.25)
    fitted = RefittedDictionary(shrunk)
    codes, chosen = fitted.encode(values), shrunk.encode(values) > 0
    assert bool((chosen | (codes == 0)).all())
    assert float(codes.min()) >= 0
    true = coefficients.dense()
    suffice = ((true == 0) | chosen).all(-1) & (chosen.sum(-1) <= 12)
    assert int(suffice.sum()) > 500
    assert torch.allclose(codes[suffice], true[suffice], atol=1e-3)
    assert float((shrunk.encode(values) - true)[suffice].abs().max()) > 0.2
    assert fitted.encode(values[:6].view(2, 3, 24)).shape == (2, 3, 40)
    with pytest.raises(InputError, match="past its units"):
        RefittedDictionary(replace(shrunk, skip=torch.eye(24)))


@pytest.mark.training
@pytest.mark.truth
def test_in_superposition_solving_for_strengths_removes_the_undershoot() -> None:
    """Twice as many features as dimensions: a scale and a shift leave half of it, what is on in error included."""
    made, _, _ = planted(64, 128)
    recipe = Recipe(width=128, activation="relu", coefficient=2.0, steps=800, dead_units="no")
    (one,) = train(PlantedStream(made, 512), [recipe])
    chunk = made.chunk(10**6)
    truth = SparseCodes(chunk.row, chunk.feature, chunk.coefficient, len(chunk.activations), 128)

    def left(basis: Basis) -> float:
        found = undershoot(basis, chunk.activations, made.dictionary, truth).whole
        assert int(found.isfinite().sum()) > 100
        return float(found.nanmean())

    before = left(one.dictionary)
    assert before > 0.1
    mended = corrected(one.dictionary, made.chunk(10**6 + 1).activations)
    assert left(mended) < 0.7 * before
    assert abs(left(RefittedDictionary(one.dictionary))) <= 0.2 * before


def test_features_without_a_unit_are_not_measured() -> None:
    made, values, coefficients = planted(24, 24)
    other = replace(ideal(made), decoder=made.dictionary.roll(1, -1), encoder=-made.dictionary)
    assert undershoot(other, values, made.dictionary, coefficients).whole.isnan().all()
