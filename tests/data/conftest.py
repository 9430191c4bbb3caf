"""Tokenizers of four kinds, made on the spot: word-level, byte-level pairs, sentence pieces, characters."""

import string
from collections.abc import Callable

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from microtome.data import lexicon
from microtome.data.tasks import agreement, argument_copying, factual_recall, gendered_pronoun, greater_than
from microtome.data.tasks import indirect_object as indirect

KINDS = ("words", "bytes", "pieces", "characters")
SPECIALS = ["<unk>", "<bos>", "<eos>", "<pad>"]


def _texts() -> list[str]:
    """Everything the tasks can say, each word in the places where it can stand."""
    templates = [
        template.text
        for module in (indirect, agreement, greater_than, factual_recall, gendered_pronoun, argument_copying)
        for template in (*module.TEMPLATES, *getattr(module, "STORY_TEMPLATES", ()))
    ]
    words = [
        *(
            name
            for pool in (
                "NAMES",
                "PLACES",
                "OBJECTS",
                "FEELINGS",
                "CITIES",
                "EVENTS",
                "PARAMETERS",
                "FUNCTIONS",
            )
            for name in getattr(lexicon, pool)
        ),
        *(form for noun in lexicon.NOUNS for form in (noun.singular, noun.plural)),
        *(landmark.name for landmark in lexicon.LANDMARKS),
        *(form for verb in lexicon.AGREEMENTS for form in (verb.singular, verb.plural)),
        "she he boy girl Lily Mia Sara Sue Tim Timmy Bob Billy",
    ]
    years = [f"the year {a}{b}" for a in lexicon.CENTURIES for b in lexicon.TWO_DIGITS]
    return [*templates, *words, *(f"to {word}" for word in words), *years]


def _wrap(inner: Tokenizer) -> PreTrainedTokenizerFast:
    unk, bos, eos, pad = SPECIALS
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token=unk, bos_token=bos, eos_token=eos, pad_token=pad
    )


def _framed(inner: Tokenizer, template: str) -> None:
    ids = [(special, inner.token_to_id(special)) for special in ("<bos>", "<eos>")]
    inner.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)


def _words() -> PreTrainedTokenizerBase:
    """Words, pairs of digits, single signs; a beginning token; white space only separates."""
    inner = Tokenizer(models.WordLevel(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\W\d]+|\d\d?|[^\w\s]"), "removed", invert=True)
    inner.train_from_iterator(
        _texts(), trainers.WordLevelTrainer(special_tokens=SPECIALS, show_progress=False)
    )
    _framed(inner, "<bos> $A")
    return _wrap(inner)


def _bytes() -> PreTrainedTokenizerBase:
    """Byte-level pairs as GPT-2 has them: the space belongs to the word, nothing is put in front."""
    inner = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\d\d?| ?[^\W\d]+| ?[^\w\s]+|\s+"), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(_texts(), trainer)
    return _wrap(inner)


def _pieces() -> PreTrainedTokenizerBase:
    """Sentence pieces as Llama has them, and an end token behind the text, as encoders have it."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIALS, show_progress=False)
    inner.train_from_iterator(_texts(), trainer)
    _framed(inner, "<bos> $A <eos>")
    return _wrap(inner)


def _characters() -> PreTrainedTokenizerBase:
    """Every character a token."""
    vocabulary = SPECIALS + sorted(set(string.printable))
    inner = Tokenizer(models.WordLevel({c: i for i, c in enumerate(vocabulary)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    _framed(inner, "<bos> $A")
    return _wrap(inner)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[[str], PreTrainedTokenizerBase]:
    """A tokenizer of one of `KINDS`, made once."""
    makers = {"words": _words, "bytes": _bytes, "pieces": _pieces, "characters": _characters}
    made: dict[str, PreTrainedTokenizerBase] = {}

    def make(kind: str) -> PreTrainedTokenizerBase:
        if kind not in made:
            made[kind] = makers[kind]()
        return made[kind]

    return make


@pytest.fixture(params=KINDS)
def tokenizer(
    request: pytest.FixtureRequest, make_tokenizer: Callable[[str], PreTrainedTokenizerBase]
) -> PreTrainedTokenizerBase:
    """Each kind in turn."""
    return make_tokenizer(request.param)


@pytest.fixture
def words(make_tokenizer: Callable[[str], PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    return make_tokenizer("words")


@pytest.fixture
def characters(make_tokenizer: Callable[[str], PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    return make_tokenizer("characters")
