"""What would reach a direction of the stream, if patterns and norms stayed as they are? The linear model of one prompt.

With its attention patterns and the divisors of its norms frozen, and its MLPs taken as given, a network is linear from
whatever is written into the stream to whatever is read from it. Of directions read somewhere, the contribution of
everything written is found in one walk from the top to the bottom, many directions at once:

1. `G [position, direction, d_model]` says how much each direction gains from what is written into the stream here.
2. Going down a block: `G` is multiplied with what the MLP's parts wrote; directions that read the MLP's input join;
   then `G` gains what the attention carries to it, `G W_Oᵀ`, mixed by the pattern, `W_Vᵀ`, through the norms.
3. At the bottom it is multiplied with the embeddings. Biases are one contribution of their own.

A direction read at a position is carried to by this and earlier positions only, so directions are walked in groups of
one position. All contributions and the offset sum to what was read: checked by whoever asks.

Ameisen et al. (2025), Circuit Tracing: Revealing Computational Graphs in Language Models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core.errors import FamilyError, SiteError
from microtome.core.site import Site
from microtome.models.head_circuits import norm_before
from microtome.models.linear_norm import LinearNorm, read_norm
from microtome.models.model import Model
from microtome.models.readout import Readout, readout
from microtome.models.run import Run
from microtome.models.stream_parts import behind, require_additive

Gains = Float[Tensor, "position direction d_model"]


@dataclass(frozen=True, eq=False)
class Written:
    """What parts of one kind wrote into the stream behind the MLP of a layer: rows `start[p]` … `start[p + 1]` are
    those at position p, and stand in `column` and after it. vectors `[part, d_model]`."""

    vectors: Float[Tensor, "part d_model"]
    start: tuple[int, ...]
    column: int


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions to walk, each read at one position; by layer, what is read of the MLP's input there.

    reads: layer → (which of the directions, ascending, and the vectors `[some, d_model]` in the input of the MLP).
    final: the same for the input of the unembedding. position `[direction]`.
    """

    position: Int[Tensor, " direction"]
    reads: Mapping[int, tuple[Int[Tensor, " some"], Float[Tensor, "some d_model"]]]
    final: tuple[Int[Tensor, " some"], Float[Tensor, "some d_model"]] | None = None


@dataclass(frozen=True, eq=False)
class _Block:
    pattern: Float[Tensor, "head query key"]
    attn_norm: LinearNorm
    mlp_norm: LinearNorm
    after: LinearNorm | None
    after_scale: Float[Tensor, "position 1"] | None
    attn_stream: Float[Tensor, "position d_model"]
    mlp_stream: Float[Tensor, "position d_model"]
    values: Float[Tensor, "kv d_model"]  # W_Vᵀ, (kv_head d_head) by d_model
    outs: Float[Tensor, "z d_model"]  # W_O, (head d_head) by d_model
    constant: Float[Tensor, "position d_model"]


