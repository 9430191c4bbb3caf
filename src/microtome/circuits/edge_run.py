"""What does a network compute when some of its edges carry other values? Exactly, in one pass of the untouched module.

1. A cut edge from `u` to `v` means that `v` reads the stream with what `u` writes *now* taken out and an ablated value
   put in: `x_v = x + Σ_u cut[v, u] · (ablated_u - now_u)`. What is cut upstream has changed `now_u` by then.
2. Only receivers with a cut edge are touched. Their input goes through the module's own norm and the weights of their
   own head, and replaces that head's slice of what the projection computed.
3. A receiver with all its edges cut reads what it read in the run that the values come from, bit for bit: so the
   network with no edge left is that run, and the network with none cut is its own.
4. The gradient by an amount cut is `∂metric/∂x_v · (ablated_u - now_u)`, for all edges at once: the gradients at the
   projections, through each head's weights and the norm, contracted with the differences one layer at a time. Nothing
   of the size edges × positions is ever made.

Amounts may lie between 0 and 1. Reference: Nanda (2023) for the first order; Miller et al. (2024) for the conventions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from microtome.circuits.edge_graph import EdgeGraph, Kind, Reader
from microtome.core.edits import Edit, Function, Set
from microtome.core.errors import SiteError
from microtome.core.logits import Metric
from microtome.core.site import Site
from microtome.models.linear_norm import LinearNorm
from microtome.models.model import Model
from microtome.models.run import Run
from microtome.models.stream_parts import behind, head_writes

AblationKind = Literal["resample", "mean", "zero"]
Writes = Float[Tensor, "source row position d_model"]
Amounts = Float[Tensor, "receiver source"]


@dataclass(frozen=True, eq=False)
class Ablation:
    """What cut edges carry. arrived: what receivers read in the run that the values come from, where they come from
    one run."""

    kind: AblationKind
    writes: Writes
    arrived: Mapping[Site, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class EdgeRun:
    """A batch of prompts whose edges can be cut.

    metric: judges each row. Counts of passes are up to the caller: each method here makes one.
    """

    model: Model
    graph: EdgeGraph
    tokens: Int[Tensor, "row column"]
    metric: Metric
    mask: Int[Tensor, "row column"] | None = None

    def ablation(self, kind: AblationKind, tokens: Int[Tensor, "row column"]) -> Ablation:
        """Values taken from other prompts of the same shape: theirs, their mean, or zero.

        The mean is taken over rows at each position where all prompts are equally long, else over all real tokens.
        """
        arrivals = [self._site(reader) for reader in self.graph.readers]
        run = self.model.run(tokens, [*self._origins, *arrivals], mask=self.mask)
        writes = self.writes(run)
        if kind == "resample":
            return Ablation(kind, writes, {site: run[site] for site in arrivals})
        if kind == "zero":
            return Ablation(kind, torch.zeros_like(writes))
        real = self.model.inputs(tokens, self.mask).batch.real(writes.device)
        mean = writes.mean(dim=1, keepdim=True) if real.all() else writes[:, real].mean(dim=1)[:, None, None]
        return Ablation(kind, mean.expand_as(writes).contiguous())

    def score(self, cut: Amounts, ablation: Ablation) -> Float[Tensor, " row"]:
        """The metric of each row with these edges cut."""
        pass_ = _Pass(self, cut, ablation, exact=True)
        return _metric(self.model.run(self.tokens, edit=pass_.edits(), metric=self.metric, mask=self.mask))

    def gradient(
        self,
        ablation: Ablation,
        cut: Amounts | None = None,
        embedding: Tensor | None = None,
        gaps: Writes | None = None,
    ) -> tuple[Float[Tensor, " row"], Amounts]:
        """The metric of each row, and the gradient of its sum by the amount cut of every edge.

        cut: where it is taken; nowhere cut by default. embedding: put in the place of the stream that enters the first
        block. gaps: what the edges' differences are, where they are not those of this very run.
        """
        grads = [self._site(reader).grad for reader in self.graph.readers]
        streams = list(dict.fromkeys(self._stream(reader) for reader in self.graph.readers))
        pass_ = None if cut is None else _Pass(self, cut, ablation, exact=False)
        edits: list[Edit] = [] if embedding is None else [Set(Site("resid_pre", 0), value=embedding)]
        edits += pass_.edits() if pass_ is not None else []
        origins = self._origins if gaps is None else []
        read = list(dict.fromkeys([*origins, *streams, *grads]))
        run = self.model.run(self.tokens, read, edits, metric=self.metric, mask=self.mask)
        if gaps is None:
            gaps = ablation.writes - self.writes(run).detach()
        found = torch.zeros(len(self.graph.receivers), len(self.graph.sources), device=gaps.device)
        flat = gaps.flatten(1)
        for reader in self.graph.readers:
            inputs = pass_.inputs.get(self._site(reader)) if pass_ is not None else None
            stream = run[self._stream(reader)].detach()[None] if inputs is None else inputs.detach()
            at_input = self._pulled(reader, run[self._site(reader).grad], stream)
            found[reader.rows, : reader.visible] = at_input.flatten(1) @ flat[: reader.visible].T
        return _metric(run).detach(), found.detach()

    def writes(self, run: Run) -> Writes:
        """What each source writes in a run that read `origins`."""
        found: list[Tensor] = []
        entering = run[Site("resid_pre", 0)].float()
        if self.graph.splits_positions:
            positions = run[Site("pos_embed")].float().expand_as(entering)
            found += [(entering - positions)[None], positions[None]]
        else:
            found.append(entering[None])
        for layer in range(self.model.n_layers):
            found.append(self.heads(layer, run[Site("z", layer)]))
            if self.model.has(mlp := Site("mlp_out", layer)):
                found.append(run[mlp].float()[None])
        return torch.cat(found)

    def heads(
        self, layer: int, z: Float[Tensor, "row position head d_head"]
    ) -> Float[Tensor, "head row position d_model"]:
        """What each head of a layer writes."""
        written, _ = head_writes(self.model, layer, z, self._behind[layer])
        return written.permute(2, 0, 1, 3)

    @cached_property
    def _behind(self) -> list[LinearNorm | None]:
        return [behind(self.model.anatomy, layer, "attn") for layer in range(self.model.n_layers)]

    @cached_property
    def _origins(self) -> list[Site]:
        """Where what the sources write is read off."""
        found = [Site("resid_pre", 0), *([Site("pos_embed")] if self.graph.splits_positions else [])]
        for layer in range(self.model.n_layers):
            found.append(Site("z", layer))
            if self.model.has(mlp := Site("mlp_out", layer)):
                found.append(mlp)
        return found

    def _site(self, reader: Reader) -> Site:
        """Where the receivers' values stand: projections, the MLP's input, the last stream."""
        if reader.kind == "logits":
            return Site("resid_post", self.model.n_layers - 1)
        return Site("mlp_in" if reader.kind == "mlp" else f"{reader.kind}_proj", reader.layer)

    def _stream(self, reader: Reader) -> Site:
        """The stream that they read, before its norm."""
        if reader.kind == "logits":
            return Site("resid_post", self.model.n_layers - 1)
        between = reader.kind == "mlp" and self.model.anatomy.family.residual != "parallel"
        return Site("resid_mid" if between else "resid_pre", reader.layer)

    def norm(self, reader: Reader) -> nn.Module | None:
        """The norm through which they read; none for the logits, whose norm comes after the last stream."""
        if reader.kind == "logits":
            return None
        anatomy = self.model.anatomy
        attention = anatomy.role("attn_norm", reader.layer)
        if reader.kind != "mlp":
            return attention
        shared = attention if anatomy.family.residual == "parallel" else None
        return anatomy.role("mlp_norm", reader.layer) or shared

    def weights(self, kind: Kind, layer: int) -> tuple[Float[Tensor, "head d_model d_head"], Tensor | None]:
        """Weight and bias of each head's projection."""
        try:
            bias = self.model.weight(f"b_{kind.upper()}.{layer}")
        except SiteError:
            bias = None
        return self.model.weight(f"W_{kind.upper()}.{layer}"), bias

    def _pulled(
        self, reader: Reader, gradient: Tensor, stream: Float[Tensor, "#receiver row position d_model"]
    ) -> Float[Tensor, "receiver row position d_model"]:
        """The gradient by what each receiver reads from the stream, from the gradient behind norm and projection."""
        if reader.kind in ("logits", "mlp"):
            behind_norm = gradient[None]
        else:
            assert reader.layer is not None
            weight, _ = self.weights(reader.kind, reader.layer)
            behind_norm = torch.einsum("rphe,hde->hrpd", gradient, weight)
        norm = self.norm(reader)
        if norm is None:
            return behind_norm.float()
        with torch.enable_grad():
            read = stream.to(gradient.dtype).expand_as(behind_norm).clone().requires_grad_()
            (found,) = torch.autograd.grad(norm(read), read, behind_norm)
        return found.float()


