"""How are edges cut while the untouched module runs? Edits that watch what is written and correct what is read.

1. On the way, the edits at sources only look: what each writes now is kept as its gap, ablated minus present value.
2. At a receiver with cut edges, the stream it reads is corrected by the weighted sum of its gaps, goes through the
   module's norm and that head's projection, and replaces the head's slice of the value there.
3. Amounts may differ by position of the receiver: a key's or value's position is that of the token it is made from.
4. Receivers without a cut edge, or whose gaps are all zero, are left alone. In an exact pass, a receiver with all its
   edges cut is given what arrived in the run that the values come from, so that a network with no edge left is that
   run bit for bit.
5. Several cuts may share a pass: each is a lane, in which all rows of the batch stand once more.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.circuits.edge_ends import EdgeEnds, Writes
from microtome.circuits.edge_graph import Reader
from microtome.core.edits import Edit, Function
from microtome.core.site import Site

AblationKind = Literal["resample", "mean", "zero", "noise"]
Amounts = Float[Tensor, "*position receiver source"]


@dataclass(frozen=True, eq=False)
class Ablation:
    """What cut edges carry. arrived: what receivers read in the run that it comes from, where it comes from one."""

    kind: AblationKind
    writes: Writes
    arrived: Mapping[Site, Tensor] = field(default_factory=dict)

    def after(self, column: int) -> "Ablation":
        """The same from a column on."""
        arrived = {site: value[:, column:] for site, value in self.arrived.items()}
        return Ablation(self.kind, self.writes[:, :, column:], arrived)


class CutPass:
    """The edits of one pass in which edges are cut. cuts: one for each lane, whose rows are those of the ablation.

    exact: give receivers with every edge cut what arrived. Otherwise there is one lane, everything stays
    differentiable, and `inputs` keeps what each reader's receivers read. entered: for a pass that begins at a layer,
    that layer, and what the sources below it have written; no edge may be cut below.
    """

    def __init__(
        self,
        ends: EdgeEnds,
        cuts: Float[Tensor, "lane *position receiver source"],
        ablation: Ablation,
        *,
        exact: bool,
        entered: tuple[int, Float[Tensor, "below row position d_model"]] | None = None,
    ) -> None:
        self._ends, self._arrived, self._exact, self._lanes = ends, ablation.arrived, exact, len(cuts)
        graph = ends.graph
        allowed = graph.allowed if graph.positions is None else graph.allowed[-cuts.shape[1] :]
        amounts = cuts.cpu().float() * allowed
        self._readings = [
            _Reading.of(
                reader,
                amounts[..., reader.rows, : reader.visible].movedim(-2, 1),
                arrives=exact and ends.site(reader) in ablation.arrived,
                skips=exact,
            )
            for reader in graph.readers
            if bool(amounts[..., reader.rows, :].any())
        ]
        self._gaps = Gaps(ablation.writes, len(cuts), keeps_graph=not exact)
        self._entry = 0
        if entered is not None:
            self._entry, written = entered
            self._gaps.add(written)
        self._seen: dict[Site, Tensor] = {}
        self.inputs: dict[Site, Tensor] = {}

    def edits(self) -> list[Edit]:
        """None at all where nothing is cut, so that the pass is the untouched one."""
        if not self._readings:
            return []
        ends, model = self._ends, self._ends.model
        found: list[Edit] = []

        def at(site: Site, function: Callable[[Tensor], Tensor]) -> None:
            found.append(Function(site, function=function))

        if ends.graph.splits_positions and not self._gaps.count:
            at(Site("pos_embed"), partial(self._watched, Site("pos_embed")))
        for layer in range(self._entry, model.n_layers):
            for site in (Site("resid_pre", layer), Site("attn_out", layer)):
                at(site, partial(self._watched, site))
            at(Site("z", layer), partial(self._headed, layer))
            if model.has(mlp := Site("mlp_out", layer)):
                at(mlp, self._added)
            for told in self._readings:
                if told.reader.layer == layer:
                    at(ends.site(told.reader), partial(self._read, told))
        if (last := self._readings[-1]).reader.kind == "logits":
            at(ends.site(last.reader), partial(self._read, last))
        return found

    def _watched(self, site: Site, value: Tensor) -> Tensor:
        self._seen[site] = value
        if site == Site("resid_pre", 0) and not self._gaps.count:
            entering = value.float()
            if self._ends.graph.splits_positions:
                positions = self._seen[Site("pos_embed")].float().expand_as(entering)
                self._gaps.add(torch.stack([entering - positions, positions]))
            else:
                self._gaps.add(entering[None])
        return value

    def _headed(self, layer: int, z: Tensor) -> Tensor:
        self._gaps.add(self._ends.heads(layer, z))
        return z

    def _added(self, value: Tensor) -> Tensor:
        self._gaps.add(value.float()[None])
        return value

    def _read(self, told: "_Reading", value: Tensor) -> Tensor:
        """The values of a reader's receivers, of those with cut edges anew."""
        reader, single = told.reader, told.reader.kind in ("mlp", "logits")
        new = (value[:, :, None] if single else value).unflatten(0, (self._lanes, -1))
        if bool(told.whole.any()):
            arrived = self._arrived[self._ends.site(reader)]
            given = told.whole.to(value.device)[:, None, None, :, None]
            new = torch.where(given, arrived[:, :, None] if single else arrived, new)
        if told.amounts:
            live, inputs = self._through(told, value)
            receiver = told.receiver[live]
            made = inputs.movedim(0, 2) if single else self._ends.projected(reader, inputs, receiver)
            if len(receiver) == told.whole.numel():
                new = made.to(value.dtype).unflatten(2, told.whole.shape).movedim(2, 0)
            elif len(receiver):
                new = new.clone()
                new[told.lane[live], :, :, receiver] = made.movedim(2, 0).to(value.dtype)
        return (new[:, :, :, 0] if single else new).flatten(0, 1)

    def _through(
        self, told: "_Reading", value: Tensor
    ) -> tuple[Bool[Tensor, " entry"], Float[Tensor, "live row position d_model"]]:
        """Which entries there is something to correct for, and their corrected streams behind the norm."""
        before = self._stream(told.reader, value).float().unflatten(0, (self._lanes, -1))
        live, streams = [], []
        for lane, amounts in told.amounts:
            gap = self._gaps.weighted(lane, amounts)
            live.append(gap.flatten(1).any(dim=1).cpu() | (not self._exact))
            streams.append(before[lane] + gap)
        stream = torch.cat(streams)
        if not self._exact:
            self.inputs[self._ends.site(told.reader)] = stream[told.stream]
        inputs, chosen = self._ends.normed(told.reader, stream), torch.cat(live)[told.stream]
        if bool(chosen.all()) and len(stream) == len(chosen):
            return chosen, inputs
        return chosen, inputs[told.stream[chosen]]

    def _stream(self, reader: Reader, value: Tensor) -> Tensor:
        if reader.kind == "logits":
            return value
        before = self._seen[Site("resid_pre", reader.layer)]
        if self._ends.stream(reader).part == "resid_pre":
            return before
        return before + self._seen[Site("attn_out", reader.layer)]


