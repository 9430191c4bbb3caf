"""What is compared? The two plain runs of every pair, from which interventions take their base and their values.

`denoise`: the base is the corrupt prompt, values come from the clean one: what suffices to restore the behaviour.
`noise`: the base is the clean prompt, values come from the corrupt one: what is needed to keep it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core.errors import InputError
from microtome.core.logits import LogitSelection, Metric
from microtome.core.provenance import Provenance, model_hash
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.batch import Batch
from microtome.models.model import Model
from microtome.models.run import Run
from microtome.patching.off_distribution import Natural

Direction = Literal["denoise", "noise"]
Directions = Literal["denoise", "noise", "both"]


def directions(chosen: Directions) -> tuple[Direction, ...]:
    """The directions that a setting asks for."""
    return ("denoise", "noise") if chosen == "both" else (chosen,)


@dataclass(frozen=True)
class Side:
    """One plain run: its tokens, the values read, the metric of each row."""

    tokens: Int[Tensor, "row column"]
    values: Mapping[Site, Tensor]
    metric: Float[Tensor, " row"]


@dataclass(frozen=True)
class Contrast:
    """The clean and the corrupt run of pairs, with the metric that both are judged by."""

    model: Model
    pairs: Pairs
    metric: Metric
    clean: Side
    corrupt: Side
    batch: Batch
    seed: int = 0
    guard: bool = True

    @staticmethod
    def of(
        model: Model, pairs: Pairs, metric: str, sites: Sequence[Site], seed: int = 0, *, guard: bool = True
    ) -> "Contrast":
        """Run both sides, reading whole sites and the final stream. Raises what `Model.run` raises.

        guard: judge how far interventions lead from what is natural.
        """
        scorer = metric_for(model, pairs, metric)
        read = list(dict.fromkeys((*(site.whole for site in sites), final_stream(model).whole)))

        def side(tokens: Tensor) -> Side:
            run: Run = model.run(tokens, read=read, metric=scorer, mask=pairs.mask)
            assert run.metric is not None
            return Side(tokens, run.values, run.metric)

        batch = model.inputs(pairs.clean, pairs.mask).batch
        return Contrast(model, pairs, scorer, side(pairs.clean), side(pairs.corrupt), batch, seed, guard)

    def base(self, direction: Direction) -> Side:
        """The run that is intervened on."""
        return self.corrupt if direction == "denoise" else self.clean

    def other(self, direction: Direction) -> Side:
        """The run that values come from."""
        return self.clean if direction == "denoise" else self.corrupt

    def gap(self, direction: Direction) -> float:
        """Mean metric of the other run minus that of the base: what a complete patch would do."""
        return float((self.other(direction).metric - self.base(direction).metric).double().mean())

    def share(self, raw: Float[np.ndarray, "*cell row"], direction: Direction) -> Float[np.ndarray, "*cell"]:
        """Mean effects as shares of the gap: a ratio of means, so that no prompt with a small gap blows it up."""
        return share(raw, self.gap(direction))

    @property
    def metrics(self) -> dict[str, tuple[tuple[str], Float[np.ndarray, " row"]]]:
        """The metric of both plain runs, as arrays of a result."""
        sides = (("clean", self.clean), ("corrupt", self.corrupt))
        return {f"{name}_metric": (("row",), side.metric.double().cpu().numpy()) for name, side in sides}

    @cached_property
    def natural(self) -> Natural:
        """Both runs as the reference of what is natural."""
        return Natural((self.clean.values, self.corrupt.values), self.batch, self.seed, judges=self.guard)

    @cached_property
    def provenance(self) -> Provenance:
        """Model and data by hash."""
        return Provenance(self.model.name, model_hash(self.model.module.state_dict()), self.pairs.hash)


def share(raw: Float[np.ndarray, "*cell row"], gap: float) -> Float[np.ndarray, "*cell"]:
    """Mean effects over a gap; NaN where there is none."""
    return raw.mean(axis=-1) / (gap if gap != 0 else np.nan)


def metric_for(model: Model, pairs: Pairs, name: str) -> Metric:
    """The metric of that name; KL compares with the clean run. Raises `InputError` for pairs it cannot score."""
    reference = None
    if name == metrics.KL.name:
        reference = model.run(pairs.clean, logits=LogitSelection((-1,)), mask=pairs.mask).logits
    return metrics.build(name, pairs, reference)


def final_stream(model: Model) -> Site:
    """Where every effect on the next token has arrived: the last stream at the last token."""
    if not model.anatomies:
        raise InputError(
            f"{model.name} is addressed by module paths; patching by parts needs a map of the architecture"
        )
    return Site("resid_post", model.n_layers - 1, positions=(-1,))
