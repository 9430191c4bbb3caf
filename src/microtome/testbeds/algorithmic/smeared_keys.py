"""Does learning from the context come with induction, or at the same time by chance? One layer, and smeared keys.

1. Induction takes two layers, because a head must know what stood before the tokens that it looks at, and in one layer
   nobody has told it.
2. With smeared keys, each key is mixed with that of the place before, by a share that each head learns: then one layer
   can do it, and nothing else has changed (Olsson et al. 2022, argument 2).
3. So of two one-layer networks, trained alike, the smeared one must match prefixes and learn from its context, and the
   plain one must do neither.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from microtome.core.draws import generator
from microtome.models.transformer import Block, Transformer
from microtome.testbeds.algorithmic.induction import LENGTH, TOKENS, repeats
from microtome.testbeds.algorithmic.network import Task, new_module


class SmearedKeys(nn.Linear):
    """Keys of one head, each mixed with the one before it: s·k_t + (1 − s)·k_{t−1}, s = sigmoid(`mix`)."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None)
        self.load_state_dict(plain.state_dict())
        self.mix = nn.Parameter(torch.zeros(()))

    def forward(
        self, stream: Float[Tensor, "batch position d_model"]
    ) -> Float[Tensor, "batch position width"]:
        keys = super().forward(stream)
        before = torch.cat([torch.zeros_like(keys[:, :1]), keys[:, :-1]], 1)
        share = torch.sigmoid(self.mix)
        return share * keys + (1 - share) * before


def task() -> Task:
    """One layer of one head, on the rows of the two-layer network; the same for plain and for smeared keys."""
    return Task(
        testbed="smeared_keys",
        case="one_layer",
        sizes={
            "vocab_size": TOKENS,
            "hidden_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "head_dim": 64,
            "intermediate_size": 0,
            "max_position_embeddings": LENGTH,
            "norm": "none",
            "bias": False,
            "initializer_range": 0.125,
        },
        batch=lambda seed, step: repeats(64, generator(seed, step)),
        held_out=lambda seed: repeats(256, generator(seed, -1)),
        rate=2e-3,
        weight_decay=0.0,
        steps=600,
        loss=1e-3,
    )


def smeared(task: Task, seed: int) -> Transformer:
    """The network before training, its keys smeared. For training and whole passes: a pass that begins in the middle of
    a row would not know the key before its first."""
    module = new_module(task, seed)
    for block in module.blocks:
        assert isinstance(block, Block)
        block.attn.k = SmearedKeys(block.attn.k)
    return module
