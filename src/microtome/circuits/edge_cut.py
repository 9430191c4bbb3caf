"""How are edges cut while the untouched module runs? Edits that watch what is written and correct what is read.

1. On the way, the edits at sources only look: what each writes now is kept as its gap, ablated minus present value.
2. At a receiver with cut edges, the stream it reads is corrected by the weighted sum of its gaps, goes through the
   module's norm and that head's projection, and replaces the head's slice of the value there.
3. Amounts may differ by position of the receiver: a key's or value's position is that of the token it is made from.
4. Receivers without a cut edge, or whose gaps are all zero, are left alone. In an exact pass, a receiver with all its
   edges cut is given what arrived in the run that the values come from, so that a network with no edge left is that
   run bit for bit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
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


class CutPass:
    """The edits of one pass in which edges are cut by `amounts`.

    exact: give receivers with every edge cut what arrived; otherwise everything stays differentiable, and `inputs`
    keeps what each reader's receivers read. entered: for a pass that begins at a layer, that layer, and what the
    sources below it have written; no edge may be cut below.
    """

    def __init__(
        self,
        ends: EdgeEnds,
        amounts: Amounts,
        ablation: Ablation,
        *,
        exact: bool,
        entered: tuple[int, Float[Tensor, "below row position d_model"]] | None = None,
    ) -> None:
        self._ends, self._ablation, self._exact = ends, ablation, exact
        self._amounts = (amounts.to(ablation.writes) * ends.graph.allowed.to(ablation.writes.device)).float()
        self._readers = [r for r in ends.graph.readers if bool(self._amounts[..., r.rows, :].any())]
        self._gaps = Gaps(ablation.writes, keeps_graph=not exact)
        self._entry = 0
        if entered is not None:
            self._entry, written = entered
            self._gaps.add(written)
        self._seen: dict[Site, Tensor] = {}
        self.inputs: dict[Site, Tensor] = {}

    def edits(self) -> list[Edit]:
        """None at all where nothing is cut, so that the pass is the untouched one."""
        if not self._readers:
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
            for reader in self._readers:
                if reader.layer == layer:
                    at(ends.site(reader), partial(self._read, reader))
        if self._readers[-1].kind == "logits":
            at(ends.site(self._readers[-1]), partial(self._read, self._readers[-1]))
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

    def _read(self, reader: Reader, value: Tensor) -> Tensor:
        """The values of a reader's receivers, of those with cut edges anew."""
        rows = self._amounts[..., reader.rows, : reader.visible].movedim(-2, 0)
        arrived = self._ablation.arrived.get(self._ends.site(reader)) if self._exact else None
        whole = (rows == 1).flatten(1).all(dim=1) & (arrived is not None)
        some = rows.flatten(1).any(dim=1) & ~whole if self._exact else torch.ones_like(whole)
        if reader.kind in ("mlp", "logits"):
            if arrived is not None and bool(whole.all()):
                return arrived
            made = self._through(reader, rows, value)
            return value if made is None else made[0].to(value.dtype)
        new = value.clone()
        if arrived is not None and bool(whole.any()):
            new[:, :, whole] = arrived[:, :, whole]
        if bool(some.any()):
            different, which = torch.unique(rows[some], dim=0, return_inverse=True)
            inputs = self._through(reader, different, value, which)
            if inputs is not None:
                new[:, :, some] = self._ends.projected(reader, inputs, some.nonzero()[:, 0])
        return new

    def _through(
        self, reader: Reader, amounts: Tensor, value: Tensor, which: Tensor | None = None
    ) -> Tensor | None:
        """The corrected streams behind their norm; one for each receiver, where `which` says whose is whose.

        `None` where, in an exact pass, there is nothing to correct.
        """
        gap = self._gaps.weighted(amounts)
        if self._exact and not gap.any():
            return None
        stream = self._stream(reader, value).float() + gap
        if not self._exact:
            self.inputs[self._ends.site(reader)] = stream if which is None else stream[which]
        stream = self._ends.normed(reader, stream)
        return stream if which is None else stream[which]

    def _stream(self, reader: Reader, value: Tensor) -> Tensor:
        if reader.kind == "logits":
            return value
        before = self._seen[Site("resid_pre", reader.layer)]
        if self._ends.stream(reader).part == "resid_pre":
            return before
        return before + self._seen[Site("attn_out", reader.layer)]


class Gaps:
    """Ablated minus present value of each source of a pass, in the order in which they write. count: how many have.

    keeps_graph: present values are to be differentiated through. Otherwise one buffer holds all gaps.
    """

    def __init__(self, ablated: Writes, *, keeps_graph: bool) -> None:
        self._ablated, self.count = ablated, 0
        self._parts: list[Tensor] = []
        self._buffer = None if keeps_graph else torch.empty_like(ablated)
        self._sums: dict[int, Tensor] = {}
        self._joined: Tensor | None = None

    def add(self, now: Writes) -> None:
        """The next sources have written this."""
        start, self.count = self.count, self.count + len(now)
        if self._buffer is not None:
            torch.sub(self._ablated[start : self.count], now, out=self._buffer[start : self.count])
            return
        self._parts.append(self._ablated[start : self.count] - now)
        self._joined = None

    def weighted(
        self, amounts: Float[Tensor, "different *position visible"]
    ) -> Float[Tensor, "different row position d_model"]:
        """Weighted sums of the first gaps: of those that are cut, or of all less those kept, whichever are fewer."""
        flat = amounts.flatten(0, -2)
        cut, kept = flat.any(dim=0), (flat != 1).any(dim=0)
        if int(kept.sum()) < int(cut.sum()):
            return self._sum(amounts.shape[-1]) - self._chosen(1 - amounts, kept)
        return self._chosen(amounts, cut)

    def _chosen(self, amounts: Tensor, which: Tensor) -> Tensor:
        gaps = self._first(amounts.shape[-1])
        if 2 * int(which.sum()) < len(which):
            amounts, gaps = amounts[..., which], gaps[which]
        if amounts.dim() == 3:
            return torch.einsum("vps,srpd->vrpd", amounts, gaps)
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
