"""GPT-2 with a stream of its own for every reader, written out: what edge scores and circuits are by definition.

Nothing of ours: every head's query, key and value, every MLP and the logits read a copy of the stream of their own. In
the precision of the module that is given; in float64 it tells whose rounding a difference is.
"""

from collections.abc import Callable

import torch
import transformers
from torch import Tensor
from torch.nn import functional

Moved = Callable[[str, Tensor], Tensor]
Module = transformers.GPT2LMHeadModel


def entering(module: Module, tokens: Tensor) -> Tensor:
    """What enters the first block."""
    body = module.transformer
    embedded: Tensor = body.wte(tokens) + body.wpe(torch.arange(tokens.shape[1]))
    return embedded


def still(_: str, value: Tensor) -> Tensor:
    return value


def forward(
    module: Module, first: Tensor, moved: Moved = still
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Logits at the last position, what each source writes, and the copy that each receiver reads.

    moved: what a source is made to write in place of what it writes.
    """
    writes, reads = {"embed": moved("embed", first)}, {}
    stream, heads = writes["embed"], module.config.n_head

    def read(name: str) -> Tensor:
        reads[name] = stream.clone()
        if reads[name].requires_grad:
            reads[name].retain_grad()
        return reads[name]

    for layer, block in enumerate(module.transformer.h):
        before = []
        for head in range(heads):
            name = f"z.{layer}.h{head}"
            made = _head(block, head, heads, [read(f"{name} {kind}") for kind in "qkv"])
            writes[name] = moved(name, made)
            before.append(writes[name])
        stream = stream + sum(before) + block.attn.c_proj.bias
        name = f"mlp_out.{layer}"
        writes[name] = moved(name, block.mlp(block.ln_2(read(f"{name} mlp"))))
        stream = stream + writes[name]
    logits = module.lm_head(module.transformer.ln_f(read("logits logits"))[:, -1])
    return logits, writes, reads


def difference(logits: Tensor, answers: list[int], wrong: list[int]) -> Tensor:
    """The logit difference of each row."""
    rows = torch.arange(len(logits))
    return logits[rows, answers] - logits[rows, wrong]


def gradients(
    module: Module, first: Tensor, answers: list[int], wrong: list[int], moved: Moved = still
) -> dict[str, Tensor]:
    """The gradient of the summed logit difference at each receiver's copy."""
    logits, _, reads = forward(module, first.detach().requires_grad_(), moved)
    difference(logits, answers, wrong).sum().backward()
    return {name: torch.zeros_like(at) if at.grad is None else at.grad for name, at in reads.items()}


@torch.no_grad()
def circuit(module: Module, clean: Tensor, corrupt: Tensor, kept: Tensor) -> Tensor:
    """Logits at the last position: the corrupt stream, plus what kept sources write now and did not there.

    kept `[receiver, source]`: receivers and sources in the order of a pass, all queries of a layer before its keys.
    """
    here, there = [entering(module, clean)], [entering(module, corrupt)]
    constant, row, heads = torch.zeros_like(here[0][0, 0]), 0, module.config.n_head

    def read() -> Tensor:
        nonlocal row
        columns = kept[row].nonzero().flatten().tolist()
        row += 1
        total = torch.stack(there).sum(0) + constant
        for column in columns:
            total = total + here[column] - there[column]
        return total

    for block in module.transformer.h:
        streams = [[read() for _ in range(heads)] for _ in range(3)]
        before = torch.stack(there).sum(0) + constant
        new = [_head(block, n, heads, [kind[n] for kind in streams]) for n in range(heads)]
        old = [_head(block, n, heads, [before] * 3) for n in range(heads)]
        here, there, constant = here + new, there + old, constant + block.attn.c_proj.bias
        stream = read()
        before = torch.stack(there).sum(0) + constant
        here = [*here, block.mlp(block.ln_2(stream))]
        there = [*there, block.mlp(block.ln_2(before))]
    logits: Tensor = module.lm_head(module.transformer.ln_f(read())[:, -1])
    return logits


def _head(block: torch.nn.Module, head: int, heads: int, streams: list[Tensor]) -> Tensor:
    """What a head writes, its query, key and value made of three streams."""
    width = streams[0].shape[-1] // heads
    made = []
    for part, stream in enumerate(streams):
        at = slice((part * heads + head) * width, (part * heads + head + 1) * width)
        made.append(block.ln_1(stream) @ block.attn.c_attn.weight[:, at] + block.attn.c_attn.bias[at])
    z = functional.scaled_dot_product_attention(*made, is_causal=True)
    return z @ block.attn.c_proj.weight[head * width : (head + 1) * width]
