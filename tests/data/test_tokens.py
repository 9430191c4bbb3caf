"""A text's tokens are found by offsets, and a word is one token or the error says how it splits."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase

from microtome.core.errors import InputError
from microtome.data.tokens import encode, single_token, token_text, usable

Maker = Callable[[str], PreTrainedTokenizerBase]

SENTENCE = "When Mary and John went to the park, John gave a ball to"


def test_offsets_lead_back_to_the_text(tokenizer: PreTrainedTokenizerBase) -> None:
    encoding = encode(tokenizer, SENTENCE)
    for word in ("When", "Mary", "park", ",", "to"):
        start = SENTENCE.index(word)
        first, last = encoding.span(start, start + len(word))
        covered = SENTENCE[encoding.offsets[first][0] : encoding.offsets[last - 1][1]]
        assert covered.strip() == word
    assert encoding.span(0, 0) == (0, 0)


def test_special_tokens_stay_in_front_and_go_behind(tokenizer: PreTrainedTokenizerBase) -> None:
    whole = tuple(tokenizer(SENTENCE)["input_ids"])
    ids = encode(tokenizer, SENTENCE).ids
    assert whole[: len(ids)] == ids
    assert set(whole[len(ids) :]) <= {tokenizer.eos_token_id}
    assert ids[-1] != tokenizer.eos_token_id
    assert (ids[0] == tokenizer.bos_token_id) == (whole[0] == tokenizer.bos_token_id)


def test_what_a_tokenizer_does_not_know_is_refused(words: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match="does not know 'xylophone'"):
        encode(words, "When Mary and xylophone")


def test_a_tokenizer_without_offsets_is_refused() -> None:
    with pytest.raises(InputError, match="gives character offsets, got the slow ByT5Tokenizer"):
        encode(ByT5Tokenizer(), SENTENCE)


@pytest.mark.parametrize("kind", ["words", "bytes"])
def test_a_word_is_the_token_by_which_the_text_grows(kind: str, make_tokenizer: Maker) -> None:
    tokenizer = make_tokenizer(kind)
    expected = tokenizer(SENTENCE + " Mary")["input_ids"][-1]
    assert single_token(tokenizer, " Mary", after=SENTENCE) == expected
    assert single_token(tokenizer, "Mary", after=SENTENCE + " ") == expected, "the space is given to the word"
    year = "The war lasted from the year 1732 to the year 17"
    assert single_token(tokenizer, "56", after=year) == tokenizer(year + "56")["input_ids"][-1]


def test_the_first_word_of_a_text_follows_the_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    first = encode(tokenizer, "When").ids
    if len(first) - (first[0] == tokenizer.bos_token_id) == 1:
        assert single_token(tokenizer, "When", after="") == first[-1]
    else:
        with pytest.raises(InputError, match="'When' is 4 tokens: 'W' 'h' 'e' 'n'"):
            single_token(tokenizer, "When", after="")


def test_a_split_word_is_refused_with_its_parts(characters: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match="' Paris' is 6 tokens: ' ' 'P' 'a' 'r' 'i' 's'; choose another"):
        single_token(characters, " Paris", after="The Colosseum is in")


def test_a_word_that_joins_the_text_before_it_is_refused(make_tokenizer: Maker) -> None:
    with pytest.raises(InputError, match=r"'7' is not a token of its own .* joins what stands before it"):
        single_token(make_tokenizer("bytes"), "7", after="the year 1")


def test_usable_keeps_what_is_one_token_in_order(make_tokenizer: Maker) -> None:
    tokenizer = make_tokenizer("bytes")
    assert usable(tokenizer, [" Mary", " Xzqw", " John"], after="to") == (" Mary", " John")
    with pytest.raises(InputError, match=r"at least 3 .* found 2 among 3; for example, ' Xzqw' is 5 tokens"):
        usable(tokenizer, [" Mary", " Xzqw", " John"], after="to", at_least=3)


def test_token_texts_spell_the_sentence(tokenizer: PreTrainedTokenizerBase) -> None:
    pieces = [token_text(tokenizer, token) for token in encode(tokenizer, SENTENCE).ids]
    joined = "".join(piece for piece in pieces if piece != tokenizer.bos_token)
    assert joined.replace(" ", "") == SENTENCE.replace(" ", "")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prefix=st.text(max_size=12), word=st.text(min_size=1, max_size=4))
def test_a_single_token_really_is_one(tokenizer: PreTrainedTokenizerBase, prefix: str, word: str) -> None:
    try:
        token = single_token(tokenizer, word, after=prefix)
    except InputError:
        return
    longer = encode(tokenizer, prefix + word)
    assert longer.ids[-1] == token
    if prefix.rstrip(" "):
        assert longer.ids[:-1] == encode(tokenizer, prefix.rstrip(" ")).ids


@pytest.mark.parametrize(
    ("name", "word", "after", "token"),
    [
        ("gpt2-tokenizer", " Mary", "gave it to", 5335),
        ("gpt2-tokenizer", "John", "gave it to ", 1757),
        ("stories260K", " she", "One day,", 358),
    ],
)
def test_known_ids_of_real_tokenizers(
    shared_models: Path, name: str, word: str, after: str, token: int
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_models / name)
    assert single_token(tokenizer, word, after) == token


def test_a_real_tokenizer_splits_a_landmark(shared_models: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_models / "gpt2-tokenizer")
    with pytest.raises(InputError, match="' Colosseum' is 4 tokens: ' Col' 'os' 'se' 'um'"):
        single_token(tokenizer, " Colosseum", after="They saw the")
