"""How does a wording become tokens that know why they are there?

1. The vocabulary is every word of the lexicon and of the wordings, every digit and pair of digits, and punctuation.
2. A wording is compiled once into parts: runs of literal tokens, and slots (who, in which form, answer or not).
3. To write a sentence, each slot is bound to a `Referent`: something that keeps its identity and has forms (a
   name and its pronouns, a noun and the verbs that agree with it, a landmark and its city).
4. `Writer` emits one row of latents with every token. It remembers where each form of each referent was last
   written, so a repeated token knows its source, and a determined one its antecedent.

Draws use only `random.Random.random`, whose sequence Python guarantees across versions.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import TypeVar

from microtome.data import lexicon
from microtome.testbeds.stories.wordings import SHARES, WORDINGS

PAD, BOS, UNK = 0, 1, 2
SPECIALS = ("<pad>", "<bos>", "<unk>")
TOKEN_PATTERN = r"[A-Za-z]+|[0-9]{1,2}|[^\sA-Za-z0-9]"

_PREPOSITIONS = ("near", "behind", "beside", "by", "with", "under")
_QUALITIES = ("dark", "new", "big", "small", "tall", "clean", "quiet", "ready", "lost")
POOLS: dict[str, tuple[str, ...]] = {
    "place": lexicon.PLACES,
    "object": lexicon.OBJECTS,
    "food": lexicon.FOODS,
    "feeling": lexicon.FEELINGS,
    "colour": lexicon.COLOURS,
    "transfer": lexicon.TRANSFERS,
    "event": lexicon.EVENTS,
    "count": lexicon.COUNT_WORDS,
    "parameter": lexicon.PARAMETERS,
    "function": lexicon.FUNCTIONS,
    "near": _PREPOSITIONS,
    "quality": _QUALITIES,
    "hour": lexicon.TWO_DIGITS[7:23],
    "minute": lexicon.TWO_DIGITS[:60],
    "age": tuple(str(age) for age in range(2, 91)),
}
POOLS["word"] = tuple(
    dict.fromkeys(
        [word for pool in ("place", "object", "food", "feeling", "colour", "quality") for word in POOLS[pool]]
        + [form for noun in lexicon.NOUNS for form in (noun.singular, noun.plural)]
    )
)
_NOUNS = {"creature": lexicon.CREATURES, "thing": lexicon.THINGS, "noun": lexicon.NOUNS}

COLUMNS = ("token", "role", "entity", "gender", "number", "fact", "source", "antecedent", "answer")
Row = tuple[int, int, int, int, int, int, int, int, int]
"""What `Writer` emits with every token, one integer for each of `COLUMNS`; -1 where a column does not apply."""
_SLOT = re.compile(r"\{([a-z]+)(\d*)(?:\.([a-z]+))?(!?)\}")
_T = TypeVar("_T")


def words_of(text: str) -> list[str]:
    """The tokens of a text as words: letters together, digits in pairs, every other sign alone."""
    return re.findall(TOKEN_PATTERN, text)


def _role(base: str, form: str) -> str:
    return f"{base}.{form}" if form else base


def _roles() -> tuple[str, ...]:
    slots = (slot for texts in WORDINGS.values() for text in texts for slot in _SLOT.findall(text))
    return ("literal", "chant", *sorted({_role(base, form) for base, _, form, _ in slots}))


def _vocabulary() -> tuple[str, ...]:
    words = {word for texts in WORDINGS.values() for text in texts for word in words_of(_SLOT.sub(" ", text))}
    words.update(word for pool in POOLS.values() for text in pool for word in words_of(text))
    words.update(lexicon.NAMES, lexicon.CITIES, lexicon.TWO_DIGITS, map(str, range(10)), ".,:;?!()\"'-")
    words.update(word for landmark in lexicon.LANDMARKS for word in landmark.name.split())
    words.update(form for noun in lexicon.NOUNS for form in (noun.singular, noun.plural))
    words.update(form for verb in lexicon.AGREEMENTS for form in (verb.singular, verb.plural))
    words.update(form for p in lexicon.PRONOUNS.values() for form in (p.subject, p.object, p.possessive))
    return SPECIALS + tuple(sorted(words))


VOCABULARY = _vocabulary()
TOKEN_ID = {word: index for index, word in enumerate(VOCABULARY)}
KINDS = ("start", "chant", *WORDINGS)
ROLES = _roles()


class Draw:
    """Random choices that depend on the key alone, on every machine and version of Python.

    Args:
        key: numbers and words that name the stream, e.g. ``Draw("train", seed, index)``.
    """

    def __init__(self, *key: str | int) -> None:
        self.uniform = Random("/".join(map(str, key))).random

    def below(self, count: int) -> int:
        """An integer in ``[0, count)``."""
        return int(self.uniform() * count)

    def choice(self, items: Sequence[_T]) -> _T:
        return items[int(self.uniform() * len(items))]

    def sample(self, items: Sequence[_T], count: int) -> list[_T]:
        """Distinct items in random order."""
        rest = list(items)
        for index in range(count):
            other = index + int(self.uniform() * (len(rest) - index))
            rest[index], rest[other] = rest[other], rest[index]
        return rest[:count]


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write a referent. ``of`` names the form whose last token determines this one, if any does."""

    tokens: tuple[int, ...]
    gender: int = -1
    number: int = -1
    fact: int = -1
    of: str | None = None


