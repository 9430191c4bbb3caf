"""Can fewer heads do more things than they are? Skip-trigrams, five kinds of them, by two or three attention heads.

1. Each row holds one of six sources somewhere among fillers, and ends in one of five shifts. The answer is the source
   that stands so many steps further round: shift 2 after source 5 says source 1.
2. What a head writes of a source does not depend on who looks at it. One head cannot say five things of one source but
   by how much it looks; measured, a network of one head does not learn the task. With a head for each shift it would
   be plain: look only if the row ends in your shift, and write the source so many steps further.
3. There are fewer heads than shifts. So each answer is a sum of what several heads write, mixed by how much each looks:
   the shifts are behaviours in superposition over heads. With no norm and no positions, logits are exactly the sum of
   the heads' and the direct path's; a head, or an edge, is removed by replacing what it carries with its mean.
"""

import math
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core.circuit import Circuit, Edge
from microtome.core.draws import generator
from microtome.core.edits import Set
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.testbeds.algorithmic.network import (
    UNASKED,
    Examples,
    Task,
    contrast,
    evidence,
    network,
)
from microtome.testbeds.case import Case, Evidence, TestbedCard, Truth, Variable
from microtome.testbeds.edge_ablation import Ends, candidate_edges, cut, unshown, writes
from microtome.testbeds.toys.network import SHIPPED

card = TestbedCard(
    name="head_superposition",
    title="Attention heads in superposition",
    question="Which heads does each behaviour need, when there are more behaviours than heads?",
    reference="Jermyn, Olah, Henighan (2023), Attention Head Superposition",
    kinds=("circuit", "roles", "variables", "labels", "quantities"),
    misleads=(
        "A role says without which heads a behaviour fails; in superposition no head has one to itself, so roles "
        "overlap by design. How much of a behaviour a head carries is not a number with one right answer."
    ),
)

SOURCES, SHIFTS, FILLERS, LENGTH = 6, 5, 6, 8
HEADS: Final = {"two_heads": 2, "three_heads": 3}
LOST: Final = 0.1
"""A behaviour needs a head, and the whole needs an edge, without which this much of the accuracy is lost."""


def cases() -> tuple[str, ...]:
    """Five behaviours by two heads, and by three."""
    return tuple(HEADS)


def rows(count: int, source: torch.Generator) -> Examples:
    """Rows with one source somewhere and a shift at their end; asked at the end."""
    tokens = SOURCES + SHIFTS + torch.randint(FILLERS, (count, LENGTH), generator=source)
    which = torch.randint(SOURCES, (count,), generator=source)
    shift = torch.randint(SHIFTS, (count,), generator=source)
    place = torch.randint(LENGTH - 1, (count,), generator=source)
    tokens[torch.arange(count), place] = which
    tokens[:, -1] = SOURCES + shift
    targets = torch.full_like(tokens, UNASKED)
    targets[:, -1] = (which + shift) % SOURCES
    return Examples(tokens, targets)


def task(case: str, heads: int | None = None) -> Task:
    """How it is trained. heads: another number of them than the case's."""
    if heads is None and case not in HEADS:
        raise InputError(f"{card.name} has no case {case!r}; it has {', '.join(cases())}")
    return Task(
        testbed=card.name,
        case=case,
        sizes={
            "vocab_size": SOURCES + SHIFTS + FILLERS,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": HEADS[case] if heads is None else heads,
            "head_dim": 8,
            "intermediate_size": 0,
            "max_position_embeddings": LENGTH,
            "norm": "none",
            "positions": "none",
            "bias": False,
            "initializer_range": 0.2,
        },
        batch=lambda seed, step: rows(256, generator(seed, step)),
        held_out=lambda seed: rows(1024, generator(seed, -1)),
        rate=5e-3,
        weight_decay=0.0,
        steps=3000,
        loss=1e-3,
    )


def words(token: int) -> str:
    """A token as text."""
    kinds = ("source", token), ("shift", token - SOURCES), ("filler", token - SOURCES - SHIFTS)
    name, number = kinds[(token >= SOURCES) + (token >= SOURCES + SHIFTS)]
    return f"{name}{number}"


def pairs(count: int, seed: int) -> Pairs:
    """Rows and their twins with another source at the same place, so that another answer is right."""
    source = generator(seed, -2)
    clean = rows(count, source)
    there = clean.tokens < SOURCES
    away = torch.randint(1, SOURCES, (count, 1), generator=source)
    corrupt = torch.where(there, (clean.tokens + away) % SOURCES, clean.tokens)
    answers = clean.targets[:, -1]
    wrong = (answers + away[:, 0]) % SOURCES
    return contrast(clean.tokens, corrupt, answers, wrong, words=words, task=card.name, seed=seed)


