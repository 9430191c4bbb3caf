"""What would the answer be if one variable had another value? A small causal model: named variables over tokens.

1. Every variable is a function of its parents, which are variables too, or the tokens themselves.
2. To run the model is to compute each variable after its parents.
3. To interchange variables is to give them the values that they have for other tokens, and to compute the rest.

4. To look at it more coarsely is to keep some variables, and to compute the others inside those that read them.

Values are whole numbers, one a place of the row: what a head or an MLP holds is held place by place. The answer's are
token ids, `UNASKED` where the network need not say anything.
Reference: Geiger et al. (2021), Causal Abstractions of Neural Networks.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from microtome.core.errors import InputError

Values = Int[Tensor, "row column"]
TOKENS = "tokens"
UNASKED: Final = -100
"""Where no answer is asked; what torch's cross-entropy leaves out."""


@dataclass(frozen=True)
class Variable:
    """A variable: the values of its parents, in their order, go into `compute`. Parents may name `tokens`.

    domain: the values it can have, empty for any: another value, computed or given, is refused.
    """

    name: str
    parents: tuple[str, ...]
    compute: Callable[..., Values]
    domain: frozenset[int] = frozenset()


@dataclass(frozen=True)
class CausalModel:
    """Variables, of which the last named is the answer.

    Raises `InputError` for a repeated or reserved name, an unknown parent, a variable with no parent, and a circle.
    """

    variables: tuple[Variable, ...]

    def __post_init__(self) -> None:
        names = [variable.name for variable in self.variables]
        if not names:
            raise InputError("a causal model needs at least one variable, the answer")
        if len({*names, TOKENS}) != len(names) + 1:
            raise InputError(f"{names} repeat a name or take the name {TOKENS!r}; name each variable once")
        for variable in self.variables:
            if not variable.parents or (unknown := {*variable.parents} - {*names, TOKENS}):
                asked = sorted(unknown) if variable.parents else "none"
                raise InputError(
                    f"the parents of {variable.name} are {asked}, expected some of {names} or {TOKENS}"
                )
        try:
            self._order  # noqa: B018
        except CycleError as error:
            raise InputError(
                f"the variables {', '.join(error.args[1])} cause each other in a circle; a causal model has none"
            ) from error

    @property
    def answer(self) -> str:
        """The name of the variable that the network must say."""
        return self.variables[-1].name

    @property
    def inner(self) -> tuple[str, ...]:
        """The names of all the others."""
        return tuple(variable.name for variable in self.variables[:-1])

    def parents(self, name: str) -> tuple[str, ...]:
        """The parents of a variable. Raises `InputError` for an unknown one."""
        return self._variable(name).parents

    def run(self, tokens: Values, given: Mapping[str, Tensor] | None = None) -> dict[str, Values]:
        """The value of every variable, by name. given: values that are set from outside instead of computed.

        Raises `InputError` for an unknown name, and for values of another shape than the tokens or outside a domain.
        """
        given = given or {}
        for name in given:
            self._variable(name)
        values = {TOKENS: tokens}
        for name in self._order:
            if name == TOKENS:
                continue
            variable = self._variable(name)
            found = given.get(name)
            if found is None:
                found = variable.compute(*(values[parent] for parent in variable.parents))
            values[name] = _allowed(variable, found, tokens)
        del values[TOKENS]
        return values

    def keeping(self, names: Collection[str]) -> "CausalModel":
        """The same answers with these variables alone, and the answer: what is left out is computed on the way."""
        kept = {*names, self.answer}
        for name in kept:
            self._variable(name)
        return CausalModel(tuple(self._coarse(v, kept) for v in self.variables if v.name in kept))

    def _coarse(self, variable: Variable, kept: Collection[str]) -> Variable:
        """This variable, reading from the nearest ones that are kept."""
        parents: list[str] = []
        between: list[str] = []

        def visit(name: str) -> None:
            if name == TOKENS or name in kept:
                parents.extend([name] if name not in parents else [])
                return
            between.extend([name] if name not in between else [])
            for parent in self.parents(name):
                visit(parent)

        for parent in variable.parents:
            visit(parent)
        if not between:
            return variable
        order = [self._variable(name) for name in self._order if name in between]

        def compute(*given: Values) -> Values:
            values = dict(zip(parents, given, strict=True))
            for one in (*order, variable):
                values[one.name] = one.compute(*(values[parent] for parent in one.parents))
            return values[variable.name]

        return Variable(variable.name, tuple(parents), compute, variable.domain)

    def interchange(self, base: Values, source: Values, names: Collection[str]) -> Values:
        """The answer for `base` if the named variables had the values that they have for `source`, row by row."""
        other = self.run(source)
        for name in names:
            self._variable(name)
        return self.run(base, {name: other[name] for name in names})[self.answer]

    def matters(self, base: Values, source: Values, name: str) -> Bool[Tensor, " column"]:
        """At which places the variable's value, taken from `source` there alone, changes the answer for some row."""
        self._variable(name)
        own, other = self.run(base), self.run(source)[name]
        found = []
        for place in range(base.shape[1]):
            value = own[name].clone()
            value[:, place] = other[:, place]
            found.append((self.run(base, {name: value})[self.answer] != own[self.answer]).any())
        return torch.stack(found)

    @cached_property
    def _order(self) -> tuple[str, ...]:
        parents = {variable.name: variable.parents for variable in self.variables}
        return tuple(TopologicalSorter(parents).static_order())

    def _variable(self, name: str) -> Variable:
        for variable in self.variables:
            if variable.name == name:
                return variable
        raise InputError(
            f"there is no variable {name!r}; there are {', '.join(v.name for v in self.variables)}"
        )


def _allowed(variable: Variable, values: Tensor, tokens: Values) -> Values:
    if values.shape != tokens.shape:
        raise InputError(
            f"{variable.name} has values of shape {list(values.shape)}, expected one a token, {list(tokens.shape)}"
        )
    if variable.domain and (strange := {*values.unique().tolist()} - variable.domain):
        raise InputError(
            f"{variable.name} has the values {sorted(strange)[:5]}, which are not in its domain "
            f"{sorted(variable.domain)}; widen the domain, or mend what computes it"
        )
    return values
