"""What does a network compute with edges cut, when it is asked again and again? Only what the cuts change is run anew.

1. One pass without cuts is kept: each block's input and arguments, and what each source wrote.
2. Nothing changes below the first receiver with a cut edge: the pass is entered at its layer, with the sources below as
   they were, and goes to the top. A cut at the logits alone needs no block.
3. Before it is trusted, all blocks are called this way without a cut and must end where the kept pass did; where they
   do not, or where a block cannot be called by itself, every answer takes a plain pass, and `reason` says why.
"""

from collections.abc import Sequence
from contextlib import suppress

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


class EdgeTail:
    """A batch and what its cut edges carry, ready to be cut many times. reason: why plain passes are taken, if so."""

    @torch.no_grad()
    def __init__(self, batch: EdgeRun, ablation: Ablation) -> None:
        self._run, self._ablation, self._ends = batch, ablation, batch.ends
        model = batch.model
        self._layers, self._last = model.n_layers, Site("resid_post", model.n_layers - 1)
        self._writes = self._ends.writes(model.run(batch.tokens, self._ends.origins, mask=batch.mask))
        inputs = model.inputs(batch.tokens, batch.mask)
        self._batch = inputs.batch
        self._base = BasePass(model.anatomy, self._batch.rows, self._batch.end)
        with (
            self._base.recording(),
            Interception(model.anatomies, model.module, {self._last}, stop=True) as seen,
        ):
            seen.batch = self._batch
            with suppress(Stop):
                model.call(inputs)
            seen.check_reached()
        self._base.streams[self._layers] = seen.values[self._last]
        self.reason = self._cannot_reenter()

    def score(self, cut: Amounts) -> Float[Tensor, " row"]:
        """The metric of each row with these edges cut, as `EdgeRun.score` has it."""
        return self.scores([cut])[0]

    @torch.no_grad()
    def scores(self, cuts: Sequence[Amounts]) -> Float[Tensor, "cut row"]:
        """The same of several cuts. Each climbs by itself; all are unembedded together, dear as a vocabulary is."""
        if self.reason:
            return torch.stack([self._run.score(cut, self._ablation) for cut in cuts])
        needs = self._run.metric.needs
        site = Site("resid_post", self._layers - 1, positions=needs.positions)
        chosen = torch.cat([select.read(site, self._climbed(cut), self._batch) for cut in cuts])
        tokens = None if needs.tokens is None else unembedding.ids_of(needs, chosen.device)
        if tokens is not None and tokens.dim() == 2:
            tokens = tokens.repeat(len(cuts), 1)
        logits = unembedding.unembed(self._run.model.anatomy, chosen, tokens)
        scores = torch.stack([self._run.metric(part).float() for part in logits.chunk(len(cuts))])
        check_finite({}, scores)
        return scores

    def _climbed(self, cut: Amounts) -> Float[Tensor, "row position d_model"]:
        """The last stream with these edges cut."""
        layer = self._entry(cut)
        entered = (layer, self._writes[: self._below(layer)])
        return self._climb(
            layer, CutPass(self._ends, cut, self._ablation, exact=True, entered=entered).edits()
        )

    def _entry(self, cut: Amounts) -> int:
        """The layer of the first receiver with a cut edge; beyond the last where there is none in a block."""
        for reader in self._run.graph.readers:
            if reader.layer is not None and bool(cut[reader.rows].any()):
                return reader.layer
        return self._layers

    def _below(self, layer: int) -> int:
        """How many sources write before a layer."""
        wanted = layer if layer < self._layers else None
        return next(reader.visible for reader in self._run.graph.readers if reader.layer == wanted)

    def _climb(self, layer: int, edits: list[Edit]) -> Float[Tensor, "row position d_model"]:
        """The last stream of a pass that enters at a layer."""
        model, rows = self._run.model, range(self._batch.rows)
        stream = self._base.streams[layer]
        if layer == self._layers:
            for edit in edits:
                stream = select.write(edit, stream, self._batch)
            return stream
        with Interception(model.anatomies, model.module, (), edits) as seen:
            seen.batch = self._batch
            for above in range(layer, self._layers):
                stream = self._base.block(above, stream, rows, 0)
            seen.check_edits_reached()
        return stream

    def _cannot_reenter(self) -> str:
        try:
            again = self._climb(0, [])
        except CannotReenterError as error:
            return str(error)
        except (TypeError, AttributeError, IndexError, KeyError, RuntimeError) as error:
            return f"its blocks could not be called by themselves ({type(error).__name__}: {error})"
        truth, real = self._base.streams[self._layers], self._batch.real(again.device)[..., None]
        gap = float(((again.float() - truth.float()).abs() * real).max())
        eps = 1e-5 if again.dtype == torch.float32 else 64 * torch.finfo(again.dtype).eps
        if not gap <= eps * float((truth.float().abs() * real).max()):
            return f"a re-entered pass differs from the base by {gap:.1e}"
        return ""
