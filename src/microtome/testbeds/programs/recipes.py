"""How are the programs of the library written? Each as one would explain it, and again in plain Python beside it."""

from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

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
)

LETTERS = ("a", "b", "c")
SAME = Select(TOKENS, TOKENS, lambda key, query: key == query)
EARLIER = Select(INDICES, INDICES, lambda key, query: key < query)
PREVIOUS = Select(INDICES, INDICES, lambda key, query: key == query - 1)


def length() -> Width:
    return Width(EVERYWHERE, name="length")


def reverse() -> Expression:
    opposite = length().zip(INDICES, lambda length, index: length - 1 - index).named("opposite")
    flipped = Select(INDICES, opposite, lambda key, query: key == query)
    # Some opposites are possible by themselves and never occur; there nothing is chosen.
    return Aggregate(flipped, TOKENS, name="reverse")


def share(of: Callable[[Any], bool], name: str) -> Expression:
    hits = TOKENS.map(of, numerical=True).named(f"is {name}")
    return Aggregate(EVERYWHERE, hits, Fraction(0), name=f"share of {name}")


def rank(unique: bool) -> Expression:
    smaller: Selector = Select(TOKENS, TOKENS, lambda key, query: key < query)
    if not unique:
        smaller = smaller | (SAME & EARLIER)
    rank = Width(smaller, name="rank")
    return Aggregate(Select(rank, INDICES, lambda key, query: key == query), TOKENS, name="sort")


def most_frequent() -> Expression:
    count = Width(SAME, name="count")
    keyed = count.zip(TOKENS, lambda n, token: (n, token)).named("count and token")
    better = Select(keyed, keyed, lambda key, query: (-key[0], key[1]) < (-query[0], query[1]))
    place = Width(better, name="how many are better")
    first = Select(place, place, lambda key, query: key == 0)
    return Aggregate(first, TOKENS, name="most frequent")


def bracket_depth(opening: str, closing: str) -> Expression:
    step = TOKENS.map(lambda token: (token == opening) - (token == closing), numerical=True).named("step")
    return Sum(EVERYWHERE, step, name="depth")


def dyck(kinds: Sequence[str]) -> Expression:
    """Whether what was read so far can still be balanced, and is: 0 open, 1 balanced, -1 never again."""
    depths = [bracket_depth(kind[0], kind[1]) for kind in kinds]
    state: Expression | None = None
    for depth, kind in zip(depths, kinds, strict=True):
        below = depth.map(lambda d: d < 0).named(f"{kind} below zero")
        broken = Width(Select(below, below, lambda key, query: bool(key)), name=f"{kind} times below")
        one = broken.zip(depth, bracket_state).named(f"state of {kind}")
        state = one if state is None else state.zip(one, both_states).named(f"state with {kind}")
    assert state is not None
    return state


def bracket_state(broken: int, depth: Fraction) -> str:
    return "broken" if broken or depth < 0 else "balanced" if depth == 0 else "open"


def both_states(one: str, two: str) -> str:
    if "broken" in (one, two):
        return "broken"
    return "balanced" if one == two == "balanced" else "open"


def dyck_reference(kinds: Sequence[str]) -> Callable[[Sequence[Any]], list[Value]]:
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


def induction() -> Expression:
    before = Aggregate(PREVIOUS, TOKENS, "-", name="token before")
    after_same = Select(before, TOKENS, lambda key, query: key == query)
    place = Aggregate(
        after_same, INDICES.map(lambda index: index, numerical=True), Fraction(-1), name="mean place"
    )
    latest = Width(after_same & Select(INDICES, INDICES, lambda key, query: key <= query), name="times seen")
    seen = latest.zip(place, lambda n, at: (n, at)).named("times and place")
    once = seen.map(lambda pair: int(pair[1]) if pair[0] == 1 else -1).named("place after the one before")
    return Aggregate(Select(INDICES, once, lambda key, query: key == query), TOKENS, "-", name="induction")


