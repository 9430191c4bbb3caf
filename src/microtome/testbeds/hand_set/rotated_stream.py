"""A lens for one basis: the network of `planted_heads`, whose stream is turned round half-way and back at the end.

1. `straight`: heads 0.0 and 1.0 do the task in the first two layers of four; the last two do nothing.
2. `rotated`: the MLP of layer 1 turns the stream by a random rotation, and the MLP of layer 3 turns it back. Between
   them everything is there that was there before, in another basis: the last logits are the same.

The key is how often the target is on top at each site when the stream is read in the basis it stands in. Reading it
in the last one, as the logit lens does, must be right throughout the first network and fail between the two MLPs of the
second.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core.draws import generator
from microtome.models.load import load
from microtome.testbeds.case import Case, Evidence, Truth
from microtome.testbeds.hand_set.arithmetic import account
from microtome.testbeds.hand_set.planted_heads import PERIOD, ROWS, network, rows

LAYERS, TURNED = 4, ("resid_post.1", "resid_mid.2", "resid_post.2", "resid_mid.3")


def rotation(size: int, seed: int) -> Float[Tensor, "size size"]:
    """A random rotation (or reflection), orthogonal up to rounding."""
    found: Tensor = torch.linalg.qr(torch.randn(size, size, generator=generator(seed, 3)).double()).Q
    return found


def build(name: str, seed: int) -> Case:
    """`straight` or `rotated`, by the last word of the name."""
    size = network(seed).module.config.hidden_size
    turn = rotation(size, seed) if name.endswith("rotated") else torch.eye(size).double()
    made = network(seed, layers=LAYERS, d_mlp=2 * size)
    made.linear_mlp(1, (turn - torch.eye(size)).float())
    made.linear_mlp(3, (turn.T - torch.eye(size)).float())
    model = load(made.module)
    model.name = name
    tokens = rows(ROWS, seed, 1)
    seen = account(made.module, tokens)
    unembed = made.module.unembed.weight.detach().double()
    top = {}
    for site, stream in seen.streams.items():
        own = stream @ turn.T if site in TURNED else stream
        guesses = (own @ unembed.T).argmax(-1)
        # The last place of a row has no next token; there the lens takes the network's own choice as the target.
        target = torch.cat([tokens[:, 1:], seen.logits[:, -1:].argmax(-1)], dim=1)
        top[f"top.{site}"] = float((guesses == target).double().mean())
    plain = account(network(seed).module, tokens)
    answered = seen.logits[:, PERIOD:-1].argmax(-1) == tokens[:, PERIOD + 1 :]
    return Case(
        name=name,
        task="The next token of a block of random tokens that repeats, in a stream that is turned half-way."
        if name.endswith("rotated")
        else "The next token of a block of random tokens that repeats, known after two layers of four.",
        model=model,
        truth=Truth(quantities=top),
        evidence=(
            Evidence(
                "largest difference of a logit from that of the two-layer network",
                float((seen.logits - plain.logits).abs().max()),
                most=1e-3,
            ),
            Evidence(
                "next tokens right in the second block",
                float(answered.double().mean()),
                least=0.99,
                n=answered.numel(),
            ),
        ),
        tokens=tokens,
        seed=seed,
        twin="drawn",
    )
