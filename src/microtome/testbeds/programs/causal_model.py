"""Which algorithm does a compiled program run? Its named sequences as the variables of a causal model, in their places.

1. Every sequence that the program is written with is a variable; its parents are the sequences it is computed from.
2. A value is the number of the value in the list of those that the sequence can take; at BOS, and where a program has
   no value (a selector chooses nothing), it is `NOTHING`, and what depends on it is not asked.
3. A variable stands where the compiled network first holds it: in its directions of the stream.

Positions and what is computed from them alone are the same in every input: no exchange could move them. They are left
out, and so is what the network computes in steps of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from jaxtyping import Int
from torch import Tensor

from microtome.core.errors import InputError
from microtome.data.causal_model import TOKENS as INPUT
from microtome.data.causal_model import UNASKED, CausalModel
from microtome.data.causal_model import Variable as Caused
from microtome.data.hypothesis import Hypothesis, Location
from microtome.testbeds.programs.assembly import Place
from microtome.testbeds.programs.compiler import Compiled
from microtome.testbeds.programs.language import (
    INDICES,
    TOKENS,
    Aggregate,
    Combined,
    Expression,
    Map,
    Select,
    Selector,
    SequenceMap,
    Sum,
    Value,
    Width,
    interpret,
)

NOTHING: Final = -1
ANSWER: Final = "answer"
Rows = Int[Tensor, "row column"]


def hypothesis(compiled: Compiled, program: Expression, tokens: Rows) -> Hypothesis | None:
    """The program as a hypothesis about its network; `None` where all these inputs have one answer."""
    model = causal_model(compiled, program)
    values = model.run(tokens)
    moving = [name for name in values if (values[name] != values[name][:1]).any()]
    if model.answer not in moving:
        return None
    moving.remove(model.answer)
    places = {place.name: place for place in compiled.assembly.needed}
    found = {name: compiled.variable(places[name]) for name in moving}
    locations = {name: Location(one.site, one.directions) for name, one in found.items()}
    choices = tuple(map(compiled.id, compiled.assembly.output.values))
    return Hypothesis(model.keeping(moving), locations, tokens, choices)


def causal_model(compiled: Compiled, program: Expression) -> CausalModel:
    """The program's sequences, and the id that is said for each value of the last one."""
    sequences = _sequences(program)
    places = {id(one): compiled.assembly.place(one) for one in sequences}
    variables = [
        Caused(
            places[id(one)].name,
            _named(_parents(one), places),
            _Computed(compiled, one, _parents(one), places),
            frozenset(range(NOTHING, len(places[id(one)].values))),
        )
        for one in sequences
    ]
    output = places[id(program)]
    ids = torch.tensor([*(compiled.id(value) for value in output.values), UNASKED])
    return CausalModel((*variables, Caused(ANSWER, (output.name,), lambda value: ids[value])))


@dataclass(frozen=True, eq=False)
class _Computed:
    """A sequence's values from those of its parents, row by row, by interpreting the program."""

    compiled: Compiled
    sequence: Expression
    parents: tuple[Expression, ...]
    places: Mapping[int, Place]
    _seen: dict[tuple[tuple[int, ...], ...], list[int]] = field(default_factory=dict)

    def __call__(self, *given: Rows) -> Rows:
        found = []
        for row in torch.stack(given, -1)[:, 1:].tolist():
            key = tuple(map(tuple, row))
            if key not in self._seen:
                self._seen[key] = [NOTHING, *self._row(key)]
            found.append(self._seen[key])
        return torch.tensor(found)

    def _row(self, row: tuple[tuple[int, ...], ...]) -> list[int]:
        made = self.places[id(self.sequence)]
        known: dict[Expression, list[Value]] = {}
        tokens: list[Value] = [self.compiled.labels[0]] * len(row)
        for parent, numbers in zip(self.parents or (TOKENS,), zip(*row, strict=True), strict=True):
            if parent is TOKENS:
                tokens = [self.compiled.labels[number] for number in numbers]
            elif NOTHING in numbers:
                return [NOTHING] * len(row)
            else:
                values = self.places[id(parent)].values
                known[parent] = [values[number] for number in numbers]
        try:
            found = interpret(self.sequence, tokens, causal=self.compiled.domain.causal, known=known)
            return [made.values.index(value) for value in found]
        except (InputError, ValueError):  # no such input exists, so the program promises nothing
            return [NOTHING] * len(row)


def _sequences(program: Expression) -> list[Expression]:
    """Every sequence that the program is computed from, itself last; neither tokens nor positions."""
    found: dict[int, Expression] = {}

    def visit(one: Expression) -> None:
        if id(one) in found or one is TOKENS or one is INDICES:
            return
        for read in _read(one):
            visit(read)
        found[id(one)] = one

    visit(program)
    return list(found.values())


def _parents(one: Expression) -> tuple[Expression, ...]:
    return tuple({id(read): read for read in _read(one) if read is not INDICES}.values())


def _named(parents: tuple[Expression, ...], places: Mapping[int, Place]) -> tuple[str, ...]:
    """Names of the parents; what is computed from positions alone is said to read the tokens, and does not use them."""
    return tuple(INPUT if one is TOKENS else places[id(one)].name for one in parents) or (INPUT,)


def _read(one: Expression) -> list[Expression]:
    match one:
        case Map():
            return [one.of]
        case SequenceMap():
            return [one.left, one.right]
        case Aggregate() | Sum():
            return [*_selected(one.selector), one.of]
        case Width():
            return _selected(one.selector)
    return []


def _selected(selector: Selector) -> list[Expression]:
    match selector:
        case Select():
            return [selector.keys, selector.queries]
        case Combined():
            return [one for part in selector.parts for one in _selected(part)]
    return []