def _metric(run: Run) -> Float[Tensor, " row"]:
    assert run.metric is not None
    return run.metric.float()


class _Pass:
    """The edits of one pass with some edges cut, and what they see on the way.

    exact: receivers with every edge cut read what arrived in the other run. inputs: what each reader's receivers read,
    kept where gradients are to be taken.
    """

    def __init__(self, batch: EdgeRun, cut: Amounts, ablation: Ablation, *, exact: bool) -> None:
        self._batch, self._ablation, self._exact = batch, ablation, exact
        self._cut = (cut.float() * batch.graph.allowed).to(ablation.writes.device)
        self._readers = [reader for reader in batch.graph.readers if bool(self._cut[reader.rows].any())]
        self._gaps = Gaps(ablation.writes, keeps_graph=not exact)
        self._streams: dict[Site, Tensor] = {}
        self.inputs: dict[Site, Tensor] = {}

    def edits(self) -> list[Edit]:
        """None at all where nothing is cut, so that the pass is the untouched one."""
        if not self._readers:
            return []
        batch, graph = self._batch, self._batch.graph
        last = self._readers[-1]
        found: list[Edit] = []

        def at(site: Site, function: Callable[[Tensor], Tensor]) -> None:
            found.append(Function(site, function=function))

        if graph.splits_positions:
            at(Site("pos_embed"), partial(self._watched, Site("pos_embed")))
        for layer in range(batch.model.n_layers):
            stream = Site("resid_pre", layer)
            at(stream, partial(self._watched, stream))
            at(Site("z", layer), partial(self._headed, layer))
            at(Site("attn_out", layer), partial(self._watched, Site("attn_out", layer)))
            if batch.model.has(mlp := Site("mlp_out", layer)):
                at(mlp, self._added)
            for reader in self._readers:
                if reader.layer == layer:
                    at(batch._site(reader), partial(self._read, reader))
        if last.kind == "logits":
            at(batch._site(last), partial(self._read, last))
        return found

    def _watched(self, site: Site, value: Tensor) -> Tensor:
        self._streams[site] = value
        if site == Site("resid_pre", 0):
            entering = value.float()
            if self._batch.graph.splits_positions:
                positions = self._streams[Site("pos_embed")].float().expand_as(entering)
                self._gaps.add(torch.stack([entering - positions, positions]))
            else:
                self._gaps.add(entering[None])
        return value

    def _headed(self, layer: int, z: Tensor) -> Tensor:
        self._gaps.add(self._batch.heads(layer, z))
        return z

    def _added(self, value: Tensor) -> Tensor:
        self._gaps.add(value.float()[None])
        return value

    def _stream(self, reader: Reader, value: Tensor) -> Tensor:
        site = self._batch._stream(reader)
        if reader.kind == "logits":
            return value
        before = self._streams[Site("resid_pre", reader.layer)]
        return before if site.part == "resid_pre" else before + self._streams[Site("attn_out", reader.layer)]

    def _read(self, reader: Reader, value: Tensor) -> Tensor:
        """The value of a reader's receivers, of those with cut edges anew."""
        rows = self._cut[reader.rows, : reader.visible]
        arrived = self._ablation.arrived.get(self._batch._site(reader)) if self._exact else None
        whole = (rows == 1).all(dim=1) if arrived is not None else torch.zeros(len(rows), dtype=torch.bool)
        some = (
            rows.any(dim=1) & ~whole.to(rows.device)
            if self._exact
            else torch.ones(len(rows), dtype=torch.bool)
        )
        if reader.kind in ("mlp", "logits"):
            if bool(whole.any()):
                assert arrived is not None
                return arrived
            return self._through(reader, self._corrected(reader, rows, value))[0].to(value.dtype)
        new = value.clone()
        if arrived is not None and bool(whole.any()):
            new[:, :, whole] = arrived[:, :, whole]
        if bool(some.any()):
            assert reader.layer is not None
            different, which = torch.unique(rows[some], dim=0, return_inverse=True)
            weight, bias = self._batch.weights(reader.kind, reader.layer)
            inputs = self._through(reader, self._corrected(reader, different, value), which).to(weight.dtype)
            made = torch.einsum("hrpd,hde->rphe", inputs, weight[some])
            new[:, :, some] = made if bias is None else made + bias[some]
        return new

    def _corrected(
        self, reader: Reader, rows: Tensor, value: Tensor
    ) -> Float[Tensor, "different row position d_model"]:
        """The stream as receivers with these amounts cut see it."""
        return self._stream(reader, value).float() + self._gaps.weighted(rows)

    def _through(self, reader: Reader, stream: Tensor, which: Tensor | None = None) -> Tensor:
        """Streams behind the norm that they are read through, one for each receiver."""
        norm = self._batch.norm(reader)
        if not self._exact:
            self.inputs[self._batch._site(reader)] = stream if which is None else stream[which]
        if norm is not None:
            stream = norm(stream.to(self._batch.model.dtype))
        return stream if which is None else stream[which]