@dataclass(frozen=True, eq=False)
class _Reading:
    """What becomes of the receivers of a reader. whole: which are given what arrived.

    lane, receiver: of each entry, whose value is made anew from the corrected stream number `stream`. amounts: by lane,
    those of its streams; receivers of a lane that are cut alike share one.
    """

    reader: Reader
    whole: Bool[Tensor, "lane receiver"]
    lane: Int[Tensor, " entry"]
    receiver: Int[Tensor, " entry"]
    stream: Int[Tensor, " entry"]
    amounts: list[tuple[int, Float[Tensor, "some *position visible"]]]

    @staticmethod
    def of(
        reader: Reader,
        amounts: Float[Tensor, "lane receiver *position visible"],
        *,
        arrives: bool,
        skips: bool,
    ) -> "_Reading":
        """arrives: receivers may be given what arrived. skips: those with no edge cut are left alone."""
        whole = (amounts == 1).flatten(2).all(dim=2) & arrives
        some = amounts.flatten(2).any(dim=2) & ~whole if skips else torch.ones_like(whole)
        lane, receiver = some.nonzero().T
        chosen = amounts[some]
        first: dict[tuple[int, bytes], int] = {}
        stream, places = [], []
        for place, (where, row) in enumerate(zip(lane.tolist(), chosen.numpy(), strict=True)):
            key = where, row.tobytes()
            if key not in first:
                first[key] = len(first)
                places.append(place)
            stream.append(first[key])
        held, counts = lane[places].unique_consecutive(return_counts=True)
        parts = zip(held.tolist(), chosen[places].split(counts.tolist()), strict=True)
        return _Reading(reader, whole, lane, receiver, torch.tensor(stream, dtype=torch.long), list(parts))


