"""How does one write down what a transformer could compute? A small language of sequences and selectors, interpreted.

A sequence has a value at every position: the `TOKENS`, the `INDICES`, a function of one sequence (`Map`) or of two
(`SequenceMap`), what is gathered over the positions that a selector chooses (`Aggregate`: the value chosen, or the mean
of numbers; `Sum`), or how many it chooses (`Width`). A selector says for every query position which key positions it
chooses: `Select(keys, queries, predicate)`, combined by `&`, `|` and `~`.

A sequence is categorical (one direction of the stream for each value) or numerical (one direction for the number).
After Weiss, Goldberg, Yahav (2021), Thinking Like Transformers; Lindner et al. (2023), Tracr. Unlike Tracr's, selectors
combine, numbers may be summed, and what is chosen of nothing must be said (`default`).
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from microtome.core.errors import InputError

Value = Hashable


@dataclass(frozen=True, eq=False)
class Expression:
    """A value at every position. `named` says what it is called in the answer key."""

    name: str = field(default="", kw_only=True)

    def named(self, name: str) -> "Expression":
        """This sequence, called `name`."""
        object.__setattr__(self, "name", name)
        return self

    def map(self, function: Callable[[Any], Value], *, numerical: bool = False) -> "Map":
        """A function of each value."""
        return Map(function, self, numerical)

    def zip(
        self, other: "Expression", function: Callable[[Any, Any], Value], *, numerical: bool = False
    ) -> "SequenceMap":
        """A function of the values of two sequences at the same position."""
        return SequenceMap(function, self, other, numerical)


@dataclass(frozen=True, eq=False)
class Tokens(Expression):
    """The input."""


@dataclass(frozen=True, eq=False)
class Indices(Expression):
    """The positions, from 0."""


@dataclass(frozen=True, eq=False)
class Map(Expression):
    """A function of each value. numerical: its values are numbers along one direction, not one direction each."""

    function: Callable[[Any], Value]
    of: Expression
    numerical: bool = False


@dataclass(frozen=True, eq=False)
class SequenceMap(Expression):
    """A function of the values of two sequences at the same position."""

    function: Callable[[Any, Any], Value]
    left: Expression
    right: Expression
    numerical: bool = False


@dataclass(frozen=True, eq=False)
class Selector:
    """For every query position, which key positions are chosen."""

    def __and__(self, other: "Selector") -> "Combined":
        return Combined(lambda one, two: one and two, (self, other))

    def __or__(self, other: "Selector") -> "Combined":
        return Combined(lambda one, two: one or two, (self, other))

    def __invert__(self) -> "Combined":
        return Combined(lambda one: not one, (self,))


@dataclass(frozen=True, eq=False)
class Select(Selector):
    """The key positions whose value stands in a relation to the query's: `predicate(key, query)`."""

    keys: Expression
    queries: Expression
    predicate: Callable[[Any, Any], bool]


@dataclass(frozen=True, eq=False)
class Combined(Selector):
    """A function of whether the parts choose."""

    function: Callable[..., bool]
    parts: tuple[Selector, ...]


@dataclass(frozen=True, eq=False)
class Aggregate(Expression):
    """The value at the chosen positions; of numbers, their mean. `default` where nothing is chosen.

    Without a default, the program promises that something is always chosen.
    """

    selector: Selector
    of: Expression
    default: Value = None


@dataclass(frozen=True, eq=False)
class Width(Expression):
    """How many positions are chosen."""

    selector: Selector
    numerical: bool = False


@dataclass(frozen=True, eq=False)
class Sum(Expression):
    """The sum of numbers at the chosen positions; 0 of nothing."""

    selector: Selector
    of: Expression


TOKENS, INDICES = Tokens(name="tokens"), Indices(name="indices")
EVERYWHERE = Select(TOKENS, TOKENS, lambda key, query: True)


def is_numerical(expression: Expression) -> bool:
    """Whether its values are numbers along one direction."""
    match expression:
        case Map() | SequenceMap() | Width():
            return expression.numerical
        case Aggregate():
            return is_numerical(expression.of)
        case Sum():
            return True
    return False


def interpret(
    expression: Expression,
    tokens: Sequence[Value],
    *,
    causal: bool,
    known: Mapping[Expression, list[Value]] | None = None,
) -> list[Value]:
    """The value at every position for these tokens; `causal`: selectors see no later position.

    known: sequences whose values are given instead of computed.

    Raises `InputError` where a selector chooses nothing though no default is given, or several different values of a
    categorical sequence.
    """
    return _Interpreter(tokens, causal, known or {}).values(expression)


class _Interpreter:
    def __init__(
        self, tokens: Sequence[Value], causal: bool, known: Mapping[Expression, list[Value]]
    ) -> None:
        self._tokens, self._causal = tokens, causal
        self._known = {id(one): values for one, values in known.items()}

    def values(self, expression: Expression) -> list[Value]:
        key = id(expression)
        if key not in self._known:
            self._known[key] = self._computed(expression)
        return self._known[key]

    def _computed(self, expression: Expression) -> list[Value]:
        match expression:
            case Tokens():
                return list(self._tokens)
            case Indices():
                return list(range(len(self._tokens)))
            case Map():
                return [expression.function(value) for value in self.values(expression.of)]
            case SequenceMap():
                both = zip(self.values(expression.left), self.values(expression.right), strict=True)
                return [expression.function(one, two) for one, two in both]
            case Width():
                return [sum(row) for row in self._chosen(expression.selector)]
            case Sum():
                values = self.values(expression.of)
                return [
                    sum((number(values[k]) for k, chosen in enumerate(row) if chosen), Fraction(0))
                    for row in self._chosen(expression.selector)
                ]
            case Aggregate():
                return [self._gathered(expression, row) for row in self._chosen(expression.selector)]
        raise InputError(f"{type(expression).__name__} is no part of the language")

    def _gathered(self, expression: Aggregate, row: list[bool]) -> Value:
        values = [value for value, chosen in zip(self.values(expression.of), row, strict=True) if chosen]
        called = expression.name or "an aggregate"
        if not values:
            if expression.default is None:
                raise InputError(f"{called} chooses nothing in {list(self._tokens)!r}; give it a default")
            return expression.default
        if is_numerical(expression):
            return sum(map(number, values), Fraction(0)) / len(values)
        if len(set(values)) > 1:
            raise InputError(
                f"{called} chooses {sorted(map(str, set(values)))} at once in {list(self._tokens)!r}; a categorical "
                "sequence has no mean: choose one position, or aggregate numbers"
            )
        return values[0]

    def _chosen(self, selector: Selector) -> list[list[bool]]:
        count = range(len(self._tokens))
        holds = self._holds(selector)
        return [[holds(k, q) and (k <= q or not self._causal) for k in count] for q in count]

    def _holds(self, selector: Selector) -> Callable[[int, int], bool]:
        match selector:
            case Select():
                keys, queries = self.values(selector.keys), self.values(selector.queries)
                return lambda k, q: bool(selector.predicate(keys[k], queries[q]))
            case Combined():
                parts = [self._holds(part) for part in selector.parts]
                return lambda k, q: bool(selector.function(*(part(k, q) for part in parts)))
        raise InputError(f"{type(selector).__name__} is no selector of the language")


def number(value: Value) -> Fraction:
    """A value as an exact number. Raises `InputError` for what is none."""
    if isinstance(value, (bool, int, Fraction)):
        return Fraction(value)
    raise InputError(
        f"{value!r} is no exact number; numerical sequences hold integers, fractions or truth values"
    )
