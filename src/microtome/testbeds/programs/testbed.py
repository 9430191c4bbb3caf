"""Compiled programs as cases: on every input the network says what the program says, and the truth is how.

Each case carries decoys: other programs computed in the same network and read by nothing, so that a method that calls
every working part important is wrong. Pairs differ in one token that changes the answer at the last position.
"""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.data.pairs import Pairs
from microtome.models.load import load
from microtome.models.model import Model
from microtome.models.transformer import Transformer
from microtome.testbeds.case import Case, Evidence, TestbedCard, Truth, Variable
from microtome.testbeds.edge_ablation import unshown
from microtome.testbeds.programs.causal_model import hypothesis
from microtome.testbeds.programs.compiler import Compiled
from microtome.testbeds.programs.language import INDICES, TOKENS, Aggregate, Expression, Select, Value, Width
from microtome.testbeds.programs.library import PROGRAMS, Program, program

card = TestbedCard(
    name="programs",
    title="Compiled programs",
    question="Does a method find the heads, the edges and the variables of a program that was compiled to weights?",
    reference="Lindner et al. (2023), Tracr; Weiss, Goldberg, Yahav (2021), Thinking Like Transformers",
    kinds=("circuit", "variables", "labels"),
    misleads="Compiled weights are sparse, axis-aligned and free of norms; a method may do well here and nowhere else.",
)

PAIRS: Final = 24
_SAME: Final = 1e-3  # sharp attention leaves less of what it does not look at


def cases() -> tuple[str, ...]:
    """Every program of the library."""
    return tuple(one.name for one in PROGRAMS)


def build(case: str, seed: int = 0) -> Case:
    """A program's network with its truth. The seed draws the pairs. Raises `InputError` for an unknown program."""
    one = program(case)
    compiled = one.compile(decoys())
    found = served(f"programs/{case}", one, compiled, compiled.transformer(), compiled.truth(), seed)
    seen = shown(found.truth.variables, changing(found.model, found.tokens))
    return replace(
        found,
        truth=replace(found.truth, variables=seen),
        hypothesis=hypothesis(compiled, one.expression, found.tokens),
    )


@torch.no_grad()
def changing(wide: Model, tokens: Int[Tensor, "row column"]) -> dict[str, Bool[Tensor, " d_model"]]:
    """At every stream, the directions along which these inputs or their places differ: no others can be seen there."""
    sites = [site for site in wide.sites() if site.part in ("resid_pre", "resid_mid", "resid_post")]
    sites = [site for site in sites if site.part != "resid_pre" or site.layer == 0]
    run = wide.run(tokens, sites)
    found = {}
    for site in sites:
        values = run[site].flatten(0, 1)
        found[str(site)] = values.amax(0) - values.amin(0) > _SAME
    return found


def shown(
    variables: Sequence[Variable], changes: Mapping[str, Bool[Tensor, " d_model"]]
) -> tuple[Variable, ...]:
    """Variables of the wide network without the values that they never have: these stand nowhere to be found."""
    found = []
    for one in variables:
        if one.values:
            seen = (one.directions.bool() & changes[str(one.site)]).any(1)
            values = tuple(value for value, there in zip(one.values, seen.tolist(), strict=True) if there)
            one = replace(one, directions=one.directions[seen], values=values)
        found.append(one)
    return tuple(found)


def served(
    name: str,
    one: Program,
    compiled: Compiled,
    module: Transformer,
    truth: Truth,
    seed: int,
    evidence: tuple[Evidence, ...] = (),
) -> Case:
    """A network that runs a program as a case, with the program's outputs as labels, and pairs."""
    model = load(module)
    model.name = name
    inputs = list(itertools.product(one.vocabulary, repeat=one.length))
    tokens = compiled.encode(inputs)
    wrong = mismatches(one, compiled, module(tokens).logits, inputs)
    labels = {
        "output": torch.tensor([[compiled.bos, *map(compiled.id, one.interpret(given))] for given in inputs])
    }
    drawn = pairs(one, compiled, seed)
    if drawn is not None and truth.circuit is not None:
        truth = replace(truth, unshown=unshown(model, truth.circuit, drawn))
    return Case(
        name=name,
        task=one.task,
        model=model,
        truth=replace(truth, labels=labels),
        evidence=(
            Evidence("inputs on which network and program differ", wrong, most=0, n=len(inputs)),
            *evidence,
        ),
        pairs=drawn,
        tokens=tokens,
        seed=seed,
        twin="drawn",
    )


def decoys() -> tuple[Expression, ...]:
    """Two small programs that need heads and neurons in the first layers, read by nothing."""
    same = Select(TOKENS, TOKENS, lambda key, query: key == query)
    here = Select(INDICES, INDICES, lambda key, query: key == query)
    again = Aggregate(here, TOKENS, name="decoy: this token")
    count = Width(same, name="decoy: count").map(lambda n: n).named("decoy: count again")
    return again, count


def mismatches(
    one: Program,
    compiled: Compiled,
    logits: Float[Tensor, "row column label"],
    inputs: Sequence[Sequence[Value]],
) -> int:
    """On how many inputs the network says anything else than the program, at any position."""
    said = compiled.decode(logits)
    return sum(answer != one.interpret(given) for answer, given in zip(said, inputs, strict=True))


def pairs(one: Program, compiled: Compiled, seed: int, count: int = PAIRS) -> Pairs | None:
    """Inputs that differ in one token, and in the answer at the last position; None where no token decides it."""
    drawn = random.Random(seed)
    inputs = list(itertools.product(one.vocabulary, repeat=one.length))
    found: list[tuple[Sequence[Value], Sequence[Value]]] = []
    for _ in range(200 * count):
        clean = drawn.choice(inputs)
        place = drawn.randrange(one.length)
        corrupt = [*clean]
        corrupt[place] = drawn.choice([token for token in one.vocabulary if token != clean[place]])
        if one.interpret(clean)[-1] != one.interpret(corrupt)[-1]:
            found.append((clean, corrupt))
        if len(found) == count:
            break
    if not found:
        return None
    clean_ids, corrupt_ids = (compiled.encode([pair[side] for pair in found]) for side in (0, 1))
    answers, wrong = (
        tuple((compiled.id(one.interpret(pair[side])[-1]),) for pair in found) for side in (0, 1)
    )
    return Pairs(
        clean=clean_ids,
        corrupt=corrupt_ids,
        mask=None,
        answers=answers,
        wrong=wrong,
        slots=tuple({} for _ in found),
        texts=tuple(_text(compiled, row) for row in clean_ids),
        corrupt_texts=tuple(_text(compiled, row) for row in corrupt_ids),
        token_strings={
            number: "BOS" if label is None else str(label) for number, label in enumerate(compiled.labels)
        },
        task=f"programs/{one.name}",
        seed=seed,
    )


def _text(compiled: Compiled, ids: Int[Tensor, " column"]) -> str:
    return " ".join(str(compiled.labels[number]) for number in ids.tolist()[1:])
