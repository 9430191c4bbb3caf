"""What is the same prompt with one thing changed, token for token?

A template is a text with named slots. Filling it twice gives a clean and a corrupt prompt:

1. Fill the slots of each, remembering which characters each filler occupies.
2. Encode both texts and read off each slot's tokens from the tokenizer's character offsets.
3. Demand alignment: equal length, every slot at the same token positions in both, and the same token
   everywhere outside the slots whose filler changed. Anything else is refused, with the offending tokens marked.

Activations of two prompts can be exchanged position by position only when they align in this sense.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from string import Formatter

from transformers import PreTrainedTokenizerBase

from microtome.core.errors import InputError
from microtome.data.tokens import Encoding, encode, token_text

Spans = dict[str, tuple[int, int]]
"""Token positions `[start, stop)` of each slot, counted over real tokens, a special one in front included."""


@dataclass(frozen=True)
class AlignedPrompts:
    """Two prompts of equal token length that differ only inside `changed`.

    clean, corrupt: token ids. spans: each slot's token positions, the same in both. changed: the slots (with
    every further mention of them) whose filler differs. text, corrupt_text: what was encoded.
    """

    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    spans: Spans
    changed: tuple[str, ...]
    text: str
    corrupt_text: str


@dataclass(frozen=True)
class Filled:
    """A filled template: its encoding and each slot's token positions."""

    encoding: Encoding
    spans: Spans


@dataclass(frozen=True)
class Template:
    """A prompt with slots, e.g. `Template("When {A} and {B} went to the {place}, {B} gave a {object} to")`.

    A slot that is mentioned again has a span of its own, named with the number of the mention: `B`, `B#2`.
    Braces that belong to the text are doubled. Raises `InputError` for a slot that is not a plain name.
    """

    text: str

    def __post_init__(self) -> None:
        for slot in self.slots:
            if not slot.isidentifier():
                raise InputError(
                    f"expected slots that are plain names such as {{place}}, got {{{slot}}} in {self.text!r}"
                )

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots' names in the order in which they first appear."""
        return tuple(dict.fromkeys(slot for _, slot in self._pieces() if slot is not None))

    def _pieces(self) -> list[tuple[str, str | None]]:
        """Pairs of literal text and the slot that follows it (None behind the last)."""
        try:
            pieces = list(Formatter().parse(self.text))
        except ValueError as error:
            raise InputError(f"the template {self.text!r} cannot be read: {error}") from error
        if any(form or conversion for _, _, form, conversion in pieces):
            raise InputError(f"expected slots without ':' or '!', got the template {self.text!r}")
        return [(literal, slot) for literal, slot, _, _ in pieces]

    def text_with(self, fillers: Mapping[str, str]) -> str:
        """The text with its slots filled. Raises `InputError` for missing or unknown slots."""
        return self._place(fillers)[0]

    def _place(self, fillers: Mapping[str, str]) -> tuple[str, dict[str, tuple[int, int]]]:
        """The filled text and the characters `[start, stop)` of every mention of a slot."""
        if set(fillers) != set(self.slots):
            raise InputError(
                f"expected fillers for the slots {', '.join(self.slots) or '(none)'} of {self.text!r}, "
                f"got {', '.join(fillers) or 'none'}"
            )
        text = ""
        characters: dict[str, tuple[int, int]] = {}
        mentions: dict[str, int] = {}
        for literal, slot in self._pieces():
            text += literal
            if slot is not None:
                mentions[slot] = mentions.get(slot, 0) + 1
                key = slot if mentions[slot] == 1 else f"{slot}#{mentions[slot]}"
                characters[key] = (len(text), len(text) + len(fillers[slot]))
                text += fillers[slot]
        return text, characters

    def fill(self, tokenizer: PreTrainedTokenizerBase, fillers: Mapping[str, str]) -> Filled:
        """Fill and encode. Raises `InputError` where a slot has no token, or shares one with another slot."""
        text, characters = self._place(fillers)
        encoding = encode(tokenizer, text)
        spans = {key: encoding.span(start, stop) for key, (start, stop) in characters.items()}
        owner: dict[int, str] = {}
        for key, (start, stop) in spans.items():
            if start == stop:
                raise InputError(f"the slot {key} has no token in {text!r}; its filler must not be empty")
            for position in range(start, stop):
                if position in owner:
                    token = token_text(tokenizer, encoding.ids[position])
                    raise InputError(
                        f"the slots {owner[position]} and {key} share the token {token!r} in {text!r}; "
                        "choose fillers that the tokenizer keeps apart"
                    )
                owner[position] = key
        return Filled(encoding, spans)

    def pair(
        self, tokenizer: PreTrainedTokenizerBase, clean: Mapping[str, str], corrupt: Mapping[str, str]
    ) -> AlignedPrompts:
        """Fill twice. Raises `InputError` unless the prompts align and differ."""
        one, other = self.fill(tokenizer, clean), self.fill(tokenizer, corrupt)
        changed = tuple(
            key for key in one.spans if clean[key.partition("#")[0]] != corrupt[key.partition("#")[0]]
        )
        _refuse_misaligned(tokenizer, one, other, changed)
        if one.encoding.ids == other.encoding.ids:
            raise InputError(
                f"the clean and the corrupt prompt are the same tokens: {one.encoding.text!r} and "
                f"{other.encoding.text!r}; the fillers of at least one slot must differ"
            )
        return AlignedPrompts(
            one.encoding.ids,
            other.encoding.ids,
            one.spans,
            changed,
            one.encoding.text,
            other.encoding.text,
        )


def _refuse_misaligned(
    tokenizer: PreTrainedTokenizerBase, one: Filled, other: Filled, changed: tuple[str, ...]
) -> None:
    uneven = [key for key in one.spans if _size(one.spans[key]) != _size(other.spans[key])]
    moved = [key for key in one.spans if one.spans[key] != other.spans[key]]
    strays = _strays(one, other, changed), _strays(other, one, changed)
    if uneven:
        problem = f"the fillers of {', '.join(uneven)} are not equally many tokens"
        marked = _positions(one.spans, uneven), _positions(other.spans, uneven)
    elif moved or any(strays):
        problem = "tokens differ outside the changed slots"
        marked = strays[0] | _positions(one.spans, moved), strays[1] | _positions(other.spans, moved)
    else:
        return
    clean, corrupt = (
        " ".join(
            f">>{text!r}<<" if position in marks else repr(text)
            for position, text in enumerate(token_text(tokenizer, token) for token in filled.encoding.ids)
        )
        for filled, marks in zip((one, other), marked, strict=True)
    )
    raise InputError(
        f"the clean and the corrupt prompt do not align ({len(one.encoding)} and {len(other.encoding)} "
        f"tokens): {problem}.\n  clean:   {clean}\n  corrupt: {corrupt}\nChoose fillers that split alike."
    )


def _size(span: tuple[int, int]) -> int:
    return span[1] - span[0]


def _positions(spans: Spans, keys: Iterable[str]) -> set[int]:
    return {position for key in keys for position in range(*spans[key])}


def _strays(one: Filled, other: Filled, changed: tuple[str, ...]) -> set[int]:
    """Positions of `one`, outside its changed slots, at which `other` has another token or none."""
    there = other.encoding.ids
    return {
        position
        for position, token in enumerate(one.encoding.ids)
        if there[position : position + 1] != (token,)
    } - _positions(one.spans, changed)
