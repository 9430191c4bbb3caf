"""Factors and clusters look alike on what was seen; only animals that were not tell them apart."""

import pytest
import torch

from microtome.core import plugins
from microtome.core.draws import generator
from microtome.core.edits import Add
from microtome.core.errors import InputError, TruthError
from microtome.testbeds.case import Case
from microtome.testbeds.toys import animals
from microtome.testbeds.toys.animals import (
    EVERY,
    LENGTHS,
    SEEN,
    SITE,
    UNSEEN,
    causes_of,
    pictures,
    read_off,
    recipe,
    said,
)
from microtome.testbeds.toys.network import fit, model_of

SEEDS = [0, 1]


def hidden(case: Case, causes: torch.Tensor) -> torch.Tensor:
    return case.model.run({"causes": causes}, read=[SITE])[SITE]


def test_every_length_is_seen_but_few_combinations() -> None:
    assert set(SEEN) | set(UNSEEN) == set(EVERY)
    assert not set(SEEN) & set(UNSEEN)
    for factor in (0, 1):
        assert {kind[factor] for kind in SEEN} == set(range(LENGTHS))
    legs, tail = torch.tensor(SEEN).float().T
    assert abs(float(torch.corrcoef(torch.stack([legs, tail]))[0, 1])) < 0.2, "neither tells the other"


@pytest.mark.parametrize("name", animals.cases())
@pytest.mark.parametrize("seed", SEEDS)
def test_a_case_holds(name: str, seed: int) -> None:
    case = animals.build(name, seed)
    assert set(case.truth.kinds) <= set(animals.card.kinds)
    labels = case.truth.labels
    seen = set(zip(labels["legs"].tolist(), labels["tail"].tolist(), strict=True))
    assert seen == set(EVERY if name == "every" else SEEN)
    assert torch.equal(labels["animal"], labels["legs"] * LENGTHS + labels["tail"])
    assert len(next(iter(case.tokens.values()))) == len(labels["legs"])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_longer_tail_is_a_step_along_its_direction(seed: int) -> None:
    case = animals.build("few", seed)
    legs, tail = (variable.directions for variable in case.truth.variables)
    longer = case.tokens["causes"].clone()
    longer[:, 1] += 1
    step = Add(SITE, vector=tail[0])
    stepped = case.model.run(case.tokens, edit=[step], read=[SITE])[SITE]
    torch.testing.assert_close(stepped, hidden(case, longer))
    assert float((legs @ tail.mT).abs()) < 1e-5
    # Lengths read along the directions are the lengths that are there.
    read = stepped @ torch.cat([legs, tail]).mT
    torch.testing.assert_close(read, longer[:, :2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_factors_and_clusters_are_alike_where_seen_and_part_where_not(seed: int) -> None:
    shares = {}
    for name in ("few", "clusters"):
        case = animals.build(name, seed)
        kind, causes = causes_of(name, SEEN, 600, generator(seed, 10))
        again, other = causes_of(name, SEEN, 600, generator(seed, 11))
        new, unseen = causes_of(name, UNSEEN, 600, generator(seed, 12))
        at_home = read_off(hidden(case, causes), kind, hidden(case, other), again)
        away = read_off(hidden(case, causes), kind, hidden(case, unseen), new)
        shares[name] = (at_home, away)
    assert shares["few"][0] > 0.99
    assert shares["clusters"][0] > 0.95, "each reader is right about animals it has met"
    assert shares["few"][1] > 0.99
    assert shares["clusters"][1] < 0.5


def test_clusters_have_a_direction_for_each_animal_seen() -> None:
    case = animals.build("clusters")
    (animal,) = case.truth.variables
    assert animal.values == tuple(legs * LENGTHS + tail for legs, tail in SEEN)
    torch.testing.assert_close(
        animal.directions @ animal.directions.mT, torch.eye(len(SEEN)), rtol=0, atol=1e-5
    )
    values = hidden(case, case.tokens["causes"]) @ animal.directions.mT
    which = torch.tensor(animal.values)[values.argmax(-1)]
    assert torch.equal(which, case.truth.labels["animal"])
    assert len(case.truth.features[SITE]) == len(SEEN) + animals.OTHERS


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_measured_composes_and_what_is_named_does_not(seed: int) -> None:
    new, picture = pictures(UNSEEN, 600, seed, generator(seed, 20))
    right = {}
    for name in ("measured", "named"):
        with torch.no_grad():
            answers = animals.build(name, seed).model.module(picture)
        right[name] = float((said(answers, name) == new).double().mean())
    assert right["measured"] > 0.95
    assert right["named"] < 0.85


def test_the_twin_sees_nothing() -> None:
    case = animals.build("measured")
    with torch.no_grad():
        answers = said(case.control.module(case.tokens["picture"]), "measured")
    kind = torch.stack([case.truth.labels["legs"], case.truth.labels["tail"]], -1)
    assert float((answers == kind).double().mean()) < 0.5


def test_training_replays() -> None:
    one, first = fit(recipe("named"), 3, steps=10)
    two, second = fit(recipe("named"), 3, steps=10)
    assert first.losses == second.losses
    assert all(torch.equal(two.state_dict()[key], value) for key, value in one.state_dict().items())


def test_one_trained_too_little_is_no_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = fit(recipe("measured"), 0, steps=5)
    monkeypatch.setattr(animals, "network", lambda *_: model_of(module, "too little"))
    with pytest.raises(TruthError, match="of animals seen"):
        animals.build("measured")


@pytest.mark.training
@pytest.mark.parametrize("name", ["measured", "named"])
def test_training_gives_it_again_and_for_other_seeds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = fit(recipe(name), 2)
    monkeypatch.setattr(animals, "network", lambda *_: model_of(module, "another seed"))
    assert animals.build(name, 2).evidence[1].holds


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="no case 'zoo'"):
        animals.build("zoo")
    with pytest.raises(InputError, match="trained"):
        recipe("few")
    with pytest.raises(InputError, match="no kinds"):
        animals.animals((), 10, generator(0))
    assert plugins.load("testbeds", "animals") is animals
