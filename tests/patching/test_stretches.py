"""Columns of maps: each covers what its label says, and slots cover every prompt exactly once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microtome.core.errors import InputError
from microtome.data.pairs import Pairs
from microtome.models.batch import Batch
from microtome.patching.stretches import WHOLE, stretches


def batch_of(pairs: Pairs) -> Batch:
    return Batch.of(*pairs.clean.shape, pairs.mask)


def test_tokens_are_labelled_by_what_all_prompts_share(pairs: Pairs) -> None:
    same = pairs.rows([0, 0])
    labels = [stretch.label for stretch in stretches(same, "tokens")]
    text, corrupt = same.tokens_as_text(0), same.tokens_as_text(0, corrupt=True)
    assert labels == [t if t == c else "{subject}" for t, c in zip(text, corrupt, strict=True)]


def test_labels_fall_back_to_slots_and_then_to_an_ellipsis(pairs: Pairs) -> None:
    labels = [stretch.label for stretch in stretches(pairs, "tokens")]
    assert labels == ["…", "{subject}", "{subject}", "…", "…", "{place}", "…"]


@pytest.mark.parametrize("by", ["slots", "auto"])
def test_slots_and_the_rest_cover_every_real_token_once(uneven: Pairs, by: str) -> None:
    found = stretches(uneven, by)  # type: ignore[arg-type]
    assert [stretch.label for stretch in found] == ["{subject}", "{place}", "last token", "the rest"]
    batch = batch_of(uneven)
    total = torch.stack([stretch.covers(batch) for stretch in found]).sum(dim=0)
    assert torch.equal(total, uneven.mask)


@given(lengths=st.lists(st.integers(6, 12), min_size=1, max_size=5), left=st.booleans())
def test_covering_for_any_lengths_and_padding(lengths: list[int], left: bool) -> None:
    pairs = _pairs(lengths)
    columns = torch.arange(max(lengths))
    real = torch.tensor(lengths)[:, None]
    mask = columns >= max(lengths) - real if left else columns < real
    batch = Batch.of(len(lengths), max(lengths), mask.long())
    for by in ("auto", "slots", "all"):
        total = torch.stack([s.covers(batch) for s in stretches(pairs, by)]).sum(dim=0)  # type: ignore[arg-type]
        assert torch.equal(total, mask.long())


def test_groups_hold_every_row_once(uneven: Pairs) -> None:
    for stretch in stretches(uneven, "slots"):
        seen = {row: positions for positions, rows in stretch.groups for row in rows or range(len(uneven))}
        assert [seen[row] for row in range(len(uneven))] == list(stretch.positions or ())
    assert WHOLE.groups == ((None, None),)


def test_refuses_tokens_of_different_lengths(uneven: Pairs) -> None:
    with pytest.raises(InputError, match=r"6 to 8 tokens; use positions=slots"):
        stretches(uneven, "tokens")


def test_refuses_slots_that_are_not_shared(uneven: Pairs) -> None:
    bare = Pairs(**{name: getattr(uneven, name) for name in _FIELDS} | {"slots": ({},) * len(uneven)})
    with pytest.raises(InputError, match="share none; use positions=all"):
        stretches(bare, "slots")


_FIELDS = "clean corrupt mask answers wrong texts corrupt_texts token_strings task seed".split()


def _pairs(lengths: list[int]) -> Pairs:
    longest = max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    ids = torch.ones(len(lengths), longest, dtype=torch.long) * mask
    return Pairs(
        clean=ids,
        corrupt=ids * 2,
        mask=None if bool(mask.all()) else mask.long(),
        answers=((1,),) * len(lengths),
        wrong=((2,),) * len(lengths),
        slots=tuple({"one": (1, 2 + row % 2), "two": (n - 2, n)} for row, n in enumerate(lengths)),
        texts=("",) * len(lengths),
        corrupt_texts=("",) * len(lengths),
        token_strings={0: "", 1: "a", 2: "b"},
    )
