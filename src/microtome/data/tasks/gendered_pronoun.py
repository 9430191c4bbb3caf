"""She or he? "Mary was happy because" -> she.

The corrupt prompt has a name of the other gender and equally many tokens (and, in the story openings, the other
of "girl" and "boy"). A name's gender here is the pronoun that the stories use for it, nothing more.

Mathwin et al. (2023), Identifying a Preliminary Circuit for Predicting Gendered Pronouns in GPT-2 Small.
"""

import random
from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from microtome.data import lexicon
from microtome.data.lexicon import Gender
from microtome.data.tasks.task import Split, Task, TemplateCase, combinations, filled, share
from microtome.data.templates import Template
from microtome.data.tokens import usable

TEMPLATES = (
    Template("{name} was {feeling} because"),
    Template("{name} is {feeling} because"),
    Template("When {name} came home,"),
    Template("Once upon a time, there was a {child} named {name}. One day,"),
    Template("Once upon a time, there was a little {child} named {name}. {name} was {feeling} because"),
)
_GENDERS: tuple[Gender, ...] = ("female", "male")
_CHILD: dict[Gender, str] = {"female": "girl", "male": "boy"}
_PRONOUN: dict[Gender, str] = {gender: f" {forms.subject}" for gender, forms in lexicon.PRONOUNS.items()}


def _cases(tokenizer: PreTrainedTokenizerBase, split: Split, rng: random.Random) -> Iterator[TemplateCase]:
    usable(tokenizer, tuple(_PRONOUN.values()), after="was happy because", at_least=2)
    women, men = share(lexicon.FEMALE_NAMES, split), share(lexicon.MALE_NAMES, split)
    for template, woman, man, gender, feeling in combinations(
        rng, TEMPLATES, women, men, _GENDERS, share(lexicon.FEELINGS, split)
    ):
        name: dict[Gender, str] = {"female": woman, "male": man}
        other = _GENDERS[gender == "female"]
        clean, corrupt = (
            filled(template, {"name": name[of], "child": _CHILD[of], "feeling": feeling})
            for of in (gender, other)
        )
        yield TemplateCase(template, clean, corrupt, (_PRONOUN[gender],), (_PRONOUN[other],))


TASK = Task(
    name="gendered-pronoun",
    question="Which pronoun goes with a name?",
    reference="Mathwin et al. (2023), A Preliminary Circuit for Predicting Gendered Pronouns in GPT-2 Small",
    varies="the name (with girl or boy beside it) becomes one of the other gender",
    slots=("child", "name", "name#2"),
    cases=_cases,
)
