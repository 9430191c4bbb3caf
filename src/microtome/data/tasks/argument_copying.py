"""Which argument is described next? "def paint(size, color, shape): param size: … param color: … param" -> shape.

The list in the definition gives the order. In the corrupt prompt the definition lists other arguments, so that
the next one cannot be known. Wrong answers are the arguments that have been described already.

Heimersheim and Janiak (2023), A circuit for Python docstrings in a 4-layer attention-only transformer.
"""

import random
from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from microtome.data import lexicon
from microtome.data.tasks.task import Split, Task, TemplateCase, combinations, share
from microtome.data.templates import Template
from microtome.data.tokens import usable

TEMPLATES = (
    Template(
        "def {function}({A_def}, {B_def}, {C_def}): param {A_doc}: the {object1} param {B_doc}: the {object2} param"
    ),
    Template(
        "def {function}(self, {A_def}, {B_def}, {C_def}): param {A_doc}: the {object1} "
        "param {B_doc}: the {object2} param"
    ),
    Template(
        "def {function}({A_def}, {B_def}, {C_def}): :param {A_doc}: the {object1} "
        ":param {B_doc}: the {object2} :param"
    ),
)


def _cases(tokenizer: PreTrainedTokenizerBase, split: Split, rng: random.Random) -> Iterator[TemplateCase]:
    names = usable(tokenizer, share(lexicon.PARAMETERS, split), after="the ball param ", at_least=6)
    objects = share(lexicon.OBJECTS, split)
    functions = share(lexicon.FUNCTIONS, split)
    for template, function, first, second in combinations(rng, TEMPLATES, functions, objects, objects):
        *listed, x, y, z = rng.sample(names, 6)
        a, b, c = listed
        described = {"A_doc": a, "B_doc": b, "object1": first, "object2": second}
        clean = {"function": function, "A_def": a, "B_def": b, "C_def": c, **described}
        corrupt = clean | {"A_def": x, "B_def": y, "C_def": z}
        yield TemplateCase(template, clean, corrupt, (f" {c}",), (f" {a}", f" {b}"))


TASK = Task(
    name="argument-copying",
    question="Which argument of the definition is described next?",
    reference="Heimersheim, Janiak (2023), A circuit for Python docstrings in a 4-layer attention-only transformer",
    varies="the definition lists other arguments",
    slots=("A_def", "B_def", "C_def", "A_doc", "B_doc"),
    cases=_cases,
)