class Gaps:
    """Ablated minus present value of each source of a pass, in the order in which they write.

    keeps_graph: present values are to be differentiated through. Otherwise one buffer holds all of them.
    """

    def __init__(self, ablated: Writes, *, keeps_graph: bool) -> None:
        self._ablated, self._count = ablated, 0
        self._parts: list[Tensor] = []
        self._buffer = None if keeps_graph else torch.empty_like(ablated)
        self._sums: dict[int, Tensor] = {}
        self._joined: Tensor | None = None

    def add(self, now: Writes) -> None:
        """The next sources have written this."""
        start, self._count = self._count, self._count + len(now)
        if self._buffer is not None:
            torch.sub(self._ablated[start : self._count], now, out=self._buffer[start : self._count])
            return
        self._parts.append(self._ablated[start : self._count] - now)
        self._joined = None

    def weighted(
        self, amounts: Float[Tensor, "different visible"]
    ) -> Float[Tensor, "different row position d_model"]:
        """Sums of the first gaps, weighted; over those that are cut, or as all less those kept, whichever are fewer."""
        visible = amounts.shape[1]
        cut, kept = amounts.any(dim=0), (amounts != 1).any(dim=0)
        if int(kept.sum()) < int(cut.sum()):
            return self._sum(visible) - self._chosen(1 - amounts, kept)
        return self._chosen(amounts, cut)

    def _chosen(self, amounts: Tensor, which: Tensor) -> Tensor:
        gaps = self._first(amounts.shape[1])
        if 2 * int(which.sum()) < len(which):
            amounts, gaps = amounts[:, which], gaps[which]
        return (amounts @ gaps.flatten(1)).view(-1, *gaps.shape[1:])

    def _sum(self, visible: int) -> Tensor:
        if visible not in self._sums:
            self._sums[visible] = self._first(visible).sum(dim=0)
        return self._sums[visible]

    def _first(self, visible: int) -> Tensor:
        if self._buffer is not None:
            return self._buffer[:visible]
        if self._joined is None:
            self._joined = torch.cat(self._parts)
        return self._joined[:visible]
