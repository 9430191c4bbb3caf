"""Which values can a sequence take? Worked out before anything is compiled, so that what cannot compile is refused.

A numerical sequence whose possible numbers cannot be listed (means of many) may be read as output of nothing and mapped
by nothing: a piecewise step needs to know where the steps are.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, Final

from microtome.core.errors import InputError
from microtome.testbeds.programs.language import (
    Aggregate,
    Combined,
    Expression,
    Indices,
    Map,
    Select,
    Selector,
    SequenceMap,
    Sum,
    Tokens,
    Value,
    Width,
    is_numerical,
    number,
)

MOST = 1024


class Impossible:
    """What a function gives where its arguments never meet; compiled to nothing."""


IMPOSSIBLE: Final = Impossible()


@dataclass(frozen=True)
class Domain:
    """What a program runs on: the vocabulary, the greatest length, and whether selectors see no later position."""

    vocabulary: tuple[Value, ...]
    length: int
    causal: bool = False

    def __post_init__(self) -> None:
        if not self.vocabulary or len(set(self.vocabulary)) != len(self.vocabulary) or self.length < 1:
            raise InputError(
                f"a program needs a vocabulary of different tokens and a length of at least 1, got "
                f"{self.vocabulary!r} and {self.length}"
            )


class Possible:
    """Possible values of sequences, worked out once each. Numbers come sorted, others in order of appearance."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self._known: dict[int, tuple[Value, ...]] = {}
        self._kept: list[Expression] = []  # so that no identity is given to another

    def of(self, expression: Expression) -> tuple[Value, ...]:
        """The possible values. Raises `InputError` saying why they cannot be listed."""
        if id(expression) not in self._known:
            found = _different(self._listed(expression))
            if is_numerical(expression):
                found = tuple(sorted(map(number, found)))
            if len(found) > MOST:
                raise InputError(
                    f"{called(expression)} can take {len(found)} values, more than {MOST}; shorten the input, or "
                    "map it to fewer"
                )
            self._known[id(expression)] = found
            self._kept.append(expression)
        return self._known[id(expression)]

    def _listed(self, expression: Expression) -> Iterable[Value]:
        match expression:
            case Tokens():
                return self.domain.vocabulary
            case Indices():
                return range(self.domain.length)
            case Map():
                return [applied(expression, expression.function, value) for value in self.of(expression.of)]
            case SequenceMap():
                pairs = [
                    applied(expression, expression.function, one, two)
                    for one in self.of(expression.left)
                    for two in self.of(expression.right)
                ]
                return [value for value in pairs if not isinstance(value, Impossible)]
            case Width():
                return range(self.domain.length + 1)
            case Sum():
                return set().union(*self.sums(expression.of))
            case Aggregate():
                default = () if expression.default is None else (expression.default,)
                if not is_numerical(expression):
                    return (*self.of(expression.of), *default)
                means = {s / n for n, sums in enumerate(self.sums(expression.of)) if n for s in sums}
                return {*means, *map(number, default)}
        raise InputError(f"{type(expression).__name__} is no part of the language")

    def sums(self, of: Expression) -> list[set[Fraction]]:
        """Possible sums of 0, 1, … values of a numerical sequence."""
        if not is_numerical(of):
            raise InputError(f"{called(of)} is categorical and has no sum; map it with numerical=True first")
        values = [number(value) for value in self.of(of)]
        found: list[set[Fraction]] = [{Fraction(0)}]
        for _ in range(self.domain.length):
            found.append({one + value for one in found[-1] for value in values})
            if sum(map(len, found)) > MOST:
                raise InputError(
                    f"{called(of)} can add up to more than {MOST} numbers; shorten the input, or use fewer numbers"
                )
        return found


def called(expression: Expression) -> str:
    """What to call a sequence in a message."""
    return expression.name or f"a {type(expression).__name__}"


def applied(expression: Expression, function: Callable[..., Value], *values: Value) -> Value:
    """A function's value. Raises `InputError` where it fails, or gives no number where one was announced."""
    try:
        found = function(*values)
    except Exception as error:  # a program's own function may fail in any way
        raise InputError(
            f"{called(expression)} has no value for {', '.join(map(repr, values))} ({error}); its function must be "
            "defined for every possible value"
        ) from error
    if is_numerical(expression) and not isinstance(found, Impossible):
        return number(found)
    return found


def categorical(expression: Expression) -> Expression:
    """The sequence with one direction for each value: itself, or its numbers told apart."""
    if not is_numerical(expression):
        return expression
    return Map(_same, expression, name=f"{called(expression)} told apart")


def _same(value: Any) -> Any:
    return value


def as_product(expression: Sum, possible: Possible) -> SequenceMap:
    """A sum is the mean of what is chosen, times how many."""
    sums = possible.sums(expression.of)

    def product(mean: Value, width: Value) -> Value:
        found = number(mean) * number(width)
        return found if found in sums[int(number(width))] else IMPOSSIBLE

    mean = Aggregate(expression.selector, expression.of, Fraction(0), name=f"{called(expression)}: mean")
    width = Width(expression.selector, name=f"{called(expression)}: width")
    return SequenceMap(product, mean, width, numerical=True, name=expression.name)


def as_select(selector: Selector) -> Select:
    """Any selector as one relation of keys to queries; of several sequences, of their tuples."""
    match selector:
        case Select():
            return selector
        case Combined():
            leaves = [leaf for part in selector.parts for leaf in _leaves(part)]
            keys, queries = (
                list({id(one): one for one in side}.values())
                for side in ([leaf.keys for leaf in leaves], [leaf.queries for leaf in leaves])
            )
            places = (
                {id(one): place for place, one in enumerate(keys)},
                {id(one): place for place, one in enumerate(queries)},
            )
            holds = partial(_holds, selector, places)
            return Select(_tuple(keys), _tuple(queries), holds)
    raise InputError(f"{type(selector).__name__} is no selector of the language")


def _leaves(selector: Selector) -> list[Select]:
    if isinstance(selector, Combined):
        return [leaf for part in selector.parts for leaf in _leaves(part)]
    assert isinstance(selector, Select)
    return [selector]


def _tuple(sequences: list[Expression]) -> Expression:
    """Tuples of the values of several sequences, also of one."""
    whole: Expression = (
        Map(_single, sequences[0], name=called(sequences[0])) if len(sequences) > 1 else sequences[0]
    )
    for one in sequences[1:]:
        whole = SequenceMap(_longer, whole, one, name=f"{called(whole)}, {called(one)}")
    return whole


def _single(value: Value) -> Value:
    return (value,)


def _longer(some: Any, value: Value) -> Value:
    return (*some, value)


def _holds(selector: Selector, places: tuple[dict[int, int], dict[int, int]], key: Any, query: Any) -> bool:
    if isinstance(selector, Combined):
        return bool(selector.function(*(_holds(part, places, key, query) for part in selector.parts)))
    assert isinstance(selector, Select)
    one = key[places[0][id(selector.keys)]] if len(places[0]) > 1 else key
    two = query[places[1][id(selector.queries)]] if len(places[1]) > 1 else query
    return bool(selector.predicate(one, two))


def _different(values: Iterable[Value]) -> tuple[Value, ...]:
    return tuple(dict.fromkeys(values))
