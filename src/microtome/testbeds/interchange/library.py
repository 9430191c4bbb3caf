"""Nine tasks: what each asks, the causal model that answers it, and the heads and MLPs where its variables stand.

The answer is one of the words, at the last place or at every place. A head that reads only values looks at fixed
places, or at all of them alike; one that reads queries and keys looks where the tokens say.
"""

from collections.abc import Callable
from fractions import Fraction

import torch
from jaxtyping import Bool
from torch import Tensor

from microtome.core.errors import InputError
from microtome.data.causal_model import TOKENS, UNASKED, CausalModel, Variable
from microtome.testbeds.interchange.alignment import Place
from microtome.testbeds.interchange.task import Rows, Task


def task(name: str) -> Task:
    """A task of the library. Raises `InputError` for an unknown name."""
    for one in TASKS:
        if one.name == name:
            return one
    raise InputError(
        f"there is no interchange task {name!r}; there are {', '.join(one.name for one in TASKS)}"
    )


def _said_last(shift: int) -> Callable[[Rows], Rows]:
    """The answer at the last place: the value's own word, which stands `shift` further on."""

    def say(value: Rows) -> Rows:
        answer = torch.full_like(value, UNASKED)
        answer[:, -1] = value[:, -1] + shift
        return answer

    return say


def _said_after_the_first(shift: int) -> Callable[[Rows], Rows]:
    """The answer at every place but the first, which holds a sign: the value's own word."""
    return lambda value: torch.where(torch.arange(value.shape[1]) > 0, value + shift, UNASKED)


def _answer(parent: str, shift: int = 0) -> Variable:
    return Variable("answer", (parent,), _said_last(shift))


def _at(place: int) -> Callable[[Rows], Rows]:
    """What stands at one place, known at every place."""
    return lambda tokens: tokens[:, place : place + 1].expand_as(tokens).clone()


def _same(tokens: Rows) -> Bool[Tensor, "row query key"]:
    return tokens[:, :, None] == tokens[:, None, :]


first_is_last = Task(
    name="first_is_last",
    task="Whether the last letter is the first one again.",
    words=(*"abcdefgh", "no", "yes"),
    alphabets=(tuple(range(8)),) * 6,
    model=CausalModel(
        (
            Variable("first", (TOKENS,), _at(0)),
            Variable("same", ("first", TOKENS), lambda first, tokens: (first == tokens).long()),
            _answer("same", 8),
        )
    ),
    places={"first": Place(("z.0.h3",), {TOKENS: "v"}), "same": Place(("mlp_out.1",))},
)

modular_sum = Task(
    name="modular_sum",
    task="The sum modulo 7 of the second and the fourth of five digits.",
    words=tuple("0123456"),
    alphabets=(tuple(range(7)),) * 5,
    model=CausalModel(
        (
            Variable("left", (TOKENS,), _at(1)),
            Variable("right", (TOKENS,), _at(3)),
            Variable("sum", ("left", "right"), lambda left, right: (left + right) % 7),
            _answer("sum"),
        )
    ),
    places={
        "left": Place(("z.0.h1",), {TOKENS: "v"}),
        "right": Place(("z.0.h2",), {TOKENS: "v"}),
        "sum": Place(("mlp_out.1",)),
    },
)

majority = Task(
    name="majority",
    task="Whether there are more of x, more of y, or as many of both.",
    words=("x", "y", "-", "more x", "more y", "equal"),
    alphabets=((0, 1, 2),) * 7,
    model=CausalModel(
        (
            Variable("x_count", (TOKENS,), lambda tokens: (tokens == 0).cumsum(1)),
            Variable("y_count", (TOKENS,), lambda tokens: (tokens == 1).cumsum(1)),
            Variable(
                "majority",
                ("x_count", "y_count"),
                lambda x, y: torch.where(x > y, 0, torch.where(x < y, 1, 2)),
            ),
            _answer("majority", 3),
        )
    ),
    places={
        "x_count": Place(("z.0.h0",), {TOKENS: "v"}),
        "y_count": Place(("z.1.h3",), {TOKENS: "v"}),
        "majority": Place(("mlp_out.1",)),
    },
)

_LETTERS = 7
_SHARES = sorted({Fraction(part, whole) for whole in range(1, _LETTERS + 1) for part in range(whole + 1)})


def _share(tokens: Rows) -> Rows:
    """Which of the fractions the share of x among the tokens so far is."""
    table = torch.tensor(
        [
            [_SHARES.index(Fraction(min(part, whole), whole)) for part in range(_LETTERS + 1)]
            for whole in range(1, _LETTERS + 1)
        ]
    )
    return table[torch.arange(tokens.shape[1]), (tokens == 0).cumsum(1)]


fraction_of_previous = Task(
    name="fraction_of_previous",
    task="The share of x among the letters so far, at each place.",
    words=("x", "y", "z", *map(str, _SHARES)),
    alphabets=((0, 1, 2),) * _LETTERS,
    model=CausalModel(
        (
            Variable("share", (TOKENS,), _share),
            Variable("fraction", ("share",), torch.clone),
            Variable("answer", ("fraction",), lambda fraction: fraction + 3),
        )
    ),
    places={"share": Place(("z.0.h1",), {TOKENS: "v"}), "fraction": Place(("mlp_out.1",))},
)


def _three_at_most(rows: Rows) -> Bool[Tensor, " row"]:
    """Of four and more there are too few rows to learn it from."""
    return (_same(rows).sum(-1) <= 3).all(-1)


