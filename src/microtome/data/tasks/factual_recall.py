"""Where does it stand? "The Eiffel Tower is in the city of" -> Paris.

The answer is not in the prompt: the model must have learnt it. The corrupt prompt names another landmark of
equally many tokens, in another city; which one is drawn once for each landmark, template and seed.

Meng et al. (2022), Locating and Editing Factual Associations in GPT, arXiv:2202.05262.
"""

import random
from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from microtome.data import lexicon
from microtome.data.tasks.task import Split, Task, TemplateCase, combinations, share
from microtome.data.templates import Template
from microtome.data.tokens import usable

TEMPLATES = (
    Template("The {landmark} is in the city of"),
    Template("The {landmark} stands in the city of"),
    Template("The {landmark} is located in the city of"),
    Template("Everyone knows that the {landmark} is in the city of"),
)


def _cases(tokenizer: PreTrainedTokenizerBase, split: Split, rng: random.Random) -> Iterator[TemplateCase]:
    landmarks = share(lexicon.LANDMARKS, split)
    cities = [f" {landmark.city}" for landmark in landmarks]
    known = usable(tokenizer, cities, after="is in the city of", at_least=2)
    whole = [landmark for landmark in landmarks if f" {landmark.city}" in known]
    for template, landmark, other in combinations(rng, TEMPLATES, whole, whole):
        if landmark.city != other.city:
            yield TemplateCase(
                template,
                {"landmark": landmark.name},
                {"landmark": other.name},
                (f" {landmark.city}",),
                (f" {other.city}",),
            )


TASK = Task(
    name="factual-recall",
    question="In which city does a landmark stand?",
    reference="Meng et al. (2022), Locating and Editing Factual Associations in GPT, arXiv:2202.05262",
    varies="the landmark becomes another of equally many tokens, in another city",
    slots=("landmark",),
    cases=_cases,
)