def induction_reference(tokens: Sequence[Any]) -> list[Value]:
    found: list[Value] = []
    for here, token in enumerate(tokens):
        after = [k for k in range(1, here + 1) if tokens[k - 1] == token]
        found.append(tokens[after[0]] if len(after) == 1 else "-")
    return found


def indirect_object() -> Expression:
    """Of names of which one is said twice, the other: what the sentence «A and B …, A gave to» ends with."""
    times = Width(SAME, name="times said")
    other = Select(times, TOKENS, lambda key, query: key == 1)
    name = Select(TOKENS, TOKENS, lambda key, query: key != "gave")
    alone = Width(other & name, name="names said once")
    chosen = alone.map(lambda n: n == 1).named("one name said once")
    pick = Select(times, chosen, lambda key, query: bool(query) and key == 1) & name
    return Aggregate(pick, TOKENS, "-", name="indirect object")


def indirect_object_reference(tokens: Sequence[Any]) -> list[Value]:
    found: list[Value] = []
    for here in range(len(tokens)):
        # How often a name was said is counted where it stands, from what came before.
        once = [k for k in range(here + 1) if tokens[k] != "gave" and tokens[: k + 1].count(tokens[k]) == 1]
        found.append(tokens[once[0]] if len(once) == 1 else "-")
    return found


def majority() -> Expression:
    ones = Sum(
        EVERYWHERE, TOKENS.map(lambda token: 1 if token else -1, numerical=True).named("vote"), name="votes"
    )
    return ones.map(lambda votes: "tie" if votes == 0 else "yes" if votes > 0 else "no").named("majority")


def parity() -> Expression:
    ones = Width(Select(TOKENS, TOKENS, lambda key, query: key == 1), name="ones")
    return ones.map(lambda n: n % 2).named("parity")


def first_of_each() -> Expression:
    before = Width(SAME & EARLIER, name="times before")
    return before.map(lambda n: "new" if n == 0 else "again").named("seen before")


def pair_balance() -> Expression:
    return Aggregate(
        EVERYWHERE,
        TOKENS.map(lambda token: (token == "(") - (token == ")"), numerical=True).named("step"),
        Fraction(0),
        name="balance",
    )


def detect() -> Expression:
    before = Aggregate(PREVIOUS, TOKENS, "-", name="token before")
    return before.zip(TOKENS, lambda one, two: (one, two) == ("a", "b")).named("a then b")


def lookup() -> Expression:
    """Keys and values in turn (`x 1 y 0 …`): for a key, the value that last followed it, if always the same."""
    before = Aggregate(PREVIOUS, TOKENS, "-", name="token before")
    number = Select(TOKENS, TOKENS, lambda key, query: key in (0, 1))
    matches = Select(before, TOKENS, lambda key, query: key == query) & number
    ones = Select(TOKENS, TOKENS, lambda key, query: key == 1)
    some = Width(matches, name="times answered")
    yes = Width(matches & ones, name="times answered 1")
    return some.zip(yes, lambda n, m: "?" if n == 0 or 0 < m < n else int(m == n)).named("lookup")


def lookup_reference(tokens: Sequence[Any]) -> list[Value]:
    found: list[Value] = []
    for here, token in enumerate(tokens):
        answers = {tokens[k] for k in range(1, here + 1) if tokens[k - 1] == token and tokens[k] in (0, 1)}
        found.append(answers.pop() if len(answers) == 1 else "?")
    return found


def shift(by: int) -> Expression:
    return Aggregate(
        Select(INDICES, INDICES, lambda key, query: key == query - by), TOKENS, "-", name=f"shift by {by}"
    )


def each(function: Callable[[Sequence[Any], int], Value]) -> Callable[[Sequence[Any]], list[Value]]:
    return lambda tokens: [function(tokens, here) for here in range(len(tokens))]


def top(tokens: Sequence[Any]) -> list[Value]:
    counts = Counter(tokens)
    return [min(counts, key=lambda token: (-counts[token], token))] * len(tokens)
