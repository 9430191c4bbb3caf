"""What does each part add to an answer? A small random network without norms, with the sums written out beside it.

The key has the direct contribution of every part to the difference of two logits, and of every path from a part through
the values of one head. They are sums in double precision that the network's own forward has no part in, so a method
that calls its numbers exact must give the same ones.
"""

import torch

from microtome.core.draws import generator
from microtome.data.pairs import Pairs
from microtome.models.load import load
from microtome.models.transformer import Transformer, TransformerConfig
from microtome.testbeds.algorithmic.network import contrast
from microtome.testbeds.case import Case, Evidence, Truth
from microtome.testbeds.hand_set.arithmetic import account

TOKENS, PLACES, ROWS = 12, 7, 16


def network(seed: int) -> Transformer:
    """Two layers of three heads and an MLP, weights drawn so that every part says something."""
    config = TransformerConfig(
        vocab_size=TOKENS,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=3,
        head_dim=6,
        intermediate_size=24,
        max_position_embeddings=PLACES,
        norm="none",
        bias=False,
    )
    module = Transformer(config).eval()
    source = generator(seed, 0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source) * parameter.shape[-1] ** -0.5)
    return module


def differing(module: Transformer, places: int, seed: int, count: int = ROWS) -> Pairs:
    """Random rows in pairs between which the network's own choice at the last place differs."""
    source = generator(seed, 1)
    rows = torch.randint(TOKENS, (64 * count, 2, places), generator=source)
    with torch.no_grad():
        chosen = module(rows.flatten(0, 1)).logits[:, -1].argmax(-1).view(-1, 2)
    some = (chosen[:, 0] != chosen[:, 1]).nonzero().flatten()[:count]
    return contrast(rows[some, 0], rows[some, 1], chosen[some, 0], chosen[some, 1], seed=seed)


def build(name: str, seed: int) -> Case:
    """The network with its sums."""
    module = network(seed)
    model = load(module)
    model.name = name
    pairs = differing(module, PLACES, seed)
    seen = account(module, pairs.clean)
    right, wrong = (torch.tensor([row[0] for row in side]) for side in (pairs.answers, pairs.wrong))
    unembed = module.unembed.weight.detach().double()
    direction = unembed[right] - unembed[wrong]

    def along(wrote: torch.Tensor) -> float:
        return float(torch.einsum("rm,rm->r", wrote[:, -1], direction).mean())

    direct = {f"direct.{part}": along(wrote) for part, wrote in seen.writes.items()}
    paths = {f"path.{part}.{head}": along(wrote) for (part, head), wrote in seen.through.items()}
    with torch.no_grad():
        own = module(pairs.clean).logits.double()
    return Case(
        name=name,
        task="The difference of two logits of a random network, part by part.",
        model=model,
        truth=Truth(quantities=direct | paths),
        evidence=(
            Evidence(
                "largest difference of a logit from the sums written out",
                float((own - seen.logits).abs().max()),
                most=1e-4,
                n=own.numel(),
            ),
        ),
        pairs=pairs,
        tokens=pairs.clean,
        seed=seed,
    )
