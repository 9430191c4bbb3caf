"""Twenty-six programs: what each computes, on which vocabulary and length, and the program itself.

`reference` says the same in plain Python, written apart from the program, so that a program can be wrong and be found
out. Those that need no later position are causal and run in a network of GPT-2's shape too.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from microtome.core.errors import InputError
from microtome.testbeds.programs.compiler import Compiled, compile_program
from microtome.testbeds.programs.language import (
    EVERYWHERE,
    INDICES,
    TOKENS,
    Aggregate,
    Expression,
    Select,
    Selector,
    Sum,
    Value,
    Width,
    interpret,
)


@dataclass(frozen=True)
class Program:
    """A program with what it is for. reference: the outputs for some tokens, by other means."""

    name: str
    task: str
    vocabulary: tuple[Value, ...]
    length: int
    build: Callable[[], Expression]
    reference: Callable[[Sequence[Any]], list[Value]]
    causal: bool = False

    def compile(self, decoys: Sequence[Expression] = ()) -> Compiled:
        """The network's weights."""
        return compile_program(
            self.expression, self.vocabulary, self.length, causal=self.causal, decoys=decoys
        )

    def interpret(self, tokens: Sequence[Value]) -> list[Value]:
        """What the program says, without a network."""
        return interpret(self.expression, tokens, causal=self.causal)

    @cached_property
    def expression(self) -> Expression:
        """The program itself."""
        return self.build()


LETTERS = ("a", "b", "c")
SAME = Select(TOKENS, TOKENS, lambda key, query: key == query)
EARLIER = Select(INDICES, INDICES, lambda key, query: key < query)
PREVIOUS = Select(INDICES, INDICES, lambda key, query: key == query - 1)


def _length() -> Width:
    return Width(EVERYWHERE, name="length")


def _reverse() -> Expression:
    opposite = _length().zip(INDICES, lambda length, index: length - 1 - index).named("opposite")
    flipped = Select(INDICES, opposite, lambda key, query: key == query)
    # Some opposites are possible by themselves and never occur; there nothing is chosen.
    return Aggregate(flipped, TOKENS, name="reverse")


def _share(of: Callable[[Any], bool], name: str) -> Expression:
    hits = TOKENS.map(of, numerical=True).named(f"is {name}")
    return Aggregate(EVERYWHERE, hits, Fraction(0), name=f"share of {name}")


def _rank(unique: bool) -> Expression:
    smaller: Selector = Select(TOKENS, TOKENS, lambda key, query: key < query)
    if not unique:
        smaller = smaller | (SAME & EARLIER)
    rank = Width(smaller, name="rank")
    return Aggregate(Select(rank, INDICES, lambda key, query: key == query), TOKENS, name="sort")


def _most_frequent() -> Expression:
    count = Width(SAME, name="count")
    keyed = count.zip(TOKENS, lambda n, token: (n, token)).named("count and token")
    better = Select(keyed, keyed, lambda key, query: (-key[0], key[1]) < (-query[0], query[1]))
    place = Width(better, name="how many are better")
    first = Select(place, place, lambda key, query: key == 0)
    return Aggregate(first, TOKENS, name="most frequent")


def _depth(opening: str, closing: str) -> Expression:
    step = TOKENS.map(lambda token: (token == opening) - (token == closing), numerical=True).named("step")
    return Sum(EVERYWHERE, step, name="depth")


def _dyck(kinds: Sequence[str]) -> Expression:
    """Whether what was read so far can still be balanced, and is: 0 open, 1 balanced, -1 never again."""
    depths = [_depth(kind[0], kind[1]) for kind in kinds]
    state: Expression | None = None
    for depth, kind in zip(depths, kinds, strict=True):
        below = depth.map(lambda d: d < 0).named(f"{kind} below zero")
        broken = Width(Select(below, below, lambda key, query: bool(key)), name=f"{kind} times below")
        one = broken.zip(depth, _bracket_state).named(f"state of {kind}")
        state = one if state is None else state.zip(one, _both_states).named(f"state with {kind}")
    assert state is not None
    return state


