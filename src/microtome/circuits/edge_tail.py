"""What does a network compute with edges cut, when it is asked again and again? Only what the cuts change is run anew.

1. One pass without cuts is kept: each block's input and arguments, keys and values, and what each source wrote.
2. Nothing changes below the first receiver with a cut edge: the pass is entered at its layer, with the sources below as
   they were, and goes to the top. A cut at the logits alone needs no block.
3. Together: many cuts climb as lanes of one batch, as many as fit memory; and only the columns from the first on at
   which what cut edges carry differs from what is written are run, on top of the kept keys and values. An answer is
   then that of a plain pass to the rounding of another batch shape; otherwise it is so bit for bit.
4. Before it is trusted, all blocks are called this way without a cut and must end where the kept pass did; where they
   do not, or where a block cannot be called by itself, every answer takes a plain pass, and `reason` says why.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.circuits.edge_cut import Ablation, Amounts, CutPass
from microtome.circuits.edge_run import EdgeRun
from microtome.core.edits import Edit
from microtome.core.site import Site
from microtome.models import select, unembedding
from microtome.models.finite import check_finite
from microtome.models.interception import Interception, Stop
from microtome.models.reentry import BasePass, CannotReenterError
from microtome.models.run import Run

_LANE_BYTES: Final = {"cpu": 1 << 26}  # beyond what caches hold, more lanes gain nothing
_LANE_BYTES_ELSEWHERE: Final = 1 << 31


class EdgeTail:
    """A batch and what its cut edges carry, ready to be cut many times. reason: why plain passes are taken, if so.

    together: cuts share passes, and columns that no cut can change are left aside.
    """

    @torch.no_grad()
    def __init__(self, batch: EdgeRun, ablation: Ablation, *, together: bool = False) -> None:
        self.run, self.ablation, self._ends = batch, ablation, batch.ends
        self._together = together
        model = batch.model
        self._layers, self._last = model.n_layers, Site("resid_post", model.n_layers - 1)
        inputs = model.inputs(batch.tokens, batch.mask)
        self._batch = inputs.batch
        self._base = base = BasePass(model.anatomy, self._batch.rows, self._batch.end)
        kept = [Site(part, layer) for layer in range(self._layers) for part in "kv" if together]
        wanted = {*self._ends.origins, *kept, self._last}
        with base.recording(), Interception(model.anatomies, model.module, wanted, stop=True) as seen:
            seen.batch = self._batch
            with suppress(Stop):
                model.call(inputs)
            seen.check_reached()
        base.streams[self._layers] = seen.values[self._last]
        for site in kept:
            assert site.layer is not None
            held = base.keys if site.part == "k" else base.values
            held[site.layer] = seen.values[site].transpose(1, 2)
        self._writes = self._ends.writes(Run(seen.values))
        self._start = self._first_column() if together else 0
        self.reason = self._cannot_reenter()
        if self.reason and self._start:
            self._start = 0
            self.reason = self._cannot_reenter()

    def score(self, cut: Amounts) -> Float[Tensor, " row"]:
        """The metric of each row with these edges cut, as `EdgeRun.score` has it."""
        return self.scores([cut])[0]

    @torch.no_grad()
    def scores(self, cuts: Sequence[Amounts]) -> Float[Tensor, "cut row"]:
        """The same of several cuts."""
        if self.reason:
            return torch.stack([self.run.score(cut, self.ablation) for cut in cuts])
        if not self._together:
            return self._scored(torch.cat([self._climbed([cut]) for cut in cuts]))
        order = sorted(range(len(cuts)), key=lambda number: self._entry(cuts[number]))
        lanes = self._lanes()
        parts = [order[first : first + lanes] for first in range(0, len(order), lanes)]
        found = torch.cat([self._scored(self._climbed([cuts[number] for number in part])) for part in parts])
        return found[torch.tensor(order).argsort()]

    def _scored(self, streams: Float[Tensor, "lane_row position d_model"]) -> Float[Tensor, "lane row"]:
        """The metric of last streams; those of all lanes are unembedded together, dear as a vocabulary is."""
        needs, lanes = self.run.metric.needs, len(streams) // self._batch.rows
        batch = self._batch.select(list(range(self._batch.rows)) * lanes)
        chosen = select.read(Site("resid_post", self._layers - 1, positions=needs.positions), streams, batch)
        tokens = None if needs.tokens is None else unembedding.ids_of(needs, chosen.device)
        if tokens is not None and tokens.dim() == 2:
            tokens = tokens.repeat(lanes, 1)
        logits = unembedding.unembed(self.run.model.anatomy, chosen, tokens)
        scores = torch.stack([self.run.metric(part).float() for part in logits.chunk(lanes)])
        check_finite({}, scores)
        return scores

    def _lanes(self) -> int:
        """How many cuts climb as one batch."""
        sizes, batch, graph = self.run.model.sizes, self._batch, self.run.graph
        columns, needs = batch.end - self._start, self.run.metric.needs
        heads = max(reader.rows.stop - reader.rows.start for reader in graph.readers)
        floats = columns * (sizes["d_model"] * (len(graph.sources) + 4 * heads + 12) + 4 * sizes["d_mlp"])
        if needs.tokens is None:
            floats += 2 * sizes["d_vocab"] * (batch.end if needs.positions is None else len(needs.positions))
        budget = _LANE_BYTES.get(self._writes.device.type, _LANE_BYTES_ELSEWHERE)
        return max(1, budget // (4 * batch.rows * floats))

    def _entry(self, cut: Amounts) -> int:
        """The layer of the first receiver with a cut edge; beyond the last where there is none in a block."""
        for reader in self.run.graph.readers:
            if reader.layer is not None and bool(cut[..., reader.rows, :].any()):
                return reader.layer
        return self._layers

    def _below(self, layer: int) -> int:
        """How many sources write before a layer."""
        wanted = layer if layer < self._layers else None
        return next(reader.visible for reader in self.run.graph.readers if reader.layer == wanted)

    def _first_column(self) -> int:
        """The first column at which what cut edges carry differs from what is written."""
        differ = (self.ablation.writes != self._writes).any(dim=3).flatten(0, 1).any(dim=0)
        causal = self.run.model.anatomy.family.causal and bool(differ.any())
        return int(differ.int().argmax()) if causal else 0

    def _climbed(self, cuts: Sequence[Amounts]) -> Float[Tensor, "lane_row position d_model"]:
        """The last streams with these edges cut, of one lane after another."""
        layer = min(map(self._entry, cuts))
        lanes = torch.stack(list(cuts))
        if self.run.graph.positions is not None:
            lanes = lanes[:, self._start :]
        carried = self.ablation.after(self._start)
        entered = (layer, self._writes[: self._below(layer), :, self._start :])
        edits = CutPass(self._ends, lanes, carried, exact=True, entered=entered).edits()
        climbed = self._climb(layer, edits, len(cuts))
        if not self._start:
            return climbed
        whole = self._base.streams[self._layers].repeat(len(cuts), 1, 1)
        whole[:, self._start :] = climbed
        return whole

    def _climb(self, layer: int, edits: list[Edit], lanes: int) -> Float[Tensor, "lane_row column d_model"]:
        """The last streams of a pass that enters at a layer, from the first column on."""
        model, rows = self.run.model, list(range(self._batch.rows)) * lanes
        stream, batch = (
            self._base.streams[layer][:, self._start :].repeat(lanes, 1, 1),
            self._batch.select(rows),
        )
        if layer == self._layers:
            for edit in edits:
                stream = select.write(edit, stream, batch)
            return stream
        with Interception(model.anatomies, model.module, (), edits) as seen:
            seen.batch = batch
            for above in range(layer, self._layers):
                stream = self._base.block(above, stream, rows, self._start)
            seen.check_edits_reached()
        return stream

    def _cannot_reenter(self) -> str:
        try:
            again = self._climb(0, [], 1)
        except CannotReenterError as error:
            return str(error)
        except (TypeError, AttributeError, IndexError, KeyError, RuntimeError) as error:
            return f"its blocks could not be called by themselves ({type(error).__name__}: {error})"
        truth = self._base.streams[self._layers][:, self._start :].float()
        real = self._batch.real(again.device)[:, self._start :, None]
        gap = float(((again.float() - truth).abs() * real).max())
        eps = 1e-5 if again.dtype == torch.float32 else 64 * torch.finfo(again.dtype).eps
        if not gap <= eps * float((truth.abs() * real).max()):
            return f"a re-entered pass differs from the base by {gap:.1e}"
        return ""