class FrozenStream:
    """The linear model of one prompt. tokens `[1, position]`, no padding.

    Raises `FamilyError` where the stream is not a sum of what parts write.
    """

    def __init__(self, model: Model, tokens: Int[Tensor, "1 position"]) -> None:
        require_additive(model)
        self.model = model
        self.parallel = model.anatomy.family.residual == "parallel"
        self.n_positions = tokens.shape[1]
        layers = range(model.n_layers)
        self.reads = [Site("resid_pre", 0), Site("resid_post", model.n_layers - 1)]
        for layer in layers:
            if not model.has(Site("mlp_out", layer)):
                raise FamilyError(f"block {layer} of {model.name} has no MLP to take apart into units")
            for part in ("resid_pre", "resid_mid", "pattern", "mlp_in", "mlp_post", "mlp_out", "z"):
                if model.has(Site(part, layer)):
                    self.reads.append(Site(part, layer))
        self.run: Run = model.run(tokens, self.reads, mask=torch.ones_like(tokens))
        self.embedding: Float[Tensor, "position d_model"] = self.run[self.reads[0]][0].float()
        self.blocks = [self._block(layer) for layer in layers]
        self.head: Readout = readout(model)
        self.last: Float[Tensor, "position d_model"] = self.run[self.reads[1]][0].float()

    def at(self, part: str, layer: int) -> Float[Tensor, "position width"]:
        """A value of the run."""
        return self.run[Site(part, layer)][0].float()

    @torch.no_grad()
    def _block(self, layer: int) -> _Block:
        model, anatomy = self.model, self.model.anatomy
        width = model.sizes["d_model"]
        attn_norm = norm_before(model, layer)
        own = anatomy.role("mlp_norm", layer)
        mlp_norm = attn_norm if own is None and self.parallel else read_norm(own, width, model.device)
        attn_stream = self.at("resid_pre", layer)
        pattern = self.run[Site("pattern", layer)][0].float()
        value, out = (model.weight(f"W_{name}.{layer}").detach().float() for name in "VO")
        after = behind(anatomy, layer, "attn")
        bias = self._bias(f"b_O.{layer}")
        scale = None
        from_values = torch.einsum("m,hmd->hd", attn_norm.bias, value) + self._bias(f"b_V.{layer}")
        carried = from_values.repeat_interleave(len(out) // len(value), dim=0)
        constant = torch.einsum("hqk,hd,hdm->qm", pattern, carried, out) + bias
        if after is not None:
            z = self.run[Site("z", layer)][0].float()
            scale = after.scale(torch.einsum("phd,hdm->pm", z, out) + bias)
            constant = after.push(constant, scale) + after.bias
        return _Block(
            pattern,
            attn_norm,
            mlp_norm,
            after,
            scale,
            attn_stream,
            attn_stream if self.parallel else self.at("resid_mid", layer),
            value.transpose(1, 2).flatten(0, 1),
            out.flatten(0, 1),
            constant,
        )

    def _bias(self, address: str) -> Tensor | float:
        try:
            return self.model.weight(address).detach().float()
        except SiteError:
            return 0.0

    @torch.no_grad()
    def walk(
        self,
        directions: Directions,
        written: Sequence[Sequence[Written]],
        constants: Sequence[Float[Tensor, "position d_model"]],
        skips: Sequence[Float[Tensor, "d_model d_model"] | None],
        columns: int,
    ) -> Float[Tensor, "direction column"]:
        """What everything written contributes to each direction.

        written, by layer: what stands behind its MLP. constants, by layer: what is always added there. skips: by layer,
        what the MLP's replacement writes linearly of its input, `[written, read]`. Columns: those that `written` names,
        then the embedding of each position, then all biases together: `columns` of the first, then n_positions + 1.
        """
        found = self.embedding.new_zeros(len(directions.position), columns + self.n_positions + 1)
        for position in directions.position.unique().tolist():
            mine = (directions.position == position).nonzero()[:, 0]
            found[mine] = self._walk_one(position, mine, directions, written, constants, skips, columns)
        return found

    def _walk_one(
        self,
        position: int,
        mine: Int[Tensor, " some"],
        directions: Directions,
        written: Sequence[Sequence[Written]],
        constants: Sequence[Float[Tensor, "position d_model"]],
        skips: Sequence[Float[Tensor, "d_model d_model"] | None],
        columns: int,
    ) -> Float[Tensor, "some column"]:
        """The directions of one position, ordered by where they join: those that have not joined yet cost nothing."""
        joined = torch.full((len(directions.position),), -1, dtype=torch.long)
        for layer, (which, _) in directions.reads.items():
            joined[which] = torch.maximum(joined[which], torch.tensor(layer))
        if directions.final is not None:
            joined[directions.final[0]] = len(self.blocks)
        order = mine[joined[mine].argsort(descending=True, stable=True)]
        place = torch.full((len(directions.position),), -1, dtype=torch.long)
        place[order] = torch.arange(len(order))
        top = joined[order]
        span = position + 1
        gains = self.embedding.new_zeros(span, len(order), self.embedding.shape[1])
        rows = self.embedding.new_zeros(len(order), columns + self.n_positions + 1)
        if directions.final is not None:
            which, vectors = directions.final
            here = place[which] >= 0
            scale = self.head.norm.scale(self.last[position : position + 1])
            gains[position, place[which[here]]] = self.head.norm.pull(vectors[here]) / scale
        for layer in reversed(range(len(self.blocks))):
            block = self.blocks[layer]
            live = int((top > layer).sum())
            above = gains[:, :live]
            for one in written[layer]:
                for p in range(span):
                    first, last = one.start[p], one.start[p + 1]
                    if last > first and live:
                        at = slice(one.column + first, one.column + last)
                        rows[:live, at] += above[p] @ one.vectors[first:last].T
            rows[:live, -1] += torch.einsum("pnm,pm->n", above, constants[layer][:span])
            carried = self._carried(block, above, rows[:live]) if self.parallel else None
            skip = skips[layer]
            if skip is not None and live:
                read = above @ skip
                rows[:live, -1] += read.sum(0) @ block.mlp_norm.bias
                above += block.mlp_norm.back(read, block.mlp_stream[:span, None], frozen=True)
            if layer in directions.reads:
                which, vectors = directions.reads[layer]
                here = place[which] >= 0
                stream = block.mlp_stream[position : position + 1]
                gains[position, place[which[here]]] += block.mlp_norm.back(vectors[here], stream, frozen=True)
                live = int((top >= layer).sum())
            if carried is None:
                carried = self._carried(block, gains[:, :live], rows[:live])
            gains[:, : carried.shape[1]] += carried
        rows[:, columns : columns + span] = torch.einsum("pnm,pm->np", gains, self.embedding[:span])
        return rows[place[mine]]

    def _carried(self, block: _Block, gains: Gains, rows: Float[Tensor, "direction column"]) -> Gains:
        """What the attention of a block carries to directions above it, in its own input; its biases go into rows."""
        span, n, _ = gains.shape
        rows[:, -1] += torch.einsum("pnm,pm->n", gains, block.constant[:span])
        if block.after is not None:
            assert block.after_scale is not None
            gains = block.after.pull(gains) / block.after_scale[:span, None]
        heads = len(block.pattern)
        width = len(block.outs) // heads
        asked = (gains.flatten(0, 1) @ block.outs.T).view(span, n, heads, width)
        by_head = asked.permute(2, 0, 1, 3).reshape(heads, span, n * width)
        mixed = torch.bmm(block.pattern[:, :span, :span].mT, by_head).view(heads, span, n, width)
        groups = len(block.values) // width
        shared = mixed.view(groups, heads // groups, span, n, width).sum(1)
        read = shared.permute(1, 2, 0, 3).reshape(span * n, groups * width) @ block.values
        return block.attn_norm.back(
            read.view(span, n, self.embedding.shape[1]), block.attn_stream[:span, None], frozen=True
        )
