"""More behaviours than heads: the answers are right, the heads share them, and one head alone does not learn them."""

from functools import cache

import pytest
import torch

from microtome.core import plugins
from microtome.core.draws import generator
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.data.metrics import build as metric
from microtome.testbeds.algorithmic.network import UNASKED, fit, right
from microtome.testbeds.toys import head_superposition
from microtome.testbeds.toys.head_superposition import (
    HEADS,
    SHIFTS,
    SOURCES,
    accuracy,
    rows,
    shift_of,
    task,
    words,
)

build = cache(head_superposition.build)
CASES = [(name, seed) for name in HEADS for seed in (0, 1)]


def test_rows_are_what_they_say() -> None:
    examples = rows(500, generator(1))
    for tokens, targets in zip(examples.tokens.tolist(), examples.targets.tolist(), strict=True):
        sources = [token for token in tokens if token < SOURCES]
        assert len(sources) == 1
        assert SOURCES <= tokens[-1] < SOURCES + SHIFTS
        assert targets[:-1] == [UNASKED] * (len(tokens) - 1)
        assert targets[-1] == (sources[0] + tokens[-1] - SOURCES) % SOURCES
    assert [words(token) for token in (0, 5, 6, 10, 11)] == [
        "source0",
        "source5",
        "shift0",
        "shift4",
        "filler0",
    ]


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_a_case_holds(name: str, seed: int) -> None:
    case = build(name, seed)
    assert set(case.truth.kinds) == set(head_superposition.card.kinds)
    assert all(len(label) == len(case.tokens) for label in case.truth.labels.values())
    assert case.pairs is not None
    difference = metric("logit-difference", case.pairs)
    clean = case.model.run(case.pairs.clean, metric=difference).metric
    corrupt = case.model.run(case.pairs.corrupt, metric=difference).metric
    assert clean is not None
    assert corrupt is not None
    assert float((clean > 0).float().mean()) > 0.95
    assert float((corrupt < 0).float().mean()) > 0.95


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_roles_are_what_removing_a_head_shows(name: str, seed: int) -> None:
    case = build(name, seed)
    fresh = rows(2000, generator(seed, 99))  # rows the roles were not measured on
    whole = accuracy(case.model, fresh)
    assert float(whole.min()) > 0.98
    for head in range(HEADS[name]):
        lost = whole - accuracy(case.model, fresh, head)
        for shift in range(SHIFTS):
            told = case.truth.quantities[f"accuracy lost on shift {shift} without z.0.h{head}"]
            # Two shares, of about 100 rows and of about 400: five standard errors.
            assert float(lost[shift]) == pytest.approx(told, abs=5 * 0.5 * (1 / 100 + 1 / 400) ** 0.5)
            if f"z.0.h{head}" in case.truth.roles[f"shift {shift}"]:
                assert float(lost[shift]) > 0


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_logits_are_the_sum_of_heads_and_direct_path(name: str, seed: int) -> None:
    case = build(name, seed)
    run = case.model.run(case.tokens, read=["embed", "z.0"], logits=True)
    written = torch.einsum("rphd,hdm->rpm", run["z.0"], case.model.weight("W_O.0").detach())
    assert run.logits is not None
    torch.testing.assert_close(
        case.model.unembed(run["embed"] + written).detach(), run.logits, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_the_circuit_is_every_head_and_not_the_direct_path(name: str, seed: int) -> None:
    case = build(name, seed)
    assert case.truth.circuit is not None
    heads = {f"z.0.h{head}" for head in range(HEADS[name])}
    expected = {("embed", head, kind) for head in heads for kind in "qkv"}
    expected |= {(head, "logits", "logits") for head in heads}
    assert {edge.ends for edge in case.truth.circuit.edges} == expected
    # The two rows of a pair end in the same shift, so that no query of a head tells them apart.
    assert case.truth.unshown == {("embed", head, "q") for head in heads}


def test_variables_stand_in_the_embedding() -> None:
    case = build("two_heads", 0)
    source, shift = case.truth.variables
    embedded = case.model.run(case.tokens, read=["embed"])["embed"]
    labels, row = case.truth.labels, torch.arange(len(case.tokens))
    torch.testing.assert_close(embedded[:, -1], shift.directions[labels["shift"]])
    torch.testing.assert_close(
        embedded[row, labels["place of the source"]], source.directions[labels["source"]]
    )
    assert shift.site == Site("embed").at(-1)


def test_what_looks_the_same_to_a_head_is_written_alike() -> None:
    # What a head writes when it looks at a source does not know the shift; only how much it looks does.
    case = build("two_heads", 0)
    run = case.model.run(case.tokens, read=["pattern.0", "v.0"])
    pattern = run["pattern.0"][:, :, -1]
    place = case.truth.labels["place of the source"]
    looks = pattern[torch.arange(len(place)), :, place]
    shift = shift_of(case.tokens)
    by_shift = torch.stack([looks[shift == one].mean(0) for one in range(SHIFTS)])
    assert float((by_shift.amax(0) - by_shift.amin(0)).max()) > 0.2


def test_the_twin_does_not_do_it() -> None:
    case = build("two_heads", 0)
    assert float(accuracy(case.control, rows(500, generator(7))).mean()) < 0.5


def test_training_replays() -> None:
    one, first = fit(task("two_heads"), 3, steps=10)
    two, second = fit(task("two_heads"), 3, steps=10)
    assert first.losses == second.losses
    assert all(torch.equal(two.state_dict()[key], value) for key, value in one.state_dict().items())


@pytest.mark.training
@pytest.mark.parametrize("seed", [0, 1])
def test_one_head_does_not_learn_five_behaviours(seed: int) -> None:
    module, training = fit(task("one", heads=1), seed)
    assert not training.reached
    assert float(right(module, task("one", heads=1).held_out(seed)).mean()) < 0.9


@pytest.mark.training
def test_two_heads_do() -> None:
    module, training = fit(task("two_heads"), 0)
    assert training.reached
    assert float(right(module, task("two_heads").held_out(0)).mean()) > 0.99


def test_unknown_cases_are_refused() -> None:
    with pytest.raises(InputError, match="no case 'five_heads'"):
        head_superposition.build("five_heads")
    assert plugins.load("testbeds", "head_superposition") is head_superposition
