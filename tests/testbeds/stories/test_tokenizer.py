"""The tokenizer reads ordinary text and writes it back."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from microtome.data import lexicon
from microtome.testbeds.stories.corpus import documents
from microtome.testbeds.stories.grammar import BOS, PAD, TOKEN_ID, UNK, VOCABULARY
from microtome.testbeds.stories.tokenizer import build

TEXTS = (
    "When Mary and John went to the park, John gave a ball to Mary.",
    "The war lasted from the year 1732 to the year 1756.",
    'Mary said, "I am happy." John asked Mary, "Where is the ball?"',
    "def paint(size, color, shape): param size: red param color: blue",
    "It was 14:30 when Mary went to the park.",
    "Mary bought apples, bread and milk.",
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    build().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", TEXTS)
def test_ordinary_text_comes_back_as_it_was(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids[0] == BOS
    assert UNK not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text


def test_encoding_what_was_decoded_gives_the_tokens_back(tokenizer: PreTrainedTokenizerFast) -> None:
    for ids in documents(1, 0, 200).tokens.tolist():
        assert tokenizer(tokenizer.decode(ids, skip_special_tokens=True)).input_ids == ids


@pytest.mark.parametrize("space", ["", " "])
def test_every_word_of_the_lexicon_is_one_token(tokenizer: PreTrainedTokenizerFast, space: str) -> None:
    words = lexicon.NAMES + lexicon.CITIES + lexicon.TWO_DIGITS + lexicon.PARAMETERS + lexicon.FEELINGS
    for word in words:
        assert tokenizer(space + word).input_ids == [BOS, TOKEN_ID[word]]


def test_numbers_are_read_in_pairs_of_digits(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("1732") == ["17", "32"]


def test_what_is_not_known_is_unknown_and_bos_may_be_left_out(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("Zanzibar").input_ids == [BOS, UNK]
    assert tokenizer("Mary", add_special_tokens=False).input_ids == [TOKEN_ID["Mary"]]


def test_padding_and_size(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = tokenizer(["Mary", "Mary and John"], padding=True)
    assert batch.input_ids[0][-1] == PAD
    assert batch.attention_mask[0] == [1, 1, 0, 0]
    assert len(tokenizer) == len(VOCABULARY) <= 900