def _bracket_state(broken: int, depth: Fraction) -> str:
    return "broken" if broken or depth < 0 else "balanced" if depth == 0 else "open"


def _both_states(one: str, two: str) -> str:
    if "broken" in (one, two):
        return "broken"
    return "balanced" if one == two == "balanced" else "open"


def _dyck_reference(kinds: Sequence[str]) -> Callable[[Sequence[Any]], list[Value]]:
    def states(tokens: Sequence[Any]) -> list[Value]:
        found: list[Value] = []
        depth, broken = dict.fromkeys(kinds, 0), False
        for token in tokens:
            for kind in kinds:
                depth[kind] += (token == kind[0]) - (token == kind[1])
                broken |= depth[kind] < 0
            found.append("broken" if broken else "open" if any(depth.values()) else "balanced")
        return found

    return states


def _induction() -> Expression:
    before = Aggregate(PREVIOUS, TOKENS, "-", name="token before")
    after_same = Select(before, TOKENS, lambda key, query: key == query)
    place = Aggregate(
        after_same, INDICES.map(lambda index: index, numerical=True), Fraction(-1), name="mean place"
    )
    latest = Width(after_same & Select(INDICES, INDICES, lambda key, query: key <= query), name="times seen")
    seen = latest.zip(place, lambda n, at: (n, at)).named("times and place")
    once = seen.map(lambda pair: int(pair[1]) if pair[0] == 1 else -1).named("place after the one before")
    return Aggregate(Select(INDICES, once, lambda key, query: key == query), TOKENS, "-", name="induction")


def _induction_reference(tokens: Sequence[Any]) -> list[Value]:
    found: list[Value] = []
    for here, token in enumerate(tokens):
        after = [k for k in range(1, here + 1) if tokens[k - 1] == token]
        found.append(tokens[after[0]] if len(after) == 1 else "-")
    return found


def _indirect_object() -> Expression:
    """Of names of which one is said twice, the other: what the sentence «A and B …, A gave to» ends with."""
    times = Width(SAME, name="times said")
    other = Select(times, TOKENS, lambda key, query: key == 1)
    name = Select(TOKENS, TOKENS, lambda key, query: key != "gave")
    alone = Width(other & name, name="names said once")
    chosen = alone.map(lambda n: n == 1).named("one name said once")
    pick = Select(times, chosen, lambda key, query: bool(query) and key == 1) & name
    return Aggregate(pick, TOKENS, "-", name="indirect object")


def _indirect_object_reference(tokens: Sequence[Any]) -> list[Value]:
    found: list[Value] = []
    for here in range(len(tokens)):
        # How often a name was said is counted where it stands, from what came before.
        once = [k for k in range(here + 1) if tokens[k] != "gave" and tokens[: k + 1].count(tokens[k]) == 1]
        found.append(tokens[once[0]] if len(once) == 1 else "-")
    return found


def _majority() -> Expression:
    ones = Sum(
        EVERYWHERE, TOKENS.map(lambda token: 1 if token else -1, numerical=True).named("vote"), name="votes"
    )
    return ones.map(lambda votes: "tie" if votes == 0 else "yes" if votes > 0 else "no").named("majority")


def _parity() -> Expression:
    ones = Width(Select(TOKENS, TOKENS, lambda key, query: key == 1), name="ones")
    return ones.map(lambda n: n % 2).named("parity")


def _first_of_each() -> Expression:
    before = Width(SAME & EARLIER, name="times before")
    return before.map(lambda n: "new" if n == 0 else "again").named("seen before")


def _pair_balance() -> Expression:
    return Aggregate(
        EVERYWHERE,
        TOKENS.map(lambda token: (token == "(") - (token == ")"), numerical=True).named("step"),
        Fraction(0),
        name="balance",
    )


def _detect() -> Expression:
    before = Aggregate(PREVIOUS, TOKENS, "-", name="token before")
    return before.zip(TOKENS, lambda one, two: (one, two) == ("a", "b")).named("a then b")


