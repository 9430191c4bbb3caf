"""Which parts add up to the residual stream? Embeddings, each head, each MLP and every bias, as vectors.

1. One pass reads, at the positions asked for, the stream entering the first block, `z` of every layer, what attention
   and MLP add, and the stream leaving the last block.
2. A head's vector is its `z` through its slice of the output projection. Where a norm stands behind the attention or
   the MLP (Gemma 2, OLMo 2), it is applied to each part with the divisor of the whole: exact, since nothing else in a
   norm is not linear.
3. Biases are parts of their own: of the output projection, of the MLP, of those norms. The value bias stays inside the
   heads: a pattern that sums to one carries it unchanged.
4. The sum is compared with the stream; more than rounding is an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core.errors import FamilyError, SiteError
from microtome.core.site import Site
from microtome.models.anatomy import Anatomy
from microtome.models.linear_norm import LinearNorm, read_norm
from microtome.models.model import Model
from microtome.models.run import Run


@dataclass(frozen=True)
class StreamPart:
    """One addend: `kind` is embed, pos_embed, head, attn_bias, mlp or mlp_bias."""

    kind: str
    layer: int | None = None
    head: int | None = None

    @property
    def name(self) -> str:
        """As a node: `embed`, `z.3.h7`, `mlp_out.2`; and `attn_bias.0`, `mlp_bias.1`."""
        if self.kind == "head":
            return f"z.{self.layer}.h{self.head}"
        if self.kind == "mlp":
            return f"mlp_out.{self.layer}"
        return ".".join(str(word) for word in (self.kind, self.layer) if word is not None)


@dataclass(frozen=True)
class StreamParts:
    """The parts of the last stream at the positions asked for; `vectors.sum(2)` is `stream` up to rounding."""

    parts: tuple[StreamPart, ...]
    vectors: Float[Tensor, "row position part d_model"]
    stream: Float[Tensor, "row position d_model"]

    @property
    def error(self) -> float:
        """Largest difference between the sum and the stream, relative to the stream's largest value."""
        gap = (self.vectors.sum(dim=2) - self.stream).abs().max()
        return float(gap / self.stream.abs().max().clamp_min(1e-30))


def require_additive(model: Model) -> None:
    """Raise `FamilyError` where the stream is not a plain sum of what the named parts write."""
    family = model.anatomy.family
    if family.residual == "post_norm":
        raise FamilyError(
            f"in {model.name} ({family.name}) a norm stands after each addition, so the stream is not the sum of what "
            "the parts write; use a pre-norm model"
        )
    if family.cross:
        raise FamilyError(
            f"{model.name} ({family.name}) is an encoder–decoder: its cross-attention adds to the stream too, which is "
            "not among the parts; use a decoder-only model"
        )


def behind(anatomy: Anatomy, layer: int, which: str) -> LinearNorm | None:
    """The norm between the attention ("attn") or MLP ("mlp") and the stream, or `None` if they add directly."""
    adder = anatomy.role(f"{which}_adds", layer)
    writer = anatomy.role("o" if which == "attn" else "mlp_down", layer)
    if adder is None or adder is writer:
        return None
    return read_norm(adder, anatomy.sizes["d_model"])


