"""A hypothesis says where each variable stands, once, and refuses what cannot be."""

import pytest
import torch

from microtome.core.edits import Set, Swap
from microtome.core.errors import InputError, SiteError
from microtome.data.causal_model import TOKENS, UNASKED, CausalModel, Variable
from microtome.data.hypothesis import Hypothesis, Location

MODEL = CausalModel(
    (
        Variable("low", (TOKENS,), lambda tokens: tokens % 2),
        Variable("high", ("low", TOKENS), lambda low, tokens: low + tokens),
        Variable("answer", ("high",), lambda high: high),
    )
)
TOKENS_4 = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])
PLACES = {"low": Location("z.0.h1"), "high": Location("resid_post.1", torch.eye(4)[:2])}


def test_it_tells_values_answers_and_places() -> None:
    found = Hypothesis(MODEL, PLACES, TOKENS_4)
    assert found.values["low"].tolist() == [[0, 1]] * 4
    assert found.answers.tolist() == [[0, 2], [2, 4], [4, 6], [6, 8]]
    assert list(map(str, found.sites)) == ["z.0.h1", "resid_post.1"]
    assert found.told() == "low (tokens) at z.0.h1; high (low, tokens) at resid_post.1 in 2 directions"
    coarse = found.keeping(["high"])
    assert list(coarse.locations) == ["high"]
    assert torch.equal(coarse.answers, found.answers)
    assert str(found.at(low=Location(["z.0.h2", "z.0.h3"])).locations["low"]) == "z.0.h2 + z.0.h3"
    assert found.hash == Hypothesis(MODEL, PLACES, TOKENS_4).hash != found.rows([0, 1]).hash


def test_the_answer_is_the_best_of_the_choices() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0]])
    answers = CausalModel((Variable("answer", (TOKENS,), lambda tokens: tokens % 2 + 1),))
    assert Hypothesis(answers, {}, TOKENS_4).said(logits).tolist() == [0]
    assert Hypothesis(answers, {}, TOKENS_4, (2, 1)).said(logits).tolist() == [1]
    with pytest.raises(InputError, match=r"answers \[2\] are not among the choices"):
        Hypothesis(answers, {}, TOKENS_4, (1,))


def test_edits_set_whole_sites_and_swap_directions() -> None:
    values = {site: torch.zeros(1, 2, 4) for place in PLACES.values() for site in place.sites}
    assert isinstance(PLACES["low"].edits(values)[0], Set)
    assert isinstance(PLACES["high"].edits(values)[0], Swap)


def test_a_split_shares_no_row() -> None:
    repeated = Hypothesis(MODEL, PLACES, torch.cat([TOKENS_4, TOKENS_4]))
    one, two = repeated.split(0.5, seed=1)
    rows = [{tuple(row) for row in half.tokens.tolist()} for half in (one, two)]
    assert not rows[0] & rows[1]
    assert len(rows[0] | rows[1]) == 4
    assert torch.equal(one.tokens, repeated.split(0.5, seed=1)[0].tokens)
    with pytest.raises(InputError, match="two on each side"):
        repeated.split(0.9)


@pytest.mark.parametrize(
    ("one", "two", "meet"),
    [
        (Location("z.0.h1"), Location("z.0.h2"), False),
        (Location("z.0.h1"), Location("z.0"), True),
        (Location("z.0.h1@0"), Location("z.0.h1@1"), False),
        (Location("z.0.h1@0"), Location("z.0.h1"), True),
        (Location("z.0.h1"), Location("z.1.h1"), False),
        (Location("resid_pre.0", torch.eye(3)[:1]), Location("resid_pre.0", torch.eye(3)[1:]), False),
        (Location("resid_pre.0", torch.eye(3)[:2]), Location("resid_pre.0", torch.eye(3)[1:]), True),
        (Location("resid_pre.0", torch.eye(3)[:2]), Location("resid_pre.0"), True),
    ],
)
def test_what_two_variables_may_share(one: Location, two: Location, meet: bool) -> None:
    assert one.overlaps(two) is two.overlaps(one) is meet


def test_what_is_no_hypothesis_is_refused() -> None:
    with pytest.raises(InputError, match=r"\['high'\] have no location"):
        Hypothesis(MODEL, {"low": Location("z.0.h1")}, TOKENS_4)
    with pytest.raises(InputError, match=r"locations of \['highest'\]"):
        Hypothesis(MODEL, {**PLACES, "highest": Location("z.0.h0")}, TOKENS_4)
    with pytest.raises(InputError, match="high and low both stand at"):
        Hypothesis(MODEL, {"low": Location("z.0.h1"), "high": Location("z.0")}, TOKENS_4)
    with pytest.raises(InputError, match="two different rows"):
        Hypothesis(MODEL, PLACES, TOKENS_4[:1])
    silent = CausalModel((Variable("answer", (TOKENS,), lambda tokens: torch.full_like(tokens, UNASKED)),))
    with pytest.raises(InputError, match="asked nothing"):
        Hypothesis(silent, {}, TOKENS_4)


def test_what_is_no_location_is_refused() -> None:
    with pytest.raises(InputError, match="at least one"):
        Location(())
    with pytest.raises(SiteError):
        Location("nowhere")
    with pytest.raises(InputError, match="is a gradient"):
        Location("grad:z.0")
    with pytest.raises(InputError, match="belong to one site"):
        Location(("z.0.h1", "z.0.h2"), torch.eye(2))
    with pytest.raises(InputError, match=r"finite numbers \[direction, d\]"):
        Location("z.0.h1", torch.tensor([[float("nan"), 0.0]]))
    with pytest.raises(InputError, match=r"2 directions at z\.0\.h1 .* span 1 dimensions"):
        Location("z.0.h1", torch.ones(2, 3))
