"""Networks that work as a causal model says, as cases: ordinary-looking weights, and the circuit is known.

Nobody laid the weights out; training alone made them so that interchanges of each variable do what the causal model
says, and that nothing outside the circuit matters. Pairs are any two rows whose last answers differ.
"""

from typing import Final

import torch

from microtome.core.draws import generator
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.data.hypothesis import Hypothesis, Location
from microtome.data.pairs import Pairs
from microtome.models.load import load
from microtome.testbeds.algorithmic.network import contrast
from microtome.testbeds.case import Case, TestbedCard, Truth, Variable
from microtome.testbeds.interchange.library import TASKS, task
from microtome.testbeds.interchange.network import measured, network
from microtome.testbeds.interchange.task import Rows, Task

card = TestbedCard(
    name="interchange",
    title="Interchange-trained networks",
    question="Does a method find the heads, MLPs and edges of a circuit that training, not a compiler, put there?",
    reference="Geiger et al. (2022), Inducing Causal Structure; Gupta et al. (2024), InterpBench",
    kinds=("circuit", "roles", "variables", "labels", "quantities"),
    misleads=(
        "The key speaks of interchanges between rows: a part outside the circuit may still matter as a constant, so "
        "zeroing it may hurt. What positions add never differs between rows and is not in the key. Which direction "
        "stands for a variable is not known."
    ),
)

PAIRS = 64


def cases() -> tuple[str, ...]:
    """Every task of the library."""
    return tuple(one.name for one in TASKS)


# Alone the circuit does the task, without it nothing is left, and its values bring the answer: so it was trained.
WHOLE: Final = {"circuit.faithfulness": 1.0, "circuit.leftover": 0.0, "circuit.sufficiency": 1.0}


def build(case: str, seed: int = 0) -> Case:
    """A network with its truth. Of a seed that does not ship it is trained, which takes up to a minute or two.

    Raises `InputError` for an unknown task, `TruthError` where training did not reach its target.
    """
    one = task(case)
    module = network(one, seed)
    tokens = one.held_out(256, generator(seed, -3))
    shares = measured(one, module, seed)
    model = load(module)
    model.name = f"{card.name}/{case} (seed {seed})"
    return Case(
        name=f"{card.name}/{case}",
        task=one.task,
        model=model,
        truth=Truth(
            circuit=one.alignment.circuit(shares.effect),
            roles={name: place.nodes for name, place in one.places.items()},
            variables=variables(one),
            labels=labels(one, tokens),
            quantities=WHOLE,
        ),
        evidence=shares.evidence(),
        pairs=pairs(one, seed),
        tokens=tokens,
        hypothesis=hypothesis(one, tokens),
        seed=seed,
    )


def hypothesis(one: Task, tokens: Rows) -> Hypothesis:
    """The causal model that the network was trained to follow, in the heads and MLPs it was trained to follow it in."""
    locations = {name: Location(place.nodes) for name, place in one.places.items()}
    return Hypothesis(one.model, locations, tokens)


def variables(one: Task) -> tuple[Variable, ...]:
    """Where each variable stands, and which part writes it; of directions none is claimed."""
    found = []
    for name, place in one.places.items():
        for node in place.nodes:
            site = Site.parse(node)
            width = one.config["head_dim" if site.heads else "hidden_size"]
            found.append(Variable(name, site, torch.empty(0, width), writer=node))
    return tuple(found)


def labels(one: Task, tokens: Rows) -> dict[str, Rows]:
    """What each variable is at each place; -1 at places where it changes no answer, which the network need not hold."""
    values, other = one.model.run(tokens), tokens.roll(-1, 0)
    return {
        name: torch.where(one.model.matters(tokens, other, name), values[name], -1)
        for name in one.model.inner
    }


def pairs(one: Task, seed: int = 0, count: int = PAIRS) -> Pairs:
    """Unseen rows, each with another unseen row whose answer at the last place differs.

    Whole rows are exchanged, as in training: a twin that differed in one token would leave some variables as they are.
    Raises `InputError` for a task that has one answer at the last place.
    """
    rows = one.draw(8 * count, False, generator(seed, -4))
    clean, corrupt = rows.chunk(2)
    answers, wrong = one.answers(clean)[:, -1], one.answers(corrupt)[:, -1]
    differ = torch.nonzero(answers != wrong)[:count, 0]
    if not len(differ):
        raise InputError(f"the last answers of {one.name} never differ, so it has no pairs")
    return contrast(
        clean[differ],
        corrupt[differ],
        answers[differ],
        wrong[differ],
        words=lambda token: one.words[token],
        task=f"{card.name}/{one.name}",
        seed=seed,
    )
