"""How does a program become weights? Every sequence gets directions of the stream, a layer, and a head or neurons.

The stream is the direct sum of: a constant, the tokens (with BOS, which opens every input), the positions, and for each
sequence one direction a value (categorical) or one for the number (numerical).

* **Select** → queries and keys of a head: a query's value asks for all keys it stands in relation to. BOS is looked at
  instead where nothing is chosen: its score lies half-way.
* **Aggregate** → the head's values and output; BOS's value is the default.
* **Width** → a head whose BOS scores as high as what is chosen, so that it gets 1 / (1 + width); neurons tell the
  widths apart.
* **Map** of a categorical sequence → one neuron a value; of a numerical one → two neurons a step between its possible
  numbers, together 0 below the step and 1 above. **SequenceMap** → one neuron a pair of values, on where both are.

Each is placed in the first layer where what it reads is there. At BOS itself every sequence has a value known now,
which readers take out again; neurons are switched off there.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core.errors import InputError
from microtome.testbeds.programs.language import (
    INDICES,
    TOKENS,
    Aggregate,
    Expression,
    Map,
    Select,
    Selector,
    SequenceMap,
    Sum,
    Value,
    Width,
    is_numerical,
    number,
)
from microtome.testbeds.programs.values import (
    Domain,
    Impossible,
    Possible,
    applied,
    as_product,
    as_select,
    called,
    categorical,
)

SHARP = 100.0
"""The score of what is chosen; BOS has half of it."""


@dataclass(frozen=True, eq=False)
class Place:
    """Where a sequence stands. stage: after how many sub-layers it is there. at_bos: its value there, by column.

    reads: what it is computed from, and through what (`q`, `k`, `v`, `mlp`).
    """

    name: str
    columns: range
    values: tuple[Value, ...]
    numerical: bool
    stage: int
    writer: str
    at_bos: Mapping[int, float] = field(default_factory=dict)
    reads: tuple[tuple["Place", str], ...] = ()


@dataclass(frozen=True, eq=False)
class Head:
    """Weights by column of the stream: queries (with a bias), keys, values, and where dimensions are written."""

    query: list[tuple[int, int, float]]
    query_bias: list[tuple[int, float]]
    key: list[tuple[int, int, float]]
    value: list[tuple[int, int, float]]
    output: list[tuple[int, int, float]]

    @property
    def width(self) -> int:
        """How many dimensions it needs."""
        return 1 + max(dim for _, dim, _ in (*self.query, *self.key, *self.value))


@dataclass(frozen=True, eq=False)
class Neuron:
    """relu(reads · stream + bias), written along `writes`."""

    reads: dict[int, float]
    bias: float
    writes: dict[int, float]


class Assembly:
    """A program laid out: `heads` and `neurons` by layer, and the places of its sequences.

    `microtome.testbeds.programs.compiler` turns them into networks. Raises `InputError` for what cannot compile.
    """

    def __init__(self, output: Expression, domain: Domain, decoys: tuple[Expression, ...] = ()) -> None:
        self.domain = domain
        self.heads: dict[int, list[Head]] = {}
        self.neurons: dict[int, list[Neuron]] = {}
        self._possible = Possible(domain)
        self._places: dict[int, Place] = {}
        self._told_apart: dict[int, Expression] = {}
        self._selects: dict[int, Select] = {}
        self._kept: list[object] = []  # so that no identity is given to another
        self.one, self.bos = 0, 1
        self.width = 2
        self.tokens = self._input("tokens", domain.vocabulary, "embed")
        self.positions = self._input("indices", tuple(range(domain.length)), "pos_embed")
        self._places[id(TOKENS)], self._places[id(INDICES)] = self.tokens, self.positions
        self.output = self.place(output)
        self.decoys = tuple(self.place(decoy) for decoy in decoys)
        self.layers = max(1, math.ceil(max(place.stage for place in self.all) / 2))

    @cached_property
    def all(self) -> tuple[Place, ...]:
        """Every place, in order of its columns."""
        return tuple(sorted(set(self._places.values()), key=lambda place: place.columns.start))

    @cached_property
    def needed(self) -> tuple[Place, ...]:
        """Those that the output is computed from, itself included."""
        found: dict[str, Place] = {}

        def visit(place: Place) -> None:
            if place.name not in found:
                found[place.name] = place
                for read, _ in place.reads:
                    visit(read)

        visit(self.output)
        return tuple(found.values())

    def place(self, expression: Expression) -> Place:
        """Where a sequence stands, putting it there if need be. Raises `InputError` for what cannot compile."""
        if id(expression) not in self._places:
            self._kept.append(expression)
            self._places[id(expression)] = self._placed(expression)
        return self._places[id(expression)]

    def _placed(self, expression: Expression) -> Place:
        match expression:
            case Sum():
                return self.place(as_product(expression, self._possible))
            case Map():
                source = self.place(expression.of)
                return (
                    self._steps(expression, source) if source.numerical else self._lookup(expression, source)
                )
            case SequenceMap():
                return self._table(expression)
            case Aggregate():
                return self._gathered(expression)
            case Width():
                return self._counted(expression)
        raise InputError(
            f"{type(expression).__name__} cannot be compiled; use the sequences of the language, with its own "
            "TOKENS and INDICES"
        )

    def _input(self, name: str, values: tuple[Value, ...], writer: str) -> Place:
        return Place(name, self._columns(len(values)), values, False, 0, writer)

    def _columns(self, count: int) -> range:
        found = range(self.width, self.width + count)
        self.width += count
        return found

    def _new(
        self,
        expression: Expression,
        stage: int,
        writer: str,
        reads: tuple[tuple[Place, str], ...],
        values: tuple[Value, ...] | None = None,
    ) -> Place:
        numbers = is_numerical(expression)
        values = self._possible.of(expression) if values is None else values
        columns = self._columns(1 if numbers else len(values))
        named = self._unique(expression.name or type(expression).__name__.lower())
        return Place(named, columns, values, numbers, stage, writer, {}, reads)

    def _unique(self, wanted: str) -> str:
        taken = {place.name for place in self._places.values()}
        found, number_ = wanted, 2
        while found in taken:
            found, number_ = f"{wanted} {number_}", number_ + 1
        return found

    def _lookup(self, expression: Map, source: Place) -> Place:
        layer = source.stage // 2
        made = self._new(expression, 2 * layer + 2, f"mlp_out.{layer}", ((source, "mlp"),))
        for column, value in zip(source.columns, source.values, strict=True):
            found = applied(expression, expression.function, value)
            self._neuron(layer, {column: 1.0}, 0.0, self._written(made, found))
        return made

    def _steps(self, expression: Map, source: Place) -> Place:
        layer = source.stage // 2
        made = self._new(expression, 2 * layer + 2, f"mlp_out.{layer}", ((source, "mlp"),))
        numbers = [number(value) for value in source.values]
        targets = [
            self._written(made, applied(expression, expression.function, value)) for value in source.values
        ]
        self._step_neurons(layer, source.columns.start, [float(one) for one in numbers], targets)
        return made

    def _step_neurons(
        self, layer: int, column: int, numbers: list[float], targets: list[dict[int, float]]
    ) -> None:
        """A function of a number by its steps; the numbers ascend."""
        self._neuron(layer, {}, 1.0, targets[0])
        for i in range(1, len(numbers)):
            low, high = numbers[i - 1], numbers[i]
            slope, middle = 4 / (high - low), (high + low) / 2
            change = {
                key: targets[i].get(key, 0.0) - targets[i - 1].get(key, 0.0)
                for key in {*targets[i], *targets[i - 1]}
            }
            for shift, sign in ((0.5, 1.0), (-0.5, -1.0)):
                writes = {key: sign * value for key, value in change.items() if value}
                self._neuron(layer, {column: slope}, shift - slope * middle, writes)

    def _table(self, expression: SequenceMap) -> Place:
        left, right = (self.place(self._apart(side)) for side in (expression.left, expression.right))
        layer = max(left.stage, right.stage) // 2
        made = self._new(expression, 2 * layer + 2, f"mlp_out.{layer}", ((left, "mlp"), (right, "mlp")))
        for one, first in zip(left.columns, left.values, strict=True):
            for two, second in zip(right.columns, right.values, strict=True):
                found = applied(expression, expression.function, first, second)
                if isinstance(found, Impossible):
                    continue
                reads = {one: 2.0} if one == two else {one: 1.0, two: 1.0}
                if left is right and one != two:
                    continue
                self._neuron(layer, reads, -1.0, self._written(made, found))
        return made

    def _apart(self, expression: Expression) -> Expression:
        """The sequence with one direction for each value; the same one each time."""
        if not is_numerical(expression):
            return expression
        if id(expression) not in self._told_apart:
            self._told_apart[id(expression)] = categorical(expression)
            self._kept.append(expression)
        return self._told_apart[id(expression)]

    def _selected(self, selector: Selector) -> tuple[Place, Place, list[tuple[int, int]]]:
        """Keys, queries, and the (key column, dimension of the query's value) pairs that stand in relation."""
        if id(selector) not in self._selects:
            self._selects[id(selector)] = as_select(selector)
            self._kept.append(selector)
        select = self._selects[id(selector)]
        keys, queries = self.place(self._apart(select.keys)), self.place(self._apart(select.queries))
        related = []
        for column, key in zip(keys.columns, keys.values, strict=True):
            for dim, query in enumerate(queries.values):
                try:
                    holds = bool(select.predicate(key, query))
                except Exception as error:  # a program's own predicate may fail in any way
                    raise InputError(
                        f"the predicate of a selector fails for {key!r} and {query!r} ({error}); it must be "
                        "defined for all possible values"
                    ) from error
                if holds:
                    related.append((column, dim))
        return keys, queries, related

    def _head(self, layer: int, selector: Selector, bos_score: float) -> tuple[Place, Place, Head]:
        """A head that looks where the selector chooses; what it moves is filled in by the caller."""
        keys, queries, related = self._selected(selector)
        constant = len(queries.values)
        query = [(column, dim, 1.0) for dim, column in enumerate(queries.columns)]
        key = [(column, dim, SHARP) for column, dim in related]
        # At BOS the query asks for nothing and the key is BOS alone, whatever else is known to stand there.
        query += [(self.bos, dim, -weight * queries.at_bos.get(column, 0.0)) for column, dim, weight in query]
        key += [(self.bos, dim, -weight * keys.at_bos.get(column, 0.0)) for column, dim, weight in key]
        key.append((self.bos, constant, bos_score))
        head = Head(query, [(constant, 1.0)], key, [], [])
        self.heads.setdefault(layer, []).append(head)
        return keys, queries, head

    def _ready(self, selector: Selector, *others: Place) -> int:
        keys, queries, _ = self._selected(selector)
        return math.ceil(max(place.stage for place in (keys, queries, *others)) / 2)

    def _gathered(self, expression: Aggregate) -> Place:
        source = self.place(expression.of)
        layer = self._ready(expression.selector, source)
        keys, queries, head = self._head(layer, expression.selector, SHARP / 2)
        writer = f"z.{layer}.h{len(self.heads[layer]) - 1}"
        reads = ((queries, "q"), (keys, "k"), (source, "v"))
        made = self._new(expression, 2 * layer + 1, writer, reads)
        for dim, column in enumerate(source.columns):
            head.value.append((column, dim, 1.0))
            head.value.append((self.bos, dim, -source.at_bos.get(column, 0.0)))
            if made.numerical:
                head.output.append((made.columns.start, dim, 1.0))
            else:
                head.output.append((made.columns[made.values.index(source.values[dim])], dim, 1.0))
        if expression.default is None:
            return made
        spare = len(source.columns)
        head.value.append((self.bos, spare, 1.0))
        default = self._written(made, expression.default)
        head.output.extend((column, spare, value) for column, value in default.items())
        return self._with_bos(made, default)

    def _with_bos(self, place: Place, at_bos: dict[int, float]) -> Place:
        return Place(
            place.name,
            place.columns,
            place.values,
            place.numerical,
            place.stage,
            place.writer,
            at_bos,
            place.reads,
        )

    def _counted(self, expression: Width) -> Place:
        layer = self._ready(expression.selector)
        keys, queries, head = self._head(layer, expression.selector, SHARP)
        share = self._columns(1)
        head.value.append((self.bos, 0, 1.0))
        head.output.append((share.start, 0, 1.0))
        counts = range(self.domain.length, -1, -1)
        between = Place(
            self._unique(f"{called(expression)}: 1 / (1 + width)"),
            share,
            tuple(number(1) / (1 + n) for n in counts),
            True,
            2 * layer + 1,
            f"z.{layer}.h{len(self.heads[layer]) - 1}",
            {share.start: 1.0},
            ((queries, "q"), (keys, "k")),
        )
        self._places[-share.start] = between
        made = self._new(expression, 2 * layer + 2, f"mlp_out.{layer}", ((between, "mlp"),))
        targets = [self._written(made, n) for n in counts]
        self._step_neurons(layer, share.start, [1 / (1 + n) for n in counts], targets)
        return made

    def _written(self, place: Place, value: Value) -> dict[int, float]:
        """A value of a sequence as weights of its columns."""
        if place.numerical:
            return {place.columns.start: float(number(value))} if number(value) else {}
        return {place.columns[place.values.index(value)]: 1.0}

    def _neuron(self, layer: int, reads: dict[int, float], bias: float, writes: dict[int, float]) -> None:
        """A neuron that is off at BOS, where what it reads is at most 1 in size."""
        if not writes:
            return
        off = abs(bias) + sum(map(abs, reads.values())) * self._largest(reads) + 1
        self.neurons.setdefault(layer, []).append(Neuron(reads | {self.bos: -off}, bias, writes))

    def _largest(self, reads: dict[int, float]) -> float:
        """Greatest size of what a neuron reads."""
        sizes = [1.0]
        for place in self._places.values():
            if place.numerical and place.columns.start in reads:
                sizes += [abs(float(number(value))) for value in place.values]
        return max(sizes)

    def readout(self) -> tuple[tuple[Value, ...], Float[Tensor, "label d_model"]]:
        """What the output can be, and the weights whose largest product with the stream says which.

        A number is decoded to the nearest possible one: `2 v x - v²` is largest at the `v` nearest to `x`.
        """
        values = self.output.values
        weight = torch.zeros(len(values), self.width)
        if not self.output.numerical:
            weight[torch.arange(len(values)), torch.tensor(self.output.columns)] = 10.0
            return values, weight
        numbers = torch.tensor([float(number(value)) for value in values], dtype=torch.float64)
        gap = float(numbers.diff().min()) if len(numbers) > 1 else 1.0
        weight[:, self.output.columns.start] = (10 / gap**2 * 2 * numbers).float()
        weight[:, self.one] = (-10 / gap**2 * numbers**2).float()
        return values, weight
