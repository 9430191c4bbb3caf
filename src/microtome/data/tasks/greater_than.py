"""Which years can come after? "The war lasted from the year 1732 to the year 17" -> 33 … 99.

Right answers are all later years of the century, wrong ones that year and all earlier ones. The corrupt prompt
starts in the year 01, after which nearly every year may come. A tokenizer must split years in the middle; years
that it keeps whole are left out, as answers too.

Hanna, Liu, Variengien (2023), How does GPT-2 compute greater-than?, arXiv:2305.00586.
"""

import random
from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from microtome.data import lexicon
from microtome.data.tasks.task import Split, Task, TemplateCase, combinations, share
from microtome.data.templates import Template
from microtome.data.tokens import usable

TEMPLATES = (
    Template("The {event} lasted from the year {century}{start} to the year {century}"),
    Template("The {event} began in the year {century}{start} and ended in the year {century}"),
)
_FIRST = "01"


def _cases(tokenizer: PreTrainedTokenizerBase, split: Split, rng: random.Random) -> Iterator[TemplateCase]:
    years = {
        century: usable(tokenizer, lexicon.TWO_DIGITS, after=f"to the year {century}")
        for century in lexicon.CENTURIES
    }
    if not any(years.values()):
        usable(tokenizer, lexicon.TWO_DIGITS, after=f"to the year {lexicon.CENTURIES[0]}", at_least=1)
    starts = [year for year in lexicon.TWO_DIGITS if _FIRST < year < lexicon.TWO_DIGITS[-1]]
    for template, event, century, start in combinations(
        rng, TEMPLATES, share(lexicon.EVENTS, split), lexicon.CENTURIES, starts
    ):
        clean = {"event": event, "century": century, "start": start}
        later = tuple(year for year in years[century] if year > start)
        earlier = tuple(year for year in years[century] if year <= start)
        if later and earlier:
            yield TemplateCase(template, clean, clean | {"start": _FIRST}, later, earlier)


TASK = Task(
    name="greater-than",
    question="Which two-digit numbers are greater than the one given?",
    reference="Hanna, Liu, Variengien (2023), How does GPT-2 compute greater-than?, arXiv:2305.00586",
    varies="the starting year becomes 01, after which nearly every year may come",
    slots=("century", "start", "century#2"),
    cases=_cases,
)
