"""A two-layer model of GPT-2's kind whose heads are written by hand, so that their kinds are known.

The stream has three blocks of 32: the token, the position, and room for the previous token. Tokens and positions are
one-hot, so that the layer norms only shift and scale alike everywhere.

    0.0  looks at the previous position and writes its token into the room: a previous-token head
    1.0  looks where the room holds its own token, and writes the token that stands there: an induction head
    1.1  looks where its own token stands, earlier or now, and writes its negative: a suppressing duplicate-token head
    0.1  does nothing
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from microtome.models.load import load
from microtome.models.model import Model

N = 32
D_HEAD = 48
SHARP = 60.0
LOUD = 8.0


def hand_set() -> Model:
    config = GPT2Config(
        vocab_size=N, n_positions=N, n_embd=3 * N, n_layer=2, n_head=2, n_inner=4, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    module = GPT2LMHeadModel(config).eval()
    token, position, room = (slice(i * N, (i + 1) * N) for i in range(3))
    one, shift = torch.eye(N), torch.eye(N).roll(1, dims=1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "ln" not in name:
                parameter.zero_()
        body = module.transformer
        body.wte.weight[:, token] = one
        body.wpe.weight[:, position] = one

        def head(layer: int, index: int, parts: dict[str, tuple[slice, torch.Tensor]]) -> None:
            for name, (block, matrix) in parts.items():
                start = "QKV".find(name) * 3 * N + index * D_HEAD
                if name == "O":
                    body.h[layer].attn.c_proj.weight[index * D_HEAD : index * D_HEAD + N, block] = matrix
                else:
                    body.h[layer].attn.c_attn.weight[block, start : start + N] = matrix

        head(
            0, 0, {"Q": (position, SHARP * one), "K": (position, shift), "V": (token, one), "O": (room, one)}
        )
        head(1, 0, {"Q": (token, SHARP * one), "K": (room, one), "V": (token, one), "O": (token, LOUD * one)})
        head(
            1, 1, {"Q": (token, SHARP * one), "K": (token, one), "V": (token, one), "O": (token, -LOUD * one)}
        )
        # At the first position head 0.0 can only look at itself, so the room there holds no previous token.
        # Head 1.0 avoids it, by a direction of its own that every query has.
        body.h[1].attn.c_attn.bias[N] = SHARP
        body.h[1].attn.c_attn.weight[position.start, 3 * N + N] = -2.0
    return load(module)
