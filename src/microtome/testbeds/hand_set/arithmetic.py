"""What does a network of ours without norms compute? The same sums, written out again in double precision.

Nothing of the network's own forward is used, so that what a method says of it can be held against numbers it had no
part in.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from microtome.core.errors import InputError
from microtome.models.transformer import Block, Transformer

Stream = Float[Tensor, "row place d_model"]


@dataclass(frozen=True, eq=False)
class Account:
    """streams: by site. writes: what each part adds to the stream. values: by head, what each part gives it at each
    place, already as the stream would have it. patterns: by head. logits: of every place."""

    streams: dict[str, Stream]
    writes: dict[str, Stream]
    through: dict[tuple[str, str], Stream]
    patterns: dict[str, Float[Tensor, "row query key"]]
    logits: Float[Tensor, "row place token"]


@torch.no_grad()
def account(module: Transformer, tokens: Int[Tensor, "row place"]) -> Account:
    """Everything that happens in a pass. Raises `InputError` for norms, rotary positions, or gated neurons."""
    config = module.config
    if config.norm != "none" or config.positions == "rotary" or config.hidden_act not in ("relu", "gelu"):
        raise InputError("only networks without norms, rotation and gates are written out")
    heads, wide, places = config.num_attention_heads, config.head_dim, tokens.shape[1]
    writes = {"embed": _matrix(module.embed)[tokens]}
    if module.pos_embed is not None:
        writes["pos_embed"] = _matrix(module.pos_embed)[torch.arange(places)].expand_as(writes["embed"])
    stream = torch.stack(list(writes.values())).sum(0)
    streams, patterns, through = {"resid_pre.0": stream}, {}, {}
    hidden = torch.ones(places, places, dtype=torch.bool).triu(1)
    for layer, block in enumerate(module.blocks):
        assert isinstance(block, Block)
        before = dict(writes)
        for head in range(heads):
            name, rows = f"z.{layer}.h{head}", slice(head * wide, (head + 1) * wide)
            query, key, value = (
                stream @ _matrix(each)[rows].T + _bias(each, rows)
                for each in (block.attn.q, block.attn.k, block.attn.v)
            )
            scores = torch.einsum("rqd,rkd->rqk", query, key) / math.sqrt(wide)
            if config.causal:
                scores = scores.masked_fill(hidden, -math.inf)
            pattern = scores.exp() / scores.exp().sum(-1, keepdim=True)
            out = _matrix(block.attn.o)[:, rows].T
            writes[name], patterns[name] = pattern @ value @ out, pattern
            for part, wrote in before.items():
                through[part, name] = pattern @ (wrote @ _matrix(block.attn.v)[rows].T) @ out
        stream = stream + torch.stack([writes[f"z.{layer}.h{head}"] for head in range(heads)]).sum(0)
        if block.attn.o.bias is not None:
            stream = stream + block.attn.o.bias.double()
        if block.mlp is not None:
            streams[f"resid_mid.{layer}"] = stream
            up, down = block.mlp.up, block.mlp.down
            neurons = _active(stream @ _matrix(up).T + _bias(up), config.hidden_act)
            writes[f"mlp_out.{layer}"] = neurons @ _matrix(down).T + _bias(down)
            stream = stream + writes[f"mlp_out.{layer}"]
        streams[f"resid_post.{layer}"] = stream
    return Account(streams, writes, through, patterns, stream @ _matrix(module.unembed).T)


def _matrix(part: nn.Module) -> Float[Tensor, "out in"]:
    assert isinstance(part.weight, Tensor)
    return part.weight.double()


def _bias(part: nn.Linear, rows: slice = slice(None)) -> Float[Tensor, " out"] | float:
    return 0.0 if part.bias is None else part.bias[rows].double()


def _active(x: Float[Tensor, "row place neuron"], name: str) -> Float[Tensor, "row place neuron"]:
    return x.clamp_min(0.0) if name == "relu" else x * (1 + torch.special.erf(x / math.sqrt(2))) / 2
