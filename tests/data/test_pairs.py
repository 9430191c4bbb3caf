"""Pairs hold what was asked, whole: aligned, padded, hashed, split without a leak."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from microtome.core.errors import InputError
from microtome.data.pairs import Pair, Pairs
from microtome.data.templates import AlignedPrompts, Template

SHORT = Template("When {A} and {B} went to the {place}, {B} gave a ball to")
LONG = Template("Then, {A} and {B} went to the {place}. {B} gave a ball to")


def _pair(tokenizer: PreTrainedTokenizerBase, template: Template, a: str, b: str) -> Pair:
    clean = {"A": a, "B": b, "place": "park"}
    prompts = template.pair(tokenizer, clean, clean | {"B": "Tom"})
    ids = tokenizer(f"{a} {b}", add_special_tokens=False)["input_ids"]
    return Pair(prompts, (ids[0],), (ids[1],))


@pytest.fixture
def pairs(words: PreTrainedTokenizerBase) -> Pairs:
    made = [
        _pair(words, SHORT, "Mary", "John"),
        _pair(words, LONG, "Anna", "Paul"),
        _pair(words, SHORT, "Kate", "Max"),
    ]
    return Pairs.of(made, words, task="giving", seed=3)


def test_rows_of_different_lengths_are_padded_on_the_right(
    pairs: Pairs, words: PreTrainedTokenizerBase
) -> None:
    assert pairs.mask is not None
    assert pairs.lengths == (15, 16, 15)
    assert pairs.clean.shape == pairs.corrupt.shape == pairs.mask.shape == (3, 16)
    assert pairs.clean[0, -1] == pairs.corrupt[0, -1] == words.pad_token_id
    for row, length in enumerate(pairs.lengths):
        for ids, texts in ((pairs.clean, pairs.texts), (pairs.corrupt, pairs.corrupt_texts)):
            assert ids[row, :length].tolist() == words(texts[row])["input_ids"]
    assert Pairs.of([_pair(words, SHORT, "Mary", "John")], words).mask is None


def test_slots_and_tokens_are_those_of_the_text(pairs: Pairs) -> None:
    for row in range(3):
        tokens = pairs.tokens_as_text(row)
        assert len(tokens) == pairs.lengths[row]
        for slot, filler in (("A", pairs.answer_texts[row][0]), ("B#2", pairs.wrong_texts[row][0])):
            assert tokens[slice(*pairs.slots[row][slot])] == (filler,)
        assert pairs.tokens_as_text(row, corrupt=True)[slice(*pairs.slots[row]["B"])] == (" Tom",)
    assert (
        "".join(pairs.tokens_as_text(1)[1:]).replace(" ,", ",").replace(" .", ".").strip() == pairs.texts[1]
    )


def test_rows_choose_repeat_and_reorder(pairs: Pairs) -> None:
    chosen = pairs.rows([2, 0, 2])
    assert chosen.texts == (pairs.texts[2], pairs.texts[0], pairs.texts[2])
    assert chosen.clean.equal(pairs.clean[[2, 0, 2]])
    assert chosen.answers == (pairs.answers[2], pairs.answers[0], pairs.answers[2])
    assert pairs.rows(range(3)).hash == pairs.hash
    with pytest.raises(InputError, match="rows below 3, got"):
        pairs.rows([0, 3])


def _changes(pairs: Pairs) -> dict[str, Any]:
    assert pairs.mask is not None
    other = pairs.corrupt.clone()
    other[0, 4] = pairs.clean[1, 4]
    return {
        "clean": other,
        "corrupt": other,
        "mask": torch.ones_like(pairs.mask),
        "answers": (pairs.answers[1], *pairs.answers[1:]),
        "wrong": ((), *pairs.wrong[1:]),
        "slots": ({}, *pairs.slots[1:]),
        "texts": ("x", *pairs.texts[1:]),
        "corrupt_texts": ("x", *pairs.corrupt_texts[1:]),
        "token_strings": pairs.token_strings | {0: "x"},
        "task": "other",
        "seed": 4,
    }


def test_the_hash_tells_any_difference(pairs: Pairs) -> None:
    changes = _changes(pairs)
    assert set(changes) == {field.name for field in dataclasses.fields(Pairs)}
    hashes = {pairs.hash} | {dataclasses.replace(pairs, **{name: new}).hash for name, new in changes.items()}
    assert len(hashes) == 1 + len(changes)


def test_what_does_not_fit_is_refused(pairs: Pairs) -> None:
    assert pairs.mask is not None
    broken: list[tuple[dict[str, Any], str]] = [
        ({"corrupt": pairs.corrupt[:, 1:]}, r"one shape .* \(3, 16\) and \(3, 15\)"),
        ({"clean": pairs.clean[:0], "corrupt": pairs.corrupt[:0]}, "at least one pair"),
        ({"mask": pairs.mask[:2]}, r"mask of shape \(3, 16\)"),
        ({"mask": torch.zeros_like(pairs.mask)}, "a real token in each row"),
        ({"texts": pairs.texts[:2]}, "expected texts for 3 rows, got 2"),
        ({"answers": ((), *pairs.answers[1:])}, "row 0 has no answer: 'When Mary"),
        ({"wrong": pairs.answers}, "' Mary' is both an answer and a wrong answer in row 0"),
        (
            {"slots": ({"A": (3, 16)}, *pairs.slots[1:])},
            "slot A of row 0 spans tokens 3 to 16, the prompt has 15",
        ),
    ]
    for change, message in broken:
        with pytest.raises(InputError, match=message):
            dataclasses.replace(pairs, **change)


def test_pairs_without_prompts_or_of_unequal_length_are_refused(words: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match="at least one pair of prompts, got none"):
        Pairs.of([], words)
    uneven = AlignedPrompts((5, 6), (5, 6, 7), {}, (), "a b", "a b c")
    with pytest.raises(InputError, match="equal length, got 2 tokens for 'a b' and 3 for 'a b c'"):
        Pairs.of([Pair(uneven, (1,), (2,))], words)


@given(
    prompts=st.lists(st.tuples(st.integers(0, 30), st.integers(31, 60)), min_size=2, max_size=25),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 3),
)
def test_a_split_shares_no_prompt(
    make_tokenizer: Callable[[str], PreTrainedTokenizerBase],
    prompts: list[tuple[int, int]],
    fraction: float,
    seed: int,
) -> None:
    made = [
        Pair(AlignedPrompts((a, 99), (b, 99), {}, (), f"{a} {row}", str(b)), (1,), (2,))
        for row, (a, b) in enumerate(prompts)
    ]
    pairs = Pairs.of(made, make_tokenizer("words"))
    try:
        first, second = pairs.split(fraction, seed)
    except InputError:  # one part would be empty; the tests below say when
        return
    assert sorted(first.texts + second.texts) == sorted(pairs.texts)
    assert first.texts == pairs.split(fraction, seed)[0].texts
    sides = [set(part.clean[:, 0].tolist()) | set(part.corrupt[:, 0].tolist()) for part in (first, second)]
    assert not sides[0] & sides[1]


def test_a_split_meets_its_fraction_where_rows_are_free(words: PreTrainedTokenizerBase) -> None:
    made = [Pair(AlignedPrompts((i, 9), (i + 50, 9), {}, (), str(i), ""), (1,), (2,)) for i in range(40)]
    pairs = Pairs.of(made, words)
    first, second = pairs.split(0.75, seed=1)
    assert (len(first), len(second)) == (30, 10)
    assert first.texts != pairs.split(0.75, seed=2)[0].texts


def test_a_split_that_would_leak_is_refused(words: PreTrainedTokenizerBase) -> None:
    made = [Pair(AlignedPrompts((i, 9), (50, 9), {}, (), str(i), ""), (1,), (2,)) for i in range(10)]
    with pytest.raises(InputError, match=r"10 rows in 1 group\(s\) that share no prompt cannot be split"):
        Pairs.of(made, words).split(0.5)
    with pytest.raises(InputError, match="fraction between 0 and 1, got 1"):
        Pairs.of(made, words).split(1.0)
