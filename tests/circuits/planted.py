"""Pairs of random prompts, and a network in which one path of two heads does everything."""

import torch
from tests.models import families

import microtome
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.models.transformer import Transformer, TransformerConfig


def pairs_of(clean: torch.Tensor, corrupt: torch.Tensor, answers: list[int], wrong: list[int]) -> Pairs:
    n = len(clean)
    return Pairs(
        clean,
        corrupt,
        None,
        tuple((answer,) for answer in answers),
        tuple((other,) for other in wrong),
        ({},) * n,
        ("",) * n,
        ("",) * n,
        {},
    )


def random_pairs(rows: int = 4) -> Pairs:
    return pairs_of(families.ids(rows, seed=0), families.ids(rows, seed=1), [3] * rows, [5] * rows)


def planted(seed: int = 0) -> tuple[Model, Pairs]:
    """An attention-only network in which head 0.1 copies the token before, and head 1.2 sends what it brought on.

    Four slots of the stream: token now, token before, output; every other head has small random weights.
    """
    tokens, width, heads = 6, 24, 4
    config = TransformerConfig(
        vocab_size=tokens,
        hidden_size=4 * tokens,
        num_hidden_layers=2,
        num_attention_heads=heads,
        head_dim=width,
        intermediate_size=0,
        max_position_embeddings=tokens,
        norm="none",
        bias=False,
    )
    torch.manual_seed(seed)
    module = Transformer(config).eval()
    eye = torch.eye(tokens)
    now, before, out, where = (slice(i * tokens, (i + 1) * tokens) for i in range(4))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.01)
        module.embed.weight.zero_()
        module.embed.weight[:, now] = eye
        module.pos_embed.weight.zero_()
        module.pos_embed.weight[:, where] = eye
        module.unembed.weight.zero_()
        module.unembed.weight[:, out] = eye
        first = module.blocks[0].attn
        mine = slice(1 * width, 1 * width + tokens)
        for linear in (first.q, first.k, first.v):
            linear.weight[1 * width : 2 * width] = 0
        first.o.weight[:, 1 * width : 2 * width] = 0
        first.q.weight[mine, where] = 100 * torch.diag(torch.ones(tokens - 1), 1)
        first.k.weight[mine, where] = eye
        first.v.weight[mine, now] = eye
        first.o.weight[before, mine] = eye
        second = module.blocks[1].attn
        mine = slice(2 * width, 2 * width + tokens)
        for linear in (second.q, second.k, second.v):
            linear.weight[2 * width : 3 * width] = 0
        second.o.weight[:, 2 * width : 3 * width] = 0
        second.q.weight[mine, where] = 100 * eye
        second.k.weight[mine, where] = eye
        second.v.weight[mine, before] = eye
        second.o.weight[out, mine] = 4 * eye
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(tokens, (8, tokens), generator=generator)
    corrupt = clean.clone()
    corrupt[:, -2] = (clean[:, -2] + 1 + torch.randint(tokens - 1, (8,), generator=generator)) % tokens
    pairs = pairs_of(clean, corrupt, clean[:, -2].tolist(), corrupt[:, -2].tolist())
    return microtome.load(module), pairs
