"""Heads set by hand are named for what they are; shuffled, they are named for nothing; removed, the behaviour goes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from heads.hand_set import hand_set
from microtome.core.edits import Zero
from microtome.core.errors import InputError
from microtome.heads import head_scorecard as card
from microtome.heads.own_logit import own_logit_effect
from microtome.heads.repeated_tokens import repeated_tokens
from microtome.models.load import load
from microtome.models.random_twin import random_twin
from microtome.models.readout import readout
from microtome.models.stream_parts import behind
from models import families

CONFIG = card.Config(rows=8, length=30, shortest=5, longest=12)


@pytest.fixture(scope="module")
def scored() -> card.Result:
    return card.run(hand_set(), None, CONFIG)


def test_hand_set_heads_get_the_scores_they_must(scored: card.Result) -> None:
    mean = scored.data["mean"]
    assert mean.sel(score="previous", layer=0, head=0).item() == pytest.approx(1, abs=1e-3)
    assert mean.sel(score="induction", layer=1, head=0).item() == pytest.approx(1, abs=1e-2)
    # It spreads over all its own occurrences: every earlier one, and itself.
    assert 0.5 < mean.sel(score="duplicate", layer=1, head=1).item() < 0.8
    assert mean.sel(score="copying", layer=1, head=0).item() == pytest.approx(1, abs=1e-3)
    assert mean.sel(score="copying", layer=1, head=1).item() == pytest.approx(-1, abs=1e-3)
    assert mean.sel(score="own_logit", layer=1, head=0).item() > 0.5
    assert mean.sel(score="own_logit", layer=1, head=1).item() < -0.5
    assert mean.sel(score="own_logit", layer=0, head=1).item() == pytest.approx(0, abs=1e-6)


def test_they_are_named_for_that_and_the_idle_head_for_nothing(scored: card.Result) -> None:
    named = {
        (str(score), int(n), int(h))
        for i, score in enumerate(scored.data["score"].values)
        for n, h in np.argwhere(scored.data["named"].values[i])
    }
    assert named == {
        ("previous", 0, 0),
        ("induction", 1, 0),
        ("duplicate", 1, 1),
        ("copying", 1, 0),
        ("own_logit", 1, 1),
    }
    table = scored.shapes()[0]
    assert ("1.0", "induction head") in {row[:2] for row in table.rows}


def test_a_shuffled_model_has_no_named_heads() -> None:
    found = card.run(random_twin(hand_set(), seed=5), None, CONFIG)
    assert not found.data["named"].sel(score=["induction", "previous", "duplicate", "own_logit"]).any()
    assert found.data["mean"].sel(score="induction").max() < 0.4


def test_all_earlier_occurrences_count(scored: card.Result) -> None:
    """With two earlier occurrences the head splits its attention; counted for the last alone it would be a half."""
    model = hand_set()
    tokens = repeated_tokens(model, 2, 30, (5, 6), 0)
    pattern = model.run(tokens.ids, ["pattern.1.h0"])["pattern.1.h0"]
    period = tokens.periods[0]
    last_occurrence = pattern[0, 0, 3 * period, 2 * period + 1]
    assert 0.2 < float(last_occurrence) < 0.5
    assert scored.data["mean"].sel(score="induction", layer=1, head=0).item() > 0.99


def test_the_behaviour_depends_on_the_named_heads() -> None:
    model = hand_set()
    tokens = repeated_tokens(model, 6, 30, (5, 12), 1)
    ids = tokens.ids

    def accuracy(*edits: Zero) -> float:
        logits = model.run(ids, edit=list(edits)).logits
        assert logits is not None
        right = (logits[:, 13:-1].argmax(-1) == ids[:, 14:]).float()
        return float(right.mean())

    suppressing = Zero("z.1.h1")
    assert accuracy(suppressing) > 0.95
    assert accuracy(suppressing, Zero("z.1.h0")) < 0.2
    assert accuracy(suppressing, Zero("z.0.h0")) < 0.2
    assert accuracy(suppressing, Zero("z.0.h1")) > 0.95


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2", "olmo2"])
def test_own_logit_is_the_direct_effect_of_what_moves_from_each_token(name: str) -> None:
    model, ids = families.model(name), families.ids(2)
    found, other = own_logit_effect(model, ids, ids.flip(0))
    head = readout(model)
    layer, h = 2, 1
    seen = model.run(ids, [f"pattern.{layer}", f"v.{layer}", f"result.{layer}", "resid_post.2"])
    v = seen[f"v.{layer}"].repeat_interleave(4 // seen[f"v.{layer}"].shape[2], dim=2)
    out = model.weight(f"W_O.{layer}")[h].detach()
    after = behind(model.anatomy, layer, "attn")
    bias = getattr(model.anatomy.role("o", layer), "bias", None)
    everything = head.directions(torch.arange(families.VOCABULARY)).detach()
    for tokens, told in ((ids, found), (ids.flip(0), other)):
        for row in range(2):
            total = 0.0
            for q in range(ids.shape[1]):
                for k in range(q + 1):
                    moved = seen[f"pattern.{layer}"][row, h, q, k] * v[row, k, h] @ out
                    if after is not None:
                        whole = seen[f"result.{layer}"][row, q].sum(0)
                        moved = after.push(moved, after.scale(whole if bias is None else whole + bias))
                    logits = moved @ everything.T / head.norm.scale(seen["resid_post.2"][row, q])
                    total += float(logits[tokens[row, k]] - logits.mean())
            assert told[row, layer, h].item() == pytest.approx(total / ids.shape[1], rel=1e-3, abs=1e-4)


def test_rows_have_periods_of_their_own_and_repeat() -> None:
    tokens = repeated_tokens(families.model("gpt2"), 7, 30, (5, 9), 0)
    again = repeated_tokens(families.model("gpt2"), 7, 30, (5, 9), 0)
    assert torch.equal(tokens.ids, again.ids)
    for row, other, period in zip(tokens.ids, tokens.of_other_rows, tokens.periods, strict=True):
        assert torch.equal(row[period:], row[:-period])
        assert len(set(row[:period].tolist())) == period
        assert not torch.equal(other[period:], other[:-period])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (card.Config(length=40), "more than the 32 positions"),
        (card.Config(length=20, shortest=9, longest=8), "shortest"),
        (card.Config(length=8, shortest=2, longest=8), "longest < length"),
    ],
)
def test_tokens_that_cannot_be_made_are_refused(config: card.Config, message: str) -> None:
    with pytest.raises(InputError, match=message):
        card.run(families.model("gpt2"), None, config)


def test_intervals_are_students() -> None:
    scores = np.array([[1.0, 2.0, 3.0, np.nan]])
    mean, low, high = card.intervals(scores)
    assert mean[0] == 2
    assert (high - low)[0] / 2 == pytest.approx(4.3027 / 3**0.5, rel=1e-4)


@pytest.mark.truth
def test_real_previous_token_heads(shared_models: Path) -> None:
    """stories260K: previous-token heads 3.6 and 1.3, before the rest; it does no induction on random tokens."""
    found = card.run(load(shared_models / "stories260K"), None, card.Config()).data
    previous = found["mean"].sel(score="previous").values
    order = np.argsort(-previous, axis=None)
    assert [tuple(map(int, np.unravel_index(i, previous.shape))) for i in order[:2]] == [(3, 6), (1, 3)]
    assert previous.ravel()[order[1]] > 0.6 > previous.ravel()[order[2]]
    named = found["named"].sel(score="previous").values
    assert named[3, 6]
    assert named[1, 3]
    assert found["twin"].sel(score="previous").max() < 0.3
    assert found["mean"].sel(score="induction").max() < 0.3
