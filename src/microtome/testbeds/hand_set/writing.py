"""How is a network written by hand? The stream as named blocks of directions, and heads that read and write them."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.models.transformer import Block, Transformer, TransformerConfig

Reads = Mapping[str, Float[Tensor, "_ _"]]  # `[block, dim]`: the parts of one head differ


class Network:
    """A `Transformer` without norms, all zeros at first. blocks: sizes of the blocks of the stream, in their order."""

    def __init__(self, blocks: Mapping[str, int], **sizes: int | str | bool) -> None:
        ends = torch.tensor([0, *blocks.values()]).cumsum(0).tolist()
        self.at = {name: slice(ends[n], ends[n + 1]) for n, name in enumerate(blocks)}
        config = TransformerConfig(
            hidden_size=ends[-1], **({"norm": "none", "bias": False, "hidden_act": "relu"} | sizes)
        )
        self.module = Transformer(config).eval()
        self.head_dim = config.head_dim
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.zero_()

    @torch.no_grad()
    def embed(self, tokens: Mapping[str, Tensor], positions: Mapping[str, Tensor] | None = None) -> None:
        """What tokens and positions write `[token, block]`."""
        for block, matrix in tokens.items():
            self.module.embed.weight[:, self.at[block]] = matrix
        for block, matrix in (positions or {}).items():
            assert self.module.pos_embed is not None
            self.module.pos_embed.weight[:, self.at[block]] = matrix

    @torch.no_grad()
    def head(
        self, layer: int, head: int, query: Reads, key: Reads, value: Reads, output: Mapping[str, Tensor]
    ) -> None:
        """What a head reads from each block `[block, dim]`, and what it writes there `[dim, block]`. Fewer dimensions
        than the head has leave the rest zero."""
        attention = self._block(layer).attn
        start = head * self.head_dim
        for projection, reads in ((attention.q, query), (attention.k, key), (attention.v, value)):
            for block, matrix in reads.items():
                projection.weight[start : start + matrix.shape[1], self.at[block]] = matrix.T
        for block, matrix in output.items():
            attention.o.weight[self.at[block], start : start + len(matrix)] = matrix.T

    @torch.no_grad()
    def linear_mlp(self, layer: int, matrix: Float[Tensor, "d_model d_model"]) -> None:
        """Let an MLP of 2 · d_model ReLUs add `stream @ matrix`: relu(x) − relu(−x) = x."""
        mlp = self._block(layer).mlp
        assert mlp is not None
        eye = torch.eye(len(matrix))
        mlp.up.weight.copy_(torch.cat([eye, -eye]))
        mlp.down.weight.copy_(torch.cat([matrix, -matrix]).T)

    @torch.no_grad()
    def neurons(
        self,
        layer: int,
        reads: Float[Tensor, "neuron d_model"],
        writes: Mapping[str, Float[Tensor, "neuron _"]],
    ) -> None:
        """What each neuron reads of the stream, and what it writes into blocks."""
        mlp = self._block(layer).mlp
        assert mlp is not None
        mlp.up.weight.copy_(reads)
        for block, matrix in writes.items():
            mlp.down.weight[self.at[block]] = matrix.T

    def _block(self, layer: int) -> Block:
        block = self.module.blocks[layer]
        assert isinstance(block, Block)
        return block

    @torch.no_grad()
    def unembed(self, reads: Mapping[str, Float[Tensor, "token block"]]) -> None:
        for block, matrix in reads.items():
            self.module.unembed.weight[:, self.at[block]] = matrix


def beside(parts: Sequence[Tensor], width: int) -> list[Tensor]:
    """Matrices `[block, dim]` moved to dimensions of their own, one after the other, of `width` in all."""
    found, start = [], 0
    for part in parts:
        whole = torch.zeros(len(part), width)
        whole[:, start : start + part.shape[1]] = part
        found.append(whole)
        start += part.shape[1]
    return found
