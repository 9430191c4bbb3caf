"""Cases hold what they say, refuse what is not known, and what is needed is needed."""

from functools import cache
from pathlib import Path

import pytest
import torch

from microtome.core import plugins
from microtome.core.edits import Set
from microtome.core.errors import InputError, StoreError, TruthError
from microtome.data import tasks
from microtome.data.metrics import build as build_metric
from microtome.testbeds.case import Case
from microtome.testbeds.stories import family, testbed
from microtome.testbeds.stories import train as training
from microtome.testbeds.stories.grammar import BOS, ROLES
from microtome.testbeds.stories.network import Settings
from microtome.testbeds.stories.train import train

built = cache(testbed.build)
SMALL = Settings(hidden=16, layers=1, heads=2, steps=12, batch=2, warmup=4, mlp=False)


@pytest.fixture(scope="module")
def induction() -> Case:
    return built("induction", 1)


def test_it_enters_by_the_door_that_is_open_to_everyone() -> None:
    assert plugins.load("testbeds", "stories") is testbed
    assert testbed.card.name == "stories"
    assert set(testbed.TASKS) <= set(tasks.names())
    assert len(set(testbed.cases())) == len(testbed.cases())


@pytest.mark.parametrize("name", testbed.cases())
def test_every_case_stands_on_evidence_that_holds(name: str) -> None:
    case = built(name, 0)
    assert case.name == f"stories/{name}"
    assert set(case.truth.kinds) <= set(testbed.card.kinds)
    assert case.truth.kinds
    data = case.data("pairs" if name in testbed.TASKS else "tokens")
    stories = testbed.MANY if name == "fruitfly" else testbed.ROWS
    assert len(data) == (testbed.PAIRS if name in testbed.TASKS else stories)
    for nodes in case.truth.roles.values():
        assert all(case.model.has(node) for node in nodes)


def test_stories_come_with_the_latents_of_every_token() -> None:
    case = built("attention-1-layer", 0)
    assert (case.tokens[:, 0] == BOS).all()
    assert all(values.shape == case.tokens.shape for values in case.truth.labels.values())
    places = case.truth.labels["place"] >= 0
    assert (case.truth.labels["role"][places] == ROLES.index("place")).all()


def test_the_same_seed_gives_the_same_case_and_another_another(induction: Case) -> None:
    again, other = testbed.build("induction", 1), testbed.build("induction", 2)
    assert again.truth.roles == induction.truth.roles
    assert again.truth.quantities == induction.truth.quantities
    assert torch.equal(again.pairs.clean, induction.pairs.clean)
    assert not torch.equal(other.pairs.clean, induction.pairs.clean)


def test_where_several_seeds_ship_the_seed_chooses_the_network() -> None:
    seeds = [seed for name, seed in family.shipped() if name == "attention-1-layer"]
    assert len(seeds) > 1
    one, two = (testbed.build("attention-1-layer", seed) for seed in (1, 1 + len(seeds)))
    assert one.model.name == two.model.name == "attention-1-layer-1"
    assert not torch.equal(one.tokens, two.tokens)


def test_a_part_is_needed_as_much_as_one_pass_without_it_says(induction: Case) -> None:
    pairs, model = induction.pairs, induction.model
    metric = build_metric("logit-difference", pairs)
    clean, corrupt = (model.run(ids, metric=metric).metric for ids in (pairs.clean, pairs.corrupt))
    for node in ("z.0.h1", "z.1.h0", "mlp_out.3"):
        value = model.run(pairs.corrupt, read=[node])[node]
        left = model.run(pairs.clean, edit=[Set(node, value=value)], metric=metric).metric
        share = float((clean - left).mean() / (clean - corrupt).mean())
        assert induction.truth.quantities[f"{node} needed"] == pytest.approx(share, abs=1e-4)
        assert (node in induction.truth.roles["needed"]) == (share >= testbed.NEEDED)
    assert "z.0.h1" in induction.truth.roles["needed"]


def test_labels_of_a_task_are_its_prompts_own(induction: Case) -> None:
    labels, pairs = induction.truth.labels, induction.pairs
    for row in range(len(pairs)):
        first, second = labels["A at"][row], labels["A#2 at"][row]
        assert pairs.clean[row, first] == pairs.clean[row, second]
        assert pairs.corrupt[row, first] != pairs.corrupt[row, second]
        assert labels["answer"][row] == pairs.clean[row, first + 1]


def test_the_true_features_stand_in_the_stream() -> None:
    case = built("superposition-free", 0)
    truth = case.truth.features
    rows = case.model.run(case.tokens[:2], read=["embed"])["embed"]
    assert torch.equal(truth["embed"][case.tokens[:2]], rows)
    assert len(truth["resid_post.0"]) == case.model.sizes["d_model"]


def test_a_network_trained_too_little_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "HELD_OUT_DOCUMENTS", 60)
    monkeypatch.setitem(family.MEMBERS, "small", SMALL)
    train(tmp_path, SMALL)
    with pytest.raises(TruthError, match=r"nats below a bigram table -.*Train it longer"):
        testbed.member("small", 0, tmp_path)


def test_an_untrained_network_has_no_roles_to_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "HELD_OUT_DOCUMENTS", 60)
    monkeypatch.setitem(family.MEMBERS, "small", SMALL.model_copy(update={"layers": 2}))
    train(tmp_path, family.settings("small"))
    with pytest.raises(TruthError, match="random words repeated 0"):
        testbed.member("small", 0, tmp_path)


def test_names_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="indirect-object"):
        testbed.build("indirect", 0)
    with pytest.raises(InputError, match="expected a member"):
        testbed.member("attention-9-layers")
    with pytest.raises(StoreError, match="is not shipped"):
        testbed.member("fruitfly-wide")
