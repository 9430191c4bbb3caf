"""One or several? "The dogs near the tree" -> are.

The verb agrees with the subject, not with the noun beside it (the attractor), which is singular in half of the
prompts and plural in half, whatever the subject is. The corrupt prompt has the subject in the other number.

Linzen, Dupoux, Goldberg (2016), Assessing the Ability of LSTMs to Learn Syntax-Sensitive Dependencies,
arXiv:1611.01368; Finlayson et al. (2021), arXiv:2106.06087.
"""

import random
from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from microtome.core.errors import InputError
from microtome.data import lexicon
from microtome.data.tasks.task import Split, Task, TemplateCase, combinations, share
from microtome.data.templates import Template
from microtome.data.tokens import usable

TEMPLATES = (
    Template("The {subject} near the {attractor}"),
    Template("The {subject} next to the {attractor}"),
    Template("Today the {subject} near the {attractor}"),
)
_NUMBERS = ("singular", "plural")


def _verb(tokenizer: PreTrainedTokenizerBase) -> lexicon.Agreement:
    """The first verb of the lexicon whose two forms are one token each."""
    forms = [f" {form}" for verb in lexicon.AGREEMENTS for form in (verb.singular, verb.plural)]
    whole = usable(tokenizer, forms, after="The dogs near the tree", at_least=1)
    for verb in lexicon.AGREEMENTS:
        if {f" {verb.singular}", f" {verb.plural}"} <= set(whole):
            return verb
    raise InputError(
        f"agreement needs a verb with two forms of one token each; of {', '.join(forms)} this tokenizer has only "
        f"{', '.join(whole)}"
    )


def _cases(tokenizer: PreTrainedTokenizerBase, split: Split, rng: random.Random) -> Iterator[TemplateCase]:
    verb = _verb(tokenizer)
    nouns = share(lexicon.NOUNS, split)
    for template, subject, attractor, number, other in combinations(
        rng, TEMPLATES, nouns, nouns, _NUMBERS, _NUMBERS
    ):
        if subject == attractor:
            continue
        opposite = _NUMBERS[number == "singular"]
        beside = getattr(attractor, other)
        yield TemplateCase(
            template,
            {"subject": getattr(subject, number), "attractor": beside},
            {"subject": getattr(subject, opposite), "attractor": beside},
            (f" {getattr(verb, number)}",),
            (f" {getattr(verb, opposite)}",),
        )


TASK = Task(
    name="agreement",
    question="Is the subject one or several, whatever stands between it and the verb?",
    reference="Linzen, Dupoux, Goldberg (2016), arXiv:1611.01368; Finlayson et al. (2021), arXiv:2106.06087",
    varies="the number of the subject",
    slots=("subject", "attractor"),
    cases=_cases,
)
