"""What does a network compute when some of its edges carry other values? Exactly, in one pass of the untouched module.

1. A cut edge from `u` to `v` means that `v` reads the stream with what `u` writes *now* taken out and an ablated value
   put in: `x_v = x + Σ_u cut[v, u] · (ablated_u - now_u)`. What is cut upstream has changed `now_u` by then.
2. With no edge cut the pass is the network's own, with all cut it is the run that the values come from, bit for bit.
3. The gradient by an amount cut is `∂metric/∂x_v · (ablated_u - now_u)`, for all edges at once: the gradients at the
   projections, through each head's weights and the norm, contracted with the gaps one layer at a time. Nothing of the
   size edges × positions is ever made.
4. A single edge changes nothing below its receiver: many of them are one incremental sweep.

Amounts may lie between 0 and 1, and differ by position where the graph tells edges apart by position. Where a norm
stands behind the attention (Gemma 2, OLMo 2), a head writes what it adds with the divisor of its own run. Reference:
Nanda (2023) and Syed et al. (2023) for the first order; Miller et al. (2024) for the conventions.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.circuits.edge_cut import Ablation, AblationKind, Amounts, CutPass
from microtome.circuits.edge_ends import EdgeEnds, Writes
from microtome.circuits.edge_graph import EdgeGraph, Reader
from microtome.circuits.edge_noise import noisy, spread
from microtome.circuits.gradient_rules import GradientRules
from microtome.core.cost import Cost
from microtome.core.edits import Edit, Set
from microtome.core.logits import Metric
from microtome.models.model import Model
from microtome.models.run import Run
from microtome.models.sweep import Variant, sweep


@dataclass(frozen=True, eq=False)
class EdgeRun:
    """A batch of prompts whose edges can be cut. metric: judges each row."""

    model: Model
    graph: EdgeGraph
    tokens: Int[Tensor, "row column"]
    metric: Metric
    mask: Int[Tensor, "row column"] | None = None

    @cached_property
    def ends(self) -> EdgeEnds:
        """Where sources write and receivers read."""
        return EdgeEnds(self.model, self.graph)

    def ablation(
        self, kind: AblationKind, tokens: Int[Tensor, "row column"], *, noise: float = 1.0, seed: int = 0
    ) -> Ablation:
        """What cut edges carry: what sources write on other prompts of the same shape, its mean, zero, or what they
        write plus noise (give the prompts that run), of `noise` times its spread, by `seed`. One pass.

        The mean is taken over rows at each position where all prompts are equally long, else over all real tokens.
        """
        ends = self.ends
        run = self.model.run(tokens, list(dict.fromkeys([*ends.origins, *ends.arrivals])), mask=self.mask)
        writes = ends.writes(run).detach()
        if kind == "resample":
            return Ablation(kind, writes, {site: run[site] for site in ends.arrivals})
        if kind == "zero":
            return Ablation(kind, torch.zeros_like(writes))
        real = self.model.inputs(tokens, self.mask).batch.real(writes.device)
        if kind == "noise":
            return noisy(writes, noise * spread([(writes, real)]), seed)
        mean = writes.mean(dim=1, keepdim=True) if real.all() else writes[:, real].mean(dim=1)[:, None, None]
        return Ablation(kind, mean.expand_as(writes).contiguous())

    def score(self, cut: Amounts, ablation: Ablation) -> Float[Tensor, " row"]:
        """The metric of each row with these edges cut. One pass."""
        with torch.no_grad():
            edits = CutPass(self.ends, cut[None], ablation, exact=True).edits()
            return _metric(self.model.run(self.tokens, edit=edits, metric=self.metric, mask=self.mask))

    @torch.no_grad()
    def effects(
        self, edges: Sequence[tuple[int, ...]], ablation: Ablation
    ) -> tuple[Float[Tensor, "edge row"], Cost]:
        """What cutting each of these edges alone (their places in a matrix) adds to the metric, exactly."""
        ends = self.ends
        run = self.model.run(
            self.tokens, list(dict.fromkeys([*ends.origins, *ends.streams, *ends.arrivals])), mask=self.mask
        )
        gaps = ablation.writes - ends.writes(run)
        variants: list[Variant] = []
        for *position, row, column in edges:
            reader = next(one for one in self.graph.readers if one.rows.start <= row < one.rows.stop)
            site = ends.site(reader)
            value = ends.normed(reader, run[ends.stream(reader)].float() + gaps[column])
            if reader.kind not in ("mlp", "logits"):
                head = row - reader.rows.start
                site = replace(site, heads=(head,))
                value = ends.projected(reader, value[None], torch.tensor([head]))
            if position:
                site, value = replace(site, positions=tuple(position)), value[:, position]
            variants.append(Variant((Set(site, value=value.to(self.model.dtype), origin="patch"),)))
        swept = sweep(self.model, self.tokens, variants, self.metric, mask=self.mask)
        return (swept.metric - swept.base).float(), swept.cost + Cost(passes=1)

    def gradient(
        self,
        ablation: Ablation,
        cut: Amounts | None = None,
        rules: GradientRules | None = None,
        gaps: Writes | None = None,
    ) -> tuple[Float[Tensor, " row"], Amounts]:
        """The metric of each row, and the gradient of its sum by the amount cut of every edge. One pass and back.

        cut: where it is taken; nowhere cut by default. rules: go back by these instead of by the chain rule alone.
        gaps: what the edges' differences are, where they are not those of this very run.
        """
        cutting = None if cut is None else CutPass(self.ends, cut[None], ablation, exact=False)
        run, pulled = self._back([] if cutting is None else cutting.edits(), gaps is None, cutting, rules)
        with torch.no_grad():
            found = self._contracted(
                pulled, ablation.writes - self.ends.writes(run) if gaps is None else gaps
            )
        return _metric(run).detach(), found

    @torch.no_grad()
    def gradient_along(self, points: Sequence[Set], gaps: Writes) -> tuple[Float[Tensor, " row"], Amounts]:
        """The metric of each row with the last of these values put in, and the mean over all of them of the gradient by
        the amount cut, with `gaps` for the edges' differences throughout. One pass and back each."""
        total: dict[int, Float[Tensor, "receiver row position d_model"]] = {}
        for point in points:
            run, pulled = self._back([point], False)
            for number, (_, slope) in enumerate(pulled):
                total[number] = total[number].add_(slope) if number in total else slope
        slopes = zip(self.graph.readers, total.values(), strict=True)
        return _metric(run).detach(), self._contracted(slopes, gaps) / len(points)

    def _back(
        self,
        edits: list[Edit],
        origins: bool,
        cutting: CutPass | None = None,
        rules: GradientRules | None = None,
    ) -> tuple[Run, Iterator[tuple[Reader, Tensor]]]:
        """One pass and back: the run, and for each reader the gradient by what each of its receivers reads."""
        ends = self.ends
        edits = edits if rules is None else [*edits, *rules.edits(self.model)]
        read = [*(ends.origins if origins else []), *ends.streams, *(site.grad for site in ends.arrivals)]
        run = self.model.run(
            self.tokens, list(dict.fromkeys(read)), edits, metric=self.metric, mask=self.mask
        )
        frozen = rules is not None and rules.frozen_norms

        def pulled() -> Iterator[tuple[Reader, Tensor]]:
            for reader in self.graph.readers:
                site, stream = ends.site(reader), run[ends.stream(reader)][None]
                if cutting is not None:
                    stream = cutting.inputs.get(site, stream)
                yield reader, ends.pulled(reader, run[site.grad].detach(), stream.detach(), frozen=frozen)

        return run, pulled()

    @torch.no_grad()
    def _contracted(self, pulled: Iterable[tuple[Reader, Tensor]], gaps: Writes) -> Amounts:
        """What each edge's difference is worth where it is read, layer by layer."""
        flat = gaps.detach().flatten(1)
        found = torch.zeros(self.graph.allowed.shape, device=flat.device)
        for reader, slope in pulled:
            if self.graph.positions is None:
                found[reader.rows, : reader.visible] = slope.flatten(1) @ flat[: reader.visible].T
            else:
                found[:, reader.rows, : reader.visible] = torch.einsum(
                    "vrpd,srpd->pvs", slope, gaps[: reader.visible]
                )
        return found


def _metric(run: Run) -> Float[Tensor, " row"]:
    assert run.metric is not None
    return run.metric.float()