Forms = dict[str, Form]


def _form(text: str, gender: int = -1, number: int = -1, fact: int = -1, of: str | None = None) -> Form:
    return Form(tuple(TOKEN_ID[word] for word in words_of(text)), gender, number, fact, of)


def person(name: str, city: str, thing: str, colour: str) -> Forms:
    """The forms of a person: name, pronouns, and what is theirs throughout the story."""
    gender = int(lexicon.GENDER[name] == "male")
    pronouns = lexicon.PRONOUNS[lexicon.GENDER[name]]
    return {
        "": _form(name, gender),
        "she": _form(pronouns.subject, gender, of=""),
        "her": _form(pronouns.object, gender, of=""),
        "his": _form(pronouns.possessive, gender, of=""),
        "child": _form(("girl", "boy")[gender], gender),
        "city": _form(city),
        "object": _form(thing),
        "colour": _form(colour),
    }


def _noun(noun: lexicon.Noun, number: int) -> Forms:
    verbs = {verb.singular: (verb.singular, verb.plural)[number] for verb in lexicon.AGREEMENTS}
    return {
        "": _form((noun.singular, noun.plural)[number], number=number),
        "singular": _form(noun.singular, number=0),
        "plural": _form(noun.plural, number=1),
        **{name: _form(word, number=number, of="") for name, word in verbs.items()},
    }


def year(century: str, start: str, end: str) -> Forms:
    """Two years of one century, e.g. 1732 and 1756."""
    return {"century": _form(century), "start": _form(start), "end": _form(end, of="start")}


