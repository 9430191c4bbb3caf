"""What would each of these edits have done? Every variant of a base pass, exactly, recomputing only what it changes.

A variant that first differs at layer l and column c changes nothing below l and nothing before c. So:

1. The base pass keeps each block's input, its arguments, and its keys and values.
2. A lane is one variant on one row. Lanes that start near the same column climb together (`microtome.models.lanes`).
3. The climb goes up the layers once: each lane joins the batch at its own layer, with only the columns from c on,
   which attend to the kept keys and values and to their own (`microtome.models.reentry`).
4. At the top, logits are computed only where the metric reads them.

Any edits will do, several at once, at any sites. Before the first climb a re-entered pass without edits is compared
with the base; where it differs, or where a model cannot be entered half-way, lanes are rows of plain passes instead,
and the cost says so. A lane equals the plain pass of its variant up to the rounding of another batch shape.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core.cost import Cost, Recorder, measure
from microtome.core.edits import Edit
from microtome.core.errors import InputError
from microtome.core.logits import Metric
from microtome.core.site import Site, as_site
from microtome.models import select, unembedding
from microtome.models.finite import check_finite
from microtome.models.inputs import Inputs, Tokens
from microtome.models.interception import Interception, Stop
from microtome.models.lanes import (
    Climb,
    Lane,
    by_variant,
    bytes_of_lane,
    climbs,
    flops_of_column,
    is_at_entry,
    is_below,
    lanes_of,
)
from microtome.models.model import Model
from microtome.models.reentry import BasePass, CannotReenterError
from microtome.models.run import Run


@dataclass(frozen=True)
class Variant:
    """Edits to try together, and the rows (prompts) of the base batch to try them on (`None` = all).

    An edit's own `rows` are rows of the base batch; an edit without rows applies to all rows of the variant, and
    its value, where it has one for each row, has one for each row of the base.
    """

    edits: tuple[Edit, ...]
    rows: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    base: the metric of the base pass. metric: of each variant, NaN where a variant skips a row.
    values: what was read, `[variant, row, …]`; of a skipped row, the base's value.
    cost: passes (a climb counts as one), operations, seconds, and why anything fell back to plain passes.
    """

    base: Float[Tensor, " row"]
    metric: Float[Tensor, "variant row"]
    values: dict[Site, Tensor] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)


def sweep(
    model: Model,
    tokens: Tokens,
    variants: Sequence[Variant],
    metric: Metric | None = None,
    *,
    read: Sequence[Site | str] = (),
    edit: Sequence[Edit] = (),
    mask: Int[Tensor, "row column"] | None = None,
    budget_bytes: int = 1 << 29,
    incremental: bool = True,
) -> Sweep:
    """The metric (and reads) of every variant.

    edit: edits of the base pass, present in every variant too, before its own.
    budget_bytes: memory that the lanes of one batch may take; it sets the batch size.
    incremental: `False` makes one plain pass for each variant: the slow answer that the fast one must equal.

    Raises what `Model.run` raises. No gradients: for these, run the model.
    """
    reads = [as_site(site) for site in read]
    if metric is None and not reads:
        raise InputError("a sweep needs something to report: give a metric, or sites to read")
    if any(site.gradient for site in reads):
        raise InputError("a sweep reads values, not gradients; for gradients use model.run(..., metric=...)")
    with measure() as recorder, torch.no_grad():
        work = _Work(model, model.inputs(tokens, mask), list(variants), metric, reads, list(edit), recorder)
        if incremental:
            work.incrementally(budget_bytes)
        else:
            work.plainly()
    check_finite(work.values, work.metric[~work.skipped] if metric is not None else None)
    return Sweep(work.base, work.metric, work.values, recorder.cost())


