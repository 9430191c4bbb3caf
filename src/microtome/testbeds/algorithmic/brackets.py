"""Do all brackets close? Matching, as two conditions that a network has to find: the depth
ends at zero, and never falls below it.

1. A row is a text of brackets and a sign, at which the answer is asked: balanced or not.
2. Of the rows a third is balanced; a third is a balanced text with two brackets exchanged, which leaves their numbers
   equal; a third is random. So neither condition alone answers.
3. The labels are the depth after each bracket, and each of the two conditions.
"""

import torch
from jaxtyping import Bool, Int
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
    name="brackets",
    title="Bracket matching",
    question="Does a network count depth, and does it notice a bracket that closes too early?",
    reference="Yao et al. (2021), Self-Attention Networks Can Process Bounded Hierarchical Languages",
    kinds=("labels",),
    misleads=(
        "Depth can be read from any network that counts. Whether it is used is another question: intervene on it."
    ),
)

OPEN, CLOSE, SIGN, BALANCED, UNBALANCED = range(5)
_WORDS = ("(", ")", "?", "yes", "no")
LENGTH = 16


def cases() -> tuple[str, ...]:
    """`sixteen`."""
    return ("sixteen",)


def depth(text: Int[Tensor, "row column"]) -> Int[Tensor, "row column"]:
    """How many brackets are open after each place; negative where more have closed."""
    return (1 - 2 * text).cumsum(-1)


def balanced(text: Int[Tensor, "row column"]) -> Bool[Tensor, " row"]:
    """Whether every bracket has its partner."""
    after = depth(text)
    return (after[:, -1] == 0) & (after >= 0).all(-1)


def balanced_texts(count: int, source: torch.Generator) -> Int[Tensor, "row column"]:
    """Each balanced text with the same chance.

    At each place an opening bracket is drawn with the share that it has among all ways to end balanced: with r places
    left and depth d, (r − d)(d + 2) / (2 r (d + 1)) (the ballot theorem).
    """
    at = torch.zeros(count)
    drawn = []
    for left in range(LENGTH, 0, -1):
        opens = torch.rand(count, generator=source) < (left - at) * (at + 2) / (2 * left * (at + 1))
        at = at + torch.where(opens, 1.0, -1.0)
        drawn.append(torch.where(opens, OPEN, CLOSE))
    return torch.stack(drawn, 1)


def rows(text: Int[Tensor, "row column"]) -> Examples:
    """A text and the sign, at which the answer is asked."""
    tokens = torch.cat([text, torch.full((len(text), 1), SIGN)], 1)
    targets = torch.full_like(tokens, UNASKED)
    targets[:, -1] = torch.where(balanced(text), BALANCED, UNBALANCED)
    return Examples(tokens, targets)


def _exchanged(text: Int[Tensor, "row column"], source: torch.Generator) -> Int[Tensor, "row column"]:
    """Each text with one opening and one closing bracket exchanged, drawn at random."""
    row = torch.arange(len(text))
    changed = text.clone()
    for kind in (OPEN, CLOSE):
        place = (torch.rand(text.shape, generator=source) * (text == kind)).argmax(-1)
        changed[row, place] = 1 - kind
    return changed


def texts(count: int, source: torch.Generator) -> Int[Tensor, "row column"]:
    """Balanced, exchanged and random texts by turns."""
    good = balanced_texts(count, source)
    exchanged = _exchanged(balanced_texts(count, source), source)
    drawn = torch.randint(0, 2, (count, LENGTH), generator=source)
    turn = (torch.arange(count) % 3)[:, None]
    return torch.where(turn == 0, good, torch.where(turn == 1, exchanged, drawn))


def _draw(count: int, seen: bool, source: torch.Generator) -> Examples:
    drawn = texts(2 * count if seen else 16 * count, source)
    code = (drawn * (torch.arange(LENGTH) * 7 + 3) ** 2).sum(1)
    return rows(drawn[(code % 10 != 0) == seen][:count])


def task(case: str = "sixteen") -> Task:
    """How it is trained."""
    if case not in cases():
        raise InputError(f"brackets has the case sixteen, not {case!r}")
    return Task(
        testbed=card.name,
        case=case,
        sizes={
            "vocab_size": len(_WORDS),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "head_dim": 16,
            "intermediate_size": 64,
            "max_position_embeddings": LENGTH + 1,
            "norm": "layer",
            "hidden_act": "relu",
            "initializer_range": 0.1,
        },
        batch=lambda seed, step: _draw(256, True, generator(seed, step)),
        held_out=lambda seed: _draw(1000, False, generator(seed, -1)),
        rate=3e-3,
        weight_decay=0.01,
        steps=4000,
        loss=1e-2,
    )


def build(case: str = "sixteen", seed: int = 0) -> Case:
    """A network that tells whether brackets match. Its pairs: a balanced text, and one with two brackets exchanged."""
    asked = task(case)
    model = network(asked, seed)
    unseen = asked.held_out(seed)
    tokens = unseen.tokens[:256]
    after = depth(tokens[:, :-1])
    source = generator(seed, 1)
    good = balanced_texts(96, source)
    other = _exchanged(good, source)
    hard = rows(other[~balanced(other)])
    differ = torch.nonzero(~balanced(other))[:64, 0]
    clean, corrupt = rows(good[differ]), rows(other[differ])
    return Case(
        name=f"{card.name}/{case}",
        task=f"Whether {LENGTH} brackets match, asked at the sign after them.",
        model=model,
        truth=Truth(
            labels={
                "depth": torch.cat([after.float(), torch.full((len(after), 1), torch.nan)], 1),
                "ends_at_zero": (after[:, -1] == 0).long(),
                "never_below_zero": (after >= 0).all(-1).long(),
            }
        ),
        evidence=(
            evidence(asked, model, seed),
            Evidence(
                "share answered right of texts that end at zero and fall below it",
                float(right(model.module, hard).mean()),
                least=0.97,
                n=len(hard.tokens),
            ),
        ),
        pairs=contrast(
            clean.tokens,
            corrupt.tokens,
            clean.targets[:, -1],
            corrupt.targets[:, -1],
            words=lambda token: _WORDS[token],
            task=card.name,
            seed=seed,
        ),
        tokens=tokens,
        seed=seed,
    )
