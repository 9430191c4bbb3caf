"""Pairs of prompts as batches whose edges can be cut: which side is run, and what cut edges carry.

`noise`: the clean prompts run, cut edges carry what the corrupt ones write: what is needed. `denoise`: the corrupt
prompts run, cut edges carry what the clean ones write: what suffices. A mean is taken over all pairs of a call, at each
position where all prompts are equally long, else over all real tokens. Noise is added to what
the running prompts write.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.circuits.edge_cut import Ablation, AblationKind, Amounts
from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_noise import noisy, spread
from microtome.circuits.edge_run import EdgeRun
from microtome.core.errors import InputError
from microtome.core.logits import LogitSelection
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.model import Model

Direction = Literal["noise", "denoise"]
LEAST_GAP = 1e-6


@dataclass(frozen=True, eq=False)
class EdgePairs:
    """All pairs of a call, in batches of `rows`. noise: in spreads of each source, drawn by `seed`.

    Raises `InputError` for edges by position where prompts are of several lengths.
    """

    model: Model
    graph: EdgeGraph
    pairs: Pairs
    metric: str
    kind: AblationKind = "resample"
    direction: Direction = "noise"
    rows: int = 16
    noise: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        columns = self.pairs.clean.shape[1]
        if self.graph.positions is not None and {*self.pairs.lengths, self.graph.positions} != {columns}:
            raise InputError(
                f"edges by position need prompts of one length, as many positions as are told apart "
                f"({self.graph.positions}) and no padding; these have {sorted({*self.pairs.lengths})} of {columns}: "
                "group them by length, or leave per_position out"
            )

    def batches(self) -> Iterator[tuple[EdgeRun, Ablation]]:
        """Each batch with what its cut edges carry."""
        mean = self._mean() if self.kind == "mean" else None
        scale = self.noise * self._spread() if self.kind == "noise" else None
        for number, (run, other) in enumerate(self._runs()):
            if scale is not None:
                here = run.ablation("resample", run.tokens).writes
                yield run, noisy(here, scale, self.seed, number * self.rows)
                continue
            ablation = run.ablation("zero" if self.kind == "zero" else "resample", other)
            if mean is None:
                yield run, ablation
            else:
                yield run, Ablation("mean", mean.expand_as(ablation.writes).contiguous())

    def scores(self, cut: Amounts) -> Float[Tensor, " row"]:
        """The metric of every pair with these edges cut."""
        return torch.cat([run.score(cut, ablation) for run, ablation in self.batches()])

    def _runs(self) -> Iterator[tuple[EdgeRun, Tensor]]:
        for start in range(0, len(self.pairs), self.rows):
            part = self.pairs.rows(range(start, min(start + self.rows, len(self.pairs))))
            reference = None
            if self.metric == metrics.KL.name:
                reference = self.model.run(part.clean, logits=LogitSelection((-1,)), mask=part.mask).logits
            metric = metrics.build(self.metric, part, reference)
            base, other = (
                (part.clean, part.corrupt) if self.direction == "noise" else (part.corrupt, part.clean)
            )
            yield EdgeRun(self.model, self.graph, base, metric, part.mask), other

    def _spread(self) -> Float[Tensor, " source"]:
        """How far what each source writes varies over all prompts that run."""

        def written(run: EdgeRun) -> tuple[Tensor, Tensor]:
            real = self.model.inputs(run.tokens, run.mask).batch.real(self.model.device)
            return run.ablation("resample", run.tokens).writes, real

        return spread(written(run) for run, _ in self._runs())

    def _mean(self) -> Float[Tensor, "source 1 #position d_model"]:
        """What each source writes on average over all pairs."""
        total: Tensor | None = None
        equal = len(set(self.pairs.lengths)) == 1
        for run, other in self._runs():
            writes = run.ablation("resample", other).writes
            real = self.model.inputs(other, run.mask).batch.real(writes.device)
            part = (writes * real[None, :, :, None]).double().sum(dim=1, keepdim=True)
            part = part if equal else part.sum(dim=2, keepdim=True)
            total = part if total is None else total + part
        assert total is not None
        return (total / (len(self.pairs) if equal else sum(self.pairs.lengths))).float()


def require_gap(gap: float, model: Model, kind: AblationKind) -> None:
    """Raise `InputError` where cutting every edge changes nothing, so that no effect is defined."""
    if not abs(gap) > LEAST_GAP:
        raise InputError(
            f"cutting every edge ({kind}) changes the metric by {gap:.1e}: {model.name} does the same on both sides, "
            "so there is nothing to attribute; look at the task, the metric or the model"
        )
