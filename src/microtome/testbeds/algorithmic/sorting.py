"""How does a network put numbers in order? Sorting a short list, repeats included.

1. A row is a list, a sign, and the list in order; each number in order is asked at the place before it.
2. At each such place the answer is the smallest number of the list that is left, which is the number just written or
   one above it. Every place knows how many copies of that number are still to come: the labels say so.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from microtome.core.draws import generator
from microtome.core.errors import InputError
from microtome.testbeds.algorithmic.network import UNASKED, Examples, Task, contrast, evidence, network
from microtome.testbeds.case import Case, TestbedCard, Truth

card = TestbedCard(
    name="sorting",
    title="Sorting",
    question="How does a network find the next larger number of a list, and count the equal ones?",
    reference="Weiss, Goldberg, Yahav (2021), Thinking Like Transformers",
    kinds=("labels",),
    misleads="The labels say what must be known at each place, not by which head it is known.",
)

NUMBERS, LENGTH = 16, 6
SIGN = NUMBERS


def cases() -> tuple[str, ...]:
    """`six_numbers`."""
    return ("six_numbers",)


def rows(lists: Int[Tensor, "row number"]) -> Examples:
    """A list, the sign, and all of the ordered list but its last number."""
    ordered = lists.sort(-1).values
    sign = torch.full((len(lists), 1), SIGN)
    tokens = torch.cat([lists, sign, ordered[:, :-1]], 1)
    targets = torch.full_like(tokens, UNASKED)
    targets[:, lists.shape[1] :] = ordered
    return Examples(tokens, targets)


def still_to_come(ordered: Int[Tensor, "row number"]) -> Int[Tensor, "row number"]:
    """How many more copies of each number of an ordered list stand after it."""
    same = ordered[:, :, None] == ordered[:, None, :]
    return same.triu(1).sum(-1)


def _lists(count: int, seen: bool, source: torch.Generator) -> Examples:
    # Few numbers in half of the rows, so that many are equal.
    most = torch.where(torch.arange(16 * count) % 2 == 0, NUMBERS, 4)[:, None]
    drawn = (torch.rand(16 * count, LENGTH, generator=source) * most).long()
    # What is kept back is whole sets of numbers, whatever their order.
    kept = (drawn + 3).square().sum(1) % 10 == 0
    return rows(drawn[kept != seen][:count])


def task(case: str = "six_numbers") -> Task:
    """How it is trained."""
    if case not in cases():
        raise InputError(f"sorting has the case six_numbers, not {case!r}")
    return Task(
        testbed=card.name,
        case=case,
        sizes={
            "vocab_size": NUMBERS + 1,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 16,
            "intermediate_size": 128,
            "max_position_embeddings": 2 * LENGTH,
            "norm": "layer",
            "hidden_act": "relu",
            "initializer_range": 0.1,
        },
        batch=lambda seed, step: _lists(256, True, generator(seed, step)),
        held_out=lambda seed: _lists(1000, False, generator(seed, -1)),
        rate=4e-3,
        weight_decay=0.01,
        steps=4000,
        loss=5e-3,
    )


def build(case: str = "six_numbers", seed: int = 0) -> Case:
    """A network that sorts. Its pairs differ in the smallest number, which is asked at the sign."""
    asked = task(case)
    model = network(asked, seed)
    unseen = asked.held_out(seed)
    tokens = unseen.tokens[:256]
    ordered = unseen.targets[:256, LENGTH:]
    labels = torch.full_like(tokens, -1)
    labels[:, LENGTH + 1 :] = still_to_come(ordered)[:, :-1]
    clean = tokens[:64, : LENGTH + 1]
    other = clean.clone()
    place = other[:, :LENGTH].argmin(-1)
    smallest = other[:, :LENGTH].amin(-1)
    other[torch.arange(len(other)), place] = (
        smallest + 1 + torch.randint(0, 4, (len(other),), generator=generator(seed, 1))
    ).clamp(max=NUMBERS - 1)
    wrong = other[:, :LENGTH].amin(-1)
    differ = torch.nonzero(wrong != smallest)[:, 0]
    return Case(
        name=f"{card.name}/{case}",
        task=f"A list of {LENGTH} numbers below {NUMBERS}, in order.",
        model=model,
        truth=Truth(labels={"copies_to_come": labels}),
        evidence=(evidence(asked, model, seed),),
        pairs=contrast(
            clean[differ],
            other[differ],
            smallest[differ],
            wrong[differ],
            words=lambda token: "|" if token == SIGN else str(token),
            task=card.name,
            seed=seed,
        ),
        tokens=tokens,
        seed=seed,
    )
