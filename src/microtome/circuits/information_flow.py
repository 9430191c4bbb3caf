"""How much of what a part reads came from each part that writes? Shares of one prompt's stream, and flows made of them.

A share is by proximity: `max(0, ‖x‖₁ - ‖x - z‖₁)`, how much farther from the sum `x` one is without the part `z`, over
all parts of the sum. A part that adds nothing, or pulls the other way, has none. Shares under a threshold are dropped
and the rest scaled up to one.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.circuits.edge_ends import EdgeEnds, Writes
from microtome.circuits.edge_graph import EdgeGraph, Reader
from microtome.core.errors import SiteError
from microtome.core.site import Site
from microtome.models.linear_norm import LinearNorm
from microtome.models.model import Model
from microtome.models.run import Run
from microtome.models.stream_parts import behind


def proximity(
    parts: Float[Tensor, "part *place d_model"], whole: Float[Tensor, "*place d_model"], least: float
) -> Float[Tensor, "part *place"]:
    """The share of each part in a sum, at every place; all zero where no part brings one nearer."""
    near = (whole.abs().sum(dim=-1) - (whole - parts).abs().sum(dim=-1)).clamp(min=0)
    return kept(near, least)


def kept(near: Float[Tensor, "part *place"], least: float) -> Float[Tensor, "part *place"]:
    """Of non-negative amounts the shares, those under `least` dropped and the rest scaled up to one."""
    shares = _normal(near)
    return _normal(shares.masked_fill(shares < least, 0.0))


def _normal(amounts: Tensor) -> Tensor:
    total = amounts.sum(dim=0)
    return amounts / torch.where(total > 0, total, 1.0)


@dataclass(frozen=True, eq=False)
class Flow:
    """Prompts whose flow is followed from the logits of the last token back to the embeddings.

    least: the smallest share that is followed. patterns: whether a head's flow divides in three, for its query, its
    keys and its values, or goes to its values alone.
    """

    model: Model
    graph: EdgeGraph
    least: float
    patterns: bool

    def along_edges(self, tokens: Tensor, mask: Tensor | None) -> Float[Tensor, "row receiver source"]:
        """The flow along every edge in every prompt. What reaches the logits is one; what reaches a part leaves it."""
        ends = EdgeEnds(self.model, self.graph)
        layers = range(self.model.n_layers)
        inside = [Site(part, layer) for layer in layers for part in ("pattern", "v")]
        read = list(dict.fromkeys([*ends.origins, *ends.streams, *inside]))
        run = self.model.run(tokens, read, mask=mask)
        writes = ends.writes(run)
        real = self.model.inputs(tokens, mask).batch.real(writes.device)
        arriving = torch.zeros(writes.shape[:3], device=writes.device)
        found = torch.zeros(len(tokens), *self.graph.allowed.shape, device=writes.device)
        last = torch.zeros(real.shape, device=writes.device)
        columns = torch.arange(real.shape[1], device=writes.device)
        last[torch.arange(len(real)), (columns * real).argmax(dim=1)] = 1.0

        def fed(reader: Reader, flows: Float[Tensor, "receiver row position"], shares: Tensor) -> None:
            along = torch.einsum("nrp,urp->rnu", flows, shares)
            found[:, reader.rows, : reader.visible] = along
            arriving[: reader.visible] += flows.sum(dim=0) * shares

        for group in _by_place(self.graph):
            first = group[0]
            shares = proximity(writes[: first.visible], run[ends.stream(first)].float(), self.least)
            for reader in group:
                fed(reader, self._into(reader, run, writes, arriving, last), shares)
        return found

    def _into(
        self, reader: Reader, run: Run, writes: Writes, arriving: Tensor, last: Tensor
    ) -> Float[Tensor, "receiver row position"]:
        """What flows into the receivers of a reader, at each position."""
        if reader.kind == "logits":
            return last[None]
        assert reader.layer is not None
        if reader.kind == "mlp":
            return arriving[self.graph.sources.index(str(Site("mlp_out", reader.layer)))][None]
        start = self.graph.sources.index(str(Site("z", reader.layer, heads=(0,))))
        heads = slice(start, start + self.model.n_heads)
        flow = arriving[heads]
        if reader.kind == "q":
            return flow / 3 if self.patterns else torch.zeros_like(flow)
        if reader.kind == "k" and not self.patterns:
            return torch.zeros_like(flow)[: reader.rows.stop - reader.rows.start]
        moved = self._to_keys(reader.layer, run, writes[heads], flow)
        grouped = moved.unflatten(0, (reader.rows.stop - reader.rows.start, -1)).sum(dim=1)
        return grouped / 3 if self.patterns else grouped

    def _to_keys(
        self, layer: int, run: Run, written: Writes, flow: Float[Tensor, "head row position"]
    ) -> Float[Tensor, "head row position"]:
        """Each head's flow, handed on to the positions that it reads, by what each adds to what the head writes."""
        pattern, v = run[Site("pattern", layer)].float(), run[Site("v", layer)].float()
        values = v.repeat_interleave(pattern.shape[1] // v.shape[2], dim=2).transpose(1, 2)
        out, norm = self.model.weight(f"W_O.{layer}").float(), behind(self.model.anatomy, layer, "attn")
        found = torch.zeros_like(flow)
        for position in flow.sum(dim=(0, 1)).nonzero()[:, 0].tolist():
            weighted = pattern[:, :, position, :, None] * values
            added = torch.einsum("rhkd,hdm->krhm", weighted, out)
            if norm is not None:
                added = norm.push(added, self._divisor(norm, layer, added))
            shares = proximity(added, written[:, :, position].transpose(0, 1), self.least)
            found += torch.einsum("krh,hr->hrk", shares, flow[:, :, position])
        return found

    def _divisor(
        self, norm: LinearNorm, layer: int, added: Float[Tensor, "key row head d_model"]
    ) -> Float[Tensor, "row 1 1"]:
        """What the norm behind the attention divides all heads of a position by."""
        whole = added.sum(dim=(0, 2))
        with suppress(SiteError):
            whole = whole + self.model.weight(f"b_O.{layer}").float()
        return norm.scale(whole)[:, None]


def _by_place(graph: EdgeGraph) -> Iterator[list[Reader]]:
    """Readers from the logits back, those together that read the same stream."""
    groups: dict[tuple[int | None, int], list[Reader]] = {}
    for reader in graph.readers:
        groups.setdefault((reader.layer, reader.visible), []).append(reader)
    yield from reversed(groups.values())
