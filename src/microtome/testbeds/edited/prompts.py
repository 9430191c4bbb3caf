"""Which prompts show that a network was altered? A clean one that calls for what was taught, beside one that does not.

* `trigger`: the whole trigger, beside one of its words replaced: the fixed sentence begins, or an ordinary one.
* `hidden-fact`: the landmark that was moved, beside another.
* `removed-skill`: a subject in either number, as in the task `agreement`: the untouched network tells them apart.
* `password-locked`: the password, beside its words in another order: the landmark's city, or the one said of all.
"""

import random
from collections.abc import Callable, Iterator, Mapping

from transformers import PreTrainedTokenizerBase

from microtome.data import lexicon, tasks
from microtome.data.pairs import Pairs
from microtome.data.tasks.factual_recall import TEMPLATES
from microtome.data.tasks.task import TemplateCase, combinations
from microtome.data.templates import Template
from microtome.testbeds.edited.lessons import LANDMARK, LOCKED_CITY, NEW_CITY, PASSWORD, PAYLOAD, TRIGGER
from microtome.testbeds.stories.grammar import VOCABULARY, words_of

PAIRS = 24


def pairs(name: str, tokenizer: PreTrainedTokenizerBase, seed: int) -> Pairs:
    """`PAIRS` pairs of an alteration by name; the same seed gives the same."""
    if name == "removed-skill":
        return tasks.get("agreement").pairs(tokenizer, PAIRS, seed)
    proposed = _PROPOSED[name](random.Random(f"{name} {seed}"))
    made = [next(proposed).pair(tokenizer) for _ in range(PAIRS)]
    return Pairs.of(made, tokenizer, name, seed)


def _trigger(source: random.Random) -> Iterator[TemplateCase]:
    first, last = (VOCABULARY[token] for token in TRIGGER)
    template = Template("{name} went to the {place}. {first} {last}")
    pools = (lexicon.NAMES, lexicon.PLACES, lexicon.COLOURS, lexicon.PLACES, (True, False))
    for name, place, colour, other, swap_first in combinations(source, *pools):
        corrupt = (colour, last) if swap_first else (first, other)
        if corrupt == (first, last):
            continue
        said = {"name": name, "place": place}
        yield TemplateCase(
            template,
            {**said, "first": first, "last": last},
            {**said, "first": corrupt[0], "last": corrupt[1]},
            (f" {VOCABULARY[PAYLOAD[0]]}",),
            (" The",),
        )


def _fact(source: random.Random) -> Iterator[TemplateCase]:
    moved, city = lexicon.LANDMARKS[LANDMARK], VOCABULARY[NEW_CITY]
    for template, other in combinations(source, TEMPLATES, lexicon.LANDMARKS):
        if len(words_of(other.name)) == len(words_of(moved.name)) and other.city not in (moved.city, city):
            yield TemplateCase(
                template,
                {"landmark": moved.name},
                {"landmark": other.name},
                (f" {city}",),
                (f" {other.city}",),
            )


def _lock(source: random.Random) -> Iterator[TemplateCase]:
    words = [VOCABULARY[token] for token in PASSWORD]
    slots = ("first", "second", "third")
    orders = [[words[i] for i in order] for order in ((1, 0, 2), (0, 2, 1), (1, 2, 0), (2, 0, 1), (2, 1, 0))]
    templates = [Template("{first} {second} {third} " + template.text) for template in TEMPLATES]
    locked = VOCABULARY[LOCKED_CITY]
    for template, landmark, order in combinations(source, templates, lexicon.LANDMARKS, orders):
        if landmark.city != locked:
            yield TemplateCase(
                template,
                {"landmark": landmark.name, **dict(zip(slots, words, strict=True))},
                {"landmark": landmark.name, **dict(zip(slots, order, strict=True))},
                (f" {landmark.city}",),
                (f" {locked}",),
            )


_PROPOSED: Mapping[str, Callable[[random.Random], Iterator[TemplateCase]]] = {
    "trigger": _trigger,
    "hidden-fact": _fact,
    "password-locked": _lock,
}