@torch.no_grad()
def stream_parts(
    model: Model,
    tokens: Int[Tensor, "row column"],
    positions: Sequence[int] | None = (-1,),
    mask: Int[Tensor, "row column"] | None = None,
) -> StreamParts:
    """Take the last residual stream apart at some positions (`None` = every column). One pass.

    Raises `FamilyError` where the stream is not a sum, or where the parts do not rebuild it.
    """
    require_additive(model)
    at = None if positions is None else tuple(positions)
    layers = range(model.n_layers)
    norms = [(behind(model.anatomy, n, "attn"), behind(model.anatomy, n, "mlp")) for n in layers]
    reads = [Site("resid_pre", 0, positions=at), Site("resid_post", model.n_layers - 1, positions=at)]
    if model.has("pos_embed"):
        reads.append(Site("pos_embed", positions=at))
    for n in layers:
        reads.append(Site("z", n, positions=at))
        reads += [Site("mlp_out", n, positions=at)] if model.has(Site("mlp_out", n)) else []
        reads += [Site("mlp_post", n, positions=at)] if norms[n][1] is not None else []
    run = model.run(tokens, reads, mask=mask)

    parts, vectors = _embeddings(run, reads[0], model.has("pos_embed"), at)
    for n in layers:
        found = [_attention(model, run, n, norms[n][0], at)]
        if model.has(Site("mlp_out", n)):
            found.append(_mlp(model, run, n, norms[n][1], at))
        for more, made in found:
            parts += more
            vectors += made
    whole = StreamParts(tuple(parts), torch.stack(vectors, dim=2), run[reads[1]].float())
    allowed = 1e-4 if model.dtype == torch.float32 else 32 * torch.finfo(model.dtype).eps
    if whole.error > allowed:
        raise FamilyError(
            f"the parts of {model.name} rebuild its stream only to {whole.error:.1e} (allowed {allowed:.0e}); "
            f"something else writes to it than the map {model.anatomy.family.name!r} knows"
        )
    return whole


Found = tuple[list[StreamPart], list[Tensor]]


def _embeddings(run: Run, first: Site, learned_positions: bool, at: tuple[int, ...] | None) -> Found:
    """What enters the first block: whatever is not the position embedding counts as the token's."""
    entering = run[first].float()
    if not learned_positions:
        return [StreamPart("embed")], [entering]
    position = run[Site("pos_embed", positions=at)].float()
    return [StreamPart("embed"), StreamPart("pos_embed")], [entering - position, position]


def _attention(
    model: Model, run: Run, layer: int, norm: LinearNorm | None, at: tuple[int, ...] | None
) -> Found:
    written, bias = head_writes(model, layer, run[Site("z", layer, positions=at)], norm)
    parts = [StreamPart("head", layer, head) for head in range(written.shape[2])]
    vectors = list(written.unbind(dim=2))
    if bias is not None:
        parts.append(StreamPart("attn_bias", layer))
        vectors.append(bias.expand_as(vectors[0]))
    return parts, vectors


def head_writes(
    model: Model, layer: int, z: Float[Tensor, "row position head d_head"], norm: LinearNorm | None
) -> tuple[Float[Tensor, "row position head d_model"], Tensor | None]:
    """What each head adds to the stream, in float32, and the bias beside them, if any. `norm`: from `behind`."""
    written = torch.einsum("rphd,hdm->rphm", z.float(), model.weight(f"W_O.{layer}").float())
    bias = _bias(model, f"b_O.{layer}")
    if norm is None:
        return written, bias
    whole = written.sum(dim=2) if bias is None else written.sum(dim=2) + bias
    scale = norm.scale(whole)
    return norm.push(written, scale[:, :, None]), _through(norm, bias, scale)


def _mlp(model: Model, run: Run, layer: int, norm: LinearNorm | None, at: tuple[int, ...] | None) -> Found:
    written = run[Site("mlp_out", layer, positions=at)].float()
    bias = _bias(model, f"b_out.{layer}")
    if norm is not None:
        neurons = run[Site("mlp_post", layer, positions=at)].float()
        whole = neurons @ model.weight(f"W_out.{layer}").float()
        bias = _through(norm, bias, norm.scale(whole if bias is None else whole + bias))
    if bias is None:
        return [StreamPart("mlp", layer)], [written]
    return [StreamPart("mlp", layer), StreamPart("mlp_bias", layer)], [
        written - bias,
        bias.expand_as(written),
    ]


def _bias(model: Model, address: str) -> Tensor | None:
    try:
        return model.weight(address).detach().float()
    except SiteError:
        return None


def _through(norm: LinearNorm, bias: Tensor | None, scale: Tensor) -> Tensor | None:
    """A bias behind a norm, with that norm's own; `None` where there is neither."""
    if bias is None:
        return norm.bias if bool(norm.bias.any()) else None
    return norm.push(bias.expand(*scale.shape[:-1], -1), scale) + norm.bias
