"""Heads written by hand into two layers: previous-token, duplicate-token, induction, suppressing, and idle ones.

The stream holds the token and the position as one-hot vectors, room for the previous token and for a duplicate, and
what is said. The logits read what is said, and a little of the token itself, as a bigram would.

    layer 0   looks at the place before and writes its token into the first room           previous-token head
              looks at earlier places of the same token, writes it into the second room    duplicate-token head
    layer 1   looks where the first room holds its own token, and says what stands there   induction head, copies
              looks at its own place and takes its token back                              suppressing head

All others have small random weights. `induction_circuit` has one head of each kind among six, and the edges between
them; `planted_heads` has two of each among 24, in places that the seed draws.
"""

from dataclasses import dataclass, replace
from typing import Final

import torch

from microtome.core.circuit import Circuit, Edge
from microtome.core.draws import generator
from microtome.data.pairs import Pairs
from microtome.models.load import load
from microtome.models.transformer import Transformer
from microtome.testbeds.algorithmic.network import contrast
from microtome.testbeds.case import Case, Evidence, Truth
from microtome.testbeds.edge_ablation import unshown
from microtome.testbeds.hand_set.arithmetic import account
from microtome.testbeds.hand_set.writing import Network, beside

TOKENS, PLACES, PERIOD, ROWS = 24, 64, 10, 32
SHARP, LOUD, QUIET = 30.0, 8.0, 0.05

EDGES = (
    ("pos_embed", "z.0.h0", "q"),
    ("pos_embed", "z.0.h0", "k"),
    ("embed", "z.0.h0", "v"),
    ("embed", "z.1.h0", "q"),
    ("pos_embed", "z.1.h0", "q"),
    ("pos_embed", "z.1.h0", "k"),
    ("z.0.h0", "z.1.h0", "k"),
    ("embed", "z.1.h0", "v"),
    ("z.1.h0", "logits", "logits"),
)


@dataclass(frozen=True)
class Layout:
    """Which heads of each layer of `heads` are of which kind."""

    heads: int
    previous: tuple[int, ...]
    duplicate: tuple[int, ...]
    induction: tuple[int, ...]
    suppressing: tuple[int, ...]

    @property
    def roles(self) -> dict[str, tuple[str, ...]]:
        first, second = (
            {name: tuple(f"z.{layer}.h{head}" for head in sorted(heads)) for name, heads in found.items()}
            for layer, found in enumerate(
                (
                    {"previous_token": self.previous, "duplicate_token": self.duplicate},
                    {"induction": self.induction, "copying": self.induction, "suppression": self.suppressing},
                )
            )
        )
        return first | second


ONE_OF_EACH: Final = Layout(3, (0,), (1,), (0,), (1,))


def two_of_each(seed: int, heads: int = 12) -> Layout:
    """Two heads of each kind, in places drawn by the seed."""
    source = generator(seed, 4)
    drawn = [tuple(torch.randperm(heads, generator=source)[:4].tolist()) for _ in range(2)]
    return Layout(heads, drawn[0][:2], drawn[0][2:], drawn[1][:2], drawn[1][2:])