class _Work:
    """One sweep in progress."""

    def __init__(
        self,
        model: Model,
        inputs: Inputs,
        variants: list[Variant],
        scorer: Metric | None,
        reads: list[Site],
        edits: list[Edit],
        recorder: Recorder,
    ) -> None:
        self.model, self.inputs, self.scorer, self.reads, self.edits = model, inputs, scorer, reads, edits
        self.recorder = recorder
        self.batch = inputs.batch
        self.anatomy = model.anatomies.get("")
        self.lanes = lanes_of(self.anatomy, self.batch, [(v.edits, v.rows) for v in variants], edits)
        self.base = torch.full((self.batch.rows,), float("nan"), device=model.device)
        self.metric = torch.full((len(variants), self.batch.rows), float("nan"), device=model.device)
        self.skipped = torch.ones(len(variants), self.batch.rows, dtype=torch.bool, device=model.device)
        for lane in self.lanes:
            self.skipped[lane.variant, lane.row] = False
        self.values: dict[Site, Tensor] = {}

    def plainly(self) -> None:
        """One plain pass for each variant."""
        self._keep_base(self.model.run(self.inputs.kwargs, self.reads, self.edits, metric=self.scorer))
        for number in range(len(self.metric)):
            self._plain([lane for lane in self.lanes if lane.variant == number])

    def incrementally(self, budget_bytes: int) -> None:
        """Climbs where the model can be entered half-way, rows of plain passes elsewhere."""
        anatomy = self.anatomy
        if anatomy is None or self.inputs.encoder_batch is not None:
            self._keep_base(self.model.run(self.inputs.kwargs, self.reads, self.edits, metric=self.scorer))
            self._batched(self.lanes, 64, "this model has no map of a single stack")
            return
        logits = 8 * self.batch.end * anatomy.sizes["d_vocab"]
        room = max(1, budget_bytes // (bytes_of_lane(anatomy, self.batch, 0) + logits))
        if beyond := [
            site for site in self.reads if site.layer is None and site.part not in ("embed", "pos_embed")
        ]:
            self._keep_base(self.model.run(self.inputs.kwargs, self.reads, self.edits, metric=self.scorer))
            self._batched(self.lanes, room, f"{beyond[0]} lies outside the blocks")
            return
        enter = [lane for lane in self.lanes if lane.entry is not None]
        base = self._base_pass(enter)
        if reason := self._cannot_reenter(base, enter):
            self._batched(self.lanes, room, reason)
            return
        for climb in climbs(enter, anatomy, self.batch, budget_bytes):
            self._climb(base, climb)
        self._batched(
            [lane for lane in self.lanes if lane.entry is None], room, "some edits lie outside the blocks"
        )

    def _batched(self, lanes: list[Lane], room: int, reason: str) -> None:
        """The lanes as rows of plain passes, and the reason in the cost."""
        if lanes:
            self.recorder.note(f"fell back to plain passes: {reason}")
        for first in range(0, len(lanes), room):
            self._plain(lanes[first : first + room])

    def _keep_base(self, run: Run) -> None:
        self.recorder.add(passes=1)
        if run.metric is not None:
            self.base = run.metric.float()
        for site in self.reads:
            self.values[site] = run[site][None].repeat(len(self.metric), *(1 for _ in run[site].shape))

    def _plain(self, lanes: list[Lane]) -> None:
        """The lanes as rows of one plain pass."""
        if not lanes:
            return
        rows = [lane.row for lane in lanes]
        index = torch.tensor(rows, device=self.model.device)
        kwargs = {
            name: value.index_select(0, index)
            if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == self.batch.rows
            else value
            for name, value in self.inputs.kwargs.items()
        }
        scorer = None if self.scorer is None else self.scorer.for_rows(rows)
        run = self.model.run(kwargs, self.reads, self._edits(lanes), metric=scorer)
        self.recorder.add(passes=1)
        for place, lane in enumerate(lanes):
            if run.metric is not None:
                self.metric[lane.variant, lane.row] = run.metric[place].float()
            for site in self.reads:
                self.values[site][lane.variant, lane.row] = run[site][place]

    def _edits(self, lanes: Sequence[Lane], *, within: bool = False) -> list[Edit]:
        """The edits of these lanes as edits of a batch in which each lane is a row, the base's first.

        within: only those that are felt inside a climb; the rest is in the stream that a lane enters with.
        """
        found: list[Edit] = []
        for edit in self.edits:
            chosen = [
                (lane.row, place)
                for place, lane in enumerate(lanes)
                if (edit.rows is None or lane.row in edit.rows) and not (within and is_below(edit, lane))
            ]
            if chosen:
                found.append(edit.moved(*zip(*chosen, strict=True)))
        for mine in by_variant(lanes):
            for edit in lanes[mine[0]].edits:
                places = [place for place in mine if not (within and is_at_entry(edit, lanes[place]))]
                if places:
                    found.append(edit.moved([lanes[place].row for place in places], places))
        return found

    def _base_pass(self, lanes: Sequence[Lane]) -> BasePass:
        """Run the base once, keeping what climbs need."""
        assert self.anatomy is not None
        anatomy, layers = self.anatomy, len(self.anatomy.blocks)
        base = BasePass(anatomy, self.batch.rows, self.batch.end)
        lowest = min((lane.entry or 0 for lane in lanes), default=layers)
        kept = range(lowest, layers) if any(lane.column for lane in lanes) else range(0)
        last = Site("resid_post", layers - 1)
        wanted = (
            {Site(part, layer) for part in "kv" for layer in kept}
            | {site.whole for site in self.reads}
            | {last}
        )
        with (
            base.recording(),
            Interception(self.model.anatomies, self.model.module, wanted, self.edits, stop=True) as seen,
        ):
            seen.batch = self.batch
            with suppress(Stop):
                self.model.call(self.inputs)
            seen.check_reached()
        self.recorder.add(
            passes=1, flops=int(flops_of_column(anatomy) * layers * self.batch.end * self.batch.rows)
        )
        base.streams[layers] = seen.values[last]
        for layer in kept:
            base.keys[layer] = seen.values[Site("k", layer)].transpose(1, 2)
            base.values[layer] = seen.values[Site("v", layer)].transpose(1, 2)
        self._wholes = {site.whole: seen.values[site.whole] for site in self.reads}
        for site in self.reads:
            value = select.read(site, self._wholes[site.whole], self.batch)
            self.values[site] = value[None].repeat(len(self.metric), *(1 for _ in value.shape))
        if self.scorer is not None:
            self.base = self._scores(base.streams[layers], list(range(self.batch.rows)))
        return base

    def _cannot_reenter(self, base: BasePass, lanes: Sequence[Lane]) -> str:
        """Why this model cannot be entered half-way, or nothing: lanes without edits must end where the base did."""
        assert self.anatomy is not None
        layers = len(self.anatomy.blocks)
        inside = [lane for lane in lanes if (lane.entry or 0) < layers]
        if not inside:
            return ""
        probes = {min(inside, key=lambda lane: lane.entry or 0), max(inside, key=lambda lane: lane.column)}
        for probe in probes:
            lane = replace(probe, variant=_PROBE, edits=())
            start = min(lane.column, self.batch.end - 1)
            try:
                stream = self._ascend(base, Climb(start, (lane,)))
            except CannotReenterError as error:
                return str(error)
            except (TypeError, AttributeError, IndexError, KeyError, RuntimeError) as error:
                return f"its blocks could not be called by themselves ({type(error).__name__}: {error})"
            first = self.batch.end - stream.shape[1]
            truth = base.streams[layers][lane.row, first:].float()
            real = self.batch.real(stream.device)[lane.row, first:, None]
            gap = float(((stream[0].float() - truth).abs() * real).max())
            eps = 1e-5 if stream.dtype == torch.float32 else 64 * torch.finfo(stream.dtype).eps
            if not gap <= eps * float((truth * real).abs().max()):
                return f"a re-entered pass differs from the base by {gap:.1e}"
        return ""

    def _climb(self, base: BasePass, climb: Climb) -> None:
        """Take the lanes of one climb to the top, and score them."""
        assert self.anatomy is not None
        stream = self._ascend(base, climb)
        rows = [lane.row for lane in climb.lanes]
        self.recorder.add(passes=1)
        if self.scorer is None:
            return
        whole = base.streams[len(self.anatomy.blocks)].index_select(
            0, torch.tensor(rows, device=stream.device)
        )
        whole[:, -stream.shape[1] :] = stream
        scores = self._scores(whole, rows)
        variants = torch.tensor([lane.variant for lane in climb.lanes], device=scores.device)
        self.metric[variants, torch.tensor(rows, device=scores.device)] = scores

    def _ascend(self, base: BasePass, climb: Climb) -> Tensor:
        """The last stream of the lanes, from the climb's first column on; reads are kept on the way."""
        assert self.anatomy is not None
        layers = len(self.anatomy.blocks)
        lanes, start = climb.lanes, climb.start
        reads = {site.whole for site in self.reads} if lanes[0].variant != _PROBE else set()
        edits = self._edits(lanes, within=True)
        stream: Tensor | None = None
        joined = 0
        with Interception(self.model.anatomies, self.model.module, reads, edits) as seen:
            for layer in range(min(lane.entry or 0 for lane in lanes), layers + 1):
                joining = [lane for lane in lanes[joined:] if (lane.entry or 0) <= layer]
                if joining:
                    entering = self._enter(base, joining, layer, climb.start)[:, start - climb.start :]
                    stream = entering if stream is None else torch.cat([stream, entering])
                    joined += len(joining)
                assert stream is not None
                if layer == layers:
                    break
                rows = [lane.row for lane in lanes[:joined]]
                seen.batch = self.batch.select(rows)
                narrow = layer == layers - 1 and self._needs_last_column_only(base, edits, reads)
                block = base.last_column if narrow else base.block
                stream = block(layer, stream, rows, start)
                start = self.batch.end - stream.shape[1]
                self.recorder.add(
                    flops=int(flops_of_column(self.anatomy) * stream.shape[0] * stream.shape[1])
                )
                self._keep_reads(
                    {site: seen.values.pop(site) for site in reads & set(seen.values)}, lanes[:joined]
                )
            seen.check_edits_reached()
        assert stream is not None
        return stream

    def _needs_last_column_only(self, base: BasePass, edits: Sequence[Edit], reads: set[Site]) -> bool:
        """Whether the last block may leave all columns but the last aside: nothing looks at them."""
        layer = base.anatomy.sizes["n_layers"] - 1
        touched = {site.part for site in (*reads, *(e.site for e in edits)) if site.layer == layer}
        batch = self.batch
        ends_together = (
            batch.first is None
            or batch.length is None
            or all(
                first + length == batch.end for first, length in zip(batch.first, batch.length, strict=True)
            )
        )
        return (
            base.can_narrow
            and self.scorer is not None
            and self.scorer.needs.positions == (-1,)
            and ends_together
            and touched <= {"resid_pre", "attn_in", "q", "k", "v", "scores", "pattern", "z"}
        )

    def _enter(self, base: BasePass, lanes: Sequence[Lane], layer: int, start: int) -> Tensor:
        """The stream with which lanes enter a layer: the base's, after their own edits of the block before."""
        rows = [lane.row for lane in lanes]
        stream = base.streams[layer][:, start:].index_select(0, torch.tensor(rows, device=self.model.device))
        batch = self.batch.select(rows)
        for mine in by_variant(lanes):
            for edit in lanes[mine[0]].edits:
                if is_at_entry(edit, lanes[mine[0]]):
                    stream = select.write(edit.moved([rows[place] for place in mine], mine), stream, batch)
        before = Site("resid_post", layer - 1) if layer else None
        if before in self._wholes and lanes[0].variant != _PROBE:
            self._keep_reads({before: stream}, lanes)
        return stream

    def _keep_reads(self, seen: Mapping[Site, Tensor], lanes: Sequence[Lane]) -> None:
        """Complete what was read by the base's columns, and keep the selection of each lane."""
        rows = [lane.row for lane in lanes]
        index = torch.tensor(rows, device=self.model.device)
        batch = self.batch.select(rows)
        for site in self.reads:
            if site.whole not in seen:
                continue
            whole, part = self._wholes[site.whole].index_select(0, index), seen[site.whole]
            axis = 2 if site.part in ("scores", "pattern") else 1
            whole.narrow(axis, whole.shape[axis] - part.shape[axis], part.shape[axis]).copy_(part)
            chosen = select.read(site, whole, batch)
            for place, lane in enumerate(lanes):
                self.values[site][lane.variant, lane.row] = chosen[place]

    def _scores(self, stream: Tensor, rows: list[int]) -> Tensor:
        """The metric of last streams `[lane, column, d_model]` that stand for these rows of the base."""
        assert self.scorer is not None
        assert self.anatomy is not None
        scorer = self.scorer.for_rows(rows)
        needs = scorer.needs
        site = Site("resid_post", len(self.anatomy.blocks) - 1, positions=needs.positions)
        chosen = select.read(site, stream, self.batch.select(rows))
        tokens = None if needs.tokens is None else unembedding.ids_of(needs, stream.device)
        return scorer(unembedding.unembed(self.anatomy, chosen, tokens)).float()


_PROBE = -1
