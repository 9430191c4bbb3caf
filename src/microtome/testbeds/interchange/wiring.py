"""Which value does each part of the network read from each other part, and what if some come from another run?

Without norms the stream is a sum, so what a part reads is the sum of what the parts before it wrote. An edge is one
such term: from `embed`, a head or an MLP to the queries, keys or values of a head, to an MLP, or to the logits.

1. `traced` runs the network and keeps what every part writes.
2. Given what the parts wrote in another run, and row by row a set of edges, each target reads the other run's term
   along those edges and its own run's along the rest. All edges out of a part: the part is interchanged.

What the positions add is the same in every run, so no interchange can tell whether it is read: it is no source here.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from microtome.core.errors import InputError
from microtome.models.transformer import Attention, Block, Transformer

EdgeName = tuple[str, str, str]
Written = Float[Tensor, "source row column d_model"]
Tokens = Int[Tensor, "row column"]


@dataclass(frozen=True)
class Wiring:
    """The parts of a transformer of so many layers and heads, each layer with an MLP or (`mlps`) none."""

    layers: int
    heads: int
    mlps: bool = True

    @staticmethod
    def of(module: Transformer) -> "Wiring":
        """Of this network. Raises `InputError` for one with norms, rotated positions or gates in its MLPs."""
        config = module.config
        if config.norm != "none" or config.positions == "rotary":
            raise InputError(
                f"edges are interchanged in networks without norms and rotations, this one has norm "
                f"{config.norm!r} and positions {config.positions!r}"
            )
        return Wiring(config.num_hidden_layers, config.num_attention_heads, config.intermediate_size > 0)

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """All that write, in the order of the pass."""
        found = ["embed"]
        for layer in range(self.layers):
            found += self._heads(layer) + ([f"mlp_out.{layer}"] if self.mlps else [])
        return tuple(found)

    @cached_property
    def targets(self) -> tuple[tuple[str, str], ...]:
        """All that read, as (part, through what): per layer the queries of all heads, keys, values, then the MLP."""
        found = []
        for layer in range(self.layers):
            found += [(head, kind) for kind in "qkv" for head in self._heads(layer)]
            found += [(f"mlp_out.{layer}", "mlp")] if self.mlps else []
        return (*found, ("logits", "logits"))

    @property
    def nodes(self) -> tuple[str, ...]:
        """Heads and MLPs."""
        return self.sources[1:]

    @cached_property
    def edges(self) -> tuple[EdgeName, ...]:
        """Every (source, target, kind) that the pass allows."""
        return tuple(
            (source, target, kind)
            for row, source in enumerate(self.sources)
            for column, (target, kind) in enumerate(self.targets)
            if self._allowed(row, column)
        )

    def mask(self, edges: Collection[EdgeName]) -> Bool[Tensor, "source target"]:
        """True at these edges. Raises `InputError` for one that the pass does not allow."""
        found = torch.zeros(len(self.sources), len(self.targets), dtype=torch.bool)
        for source, target, kind in edges:
            if (source, target, kind) not in self.edges:
                raise InputError(f"this network has no edge from {source} to {target} through {kind!r}")
            found[self.sources.index(source), self.targets.index((target, kind))] = True
        return found

    def out_of(self, nodes: Collection[str]) -> Bool[Tensor, "source target"]:
        """All edges out of these parts: swapped together, they interchange the parts."""
        if unknown := {*nodes} - {*self.sources}:
            raise InputError(f"this network has no {sorted(unknown)}; there are {', '.join(self.sources)}")
        return self.mask([edge for edge in self.edges if edge[0] in nodes])

    def _heads(self, layer: int) -> list[str]:
        return [f"z.{layer}.h{head}" for head in range(self.heads)]

    def _allowed(self, source: int, target: int) -> bool:
        part, _ = self.targets[target]
        if part not in self.sources:
            return True
        first = (
            self.sources.index(f"z.{part.split('.')[1]}.h0")
            if part.startswith("z")
            else self.sources.index(part)
        )
        return source < first


def traced(
    module: Transformer,
    tokens: Tokens,
    other: Written | None = None,
    swapped: Bool[Tensor, "row source target"] | None = None,
) -> tuple[Float[Tensor, "row column token"], Written]:
    """Logits, and what every source wrote.

    other: what the sources wrote in another run of as many rows. swapped: the edges along which each row reads it.
    """
    wiring = Wiring.of(module)
    stream = module.embed(tokens)
    elsewhere = () if other is None else other.unbind()
    written = [stream]
    if module.pos_embed is not None:
        stream = stream + module.pos_embed.weight[: tokens.shape[1]]
    done = 0  # targets

    def reads(count: int) -> Float[Tensor, "target row column d_model"]:
        nonlocal done
        start, done = done, done + count
        if swapped is None or not swapped[:, :, start:done].any():
            return stream.expand(count, *stream.shape)
        change = torch.stack([theirs - ours for ours, theirs in zip(written, elsewhere, strict=False)], 1)
        taken = swapped[:, : len(written), start:done].to(change.dtype)
        return stream + torch.einsum("rst,rscd->trcd", taken, change)

    for block in module.blocks:
        assert isinstance(block, Block)
        heads = _attend(block.attn, reads(3 * wiring.heads))
        written += [*heads]
        stream = stream + heads.sum(0) + (block.attn.o.bias if block.attn.o.bias is not None else 0)
        if block.mlp is not None:
            (read,) = reads(1)
            written.append(block.mlp(read))
            stream = stream + written[-1]
    (read,) = reads(1)
    return module.unembed(read), torch.stack(written)


def _attend(
    attention: Attention, reads: Float[Tensor, "target row column d_model"]
) -> Float[Tensor, "head row column d_model"]:
    """What each head writes. reads: of the queries of all heads, then of the keys, then of the values."""
    n, width = attention.config.num_attention_heads, attention.config.head_dim

    def project(linear: torch.nn.Linear, read: Tensor) -> Float[Tensor, "row head column d_head"]:
        made = torch.einsum("hrcd,hed->rhce", read, linear.weight.unflatten(0, (n, width)))
        return made if linear.bias is None else made + linear.bias.view(n, 1, width)

    q, k, v = (
        project(linear, read)
        for linear, read in zip((attention.q, attention.k, attention.v), reads.chunk(3), strict=True)
    )
    z = functional.scaled_dot_product_attention(q, k, v, is_causal=attention.is_causal)
    return torch.einsum("rhce,dhe->hrcd", z, attention.o.weight.unflatten(1, (n, width)))
