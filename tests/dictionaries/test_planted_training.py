"""Are planted features found, and are as many units on as were asked for? In full with `-m training`."""

import pytest
import torch
from torch.nn import functional

from microtome.bases.codes import SparseCodes
from microtome.bases.streams import ArrayStream
from microtome.dictionaries.recipe import Recipe, sweep
from microtome.dictionaries.trainer import Trained, train
from microtome.evaluation.planted_recovery import planted_recovery
from microtome.testbeds.toys import synthetic_benchmark
from microtome.testbeds.toys.planted_dictionary import PlantedDictionary, Setting
from microtome.testbeds.toys.planted_stream import PlantedStream
from microtome.testbeds.toys.synthetic_benchmark import SyntheticBenchmark


def cosines(one: Trained, planted: PlantedDictionary) -> torch.Tensor:
    """Between units that are ever on and features, `[unit, feature]`."""
    held = planted.chunk(10**6, 4096).activations
    alive = one.dictionary.encode_sparsely(held).unit.unique()
    directions = functional.normalize(one.dictionary.directions()[alive], dim=-1)
    return directions @ functional.normalize(planted.dictionary, dim=-1).mT


def test_as_many_are_on_as_were_asked_for_with_nothing_else_said() -> None:
    planted = PlantedDictionary(Setting(), 0)
    held = planted.chunk(10**6, 4096).activations
    recipes = [
        Recipe(width=64, activation="jumprelu", l0=2.0, steps=150),
        Recipe(width=64, activation="batch_topk", l0=2.0, steps=150),
    ]
    for one in train(PlantedStream(planted, 256), recipes, held_out=held):
        assert one.final.on == pytest.approx(one.recipe.on, rel=0.08)


@pytest.mark.training
@pytest.mark.truth
def test_planted_features_are_found_at_the_true_width() -> None:
    planted = PlantedDictionary(Setting(features=128, dimensions=64, highest=0.05, lowest=0.01, spread=50), 0)
    # Features on in a row: 1.7. A batch shares out what is on; rows by themselves, and penalised ones, need some more.
    recipes = [
        *sweep(Recipe(width=128, l0=3, steps=1200), activation=["relu", "topk", "gated"]),
        *sweep(Recipe(width=128, l0=2, steps=1200), activation=["batch_topk", "jumprelu"]),
    ]
    held = planted.chunk(10**6, 4096).activations
    for one in train(PlantedStream(planted, 512), recipes, held_out=held):
        assert float(cosines(one, planted).max(0).values.mean()) >= 0.95, one.recipe.activation
        if one.recipe.activation in ("batch_topk", "jumprelu"):
            assert one.final.on == pytest.approx(2, rel=0.05)
    # The control: rows without features have none to find.
    noise = torch.randn(64 * 512, 64, generator=torch.Generator().manual_seed(0))
    (control,) = train(ArrayStream(noise, 512), [Recipe(width=128, l0=2, steps=300)])
    assert float(cosines(control, planted).max(0).values.mean()) < 0.6


@pytest.mark.training
@pytest.mark.truth
def test_a_power_below_one_finds_fewer_spurious_units_than_l1() -> None:
    """At twice the true width and one coefficient: units that are on beyond one for each feature that is found."""
    planted = PlantedDictionary(Setting(features=64, dimensions=48, highest=0.05, lowest=0.01, spread=50), 0)
    base = Recipe(width=128, activation="relu", coefficient=2.0, steps=1000, dead_units="no")
    recipes = [base, base.model_copy(update={"penalty": "lp", "power": 0.5, "anneal": True})]
    spurious = []
    for one in train(PlantedStream(planted, 512), recipes):
        nearest = cosines(one, planted).max(1)
        found = nearest.indices[nearest.values > 0.9].unique()
        assert len(found) == 64
        spurious.append(len(nearest.values) - len(found))
    plain, bent = spurious
    assert bent < plain / 2


@pytest.mark.training
@pytest.mark.truth
def test_prefixes_tell_features_in_trees_apart_under_l1_too() -> None:
    """With fewer units than features, at as many on: what squared error alone mixes, prefixes keep apart."""
    setting = synthetic_benchmark.Setting(features=256, dimensions=48, roots=8, depth=2, lowest=2e-3, rank=4)
    planted = SyntheticBenchmark(setting)
    stream = PlantedStream(planted, 512)
    chunk = stream.held_out(8192)
    there = SparseCodes(chunk.row, chunk.feature, chunk.coefficient, 8192, 256)
    base = Recipe(width=64, activation="relu", l0=6, steps=1000, rate=3e-3)
    found = []
    for one in train(stream, [base, base.model_copy(update={"prefixes": (8, 16, 32, 64)})]):
        codes = one.dictionary.encode_sparsely(chunk.activations)
        assert len(codes.unit) / 8192 == pytest.approx(6, rel=0.05)
        found.append(planted_recovery(one.dictionary.directions(), codes, planted.dictionary, there))
    plain, nested = found
    assert nested.mcc > plain.mcc + 0.02
    assert nested.f1 > plain.f1 + 0.02
