"""Which tokens does a text become, and is a word one token there?

Tokenizers disagree on everything a prompt depends on: whether a beginning-of-sequence token is added, whether
a space belongs to the word after it, whether a word at the start of a text differs from one inside it. So
nothing is assumed here: a text is encoded whole, the tokenizer's own character offsets say which token came from
where, and a word's id is read off as the one token by which the text grew.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from microtome.core.errors import InputError


@dataclass(frozen=True)
class Encoding:
    """A text and its tokens.

    text: what was encoded.
    ids: token ids, with the special tokens that the tokenizer puts in front.
    offsets: for each token the characters `[start, stop)` of `text` it stands for; empty for special tokens.
    """

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.ids)

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """The tokens `[first, last)` that share a character with `text[start:stop]`; `(0, 0)` if none."""
        inside = [i for i, (a, b) in enumerate(self.offsets) if a < b and a < stop and b > start]
        return (inside[0], inside[-1] + 1) if inside else (0, 0)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Encoding:
    """Encode as the tokenizer does by default, but without special tokens behind the text.

    A prompt ends where its text ends, because the next token is what is asked for. Raises `InputError` for a
    tokenizer without character offsets and for text that it does not know.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"expected a tokenizer that gives character offsets, got the slow {type(tokenizer).__name__}; "
            "load the fast one (AutoTokenizer.from_pretrained does so by default)"
        )
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]
    special = set(tokenizer.all_special_ids)
    length = len(ids)
    while length and ids[length - 1] in special and offsets[length - 1] == (0, 0):
        length -= 1
    if not length:  # nothing but special tokens: there is no text to stand before or behind
        length = len(ids)
    unknown = tokenizer.unk_token_id
    for token, (start, stop) in zip(ids, offsets, strict=True):
        if token == unknown and start < stop and text[start:stop] != tokenizer.unk_token:
            raise InputError(
                f"the tokenizer does not know {text[start:stop]!r} in {text!r} (it becomes "
                f"{tokenizer.unk_token!r}); choose another word"
            )
    return Encoding(text, tuple(ids[:length]), tuple(offsets[:length]))


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token as it reads inside a text, e.g. `" the"`; a special token as itself.

    Decoders drop the space before the first token of a text, so the token is decoded twice in a row and its
    second copy is read.
    """
    if token in tokenizer.all_special_ids:
        return str(tokenizer.convert_ids_to_tokens(token))
    once = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    twice = str(tokenizer.decode([token, token], clean_up_tokenization_spaces=False))
    return twice[len(once) :] if twice.startswith(once) else once


def token_texts(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int]) -> str:
    """Tokens for an error message: each quoted, a space between."""
    return " ".join(repr(token_text(tokenizer, token)) for token in tokens)


def single_token(tokenizer: PreTrainedTokenizerBase, word: str, after: str) -> int:
    """The id that `word` has as a continuation of `after`.

    The space between the two, where there is one, may end `after` or begin `word`: it is given to the word, as
    a model that has read `after` would have to produce it. Raises `InputError` saying how the word splits, or
    that it joins the text before it.
    """
    return single_tokens(tokenizer, (word,), after)[0]


def single_tokens(tokenizer: PreTrainedTokenizerBase, words: Sequence[str], after: str) -> tuple[int, ...]:
    """The id of each word as `single_token` finds it. Raises `InputError` for the first that is not one token."""
    return tuple(map(_continuation(tokenizer, after), words))


def _continuation(tokenizer: PreTrainedTokenizerBase, after: str) -> Callable[[str], int]:
    """The function that finds a word's id behind `after`, which is encoded once for all words."""
    prefix = after.rstrip(" ")
    space = after[len(prefix) :]
    start = encode(tokenizer, prefix).ids if prefix else None

    def single(word: str) -> int:
        word = space + word
        longer = encode(tokenizer, prefix + word)
        before = longer.ids[: longer.span(0, len(word))[0]] if start is None else start
        new = longer.ids[len(before) :]
        if longer.ids[: len(before)] != before:
            raise InputError(
                f"{word!r} is not a token of its own after {prefix!r}: it joins what stands before it "
                f"({token_texts(tokenizer, longer.ids)}); choose another answer or prompt"
            )
        if len(new) != 1:
            raise InputError(
                f"{word!r} is {len(new)} tokens: {token_texts(tokenizer, new)}; choose another answer"
            )
        return new[0]

    return single


def usable(
    tokenizer: PreTrainedTokenizerBase, words: Sequence[str], after: str, at_least: int = 0
) -> tuple[str, ...]:
    """The words that are one token as a continuation of `after`, in their order.

    Raises `InputError`, with the reason for the first word that is not, when fewer than `at_least` are left.
    """
    single = _continuation(tokenizer, after)
    kept: list[str] = []
    reason = ""
    for word in words:
        try:
            single(word)
        except InputError as error:
            reason = reason or str(error)
        else:
            kept.append(word)
    if len(kept) < at_least:
        raise InputError(
            f"expected at least {at_least} word(s) that are one token for this tokenizer, found {len(kept)} "
            f"among {len(words)}; for example, {reason or 'no words were given'}"
        )
    return tuple(kept)