_REFERENTS: dict[str, tuple[Forms, ...]] = {
    **{name: tuple({"": _form(text)} for text in pool) for name, pool in POOLS.items()},
    **{
        name: tuple(_noun(noun, number) for noun in nouns for number in (0, 1))
        for name, nouns in _NOUNS.items()
    },
    "landmark": tuple(
        {"": _form(landmark.name, fact=index), "city": _form(landmark.city, fact=index, of="")}
        for index, landmark in enumerate(lexicon.LANDMARKS)
    ),
}


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a wording where one form of what is bound to ``key`` is written."""

    key: str
    form: str
    role: int
    answer: int


@dataclass(frozen=True, slots=True)
class Wording:
    """A compiled wording: what it binds, and its parts in order."""

    kind: int
    index: int
    bindings: tuple[tuple[str, str], ...]
    parts: tuple[Slot | tuple[Row, ...], ...]


def _compile(kind: int, index: int, text: str) -> Wording:
    parts: list[Slot | tuple[Row, ...]] = []
    bindings: dict[str, str] = {}
    end = 0
    for match in _SLOT.finditer(text + "{end}"):
        literal = words_of(text[end : match.start()])
        if literal:
            parts.append(tuple((TOKEN_ID[word], 0, -1, -1, -1, -1, -1, -1, 0) for word in literal))
        if match.start() == len(text):
            break
        base, digits, form, mark = match.groups(default="")
        bindings[base + digits] = base
        parts.append(Slot(base + digits, form, ROLES.index(_role(base, form)), int(bool(mark))))
        end = match.end()
    return Wording(kind, index, tuple(bindings.items()), tuple(parts))


COMPILED = {
    kind: tuple(_compile(KINDS.index(kind), index, text) for index, text in enumerate(texts))
    for kind, texts in WORDINGS.items()
}
_CUMULATIVE_SHARES = tuple(accumulate(SHARES[kind] / sum(SHARES.values()) for kind in WORDINGS))
_SENTENCE_KINDS = tuple(WORDINGS)


class Writer:
    """Writes one document, token by token, with the latents of each.

    Args:
        draw: where all choices come from.
        cast: the people of the story, at least three, as `person` forms.
        held_out: write only landmark wordings kept from training, instead of only those that are not.
    """

    def __init__(self, draw: Draw, cast: Sequence[Forms], held_out: bool) -> None:
        self.draw = draw
        self.held_out = held_out
        self.rows: list[Row] = [(BOS, 0, -1, -1, -1, -1, -1, -1, 0)]
        self.starts = [(0, 0, 0)]
        """Where each sentence begins: its first position, kind and wording."""
        self._cast = list(enumerate(cast))
        self._entities = len(cast)
        self._last: dict[tuple[int, str], int] = {}

    def sentence(self) -> None:
        """Writes a sentence of a kind and wording drawn by their shares."""
        mark = self.draw.uniform()
        kind = next(
            (k for k, edge in zip(_SENTENCE_KINDS, _CUMULATIVE_SHARES, strict=True) if mark < edge), ""
        )
        self.write(self.draw.choice(COMPILED[kind or _SENTENCE_KINDS[-1]]))

    def write(self, wording: Wording) -> None:
        """Writes a sentence in this wording, drawing what fills its slots."""
        self.starts.append((len(self.rows), wording.kind, wording.index))
        bound = self._bind(wording)
        for part in wording.parts:
            if isinstance(part, Slot):
                self._form(*bound[part.key], part)
            else:
                self.rows.extend(part)

    def chant(self, length: int, copies: int, gap: int, pool: Sequence[int]) -> None:
        """Writes a run of distinct random tokens, then the run or a part of it again, after ``gap`` other tokens."""
        draw = self.draw
        words = draw.sample(pool, length + gap * copies)
        others = iter(words[length:])
        self.starts.append((len(self.rows), KINDS.index("chant"), copies))
        begun = len(self.rows)
        self.rows.extend((token, 1, -1, -1, -1, -1, -1, -1, 0) for token in words[:length])
        for _ in range(copies):
            self.rows.extend((next(others), 0, -1, -1, -1, -1, -1, -1, 0) for _ in range(gap))
            first, end = 0, length
            if draw.below(3) == 0:
                first = draw.below(length - 1)
                end = first + 2 + draw.below(length - first - 1)
            for index in range(first, end):
                source = begun + index
                self.rows.append((words[index], 1, -1, -1, -1, -1, source, source, int(index > first)))

    def _form(self, entity: int, forms: Forms, slot: Slot) -> None:
        form = forms[slot.form]
        start = len(self.rows)
        source = self._last.get((entity, slot.form), -1)
        of = -1 if form.of is None else self._last.get((entity, form.of), -1)
        if of >= 0 and form.of is not None:
            of += len(forms[form.of].tokens) - 1
        for offset, token in enumerate(form.tokens):
            copied = source + offset if source >= 0 else -1
            antecedent = of if of >= 0 else copied
            self.rows.append(
                (
                    token,
                    slot.role,
                    entity,
                    form.gender,
                    form.number,
                    form.fact,
                    copied,
                    antecedent,
                    slot.answer,
                )
            )
        self._last[entity, slot.form] = start

    def _bind(self, wording: Wording) -> dict[str, tuple[int, Forms]]:
        draw = self.draw
        people = draw.sample(self._cast, 3)
        bound = dict(zip("abc", people, strict=True))
        pair = draw.sample(people[:2], 2)
        bound["giver"], bound["receiver"] = pair
        used: set[tuple[int, ...]] = set()
        for key, base in wording.bindings:
            if key in bound:
                continue
            if base == "year":
                first = 1 + draw.below(98)
                last = first + 1 + draw.below(99 - first)
                forms = year(draw.choice(lexicon.CENTURIES), f"{first:02d}", f"{last:02d}")
            else:
                forms = self._fresh(base, wording, used)
            bound[key] = (self._entities, forms)
            self._entities += 1
        return bound

    def _fresh(self, base: str, wording: Wording, used: set[tuple[int, ...]]) -> Forms:
        while True:
            forms = self.draw.choice(_REFERENTS[base])
            form = forms[""]
            if form.tokens in used:
                continue
            if form.fact >= 0 and is_held_out_fact(form.fact, wording.index) != self.held_out:
                continue
            used.add(form.tokens)
            return forms


def is_held_out_fact(landmark: int, wording: int) -> bool:
    """Whether this landmark is never told in this wording in training: one combination in ten."""
    return (landmark + wording) % 10 == 0
