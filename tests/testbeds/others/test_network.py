"""What ships does its task, trains again bit for bit, and what was trained too little is refused."""

import shutil
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch

from microtome.core import plugins
from microtome.core.errors import InputError, StoreError, TruthError
from microtome.evaluation import cases as library
from microtome.testbeds import kept
from microtome.testbeds.case import Case
from microtome.testbeds.others import network, train

MODULES = {name: import_module(f"microtome.testbeds.others.{name}") for name in train.NAMES}
CASES = [f"{name}/{case}" for name, module in MODULES.items() for case in module.cases()]


@cache
def served(name: str) -> Case:
    return library.case(name)


@pytest.mark.parametrize("name", CASES)
def test_each_case_is_offered_and_its_evidence_holds(name: str) -> None:
    testbed, _, which = name.partition("/")
    module = MODULES[testbed]
    assert testbed in plugins.names("testbeds")
    assert module.card.name == testbed
    case = served(name)
    assert case.name == name
    assert set(case.truth.kinds) <= set(module.card.kinds)
    count = len(case.tokens) if isinstance(case.tokens, torch.Tensor) else len(*case.tokens.values())
    assert all(len(label) == count for label in case.truth.labels.values())
    weights, record = kept.read(network.path(module.recipe(which), 0))
    assert record["evidence"] == pytest.approx({one.what: one.value for one in case.evidence}, abs=0.01)
    assert case.model.run(case.tokens).logits is not None
    assert sum(weight.nbytes for weight in weights.values()) < 600_000


@pytest.mark.parametrize("name", CASES)
def test_a_twin_cannot_serve(name: str) -> None:
    case = served(name)
    measured = train.recipe_of(name).evidence(case.control, 0)
    with pytest.raises(TruthError, match="cannot serve as truth"):
        replace(case, model=case.control, evidence=measured)


@pytest.mark.parametrize("testbed", train.NAMES)
def test_training_replays_exactly(testbed: str) -> None:
    recipe = MODULES[testbed].recipe(MODULES[testbed].cases()[0])
    (one, first), (_, second) = (network.fit(recipe, 3, steps=4, keep=(0, 2)) for _ in range(2))
    assert first.losses == second.losses
    assert list(first.checkpoints) == list(second.checkpoints) == [0, 2, 4]
    for step, weights in first.checkpoints.items():
        assert all(torch.equal(weight, second.checkpoints[step][key]) for key, weight in weights.items())
    before, after = (first.checkpoints[step] for step in (0, 4))
    assert any(not torch.equal(before[key], after[key]) for key in before), "nothing was learned"
    _, other = network.fit(recipe, 4, steps=4)
    assert other.losses != first.losses
    assert not one.training


def test_too_small_a_budget_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TruthError, match="share of unseen images seen right"):
        train.write(MODULES["images"].recipe("digits"), 0, tmp_path, steps=2)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_what_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(MODULES["gridworld"].recipe("walls"), steps=3, evidence=lambda model, seed: ())
    monkeypatch.setattr(train, "recipe_of", lambda name: recipe)
    train.main(["gridworld/walls", "--seed", "5", "--out", str(tmp_path)])
    module, _ = network.fit(recipe, 5)
    served = network.network(recipe, 5, tmp_path)
    assert served.name == "gridworld/walls (seed 5)"
    for key, weight in served.module.state_dict().items():
        assert torch.equal(weight, module.state_dict()[key].half().float())


@pytest.mark.parametrize(
    "name", ["nothing/digits", "images", "images/faces", "gridworld/x", "recurrent/x", "board_game/x"]
)
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="case"):
        train.recipe_of(name)


def test_foreign_and_damaged_files_are_refused(tmp_path: Path) -> None:
    recipe = MODULES["recurrent"].recipe("parity")
    file = network.path(recipe, 0, tmp_path)
    file.parent.mkdir()
    shutil.copy(network.path(recipe, 0), file)
    with pytest.raises(StoreError, match="was trained with"):
        network.network(replace(recipe, rate=1.0), 0, tmp_path)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(StoreError, match="cannot be read"):
        network.network(recipe, 0, tmp_path)


@pytest.mark.training
@pytest.mark.parametrize("name", CASES)
def test_training_again_gives_the_network_that_ships(name: str, tmp_path: Path) -> None:
    recipe = train.recipe_of(name)
    again = kept.read(train.write(recipe, 0, tmp_path))
    shipped = kept.read(network.path(recipe, 0))
    assert again[1]["settings"] == shipped[1]["settings"]
    first = [next(iter(record["losses"].values())) for _, record in (again, shipped)]
    assert first[0] == pytest.approx(first[1], rel=1e-5)  # on another machine the last bits differ, and grow


@pytest.mark.training
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_other_seeds_do_the_task_too(name: str, seed: int) -> None:
    """The first of them ships, the second is trained here and now."""
    testbed, _, which = name.partition("/")
    module = MODULES[testbed]
    assert network.path(module.recipe(which), seed).exists() == (seed == 1)
    assert module.build(which, seed).seed == seed
