"""A task small enough to train in a second: say the first letter again, by one head of two."""

import pytest
import torch

from microtome.data.causal_model import TOKENS, CausalModel, Variable
from microtome.testbeds.algorithmic.network import UNASKED
from microtome.testbeds.interchange.alignment import Place
from microtome.testbeds.interchange.task import Task


def last_of(value: torch.Tensor) -> torch.Tensor:
    answer = torch.full_like(value, UNASKED)
    answer[:, -1] = value[:, -1]
    return answer


@pytest.fixture(scope="session")
def small() -> Task:
    return Task(
        name="first_again",
        task="The first letter again.",
        words=tuple("abcde"),
        alphabets=(tuple(range(5)),) * 4,
        model=CausalModel(
            (
                Variable("first", (TOKENS,), lambda tokens: tokens[:, :1].expand_as(tokens)),
                Variable("answer", ("first",), last_of),
            )
        ),
        places={"first": Place(("z.0.h1",), {TOKENS: "v"})},
        sizes={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 8,
            "intermediate_size": 16,
        },
        rate=1e-2,
        steps=400,
        batch=64,
    )