def _lookup() -> Expression:
    """Keys and values in turn (`x 1 y 0 …`): for a key, the value that last followed it, if always the same."""
    before = Aggregate(PREVIOUS, TOKENS, "-", name="token before")
    number = Select(TOKENS, TOKENS, lambda key, query: key in (0, 1))
    matches = Select(before, TOKENS, lambda key, query: key == query) & number
    ones = Select(TOKENS, TOKENS, lambda key, query: key == 1)
    some = Width(matches, name="times answered")
    yes = Width(matches & ones, name="times answered 1")
    return some.zip(yes, lambda n, m: "?" if n == 0 or 0 < m < n else int(m == n)).named("lookup")


def _lookup_reference(tokens: Sequence[Any]) -> list[Value]:
    found: list[Value] = []
    for here, token in enumerate(tokens):
        answers = {tokens[k] for k in range(1, here + 1) if tokens[k - 1] == token and tokens[k] in (0, 1)}
        found.append(answers.pop() if len(answers) == 1 else "?")
    return found


def _shift(by: int) -> Expression:
    return Aggregate(
        Select(INDICES, INDICES, lambda key, query: key == query - by), TOKENS, "-", name=f"shift by {by}"
    )


def _each(function: Callable[[Sequence[Any], int], Value]) -> Callable[[Sequence[Any]], list[Value]]:
    return lambda tokens: [function(tokens, here) for here in range(len(tokens))]


def _top(tokens: Sequence[Any]) -> list[Value]:
    counts = Counter(tokens)
    return [min(counts, key=lambda token: (-counts[token], token))] * len(tokens)


_BRACKETS = ("(", ")")