histogram = Task(
    name="histogram",
    task="How often each letter of the row occurs, at its place; three times at most.",
    words=(*"abcd", "^", *"123"),
    alphabets=((4,), *((0, 1, 2, 3),) * 6),
    model=CausalModel(
        (
            Variable("matches", (TOKENS,), lambda tokens: _same(tokens).sum(-1)),
            Variable("count", ("matches",), torch.clone),
            Variable("answer", ("count",), _said_after_the_first(4)),
        )
    ),
    places={"matches": Place(("z.0.h1",), {TOKENS: "qk"}), "count": Place(("mlp_out.0",))},
    valid=_three_at_most,
    sizes={"num_hidden_layers": 1, "causal": False},
)


def _two_names(rows: Rows) -> Bool[Tensor, " row"]:
    one, two, three = rows[:, 0], rows[:, 2], rows[:, 4]
    return (one != two) & ((three == one) | (three == two))


indirect_object = Task(
    name="indirect_object",
    task="Of two names the one that is not said again.",
    words=(*"ABCDEF", *"uvw"),
    alphabets=(tuple(range(6)), (6, 7, 8), tuple(range(6)), (6, 7, 8), tuple(range(6))),
    model=CausalModel(
        (
            Variable(
                "second_again",
                (TOKENS,),
                lambda tokens: (tokens == tokens[:, 2:3]).long() * (tokens == tokens),
            ),
            Variable(
                "other",
                ("second_again", TOKENS),
                lambda again, tokens: torch.where(again == 1, tokens[:, :1], tokens[:, 2:3]),
            ),
            _answer("other"),
        )
    ),
    places={
        "second_again": Place(("z.0.h0",), {TOKENS: "qk"}),
        "other": Place(("z.1.h2",), {"second_again": "q", TOKENS: "v"}),
    },
    valid=_two_names,
)


def _every_key_once(rows: Rows) -> Bool[Tensor, " row"]:
    return (rows[:, 0:8:2].sort(-1).values == torch.arange(4)).all(-1)


def _value_of(query: Rows, before: Rows, tokens: Rows) -> Rows:
    """The value that stands after the key that is asked for at the last place."""
    place = 1 + 2 * (before[:, 1:8:2] == query[:, -1:]).int().argmax(-1, keepdim=True)
    return tokens.gather(1, place).expand_as(tokens).clone()


look_up = Task(
    name="look_up",
    task="Four keys, each with its value, and a key again: its value.",
    words=(*"abcd", *"012345"),
    alphabets=(*(tuple(range(4)), tuple(range(4, 10))) * 4, tuple(range(4))),
    model=CausalModel(
        (
            Variable("key_before", (TOKENS,), lambda tokens: tokens.roll(1, 1)),
            Variable(
                "found", ("key_before", TOKENS), lambda before, tokens: _value_of(tokens, before, tokens)
            ),
            _answer("found"),
        )
    ),
    places={
        "key_before": Place(("z.0.h1",), {TOKENS: "v"}),
        "found": Place(("z.1.h3",), {"key_before": "k", TOKENS: "qv"}),
    },
    valid=_every_key_once,
)


two_hops = Task(
    name="two_hops",
    task="Four letters, each with the letter it leads to, and a letter again: where it leads in two steps.",
    words=tuple("abcd"),
    alphabets=(tuple(range(4)),) * 9,
    model=CausalModel(
        (
            Variable("letter_before", (TOKENS,), lambda tokens: tokens.roll(1, 1)),
            Variable(
                "first_hop",
                ("letter_before", TOKENS),
                lambda before, tokens: _value_of(tokens, before, tokens),
            ),
            Variable("second_hop", ("first_hop", "letter_before", TOKENS), _value_of),
            _answer("second_hop"),
        )
    ),
    places={
        "letter_before": Place(("z.0.h1",), {TOKENS: "v"}),
        "first_hop": Place(("z.1.h3",), {"letter_before": "k", TOKENS: "qv"}),
        "second_hop": Place(("z.2.h0",), {"first_hop": "q", "letter_before": "k", TOKENS: "v"}),
    },
    valid=_every_key_once,
    sizes={"num_hidden_layers": 3, "intermediate_size": 0},
    watched=300,
)


def _so_far(values: Rows) -> Rows:
    """How many tokens stand up to each place."""
    return torch.arange(1, values.shape[1] + 1).expand_as(values)


balanced_brackets = Task(
    name="balanced_brackets",
    task="Whether the brackets so far are balanced, at each place.",
    words=("(", ")", "no", "yes"),
    alphabets=((0, 1),) * 10,
    model=CausalModel(
        (
            Variable("opened", (TOKENS,), lambda tokens: (tokens == 0).cumsum(1)),
            Variable("below", ("opened",), lambda opened: (2 * opened < _so_far(opened)).long()),
            Variable("ever_below", ("below",), lambda below: below.cummax(1).values),
            Variable(
                "balanced",
                ("opened", "ever_below"),
                lambda opened, ever: ((2 * opened == _so_far(opened)) & (ever == 0)).long(),
            ),
            Variable("answer", ("balanced",), lambda balanced: balanced + 2),
        )
    ),
    places={
        "opened": Place(("z.0.h0",), {TOKENS: "v"}),
        "below": Place(("mlp_out.0",)),
        "ever_below": Place(("z.1.h2",), {"below": "v"}),
        "balanced": Place(("mlp_out.1",)),
    },
)

TASKS: tuple[Task, ...] = (
    balanced_brackets,
    first_is_last,
    fraction_of_previous,
    histogram,
    indirect_object,
    look_up,
    majority,
    modular_sum,
    two_hops,
)