class Gaps:
    """Ablated minus present value of each source of a pass, in the order in which they write. count: how many have.

    keeps_graph: present values are to be differentiated through. Otherwise one buffer holds all gaps.
    """

    def __init__(self, ablated: Writes, lanes: int, *, keeps_graph: bool) -> None:
        self._ablated, self._lanes, self.count = ablated, lanes, 0
        self._parts: list[Float[Tensor, "lane some row position d_model"]] = []
        self._buffer = None if keeps_graph else ablated.new_empty(lanes, *ablated.shape)
        self._sums: dict[tuple[int, int], Tensor] = {}
        self._joined: Tensor | None = None

    def add(self, now: Float[Tensor, "source row position d_model"]) -> None:
        """The next sources have written this; all lanes the same where it has no more rows than what is ablated."""
        start, self.count = self.count, self.count + len(now)
        ablated = self._ablated[start : self.count]
        present = now.unflatten(1, (-1, ablated.shape[1])).movedim(1, 0)
        if self._buffer is not None:
            self._buffer[:, start : self.count] = ablated - present
            return
        self._parts.append(ablated - present)
        self._joined = None

    def weighted(
        self, lane: int, amounts: Float[Tensor, "different *position visible"]
    ) -> Float[Tensor, "different row position d_model"]:
        """Weighted sums of a lane's first gaps: of the cut, or of all less the kept, whichever are fewer."""
        flat = amounts.flatten(0, -2)
        cut, kept = flat.any(dim=0), (flat != 1).any(dim=0)
        if int(kept.sum()) < int(cut.sum()):
            return self._sum(lane, amounts.shape[-1]) - self._chosen(lane, 1 - amounts, kept)
        return self._chosen(lane, amounts, cut)

    def _chosen(self, lane: int, amounts: Tensor, which: Tensor) -> Tensor:
        gaps = self._first(lane, amounts.shape[-1])
        if 2 * int(which.sum()) < len(which):
            amounts, gaps = amounts[..., which], gaps[which.to(gaps.device)]
        amounts = amounts.to(gaps)
        if amounts.dim() == 3:
            return torch.einsum("vps,srpd->vrpd", amounts, gaps)
        return (amounts @ gaps.flatten(1)).view(-1, *gaps.shape[1:])

    def _sum(self, lane: int, visible: int) -> Tensor:
        if (lane, visible) not in self._sums:
            self._sums[lane, visible] = self._first(lane, visible).sum(dim=0)
        return self._sums[lane, visible]

    def _first(self, lane: int, visible: int) -> Tensor:
        if self._buffer is not None:
            return self._buffer[lane, :visible]
        if self._joined is None:
            self._joined = torch.cat(self._parts, dim=1)
        return self._joined[lane, :visible]
