"""Which text does the bundled model learn from, and which variables made each token?

1. A document is one context: ``<bos>``, then either chants (random words, then the same words again) or a story,
   sentence after sentence about the same three or four people, cut at `CONTEXT` tokens.
2. Document ``index`` of a ``split`` and ``seed`` is a pure function of the three, so that training needs no file,
   and a run that was stopped goes on with the very batches it would have had.
3. Held out: names belong to fifteen groups of four; a training document never holds two names of one group, a
   held-out one holds only names of one group, so each pair in it was never seen together. One in ten
   combinations of landmark and wording is told in held-out documents only.

With each token come its latents, see `LATENTS`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from microtome.core.errors import InputError
from microtome.data import lexicon
from microtome.testbeds.stories.grammar import (
    COLUMNS,
    POOLS,
    SPECIALS,
    TOKEN_ID,
    VOCABULARY,
    Draw,
    Forms,
    Writer,
    person,
)

CONTEXT = 128
CHANT_SHARE = 0.25
_GROUPS = 15
Split = Literal["train", "held-out"]

LATENTS: dict[str, str] = {
    "kind": "the kind of sentence, an index into grammar.KINDS",
    "wording": "which wording of that kind; for a chant, how often its run is said again",
    "sentence": "how many sentences began before this one in the document; 0 is <bos>",
    "role": "the slot that wrote the token, an index into grammar.ROLES",
    "entity": "which referent of the document the token is about; the cast is 0, 1, 2, (3); -1 for none",
    "gender": "of the person meant, by a name or pronoun: 0 female, 1 male, -1 for none",
    "number": "of a noun or an agreeing verb: 0 singular, 1 plural, -1 for none",
    "fact": "index into lexicon.LANDMARKS on the tokens of a landmark and its city, else -1",
    "value": "what a token of digits counts, 0 to 99, else -1",
    "source": "the position of the same token where it was said before, if this is a repeat, else -1",
    "antecedent": "the position that determines this token: a pronoun's name, a verb's subject, a city's "
    "landmark, a later year's first year, a repeat's source; else -1",
    "answer": "1 where a behaviour is measured: the text before determines this token (or, for a year, its side)",
}

_VALUES = np.array([int(word) if word.isdigit() else -1 for word in VOCABULARY], dtype=np.int16)
_CHANTED_POOLS = ("place", "object", "food", "feeling", "colour", "parameter", "function")
_NAME_IDS = frozenset(TOKEN_ID[name] for name in lexicon.NAMES)
_SORTS = tuple(
    tuple(TOKEN_ID[word] for word in words)
    for words in (lexicon.CITIES, lexicon.TWO_DIGITS, *map(POOLS.__getitem__, _CHANTED_POOLS))
)
_CHANTED = tuple(i for i in range(len(SPECIALS), len(VOCABULARY)) if i not in _NAME_IDS)


@dataclass(frozen=True)
class Corpus:
    """Documents and their latents: ``tokens`` and each of ``latents`` are ``[document, position]`` int16."""

    tokens: NDArray[np.int16]
    latents: dict[str, NDArray[np.int16]]


def name_group(name: str) -> int:
    """Two names of one group are never seen together in training."""
    return lexicon.NAMES.index(name) % _GROUPS


_GROUP_MEMBERS = tuple(
    tuple(name for name in lexicon.NAMES if name_group(name) == group) for group in range(_GROUPS)
)


def _cast(draw: Draw, split: Split) -> list[str]:
    size = 3 + draw.below(2)
    if split == "held-out":
        return draw.sample(draw.choice(_GROUP_MEMBERS), size)
    return [draw.choice(_GROUP_MEMBERS[group]) for group in draw.sample(range(_GROUPS), size)]


def _people(draw: Draw, names: list[str]) -> list[Forms]:
    return [
        person(name, draw.choice(lexicon.CITIES), draw.choice(lexicon.OBJECTS), draw.choice(lexicon.COLOURS))
        for name in names
    ]


def _chants(draw: Draw, writer: Writer, names: list[str]) -> None:
    """Fills the document with chants: one half of words of one sort, the other half of any words.

    Short runs said often are there because copying any word said before already helps to foretell them.
    """
    anything = _CHANTED + tuple(TOKEN_ID[name] for name in names)
    while len(writer.rows) < CONTEXT:
        if draw.below(2):
            words = draw.choice(_SORTS)
            writer.chant(2 + draw.below(min(9, len(words) - 2)), 2 + draw.below(8), 0, words)
            continue
        kind = draw.uniform()
        gap = draw.below(4) * draw.below(2)
        if kind < 0.4:
            writer.chant(2 + draw.below(6), 8 + draw.below(9), 0, anything)
        elif kind < 0.8:
            writer.chant(4 + draw.below(14), 2 + draw.below(3), gap, anything)
        else:
            writer.chant(20 + draw.below(40), 1 + draw.below(2), gap, anything)


def _write(seed: int, index: int, split: Split) -> Writer:
    draw = Draw(split, seed, index)
    names = _cast(draw, split)
    writer = Writer(draw, _people(draw, names), held_out=split == "held-out")
    if draw.uniform() < CHANT_SHARE:
        _chants(draw, writer, names)
    while len(writer.rows) < CONTEXT:
        writer.sentence()
    return writer


def documents(seed: int, first: int, count: int, split: Split = "train") -> Corpus:
    """Documents ``first`` to ``first + count - 1`` of a split, with their latents.

    Args:
        seed: which corpus; the same seed gives the same documents, bit for bit.
        first: index of the first document.
        count: how many.
        split: ``"train"`` or ``"held-out"``.

    Raises:
        InputError: if ``first`` or ``count`` is negative.
    """
    if first < 0 or count < 0:
        raise InputError(f"expected first and count of at least 0, got {first} and {count}")
    columns = np.empty((count, CONTEXT, len(COLUMNS)), dtype=np.int16)
    sentences = np.empty((3, count, CONTEXT), dtype=np.int16)
    for row, index in enumerate(range(first, first + count)):
        writer = _write(seed, index, split)
        columns[row] = writer.rows[:CONTEXT]
        starts = np.array(writer.starts, dtype=np.int16)
        ordinal = np.searchsorted(starts[:, 0], np.arange(CONTEXT), side="right") - 1
        sentences[:, row] = ordinal, starts[ordinal, 1], starts[ordinal, 2]
    emitted = {name: columns[:, :, index] for index, name in enumerate(COLUMNS)}
    tokens = emitted.pop("token")
    made = {"sentence": sentences[0], "kind": sentences[1], "wording": sentences[2], "value": _VALUES[tokens]}
    latents = {name: np.ascontiguousarray((emitted | made)[name]) for name in LATENTS}
    return Corpus(np.ascontiguousarray(tokens), latents)
