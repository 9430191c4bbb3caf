"""Heads that carry what differs between clean and corrupt change their word; heads that cannot know of it do not."""

from dataclasses import replace

import numpy as np
import torch

from microtome.core import plugins
from microtome.core.answers import NodeScores
from microtome.core.result import Result
from microtome.dictionaries import discrete_codes
from microtome.dictionaries.discrete_codes import Config, apart, codes_of
from microtome.testbeds.algorithmic import induction
from models import families

SHORT = Config(vocabulary=16, rounds=2)


def test_codes_are_words_for_directions() -> None:
    source = torch.Generator().manual_seed(0)
    words = torch.cat([torch.eye(4), -torch.eye(4)])[[0, 1, 2, 7]]
    said = torch.randint(0, 4, (60, 3), generator=source)
    values = words[said] * 3 + 0.05 * torch.randn(60, 3, 4, generator=source)
    one = Config(vocabulary=8, words=1, rounds=10)
    codes = codes_of(values, one)[..., 0]
    # No number stands for two words.
    words_of = {number: set(said[codes == number].tolist()) for number in codes.unique().tolist()}
    assert all(len(found) == 1 for found in words_of.values())
    assert set().union(*words_of.values()) == {0, 1, 2, 3}
    assert torch.equal(codes_of(values * 0 + 2, one), torch.full((60, 3, 1), -1))
    more = codes_of(values, one.model_copy(update={"words": 3}))
    assert more.shape == (60, 3, 3)
    assert int(more.max()) < 8


def test_sets_apart() -> None:
    one = torch.tensor([[1, 2, 3], [1, 2, -1], [-1, -1, -1], [4, -1, -1]])
    other = torch.tensor([[1, 2, 3], [2, 5, 7], [-1, -1, -1], [-1, -1, -1]])
    assert apart(one, other).tolist() == [0.0, 0.75, 0.0, 1.0]
    assert torch.equal(apart(one, other), apart(other, one))


def test_heads_that_carry_the_difference_are_found(tmp_path: object) -> None:
    case = induction.build(induction.cases()[0])
    assert case.pairs is not None
    state = torch.random.get_rng_state()
    found = discrete_codes.run(case.model, case.pairs, SHORT)
    assert torch.equal(state, torch.random.get_rng_state())
    (scores,) = found.answers()
    assert isinstance(scores, NodeScores)
    # The induction head stands in the second layer; what the first layer's looks at is the same in both prompts.
    assert scores.scores["z.1.h0"] > 0.5
    assert scores.scores["z.0.h0"] < 0.3
    assert found == discrete_codes.run(case.model, case.pairs, SHORT)
    found.save(str(tmp_path))
    assert Result.load(str(tmp_path)) == found
    assert plugins.method("discrete_codes") is discrete_codes
    (grid,) = found.shapes()
    assert str(len(case.pairs)) in grid.caption


def test_what_comes_before_the_difference_keeps_its_words() -> None:
    case = induction.build(induction.cases()[0])
    assert case.pairs is not None
    pairs = case.pairs
    places = pairs.clean.shape[1]
    late = replace(pairs, corrupt=torch.cat([pairs.clean[:, :-1], pairs.corrupt[:, -1:] + 1], 1))
    found = discrete_codes.run(case.model, late, SHORT.model_copy(update={"positions": 4}))
    assert found.data["place"].values.tolist() == [-4, -3, -2, -1]
    assert not found.data["changed"].values[..., :-1].any()
    assert found.data["changed"].values[..., -1].any()
    every = discrete_codes.run(case.model, late, SHORT.model_copy(update={"positions": 0, "rounds": 1}))
    assert every.data.sizes["place"] == places
    same = discrete_codes.run(case.model, replace(pairs, corrupt=pairs.clean), SHORT)
    assert not same.data["changed"].values.any()


def test_grouped_queries_will_do() -> None:
    case = induction.build(induction.cases()[0])
    assert case.pairs is not None
    model = families.model("llama")
    pairs = replace(
        case.pairs,
        clean=families.ids(rows=len(case.pairs)),
        corrupt=families.ids(rows=len(case.pairs), seed=1),
    )
    found = discrete_codes.run(model, pairs, SHORT)
    assert found.data["changed"].shape == (model.n_layers, model.n_heads, 1)
    assert np.isfinite(found.data["changed"].values).all()
