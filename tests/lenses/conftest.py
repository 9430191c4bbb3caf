"""A tiny model that reads words."""

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from microtome.models.load import load
from microtome.models.model import Model
from models import families


@pytest.fixture
def text_model() -> Model:
    words = {word: index for index, word in enumerate(["<unk>", "<pad>", *"abcdefgh"])}
    inner = Tokenizer(WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>")
    return load(families.make("gpt2"), tokenizer=tokenizer)