PROGRAMS: tuple[Program, ...] = (
    Program("copy", "Say each token again.", LETTERS, 4, lambda: TOKENS.map(lambda t: t).named("copy"), list),
    Program("reverse", "Say the tokens backwards.", LETTERS, 5, _reverse, lambda t: list(t)[::-1]),
    Program("length", "Count the tokens.", LETTERS, 5, _length, lambda t: [len(t)] * len(t)),
    Program(
        "histogram",
        "Count how often each token occurs.",
        LETTERS,
        5,
        lambda: Width(SAME, name="count"),
        _each(lambda t, i: list(t).count(t[i])),
    ),
    Program(
        "fraction_of_previous",
        "The share of x among the tokens so far.",
        ("x", "y", "z"),
        5,
        lambda: _share(lambda token: token == "x", "x"),
        _each(lambda t, i: Fraction(list(t[: i + 1]).count("x"), i + 1)),
        causal=True,
    ),
    Program("sort", "Sort the tokens.", LETTERS, 4, lambda: _rank(unique=False), lambda t: sorted(t)),
    Program(
        "previous_token",
        "The token before.",
        LETTERS,
        5,
        lambda: _shift(1),
        _each(lambda t, i: t[i - 1] if i else "-"),
        causal=True,
    ),
    Program(
        "shift_by_two",
        "The token two before.",
        LETTERS,
        5,
        lambda: _shift(2),
        _each(lambda t, i: t[i - 2] if i > 1 else "-"),
        causal=True,
    ),
    Program(
        "first_token",
        "The first token.",
        LETTERS,
        5,
        lambda: Aggregate(Select(INDICES, INDICES, lambda key, query: key == 0), TOKENS, name="first"),
        lambda t: [t[0]] * len(t),
        causal=True,
    ),
    Program(
        "last_token",
        "The last token.",
        LETTERS,
        5,
        lambda: Aggregate(
            Select(INDICES, _length(), lambda key, query: key == query - 1), TOKENS, name="last"
        ),
        lambda t: [t[-1]] * len(t),
    ),
    Program(
        "most_frequent",
        "The most frequent token, the first in order of several.",
        LETTERS,
        4,
        _most_frequent,
        _top,
    ),
    Program(
        "dyck_1",
        "Whether brackets are balanced so far.",
        _BRACKETS,
        6,
        lambda: _dyck(["()"]),
        _dyck_reference(["()"]),
        causal=True,
    ),
    Program(
        "shuffle_dyck_2",
        "Whether brackets of two kinds, shuffled, are balanced so far.",
        (*_BRACKETS, "[", "]"),
        4,
        lambda: _dyck(["()", "[]"]),
        _dyck_reference(["()", "[]"]),
        causal=True,
    ),
    Program(
        "shuffle_dyck_3",
        "Whether brackets of three kinds, shuffled, are balanced so far.",
        (*_BRACKETS, *"[]{}"),
        3,
        lambda: _dyck(["()", "[]", "{}"]),
        _dyck_reference(["()", "[]", "{}"]),
        causal=True,
    ),
    Program(
        "pair_balance",
        "Share of opening minus share of closing brackets so far.",
        (*_BRACKETS, "x"),
        5,
        _pair_balance,
        _each(lambda t, i: Fraction(list(t[: i + 1]).count("(") - list(t[: i + 1]).count(")"), i + 1)),
        causal=True,
    ),
    Program(
        "induction",
        "What followed the one earlier occurrence of this token.",
        LETTERS,
        5,
        _induction,
        _induction_reference,
        causal=True,
    ),
    Program(
        "indirect_object",
        "The one name that stands alone so far.",
        ("Ann", "Bob", "gave"),
        4,
        _indirect_object,
        _indirect_object_reference,
        causal=True,
    ),
    Program(
        "majority",
        "Whether more than half are 1 so far.",
        (0, 1),
        6,
        _majority,
        _each(
            lambda t, i: ("tie", "yes", "no")[
                (2 * sum(t[: i + 1]) > i + 1) + 2 * (2 * sum(t[: i + 1]) < i + 1)
            ]
        ),
        causal=True,
    ),
    Program(
        "parity",
        "Whether the number of ones so far is odd.",
        (0, 1),
        6,
        _parity,
        _each(lambda t, i: sum(t[: i + 1]) % 2),
        causal=True,
    ),
    Program(
        "lookup",
        "The value that a key had so far, of keys and values in turn.",
        ("x", "y", 0, 1),
        4,
        _lookup,
        _lookup_reference,
        causal=True,
    ),
    Program(
        "seen_before",
        "Whether the token occurred before.",
        LETTERS,
        5,
        _first_of_each,
        _each(lambda t, i: "again" if t[i] in t[:i] else "new"),
        causal=True,
    ),
    Program(
        "duplicates",
        "Whether any token occurs twice.",
        LETTERS,
        4,
        lambda: (
            Width(
                Select(Width(SAME, name="count"), TOKENS, lambda key, query: key > 1),
                name="tokens said twice",
            )
            .map(lambda n: n > 0)
            .named("any twice")
        ),
        lambda t: [len(set(t)) < len(t)] * len(t),
    ),
    Program(
        "detect_pattern",
        "Whether this token and the one before are a b.",
        LETTERS,
        5,
        _detect,
        _each(lambda t, i: i > 0 and (t[i - 1], t[i]) == ("a", "b")),
        causal=True,
    ),
    Program(
        "count_greater",
        "How many tokens so far are greater.",
        (1, 2, 3),
        5,
        lambda: Width(Select(TOKENS, TOKENS, lambda key, query: key > query), name="greater"),
        _each(lambda t, i: sum(one > t[i] for one in t[: i + 1])),
        causal=True,
    ),
    Program(
        "sum",
        "The sum of the tokens so far.",
        (-1, 0, 2),
        4,
        lambda: Sum(EVERYWHERE, TOKENS.map(lambda t: t, numerical=True).named("number"), name="sum"),
        _each(lambda t, i: sum(t[: i + 1])),
        causal=True,
    ),
    Program(
        "none_alike",
        "How many tokens so far are neither this one nor a.",
        LETTERS,
        5,
        lambda: Width(~(SAME | Select(TOKENS, TOKENS, lambda key, query: key == "a")), name="others"),
        _each(lambda t, i: sum(one not in (t[i], "a") for one in t[: i + 1])),
        causal=True,
    ),
)


def program(name: str) -> Program:
    """A program by name. Raises `InputError` for one that is not here."""
    for one in PROGRAMS:
        if one.name == name:
            return one
    raise InputError(f"no program is called {name!r}; there are {', '.join(one.name for one in PROGRAMS)}")
