"""What does it take to add numbers of several digits? Addition with carries, and every carry by name.

1. A row is `a b =` and the sum, each number digit by digit with the ones first; each digit of the sum is asked at the
   place before it.
2. A digit of the sum is (a + b + carry) mod 10. The carry into a place is made where the digits before it exceed 9,
   or passed on where they are exactly 9 and a carry came in: this is all there is to know, and it is in the labels.
3. The network is judged by itself on rows whose carry runs through every place, of which random rows have few.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from microtome.core.draws import generator
from microtome.core.errors import InputError
from microtome.testbeds.algorithmic.network import (
    UNASKED,
    Examples,
    Task,
    contrast,
    evidence,
    network,
    right,
)
from microtome.testbeds.case import Case, Evidence, TestbedCard, Truth

card = TestbedCard(
    name="digit_addition",
    title="Addition of several digits",
    question="Where is the carry, and where does it come from?",
    reference="Quirke and Barez (2024), Understanding Addition in Transformers",
    kinds=("labels",),
    misleads=(
        "With the ones first a carry can be told from the digit just written; a network that writes the largest digit "
        "first must find all carries at once, and is another problem."
    ),
)

EQUALS, TOKENS = 10, 11


def cases() -> tuple[str, ...]:
    """`three_digits`."""
    return ("three_digits",)


def _digits(case: str) -> int:
    if case not in cases():
        raise InputError(f"digit addition has the case three_digits, not {case!r}")
    return 3


def carries(
    a: Int[Tensor, "row digit"], b: Int[Tensor, "row digit"]
) -> tuple[Int[Tensor, "row carried"], Int[Tensor, "row carried"]]:
    """The digits of the sum, one more than of the numbers, and the carry into each of them; ones first."""
    carry = torch.zeros(len(a), dtype=torch.long)
    sums, carried = [], []
    for i in range(a.shape[1]):
        carried.append(carry)
        total = a[:, i] + b[:, i] + carry
        sums.append(total % 10)
        carry = total // 10
    return torch.stack([*sums, carry], 1), torch.stack([*carried, carry], 1)


def rows(a: Int[Tensor, "row digit"], b: Int[Tensor, "row digit"]) -> Examples:
    """`a b =` and all of the sum but its last digit; a digit of the sum is asked at each place from the sign on."""
    total, _ = carries(a, b)
    tokens = torch.cat([a, b, torch.full((len(a), 1), EQUALS), total[:, :-1]], 1)
    targets = torch.full_like(tokens, UNASKED)
    targets[:, -total.shape[1] :] = total
    return Examples(tokens, targets)


def random_rows(count: int, digits: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two numbers a row. In half of the rows each place sums to 9 with probability one half: carries run far."""
    a, b = torch.randint(0, 10, (2, count, digits), generator=source)
    nines = (torch.rand(count, digits, generator=source) < 0.5) & (torch.arange(count) % 2 == 0)[:, None]
    return a, torch.where(nines, 9 - a, b)


def running(digits: int, count: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows in which the ones make a carry and every other place passes it on."""
    a, b = random_rows(count, digits, source)
    b = torch.where(torch.arange(digits) > 0, 9 - a, b)
    ones = torch.randint(1, 10, (count,), generator=source)
    a[:, 0] = ones
    b[:, 0] = 10 - ones + (torch.rand(count, generator=source) * ones).long()
    return a, b


def _kept_back(a: Tensor, b: Tensor) -> Tensor:
    """Which pairs of numbers no training row has: a tenth of all, by a fixed rule of the two."""
    places = 10 ** torch.arange(a.shape[1])
    return ((a * places).sum(1) * 7919 + (b * places).sum(1) * 104729) % 10 == 3


def _draw(digits: int, count: int, seen: bool, source: torch.Generator) -> Examples:
    a, b = random_rows(2 * count if seen else 16 * count, digits, source)
    chosen = torch.nonzero(_kept_back(a, b) != seen)[:count, 0]
    return rows(a[chosen], b[chosen])


def task(case: str = "three_digits") -> Task:
    """How it is trained: two layers, since a carry needs the digits before."""
    digits = _digits(case)
    return Task(
        testbed=card.name,
        case=case,
        sizes={
            "vocab_size": TOKENS,
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "head_dim": 16,
            "intermediate_size": 96,
            "max_position_embeddings": 3 * digits + 1,
            "norm": "layer",
            "hidden_act": "relu",
        },
        batch=lambda seed, step: _draw(digits, 256, True, generator(seed, step)),
        held_out=lambda seed: _draw(digits, 1000, False, generator(seed, -1)),
        rate=3e-3,
        weight_decay=0.01,
        steps=4000,
        loss=5e-3,
    )


def build(case: str = "three_digits", seed: int = 0) -> Case:
    """A network that adds numbers. Its pairs differ in the ones: with a carry into the tens, and without."""
    digits = _digits(case)
    asked = task(case)
    model = network(asked, seed)
    source = generator(seed, 1)
    far = rows(*running(digits, 500, source))
    a, b = random_rows(256, digits, source)
    every = rows(a, b)
    _, carried = carries(a, b)
    labels = torch.full_like(every.tokens, -1)
    labels[:, -carried.shape[1] :] = carried
    sums = torch.full_like(labels, -1)
    sums[:, -carried.shape[1] : -1] = a + b
    # The ones of the clean row make a carry, those of the corrupt row do not; the tens then differ by one.
    a, b = (numbers[:64].clone() for numbers in (a, b))
    a[:, 0], b[:, 0] = 5, torch.arange(len(b)) % 5 + 5
    clean, other = rows(a, b), b.clone()
    other[:, 0] -= 5
    corrupt = rows(a, other)
    place = 2 * digits + 1  # the tens are asked where the ones of the sum stand
    return Case(
        name=f"{card.name}/{case}",
        task=f"The sum of two numbers of {digits} digits, digit by digit, the ones first.",
        model=model,
        truth=Truth(labels={"carry": labels, "digit_sum": sums}),
        evidence=(
            evidence(asked, model, seed),
            Evidence(
                "share answered right of rows with a carry through every place",
                float(right(model.module, far).mean()),
                least=0.99,
                n=500,
            ),
        ),
        pairs=contrast(
            clean.tokens[:, : place + 1],
            corrupt.tokens[:, : place + 1],
            clean.targets[:, place],
            corrupt.targets[:, place],
            words=lambda token: "=" if token == EQUALS else str(token),
            task=card.name,
            seed=seed,
        ),
        tokens=every.tokens,
        seed=seed,
    )
