"""The fruit fly does induction by the known algorithm, its shuffled twin does not, and the numbers are as counted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from microtome.core.edits import Set
from microtome.core.errors import InputError
from microtome.models.load import load
from microtome.models.model import Model
from microtome.models.random_twin import random_twin
from microtome.testbeds.stories.family import checkpoints
from microtome.testbeds.stories.family import model as member
from microtome.testbeds.stories.induction_heads import LONGEST, SHORTEST, Account, account, repeats
from microtome.testbeds.stories.network import Settings, new_model
from microtome.testbeds.stories.tokenizer import build

ROWS = 4


@pytest.fixture(scope="module")
def fruitfly() -> Model:
    return member("fruitfly")


@pytest.fixture(scope="module")
def found(fruitfly: Model) -> Account:
    return account(fruitfly, ROWS)


@pytest.fixture(scope="module")
def untrained() -> Model:
    return load(new_model(Settings(hidden=16, layers=2, heads=2, mlp=False)).eval(), tokenizer=build())


def test_the_fruit_fly_does_induction(found: Account) -> None:
    assert found.behaviour > 0.99
    layers = {role: {n for n, _ in heads} for role, heads in found.roles.items()}
    assert layers["previous_token"]
    assert max(layers["previous_token"]) < min(layers["induction"])


def test_it_needs_the_heads_of_each_role_and_not_their_neighbours(found: Account) -> None:
    for role in ("previous_token", "induction"):
        assert found.without[role] < 0.05
        assert found.without_others[role] > 0.8


def test_only_the_keys_of_its_induction_heads_depend_on_its_previous_token_heads(found: Account) -> None:
    assert found.cut["k"] < 0.05
    assert found.cut["q"] > 0.95
    assert found.cut["v"] > 0.95


def test_in_its_training_heads_and_behaviour_come_together() -> None:
    during = checkpoints("fruitfly")
    before, after = account(during[1292], ROWS), account(during[2373], ROWS)
    assert before.behaviour < 0.05
    assert before.nodes == {"previous_token": (), "induction": ()}
    assert after.behaviour > 0.8
    assert all(after.nodes.values())


def test_a_shuffled_twin_has_neither_behaviour_nor_heads(fruitfly: Model) -> None:
    nothing = account(random_twin(fruitfly), ROWS)
    assert nothing.behaviour < 0.02
    assert nothing.nodes == {"previous_token": (), "induction": ()}
    assert nothing.cut == dict.fromkeys("qkv", nothing.behaviour)


def test_looks_are_the_attention_counted_by_hand(untrained: Model) -> None:
    tokens, _ = repeats(untrained, 2, 5)
    found = account(untrained, 2, 5)
    pattern = untrained.run(tokens, read=["pattern.1"])["pattern.1"][:, 1]
    before, followed = [], []
    for row, ids in enumerate(tokens.tolist()):
        for query, token in enumerate(ids):
            if query > 1:
                before.append(float(pattern[row, query, query - 1]))
            if token in ids[:query]:
                after = [key for key in range(1, query + 1) if ids[key - 1] == token]
                followed.append(sum(float(pattern[row, query, key]) for key in after))
    assert float(found.looks["previous_token"][1, 1]) == pytest.approx(sum(before) / len(before), abs=1e-5)
    assert float(found.looks["induction"][1, 1]) == pytest.approx(sum(followed) / len(followed), abs=1e-5)


def test_the_behaviour_is_counted_as_by_hand(fruitfly: Model) -> None:
    # Against the same model with its previous-token head set to its mean by hand.
    tokens, _ = repeats(fruitfly, ROWS, 0)
    found = account(fruitfly, ROWS)
    edits = []
    for node in found.nodes["previous_token"]:
        value = fruitfly.run(tokens, read=[node])[node]
        edits.append(Set(node, value=value.mean((0, 1), keepdim=True)))
    choices = fruitfly.run(tokens, edit=edits, logits=True).logits.argmax(-1)
    answers = []
    for row, ids in enumerate(tokens.tolist()):
        period = ids[2:].index(ids[1]) + 1
        for place in range(period + 1, len(ids)):
            if ids[place] != ids[1]:  # the word that begins a saying is left out
                answers.append(int(choices[row, place - 1]) == ids[place])
    assert found.count == len(answers)
    assert found.without["previous_token"] == pytest.approx(sum(answers) / len(answers))


@given(rows=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_rows_repeat_with_a_period_of_their_own(untrained: Model, rows: int, seed: int) -> None:
    tokens, first = repeats(untrained, rows, seed)
    assert torch.equal(tokens, repeats(untrained, rows, seed)[0])
    for row, place in zip(tokens[:, 1:].tolist(), first.tolist(), strict=True):
        period = row[1:].index(row[0]) + 1
        assert SHORTEST <= period <= LONGEST
        assert len(set(row[:period])) == period
        assert row[period:] == row[:-period]
        assert place[: period + 1] == [-1] * (period + 1)
        assert all(row[at - 1] == row[i - 1] for i, at in enumerate(place) if at >= 0)


def test_a_module_without_heads_is_refused() -> None:
    bare = Model(nn.Linear(3, 3), {}, build())
    with pytest.raises(InputError, match="no map of parts"):
        account(bare)