def network(seed: int, layout: Layout = ONE_OF_EACH, layers: int = 2, d_mlp: int = 0) -> Network:
    """The network above; further layers and MLPs do nothing."""
    width = TOKENS + PLACES
    made = Network(
        {"token": TOKENS, "place": PLACES, "before": TOKENS, "again": TOKENS, "said": TOKENS},
        vocab_size=TOKENS,
        num_hidden_layers=layers,
        num_attention_heads=layout.heads,
        head_dim=width,
        intermediate_size=d_mlp,
        max_position_embeddings=PLACES,
    )
    token, place = torch.eye(TOKENS), torch.eye(PLACES)
    loud = SHARP * width**0.5
    same, here = beside([token, place], width)
    made.embed({"token": token}, {"place": place})
    for head in layout.previous:
        share = token / len(layout.previous)
        made.head(
            0,
            head,
            {"place": loud * place},
            {"place": place.roll(1, dims=1)},
            {"token": token},
            {"before": share},
        )
    for head in layout.duplicate:
        reads = {"token": loud * same, "place": -loud * here}
        made.head(0, head, reads, {"token": same, "place": here}, {"token": token}, {"again": token})
    # The first place has no place before it: a previous-token head writes its own token there. A dimension that every
    # place asks for, and that the first one alone answers, with a minus, keeps induction heads away.
    asks, first = torch.zeros(PLACES, width), torch.zeros(PLACES, width)
    asks[:, TOKENS], first[0, TOKENS] = loud, -1.0
    for head in layout.induction:
        share = LOUD * token / len(layout.induction)
        reads = {"token": loud * same, "place": asks}
        made.head(1, head, reads, {"before": same, "place": first}, {"token": token}, {"said": share})
    for head in layout.suppressing:
        share = -LOUD * token / len(layout.suppressing)
        made.head(1, head, {"place": loud * place}, {"place": place}, {"token": token}, {"said": share})
    source = generator(seed, 0)

    def small(rows: int) -> torch.Tensor:
        return QUIET * torch.randn(rows, width, generator=source)

    busy = ((*layout.previous, *layout.duplicate), (*layout.induction, *layout.suppressing))
    for layer, target in ((0, "again"), (1, "said")):
        for head in set(range(layout.heads)) - set(busy[layer]):
            query, key, value = ({"token": small(TOKENS), "place": small(PLACES)} for _ in range(3))
            made.head(layer, head, query, key, value, {target: small(TOKENS).T})
    made.unembed({"said": token, "token": torch.randn(TOKENS, TOKENS, generator=source)})
    return made


def rows(count: int, seed: int, *stream: int) -> torch.Tensor:
    """Blocks of `PERIOD` different random tokens, twice `[row, place]`."""
    source = generator(seed, *stream)
    block = torch.rand(count, TOKENS, generator=source).argsort(-1)[:, :PERIOD]
    return torch.cat([block, block], dim=1)


def build(name: str, seed: int) -> Case:
    """`induction_circuit` or `planted_heads`, by the last word of the name."""
    alone = name.endswith("induction_circuit")
    layout = ONE_OF_EACH if alone else two_of_each(seed)
    module = network(seed, layout).module
    model = load(module)
    model.name = name
    tokens = rows(ROWS, seed, 1)
    data = pairs(tokens, seed)
    truth = Truth(roles=layout.roles)
    if alone:
        nodes = sorted({end for source, target, _ in EDGES for end in (source, target)})
        circuit = Circuit.of(nodes, [Edge(*ends) for ends in EDGES])
        truth = replace(truth, circuit=circuit, unshown=unshown(model, circuit, data))
    return Case(
        name=name,
        task="The next token of a block of random tokens that repeats, by heads written by hand.",
        model=model,
        truth=truth,
        evidence=evidence(module, layout, tokens),
        pairs=data,
        tokens=tokens,
        seed=seed,
        twin="drawn",
    )


def pairs(tokens: torch.Tensor, seed: int) -> Pairs:
    """Rows cut where the next token is certain. In the corrupt twin that token is another, wherever it stands."""
    clean, right = tokens[:, : PERIOD + 3], tokens[:, 3]
    free = torch.rand(len(tokens), TOKENS, generator=generator(seed, 2)).scatter(1, clean, -1.0)
    wrong = free.argmax(-1)
    corrupt = torch.where(clean == right[:, None], wrong[:, None], clean)
    return contrast(clean, corrupt, right, wrong, words=_word, seed=seed)


def evidence(module: Transformer, layout: Layout, tokens: torch.Tensor) -> tuple[Evidence, ...]:
    """What the heads do on these rows, and how often the next token is right from the second block on."""
    seen = account(module, tokens)
    place = torch.arange(PERIOD, 2 * PERIOD - 1)
    looks = {
        "previous_token": ("the place before", place - 1),
        "duplicate_token": ("the same token before", place - PERIOD),
        "induction": ("what followed it", place - PERIOD + 1),
        "suppression": ("its own place", place),
    }
    guesses = seen.logits[:, place].argmax(-1)
    return (
        *(
            Evidence(
                f"attention of {head} to {where}", float(seen.patterns[head][:, place, at].mean()), least=0.99
            )
            for role, (where, at) in looks.items()
            for head in layout.roles[role]
        ),
        Evidence(
            "next tokens right in the second block",
            float((guesses == tokens[:, place + 1]).double().mean()),
            least=0.99,
            n=guesses.numel(),
        ),
    )


def _word(token: int) -> str:
    return f"t{token}"
