"""She or he? "Mary was happy because" -> she.

The corrupt prompt has a name of the other gender and equally many tokens. Two forms of it:

* `TASK`: nothing but the name tells;
* `STORY`: openings of children's stories, where "girl" or "boy" stands beside the name and changes with it, for
  models that know little else.

A name's gender here is the pronoun that the stories use for it, nothing more.

Mathwin et al. (2023), Identifying a Preliminary Circuit for Predicting Gendered Pronouns in GPT-2 Small.
"""

import random
from collections.abc import Iterator
from functools import partial

from transformers import PreTrainedTokenizerBase

from microtome.data import lexicon
from microtome.data.lexicon import Gender
from microtome.data.tasks.task import Split, Task, TemplateCase, combinations, filled, share
from microtome.data.templates import Template
from microtome.data.tokens import usable

TEMPLATES = (
    Template("{name} was {feeling} because"),
    Template("{name} is {feeling} because"),
    Template("{name} said that"),
    Template("When {name} came home,"),
)
STORY_TEMPLATES = (
    Template("Once upon a time, there was a {child} named {name}. One day,"),
    Template("Once upon a time, there was a little {child} named {name}. One day,"),
    Template("Once upon a time, there was a little {child} named {name}. {name} was {feeling} because"),
)
_STORY_NAMES: dict[Gender, tuple[str, ...]] = {
    "female": ("Lily", "Mia", "Sara", "Sue"),
    "male": ("Tim", "Timmy", "Bob", "Billy"),
}
_GENDERS: tuple[Gender, ...] = ("female", "male")
_CHILD: dict[Gender, str] = {"female": "girl", "male": "boy"}
_PRONOUN: dict[Gender, str] = {gender: f" {forms.subject}" for gender, forms in lexicon.PRONOUNS.items()}


def _cases(
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    rng: random.Random,
    templates: tuple[Template, ...],
    names: dict[Gender, tuple[str, ...]],
) -> Iterator[TemplateCase]:
    usable(tokenizer, tuple(_PRONOUN.values()), after="was happy because", at_least=2)
    women, men = (share(names[gender], split) for gender in _GENDERS)
    for template, woman, man, gender, feeling in combinations(
        rng, templates, women, men, _GENDERS, share(lexicon.FEELINGS, split)
    ):
        name: dict[Gender, str] = {"female": woman, "male": man}
        other = _GENDERS[gender == "female"]
        clean, corrupt = (
            filled(template, {"name": name[of], "child": _CHILD[of], "feeling": feeling})
            for of in (gender, other)
        )
        yield TemplateCase(template, clean, corrupt, (_PRONOUN[gender],), (_PRONOUN[other],))


_NAMES: dict[Gender, tuple[str, ...]] = {"female": lexicon.FEMALE_NAMES, "male": lexicon.MALE_NAMES}
_REFERENCE = "Mathwin et al. (2023), A Preliminary Circuit for Predicting Gendered Pronouns in GPT-2 Small"

TASK = Task(
    name="gendered-pronoun",
    question="Which pronoun goes with a name?",
    reference=_REFERENCE,
    varies="the name becomes one of the other gender",
    slots=("name",),
    cases=partial(_cases, templates=TEMPLATES, names=_NAMES),
)
STORY = Task(
    name="gendered-pronoun-story",
    question="Which pronoun goes with the girl or boy of a story?",
    reference=_REFERENCE,
    varies="the name and the word girl or boy beside it become those of the other gender",
    slots=("child", "name"),
    cases=partial(
        _cases,
        templates=STORY_TEMPLATES,
        names={gender: _STORY_NAMES[gender] + _NAMES[gender] for gender in _GENDERS},
    ),
)
