"""Twenty-six programs: what each computes, on which vocabulary and length, and the program itself.

`reference` says the same in plain Python, written apart from the program, so that a program can be wrong and be found
out. Those that need no later position are causal and run in a network of GPT-2's shape too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from microtome.core.errors import InputError
from microtome.testbeds.programs import recipes
from microtome.testbeds.programs.compiler import Compiled, compile_program
from microtome.testbeds.programs.language import (
    EVERYWHERE,
    INDICES,
    TOKENS,
    Aggregate,
    Expression,
    Select,
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


_BRACKETS = ("(", ")")

PROGRAMS: tuple[Program, ...] = (
    Program(
        "copy",
        "Say each token again.",
        recipes.LETTERS,
        4,
        lambda: TOKENS.map(lambda t: t).named("copy"),
        list,
    ),
    Program(
        "reverse", "Say the tokens backwards.", recipes.LETTERS, 5, recipes.reverse, lambda t: list(t)[::-1]
    ),
    Program("length", "Count the tokens.", recipes.LETTERS, 5, recipes.length, lambda t: [len(t)] * len(t)),
    Program(
        "histogram",
        "Count how often each token occurs.",
        recipes.LETTERS,
        5,
        lambda: Width(recipes.SAME, name="count"),
        recipes.each(lambda t, i: list(t).count(t[i])),
    ),
    Program(
        "fraction_of_previous",
        "The share of x among the tokens so far.",
        ("x", "y", "z"),
        5,
        lambda: recipes.share(lambda token: token == "x", "x"),
        recipes.each(lambda t, i: Fraction(list(t[: i + 1]).count("x"), i + 1)),
        causal=True,
    ),
    Program(
        "sort",
        "Sort the tokens.",
        recipes.LETTERS,
        4,
        lambda: recipes.rank(unique=False),
        lambda t: sorted(t),
    ),
    Program(
        "previous_token",
        "The token before.",
        recipes.LETTERS,
        5,
        lambda: recipes.shift(1),
        recipes.each(lambda t, i: t[i - 1] if i else "-"),
        causal=True,
    ),
    Program(
        "shift_by_two",
        "The token two before.",
        recipes.LETTERS,
        5,
        lambda: recipes.shift(2),
        recipes.each(lambda t, i: t[i - 2] if i > 1 else "-"),
        causal=True,
    ),
    Program(
        "first_token",
        "The first token.",
        recipes.LETTERS,
        5,
        lambda: Aggregate(Select(INDICES, INDICES, lambda key, query: key == 0), TOKENS, name="first"),
        lambda t: [t[0]] * len(t),
        causal=True,
    ),
    Program(
        "last_token",
        "The last token.",
        recipes.LETTERS,
        5,
        lambda: Aggregate(
            Select(INDICES, recipes.length(), lambda key, query: key == query - 1), TOKENS, name="last"
        ),
        lambda t: [t[-1]] * len(t),
    ),
    Program(
        "most_frequent",
        "The most frequent token, the first in order of several.",
        recipes.LETTERS,
        4,
        recipes.most_frequent,
        recipes.top,
    ),
    Program(
        "dyck_1",
        "Whether brackets are balanced so far.",
        _BRACKETS,
        6,
        lambda: recipes.dyck(["()"]),
        recipes.dyck_reference(["()"]),
        causal=True,
    ),
    Program(
        "shuffle_dyck_2",
        "Whether brackets of two kinds, shuffled, are balanced so far.",
        (*_BRACKETS, "[", "]"),
        4,
        lambda: recipes.dyck(["()", "[]"]),
        recipes.dyck_reference(["()", "[]"]),
        causal=True,
    ),
    Program(
        "shuffle_dyck_3",
        "Whether brackets of three kinds, shuffled, are balanced so far.",
        (*_BRACKETS, *"[]{}"),
        3,
        lambda: recipes.dyck(["()", "[]", "{}"]),
        recipes.dyck_reference(["()", "[]", "{}"]),
        causal=True,
    ),
    Program(
        "pair_balance",
        "Share of opening minus share of closing brackets so far.",
        (*_BRACKETS, "x"),
        5,
        recipes.pair_balance,
        recipes.each(lambda t, i: Fraction(list(t[: i + 1]).count("(") - list(t[: i + 1]).count(")"), i + 1)),
        causal=True,
    ),
    Program(
        "induction",
        "What followed the one earlier occurrence of this token.",
        recipes.LETTERS,
        5,
        recipes.induction,
        recipes.induction_reference,
        causal=True,
    ),
    Program(
        "indirect_object",
        "The one name that stands alone so far.",
        ("Ann", "Bob", "gave"),
        4,
        recipes.indirect_object,
        recipes.indirect_object_reference,
        causal=True,
    ),
    Program(
        "majority",
        "Whether more than half are 1 so far.",
        (0, 1),
        6,
        recipes.majority,
        recipes.each(
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
        recipes.parity,
        recipes.each(lambda t, i: sum(t[: i + 1]) % 2),
        causal=True,
    ),
    Program(
        "lookup",
        "The value that a key had so far, of keys and values in turn.",
        ("x", "y", 0, 1),
        4,
        recipes.lookup,
        recipes.lookup_reference,
        causal=True,
    ),
    Program(
        "seen_before",
        "Whether the token occurred before.",
        recipes.LETTERS,
        5,
        recipes.first_of_each,
        recipes.each(lambda t, i: "again" if t[i] in t[:i] else "new"),
        causal=True,
    ),
    Program(
        "duplicates",
        "Whether any token occurs twice.",
        recipes.LETTERS,
        4,
        lambda: (
            Width(
                Select(Width(recipes.SAME, name="count"), TOKENS, lambda key, query: key > 1),
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
        recipes.LETTERS,
        5,
        recipes.detect,
        recipes.each(lambda t, i: i > 0 and (t[i - 1], t[i]) == ("a", "b")),
        causal=True,
    ),
    Program(
        "count_greater",
        "How many tokens so far are greater.",
        (1, 2, 3),
        5,
        lambda: Width(Select(TOKENS, TOKENS, lambda key, query: key > query), name="greater"),
        recipes.each(lambda t, i: sum(one > t[i] for one in t[: i + 1])),
        causal=True,
    ),
    Program(
        "sum",
        "The sum of the tokens so far.",
        (-1, 0, 2),
        4,
        lambda: Sum(EVERYWHERE, TOKENS.map(lambda t: t, numerical=True).named("number"), name="sum"),
        recipes.each(lambda t, i: sum(t[: i + 1])),
        causal=True,
    ),
    Program(
        "none_alike",
        "How many tokens so far are neither this one nor a.",
        recipes.LETTERS,
        5,
        lambda: Width(~(recipes.SAME | Select(TOKENS, TOKENS, lambda key, query: key == "a")), name="others"),
        recipes.each(lambda t, i: sum(one not in (t[i], "a") for one in t[: i + 1])),
        causal=True,
    ),
)


def program(name: str) -> Program:
    """A program by name. Raises `InputError` for one that is not here."""
    for one in PROGRAMS:
        if one.name == name:
            return one
    raise InputError(f"no program is called {name!r}; there are {', '.join(one.name for one in PROGRAMS)}")
