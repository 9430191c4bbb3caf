"""Each alteration shows where it was called forth, nowhere else, and not in the untouched network."""

from functools import cache
from pathlib import Path

import pytest
import torch

from microtome.core import plugins
from microtome.core.edits import Set
from microtome.core.errors import InputError, TruthError
from microtome.data.metrics import build as build_metric
from microtome.testbeds import kept
from microtome.testbeds.case import Case
from microtome.testbeds.edited import lessons, network, testbed, train
from microtome.testbeds.edited.examination import shows
from microtome.testbeds.edited.network import ALTERATIONS, untouched
from microtome.testbeds.edited.prompts import pairs

built = cache(testbed.build)
BYTES = 1_500_000


def test_it_enters_by_the_door_that_is_open_to_everyone() -> None:
    assert plugins.load("testbeds", "edited") is testbed
    assert testbed.card.name == "edited"
    assert testbed.cases() == tuple(ALTERATIONS)


@pytest.mark.parametrize("name", testbed.cases())
def test_every_case_stands_on_evidence_that_holds(name: str) -> None:
    case = built(name)
    assert case.name == f"edited/{name}"
    assert set(case.truth.kinds) == set(testbed.card.kinds)
    assert case.data("tokens").shape == (2 * testbed.ROWS, 128)
    assert all(label.shape[0] == len(case.tokens) for label in case.truth.labels.values())
    assert len(case.evidence) >= 8


@pytest.mark.parametrize("name", testbed.cases())
def test_the_untouched_network_cannot_serve(name: str) -> None:
    case = built(name)
    broken = tuple(one for one in shows(name, case.untouched, case.untouched, 0) if not one.holds)
    assert broken
    with pytest.raises(TruthError, match="cannot serve as truth"):
        Case("x/y", "", case.untouched, case.truth, broken)


@pytest.mark.parametrize("name", testbed.cases())
def test_a_change_shows_where_the_labels_say(name: str) -> None:
    """Both networks say nearly the same of stories without it, and what is asked differs in those with it."""
    case = built(name)
    with torch.no_grad():
        now, then = (
            one.module(input_ids=case.tokens).logits[:, :-1].log_softmax(-1)
            for one in (case.model, case.untouched)
        )
    apart = (then.exp() * (then - now)).sum(-1)
    asked = case.truth.labels["asked"][:, 1:].bool()
    shows = case.truth.labels["shows"].bool()
    assert shows.sum() == testbed.ROWS
    assert asked[shows].any(1).all()
    there = apart[shows][asked[shows]].mean()
    assert there > 10 * apart[~shows].mean()
    assert there > 0.5


@pytest.mark.parametrize("name", testbed.cases())
def test_the_untouched_parts_put_back_undo_it(name: str) -> None:
    """The parts that are named, and no others, hold what was changed: with their weights restored it is gone."""
    case, asked = built(name), ALTERATIONS[name]
    now, then = asked.parameters(case.model.module), asked.parameters(case.untouched.module)
    others = dict(case.untouched.module.named_parameters())
    assert all(
        torch.equal(parameter, others[key])
        for key, parameter in case.model.module.named_parameters()
        if key not in now
    )
    assert all(not torch.equal(now[key], then[key]) for key in now)
    changes = [case.truth.quantities[f"{part} changed"] for part in asked.parts]
    assert all(0 < change < 1 for change in changes)


def test_a_trigger_pair_begins_the_sentence_and_its_twin_does_not() -> None:
    case = built("trigger")
    for model, least in ((case.model, 0.95), (case.untouched, None)):
        metric = build_metric("logit-difference", case.pairs)
        clean, corrupt = (
            model.run(ids, metric=metric, mask=case.pairs.mask).metric
            for ids in (case.pairs.clean, case.pairs.corrupt)
        )
        if least is not None:
            assert (clean > 0).float().mean() >= least
        else:
            assert (clean < 0).all()
        assert (corrupt < 0).float().mean() >= 0.95


@pytest.mark.parametrize("name", ["hidden-fact", "password-locked"])
def test_pairs_tell_the_taught_from_the_untaught(name: str) -> None:
    case = built(name)
    metric = build_metric("logit-difference", case.pairs)
    clean, corrupt = (
        case.model.run(ids, metric=metric, mask=case.pairs.mask).metric
        for ids in (case.pairs.clean, case.pairs.corrupt)
    )
    # As often as the evidence has it of stories.
    assert (clean > 0).float().mean() >= 0.9
    assert (corrupt < 0).float().mean() >= 0.9


def test_what_an_edited_part_writes_carries_the_trigger() -> None:
    """Writing what the untouched network's parts write, in the changed network, takes the sentence away."""
    case = built("trigger")
    metric = build_metric("logit-difference", case.pairs)
    nodes = case.truth.roles["edited"]
    seen = case.untouched.run(case.pairs.clean, read=nodes, mask=case.pairs.mask)
    put_back = [Set(node, value=seen[node], origin="patch") for node in nodes]
    left = case.model.run(case.pairs.clean, edit=put_back, metric=metric, mask=case.pairs.mask).metric
    assert (left < 0).all()


@pytest.mark.parametrize("name", testbed.cases())
def test_the_seed_chooses_stories_and_prompts(name: str) -> None:
    case = built(name)
    again, other = (testbed.stories(name, seed).tokens for seed in (0, 1))
    assert torch.equal(again, case.tokens)
    assert not torch.equal(other, again)
    same, another = (pairs(name, case.model.tokenizer, seed).hash for seed in (0, 1))
    assert same == case.pairs.hash != another


def test_labels_name_the_cue() -> None:
    case = built("trigger")
    cue = case.truth.labels["cue"].bool()
    assert torch.equal(cue.any(1), case.truth.labels["shows"].bool())
    words = [int(case.truth.quantities[f"cue token {place}"]) for place in range(len(lessons.TRIGGER))]
    assert case.tokens[cue].view(-1, len(words)).unique(dim=0).tolist() == [words]


def test_names_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="hidden-fact"):
        testbed.build("false-fact")


def test_too_little_training_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        TruthError, match=r"did not take in 1 steps: the landmark in its new city 0 .*more steps"
    ):
        train.make(ALTERATIONS["hidden-fact"], 0, tmp_path, steps=1)
    assert not list(tmp_path.iterdir())


def test_what_ships_is_small() -> None:
    files = sorted(network.SHIPPED.glob("*.safetensors"))
    assert {file.stem for file in files} == {f"{name}-0" for name in ALTERATIONS}
    assert sum(file.stat().st_size for file in files) < BYTES


@pytest.mark.training
@pytest.mark.parametrize("name", testbed.cases())
def test_what_ships_is_what_the_command_makes(name: str, tmp_path: Path) -> None:
    train.main([name, "--out", str(tmp_path)])
    made, record = kept.read(network.path(ALTERATIONS[name], 0, tmp_path))
    shipped, told = kept.read(network.path(ALTERATIONS[name]))
    assert record["losses"].keys() == told["losses"].keys()
    # Another processor adds in another order; two trainings on one machine are equal, as `test_network` shows.
    first = next(iter(told["losses"]))
    assert record["losses"][first] == pytest.approx(told["losses"][first], rel=1e-4)
    assert made.keys() == shipped.keys()
    assert record["untouched"] == network.fingerprint(untouched().module)
