"""Which head reads which? Two layers of four random heads, joined only where the key says so.

Each head of the first layer writes into a block of the stream of its own. The second layer reads one of these through
queries (0.0 → 1.3), one through keys (0.1 → 1.2), one through values (0.2 → 1.0), and the embedding in all other ways;
the logits read what heads 1.0, 1.2 and 1.3 write. Nothing reads heads 0.3 and 1.1, though they are as busy.
"""

import torch

from microtome.core.circuit import Circuit, Edge
from microtome.core.draws import generator
from microtome.models.load import load
from microtome.testbeds.case import Case, Evidence, Truth
from microtome.testbeds.edge_ablation import candidate_edges, cut, unshown, writes
from microtome.testbeds.hand_set.exact_sums import TOKENS, differing
from microtome.testbeds.hand_set.writing import Network

WORD, ROOM, D_HEAD, PLACES = 24, 8, 8, 6
JOINED = {(3, "q"): 0, (2, "k"): 1, (0, "v"): 2}
GAIN = 1.5


def network(seed: int) -> Network:
    """The network above."""
    made = Network(
        {"word": WORD, **{f"room {head}": ROOM for head in range(4)}, "said": WORD, "unread": WORD},
        vocab_size=TOKENS,
        num_hidden_layers=2,
        num_attention_heads=4,
        head_dim=D_HEAD,
        intermediate_size=0,
        positions="none",
        max_position_embeddings=PLACES,
    )
    source = generator(seed, 0)

    def drawn(rows: int, columns: int) -> torch.Tensor:
        return GAIN * torch.randn(rows, columns, generator=source) * rows**-0.5

    made.embed({"word": torch.randn(TOKENS, WORD, generator=source)})
    for layer in range(2):
        for head in range(4):
            reads = []
            for kind in "qkv":
                block = f"room {JOINED[head, kind]}" if layer and (head, kind) in JOINED else "word"
                size = made.at[block].stop - made.at[block].start
                reads.append({block: drawn(size, D_HEAD)})
            target = f"room {head}" if not layer else "unread" if head == 1 else "said"
            width = made.at[target].stop - made.at[target].start
            made.head(layer, head, reads[0], reads[1], reads[2], {target: drawn(D_HEAD, width)})
    made.unembed({"said": torch.randn(TOKENS, WORD, generator=source)})
    return made


def edges() -> tuple[tuple[str, str, str], ...]:
    """All edges over which something comes that reaches the logits."""
    found = [("embed", f"z.0.h{head}", kind) for head in range(3) for kind in "qkv"]
    for head in (0, 2, 3):
        for kind in "qkv":
            joined = JOINED.get((head, kind))
            found.append(("embed" if joined is None else f"z.0.h{joined}", f"z.1.h{head}", kind))
    return (*found, *((f"z.1.h{head}", "logits", "logits") for head in (0, 2, 3)))


def build(name: str, seed: int) -> Case:
    """The network with its edges."""
    module = network(seed).module
    model = load(module)
    model.name = name
    pairs = differing(module, PLACES, seed)
    circuit = Circuit.of(
        sorted({end for source, target, _ in edges() for end in (source, target)}),
        [Edge(*ends) for ends in edges()],
    )
    here, there = writes(model, pairs.clean), writes(model, pairs.corrupt)
    change = {part: there[part] - wrote for part, wrote in here.items()}
    whole = model.run(pairs.clean, logits=True).logits
    assert whole is not None
    moved = 0.0
    others = [ends for ends in candidate_edges(model) if ends not in set(edges())]
    for ends in others:
        logits = model.run(pairs.clean, edit=[cut(model, change, ends)], logits=True).logits
        assert logits is not None
        moved = max(moved, float((logits - whole).detach().abs().max()))
    return Case(
        name=name,
        task="The choice of a random network whose heads read each other in three places.",
        model=model,
        truth=Truth(circuit=circuit, unshown=unshown(model, circuit, pairs)),
        evidence=(
            Evidence(
                "largest change of a logit by cutting any other edge",
                moved,
                most=1e-4,
                n=len(others),
            ),
        ),
        pairs=pairs,
        tokens=pairs.clean,
        seed=seed,
        twin="drawn",
    )
