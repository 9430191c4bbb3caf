"""Which parts are enough by themselves, and which only together? Three gates written by hand, of two heads each.

Six bits stand in a row, each with a head that brings it to the last place. An MLP joins them in pairs:

    and    relu(a + b - 1)                      heads 0.0 and 0.1: either one missing, nothing is left
    or     relu(a + b) - relu(a + b - 1)        heads 0.2 and 0.3: either one is enough
    sum    (a + b) / 2                          heads 0.4 and 0.5: each adds its half

and says a third of the answer for each gate. Clean rows have all bits set, corrupt ones none. Two more heads look at a
place that is the same in both. What fillers say of the token after them is drawn by the seed.
"""

from typing import Final

import torch

from microtome.core.circuit import Circuit, Edge
from microtome.core.draws import generator
from microtome.models.load import load
from microtome.models.transformer import Transformer
from microtome.testbeds.algorithmic.network import contrast
from microtome.testbeds.case import Case, Evidence, Truth
from microtome.testbeds.edge_ablation import unshown
from microtome.testbeds.hand_set.writing import Network

BITS, HEADS, ROWS = 6, 8, 16
FILLERS: Final = 4
LAST, YES, NO = (2 + FILLERS + n for n in range(3))  # after both bits and the fillers
TOKENS, PLACES = NO + 1, BITS + 2
SHARP, LOUD = 40.0, 12.0
GATES: Final = {"and_gate": (0, 1), "or_gate": (2, 3), "sum_gate": (4, 5)}
NEURONS: Final = (  # the heads each reads, what it must exceed, and what it adds to the answer
    ((0, 1), 1.0, 1.0),
    ((2, 3), 0.0, 1.0),
    ((2, 3), 1.0, -1.0),
    ((4,), 0.0, 0.5),
    ((5,), 0.0, 0.5),
)


def network(seed: int) -> Network:
    """The network above."""
    made = Network(
        {"bit": 1, "one": 1, "filler": FILLERS, "place": PLACES, "brought": HEADS, "said": 1},
        vocab_size=TOKENS,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        head_dim=PLACES,
        intermediate_size=len(NEURONS),
        max_position_embeddings=PLACES,
    )
    place, first = torch.eye(PLACES), torch.eye(PLACES)[:1]
    made.embed(
        {
            "bit": torch.eye(TOKENS)[:, 1:2],
            "one": torch.ones(TOKENS, 1),
            "filler": torch.eye(TOKENS)[:, 2:LAST],
        },
        {"place": place},
    )
    for head in range(HEADS):
        sought = torch.zeros(PLACES, PLACES)
        sought[:, min(head, BITS)] = SHARP * PLACES**0.5
        brought = torch.zeros(PLACES, HEADS)
        brought[0, head] = 1.0
        made.head(0, head, {"place": sought}, {"place": place}, {"bit": first}, {"brought": brought})
    reads = torch.zeros(len(NEURONS), made.module.config.hidden_size)
    for neuron, (heads, least, _) in enumerate(NEURONS):
        reads[neuron, made.at["brought"]] = torch.eye(HEADS)[list(heads)].sum(0)
        reads[neuron, made.at["one"]] = -least
    made.neurons(0, reads, {"said": torch.tensor([[adds] for _, _, adds in NEURONS])})
    yes, no = (torch.eye(TOKENS)[:, [token]] for token in (YES, NO))
    made.unembed(
        {
            "said": LOUD / len(GATES) * yes,
            "one": LOUD / 2 * no,
            "filler": torch.randn(TOKENS, FILLERS, generator=generator(seed, 1)),
        }
    )
    return made


def edges() -> tuple[tuple[str, str, str], ...]:
    """All edges over which something comes that reaches the logits."""
    heads = [f"z.0.h{head}" for head in range(BITS)]
    return (
        *((source, head, kind) for head in heads for source, kind in _READS),
        *((source, "mlp_out.0", "mlp") for source in ("embed", *heads)),
        *((source, "logits", "logits") for source in ("embed", "mlp_out.0")),
    )


_READS: Final = (("pos_embed", "q"), ("pos_embed", "k"), ("embed", "v"))


def build(name: str, seed: int) -> Case:
    """The gates, on rows whose fillers the seed draws."""
    module = network(seed).module
    model = load(module)
    model.name = name
    filler = 2 + torch.randint(FILLERS, (ROWS, 1), generator=generator(seed, 0))
    bits = torch.ones(ROWS, BITS, dtype=torch.long)
    last = torch.full((ROWS, 1), LAST)
    clean, corrupt = (torch.cat([one, filler, last], dim=1) for one in (bits, 0 * bits))
    yes, no = (torch.full((ROWS,), token) for token in (YES, NO))
    pairs = contrast(clean, corrupt, yes, no, words=_word, task=name, seed=seed)
    circuit = Circuit.of(
        sorted({end for source, target, _ in edges() for end in (source, target)}),
        [Edge(*ends) for ends in edges()],
    )
    said = {name: _said(module, bits_set) for name, bits_set in _TABLE.items()}
    return Case(
        name=name,
        task="Whether bits are set: two of them both, two of them either, two of them by halves.",
        model=model,
        truth=Truth(
            circuit=circuit,
            unshown=unshown(model, circuit, pairs),
            roles={gate: tuple(f"z.0.h{head}" for head in heads) for gate, heads in GATES.items()},
        ),
        evidence=tuple(
            Evidence(f"error of the answer with {name} set", abs(said[name] - expected), most=1e-3)
            for name, expected in _EXPECTED.items()
        ),
        pairs=pairs,
        tokens=clean,
        seed=seed,
        twin="drawn",
    )


# What is said of the three gates together, in thirds, with these bits set.
_TABLE: Final = {
    "no bit": (),
    "one bit of each gate": (0, 2, 4),
    "both of and": (0, 1),
    "both of or": (2, 3),
    "both of sum": (4, 5),
    "every bit": tuple(range(BITS)),
}
_EXPECTED: Final = {
    "no bit": 0.0,
    "one bit of each gate": 1.5,
    "both of and": 1.0,
    "both of or": 1.0,
    "both of sum": 1.0,
    "every bit": 3.0,
}


@torch.no_grad()
def _said(module: Transformer, bits_set: tuple[int, ...]) -> float:
    """How many gates the network says are open."""
    row = torch.tensor([[int(place in bits_set) for place in range(BITS)] + [2, LAST]])
    logits = module(row).logits[0, -1]
    return float(logits[YES] - logits[NO] + LOUD / 2) / (LOUD / len(GATES))


def _word(token: int) -> str:
    return ("0", "1", *(f"filler{n}" for n in range(FILLERS)), "=", "yes", "no")[token]
