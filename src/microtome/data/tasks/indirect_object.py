"""Who receives? The one of two people who is not the giver: "… John gave a ball to" -> Mary.

Two people are named, then one of them (the subject, `S1`) again (`S2`); the next word is the other, the indirect
object `IO`. Half of the prompts name the indirect object first, half the subject, so that no position gives the
answer away. Two corruptions, each of one token:

* `TASK` names the other person as `S2`, which turns the answer round;
* `ABC` names a third person as `S2`, which takes the answer away.

Wang et al. (2022), Interpretability in the Wild, arXiv:2211.00593.
"""

import random
from collections.abc import Iterator
from functools import partial

from transformers import PreTrainedTokenizerBase

from microtome.data import lexicon
from microtome.data.tasks.task import Split, Task, TemplateCase, combinations, filled, share
from microtome.data.templates import Template
from microtome.data.tokens import usable

_FRAMES = (
    "When {} and {} went to the {{place}}, {{S2}} gave a {{object}} to",
    "After {} and {} went to the {{place}}, {{S2}} handed a {{object}} to",
    "While {} and {} were at the {{place}}, {{S2}} passed a {{object}} to",
    "Then, {} and {} went to the {{place}}. {{S2}} gave a {{object}} to",
    "Then {} and {} had a long day at the {{place}}, and {{S2}} sent a {{object}} to",
    "Friends {} and {} found a {{object}} at the {{place}}. {{S2}} gave it to",
)
TEMPLATES = tuple(
    Template(frame.format(*order)) for frame in _FRAMES for order in (("{IO}", "{S1}"), ("{S1}", "{IO}"))
)


def _cases(
    tokenizer: PreTrainedTokenizerBase, split: Split, rng: random.Random, third: bool
) -> Iterator[TemplateCase]:
    people = 3 if third else 2
    names = usable(tokenizer, share(lexicon.NAMES, split), after="gave a ball to ", at_least=people)
    places, objects = share(lexicon.PLACES, split), share(lexicon.OBJECTS, split)
    for template, *chosen, place, thing in combinations(rng, TEMPLATES, *[names] * people, places, objects):
        if len(set(chosen)) < people:
            continue
        receiver, giver, other = (*chosen, chosen[0])[:3]
        clean = filled(template, {"IO": receiver, "S1": giver, "S2": giver, "place": place, "object": thing})
        yield TemplateCase(template, clean, clean | {"S2": other}, (f" {receiver}",), (f" {giver}",))


TASK = Task(
    name="indirect-object",
    question="Which of two people receives what the other gives?",
    reference="Wang et al. (2022), Interpretability in the Wild, arXiv:2211.00593",
    varies="the second mention of the subject becomes the other person, which turns the answer round",
    slots=("IO", "S1", "S2"),
    cases=partial(_cases, third=False),
)
ABC = Task(
    name="indirect-object-abc",
    question="Which of two people receives what the other gives, rather than what a third gives?",
    reference="Wang et al. (2022), Interpretability in the Wild, arXiv:2211.00593",
    varies="the second mention of the subject becomes a third person, which takes the answer away",
    slots=("IO", "S1", "S2"),
    cases=partial(_cases, third=True),
)
