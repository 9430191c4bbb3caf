"""A dictionary made from the truth has every score at its best; each loss is told by the score for it."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from microtome.bases.codes import SparseCodes
from microtome.core.errors import InputError
from microtome.evaluation.planted_recovery import planted_recovery
from microtome.testbeds.toys.planted_dictionary import PlantedDictionary, Setting

PLANTED = PlantedDictionary(Setting(features=40, dimensions=32, spread=30, norms=2.0), 0)
CHUNK = PLANTED.chunk(0, 3000)
REAL = SparseCodes(CHUNK.row, CHUNK.feature, CHUNK.coefficient, 3000, 40)
DENSE = REAL.dense()


def test_the_truth_itself_is_perfect_in_any_order_sign_and_scale() -> None:
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    scale = torch.linspace(0.5, 2.0, 40)
    found = planted_recovery(
        PLANTED.dictionary[order] * scale[:, None],
        SparseCodes.of(DENSE[:, order] / scale),
        PLANTED.dictionary,
        REAL,
    )
    for name, score in found.numbers().items():
        assert score == pytest.approx(0.0 if name == "undershoot" else 1.0, abs=1e-5), name
    assert torch.equal(order[found.unit_of], found.feature_of)
    flipped = planted_recovery(-PLANTED.dictionary, REAL, PLANTED.dictionary, REAL)
    assert flipped.mcc == pytest.approx(1.0, abs=1e-5)


def test_shrunken_codes_are_told_by_how_much() -> None:
    found = planted_recovery(PLANTED.dictionary, SparseCodes.of(0.7 * DENSE), PLANTED.dictionary, REAL)
    assert found.undershoot == pytest.approx(0.3, abs=1e-5)


def test_half_of_the_features_is_half_found_and_twice_the_same_is_not_unique() -> None:
    half = planted_recovery(PLANTED.dictionary[:20], SparseCodes.of(DENSE[:, :20]), PLANTED.dictionary, REAL)
    assert half.mcc == pytest.approx(1.0, abs=1e-5)
    assert half.f1 == pytest.approx(1.0)
    assert (half.found, half.uniqueness) == (0.5, 1.0)
    assert half.mean_max_cosine < 1.0
    twice = torch.cat([PLANTED.dictionary[:20]] * 2)
    double = planted_recovery(twice, SparseCodes.of(DENSE[:, :20].repeat(1, 2)), PLANTED.dictionary, REAL)
    assert double.uniqueness == 0.5
    assert double.mcc < 0.8


def test_precision_recall_and_f1_are_those_of_counting() -> None:
    source = torch.Generator().manual_seed(1)
    on = (torch.rand(DENSE.shape, generator=source) < 0.1) | (
        (DENSE > 0) & (torch.rand(DENSE.shape, generator=source) < 0.6)
    )
    found = planted_recovery(PLANTED.dictionary, SparseCodes.of(on.float()), PLANTED.dictionary, REAL)
    both = (on & (DENSE > 0)).sum(0).double()
    precision, recall = both / on.sum(0), both / (DENSE > 0).sum(0)
    assert found.precision == pytest.approx(float(precision.mean()))
    assert found.recall == pytest.approx(float(recall.mean()))
    assert found.f1 == pytest.approx(float((2 * precision * recall / (precision + recall)).mean()))


def test_random_directions_are_chance() -> None:
    source = torch.Generator().manual_seed(2)
    random = functional.normalize(torch.randn(40, 32, generator=source), dim=-1)
    codes = SparseCodes.of((CHUNK.activations @ random.mT).relu())
    found = planted_recovery(random, codes, PLANTED.dictionary, REAL)
    assert found.found == 0.0
    assert found.mcc < 0.6
    assert found.undershoot != found.undershoot  # NaN: nothing to compare


def test_a_dictionary_that_is_never_on_scores_nothing() -> None:
    never = SparseCodes.of(torch.zeros(3000, 40))
    found = planted_recovery(PLANTED.dictionary, never, PLANTED.dictionary, REAL)
    assert (found.f1, found.precision, found.recall) == (0.0, 0.0, 0.0)
    assert found.mcc == pytest.approx(1.0, abs=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="at one site"):
        planted_recovery(torch.ones(40, 5), REAL, PLANTED.dictionary, REAL)
    with pytest.raises(InputError, match="expected codes of 3000 rows"):
        planted_recovery(PLANTED.dictionary, _cut(REAL), PLANTED.dictionary, REAL)


def _cut(codes: SparseCodes) -> SparseCodes:
    dense: Tensor = codes.dense()[:10]
    return SparseCodes.of(dense)