@torch.no_grad()
def accuracy(model: Model, examples: Examples, without: int | None = None) -> Float[Tensor, " shift"]:
    """The share of answers that are right, for each shift; without a head, whose z is replaced by its mean."""
    edits = []
    if without is not None:
        site = Site("z", 0).head(without)
        mean = model.run(examples.tokens, read=[site])[site].mean((0, 1), keepdim=True)
        edits = [Set(site, value=mean, origin="mean")]
    logits = model.run(examples.tokens, edit=edits, logits=True).logits
    assert logits is not None
    right = (logits[:, -1].argmax(-1) == examples.targets[:, -1]).float()
    shift = shift_of(examples.tokens)
    return torch.stack([right[shift == one].mean() for one in range(SHIFTS)])


@torch.no_grad()
def accuracy_without(model: Model, examples: Examples) -> dict[Ends, float]:
    """The share of answers that are right when what one edge carries is replaced by its mean, for each edge."""
    change = {name: wrote.mean((0, 1)) - wrote for name, wrote in writes(model, examples.tokens).items()}
    found = {}
    for edge in candidate_edges(model):
        logits = model.run(examples.tokens, edit=[cut(model, change, edge)], logits=True).logits
        assert logits is not None
        found[edge] = float((logits[:, -1].argmax(-1) == examples.targets[:, -1]).double().mean())
    return found


def shift_of(tokens: Int[Tensor, "row column"]) -> Int[Tensor, " row"]:
    """The shift that a row ends in."""
    return tokens[:, -1] - SOURCES


def build(case: str, seed: int = 0) -> Case:
    """Heads that share behaviours; which behaviour needs which heads is measured by removing one at a time."""
    asked = task(case)
    model = network(asked, seed, SHIPPED)
    shown = rows(512, generator(seed, -3))
    whole = accuracy(model, shown)
    lost = torch.stack([whole - accuracy(model, shown, head) for head in range(HEADS[case])])
    needs = lost > LOST
    cut_off = {edge: float(whole.mean()) - rest for edge, rest in accuracy_without(model, shown).items()}
    inside = [Edge(*edge, loss) for edge, loss in cut_off.items() if loss > LOST]
    outside = [loss for loss in cut_off.values() if loss <= LOST]
    circuit = Circuit.of(sorted({end for edge in inside for end in (edge.source, edge.target)}), inside)
    data = pairs(64, seed)
    embedding = model.weight("W_E").detach()
    place = (shown.tokens < SOURCES).float().argmax(-1)
    return Case(
        name=f"{card.name}/{case}",
        task="The source that stands so many steps further round as the last token says.",
        model=model,
        truth=Truth(
            circuit=circuit,
            unshown=unshown(model, circuit, data),
            roles={
                f"shift {shift}": tuple(
                    f"z.0.h{head}" for head in needs[:, shift].nonzero().flatten().tolist()
                )
                for shift in range(SHIFTS)
                if bool(needs[:, shift].any())
            },
            variables=(
                Variable("source", Site("embed"), embedding[:SOURCES], tuple(range(SOURCES)), writer="embed"),
                Variable(
                    "shift",
                    Site("embed").at(-1),
                    embedding[SOURCES : SOURCES + SHIFTS],
                    tuple(range(SHIFTS)),
                    writer="embed",
                ),
            ),
            labels={
                "source": shown.tokens.gather(1, place[:, None])[:, 0],
                "shift": shift_of(shown.tokens),
                "place of the source": place,
            },
            quantities={
                "behaviours": float(SHIFTS),
                "heads": float(HEADS[case]),
                **{
                    f"accuracy lost on shift {shift} without z.0.h{head}": float(lost[head, shift])
                    for head in range(HEADS[case])
                    for shift in range(SHIFTS)
                },
            },
        ),
        evidence=(
            evidence(asked, model, seed),
            Evidence(
                "least accuracy lost with an edge of the circuit",
                min((edge.weight for edge in inside), default=math.nan),
                least=2 * LOST,
                n=len(shown.tokens),
            ),
            Evidence(
                "most accuracy lost with another edge",
                max(outside, default=0.0),
                most=LOST / 2,
                n=len(shown.tokens),
            ),
            Evidence("behaviours for each head", SHIFTS / HEADS[case], least=1.0 + 1e-9),
            Evidence(
                "fewest behaviours that need one head", float(needs.sum(1).min()), least=2.0, n=len(needs)
            ),
            Evidence(
                "behaviours that need several heads", float((needs.sum(0) > 1).sum()), least=1.0, n=SHIFTS
            ),
        ),
        pairs=data,
        tokens=shown.tokens,
        seed=seed,
    )
