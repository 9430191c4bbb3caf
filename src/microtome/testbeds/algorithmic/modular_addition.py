"""What does a network that learned to add on a circle compute? Modular addition, a + b mod p, with its Fourier truth.

1. Rows `a b =`; a fixed share of all p² pairs is learned, full batch, the rest is never seen. Under weight decay the
   network first remembers what it saw, and much later adds (Power et al. 2022).
2. What it then computes is a sum over a few frequencies k of cos(2πk(a + b − c)/p) for each answer c (Nanda et al.
   2023). Which frequencies is a matter of the seed; how far they carry the logits is measured here on all p³ logits,
   by plain sums over a + b − c, with no transform that a method could share.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core.draws import generator
from microtome.core.errors import InputError
from microtome.models.model import Model
from microtome.testbeds.algorithmic.network import (
    UNASKED,
    Examples,
    Task,
    contrast,
    evidence,
    full_batch,
    last_of_one_layer,
    network,
)
from microtome.testbeds.case import Case, Evidence, TestbedCard, Truth

card = TestbedCard(
    name="modular_addition",
    title="Modular addition",
    question="Which frequencies carry a + b mod p, and do they carry all of it?",
    reference="Nanda et al. (2023), Progress measures for grokking via mechanistic interpretability",
    kinds=("quantities", "labels"),
    misleads="Frequencies differ between seeds, so the truth of one network is nothing to another.",
)

_LEARNED = 0.4


def cases() -> tuple[str, ...]:
    """`p53`, which ships. `p113` of the paper's size can be built too; it trains for minutes."""
    return ("p53",)


def rows(p: int) -> Int[Tensor, "pair column"]:
    """All pairs as `a b =`, by a and then by b. The sign has the id p."""
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    return torch.cat([pairs, torch.full((p * p, 1), p)], dim=1)


def examples(p: int, tokens: Int[Tensor, "row column"]) -> Examples:
    """The sum is asked at the last column."""
    targets = torch.full_like(tokens, UNASKED)
    targets[:, -1] = (tokens[:, 0] + tokens[:, 1]) % p
    return Examples(tokens, targets)


def split(p: int, seed: int, learned: float = _LEARNED) -> tuple[Examples, Examples]:
    """The pairs that a network of this seed learns from, and those it never sees."""
    order = torch.randperm(p * p, generator=generator(seed))
    count = round(learned * p * p)
    every = rows(p)
    return examples(p, every[order[:count]]), examples(p, every[order[count:]])


def task(case: str = "p53", weight_decay: float | None = None) -> Task:
    """How a case is trained. weight_decay: another than its own; without any, a network remembers and never adds."""
    if case not in ("p53", "p113"):
        raise InputError(f"modular addition has the cases p53 and p113, not {case!r}")
    p, learned, width, neurons, decay, steps = {
        "p53": (53, _LEARNED, 64, 256, 2.0, 2000),
        "p113": (113, 0.3, 128, 512, 1.0, 2500),
    }[case]
    return Task(
        testbed=card.name,
        case=case,
        sizes={
            "vocab_size": p + 1,
            "hidden_size": width,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "head_dim": width // 4,
            "intermediate_size": neurons,
            "max_position_embeddings": 3,
            "norm": "none",
            "hidden_act": "relu",
            "bias": False,
            "initializer_range": 0.05,
        },
        **full_batch(lambda seed: split(p, seed, learned)),
        rate=5e-3,
        weight_decay=decay if weight_decay is None else weight_decay,
        steps=steps,
        loss=3e-4,
        named={"learned": learned},
        forward=last_of_one_layer,
    )


@torch.no_grad()
def frequency_shares(model: Model, p: int) -> Float[Tensor, " frequency"]:
    """For each frequency k = 1 … (p−1)/2, the share of the variance of all logits `[a, b, c]` (centred over c, which
    no softmax sees) that is a multiple of cos(2πk(a + b − c)/p)."""
    found = model.run(rows(p), logits=True).logits
    assert found is not None
    table = found[:, -1, :p].double().view(p, p, p)
    table = table - table.mean(-1, keepdim=True)
    a, b, c = torch.meshgrid(torch.arange(p), torch.arange(p), torch.arange(p), indexing="ij")
    distance = ((a + b - c) % p).flatten()
    # The mean logit at each distance of c from the sum: whatever a wave in a + b − c can carry is in it.
    mean = torch.zeros(p, dtype=torch.double).index_add_(0, distance, table.flatten()) / p**2
    total = (table - table.mean()).square().mean()
    angles = 2 * math.pi * torch.arange(p, dtype=torch.double) / p
    waves = torch.stack([torch.cos(k * angles) for k in range(1, (p - 1) // 2 + 1)])
    amplitude = waves @ mean * 2 / p
    return amplitude.square() / 2 / total


def build(case: str = "p53", seed: int = 0) -> Case:
    """A network that adds. Its tokens are the pairs it learned from; its pairs change the first number."""
    asked = task(case)
    p = int(case[1:])
    model = network(asked, seed)
    shares = frequency_shares(model, p)
    seen = asked.batch(seed, 0).tokens
    unseen = asked.held_out(seed).tokens[:64]
    other = unseen.clone()
    other[:, 0] = (other[:, 0] + torch.randint(1, p, (len(other),), generator=generator(seed, 1))) % p
    answers, wrong = ((tokens[:, 0] + tokens[:, 1]) % p for tokens in (unseen, other))
    return Case(
        name=f"{card.name}/{case}",
        task=f"The sum of two numbers mod {p}, asked at the sign after them.",
        model=model,
        truth=Truth(
            quantities={f"logit_share.{k}": float(share) for k, share in enumerate(shares, 1)},
            labels={"sum": (seen[:, 0] + seen[:, 1]) % p},
        ),
        evidence=(
            evidence(asked, model, seed),
            Evidence("share of logit variance in cos w(a + b − c)", float(shares.sum()), least=0.85, n=p**3),
        ),
        pairs=contrast(
            unseen,
            other,
            answers,
            wrong,
            words=lambda token: "=" if token == p else str(token),
            task=card.name,
            seed=seed,
        ),
        tokens=seen,
        seed=seed,
    )
