"""Is a patched activation one that the model could have had? The guard beside every effect of an intervention.

An effect may be mere breakage: the network answers to a value it never sees. So each effect is printed with

1. the Mahalanobis distance of the edited values from natural ones at the same site, and of the final stream that
   follows from them from natural final streams, by a covariance shrunk as Ledoit and Wolf (2004) derive;
2. said as a percentile: the share of *held-out* natural values, of prompts that the covariance has not seen, that lie
   nearer. What is far from the fitted prompts is far only if it is farther than other prompts are.

Beyond the 99th percentile an effect is marked. A small distance is no proof: values can be off the manifold inside an
ellipsoid (the mean itself has no distance at all, and where values are centred on zero, nor has zero), and a sum of
natural parts may be an unnatural whole, which is why the final stream is judged too. The first token of a prompt is
not judged: where attention sinks gather its values are unlike all others.

Reference: Lee, Lee, Lee, Shin, "A Simple Unified Framework for Detecting Out-of-Distribution Samples" (2018), for the
distance; Zhang and Nanda, "Towards Best Practices of Activation Patching" (2023), for why patching needs it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from microtome.core.edits import Edit
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.models import select
from microtome.models.batch import Batch

LIMIT: Final = 99.0
_RIDGE: Final = 1e-9  # of the mean variance; keeps a covariance without shrinkage invertible in float64


@dataclass(frozen=True)
class Reference:
    """Natural values at one site: their mean, the Cholesky factor of their covariance, held-out distances.

    n_fit: values that the covariance was made from. held_out: distances of the others, sorted.
    """

    mean: Float[Tensor, " unit"]
    factor: Float[Tensor, "unit unit"]
    held_out: Float[Tensor, " held_out"]
    n_fit: int

    @staticmethod
    def fit(values: Float[Tensor, "sample unit"], held_out: Float[Tensor, "other unit"]) -> "Reference":
        """From natural values, and from others kept apart. Raises `InputError` where either is empty."""
        if not len(values) or not len(held_out):
            raise InputError(
                f"a natural reference needs values to fit and values to hold out, got {len(values)} and "
                f"{len(held_out)}; give more prompts"
            )
        fitted = values.double().cpu()
        mean = fitted.mean(dim=0)
        covariance = torch.from_numpy(np.asarray(ledoit_wolf(fitted.numpy())[0]))
        scale = float(covariance.diagonal().mean())
        # Values that never vary (a token before any context): whatever differs from them is off, however little.
        covariance = covariance if scale > 0 else torch.eye(len(mean), dtype=torch.float64)
        ridge = _RIDGE * (scale or 1.0) * torch.eye(len(mean), dtype=torch.float64)
        bare = Reference(mean, torch.linalg.cholesky(covariance + ridge), torch.zeros(0), len(fitted))
        return replace(bare, held_out=_mahalanobis(held_out, bare).sort().values)


@dataclass(frozen=True)
class Distance:
    """Mahalanobis distances, and the percentile of each among held-out natural values."""

    distance: Float[Tensor, "*value"]
    percentile: Float[Tensor, "*value"]

    @property
    def beyond(self) -> Bool[Tensor, "*value"]:
        """Farther than 99 of 100 held-out natural values."""
        return self.percentile > LIMIT


def distance(values: Float[Tensor, "*value unit"], reference: Reference) -> Distance:
    """How far values lie from natural ones. Raises `InputError` for values of another width."""
    if values.shape[-1] != len(reference.mean):
        raise InputError(
            f"values have {values.shape[-1]} units, the natural ones {len(reference.mean)}; read both at one site"
        )
    found = _mahalanobis(values.reshape(-1, values.shape[-1]), reference)
    nearer = torch.searchsorted(reference.held_out, found)
    percentile = 100.0 * nearer.double() / len(reference.held_out)
    return Distance(found.view(values.shape[:-1]), percentile.view(values.shape[:-1]))


def _mahalanobis(values: Float[Tensor, "sample unit"], reference: Reference) -> Float[Tensor, " sample"]:
    centred = (values.double().cpu() - reference.mean).T
    return torch.linalg.solve_triangular(reference.factor, centred, upper=False).norm(dim=0)


class Natural:
    """Natural values of runs over the same rows; the references are made from them when first needed.

    The rows are halved (`half`, of each row). What stands in a row of one half is judged by the values of the other
    half, so that no value is near merely because the covariance has seen its own prompt. judges: `False` judges none.
    """

    def __init__(
        self, runs: Sequence[Mapping[Site, Tensor]], batch: Batch, seed: int = 0, *, judges: bool = True
    ) -> None:
        self._runs = runs
        self._batch = batch
        self._made: dict[tuple[Site, int], Reference] = {}
        self._places: dict[tuple[tuple[int, ...] | None, tuple[int, ...]], Tensor] = {}
        real = batch.real(torch.device("cpu"))
        # Of each row all real tokens but the first: see the module's docstring.
        count = real.cumsum(dim=1)
        self._judged = real & (count > 1)
        self._last = self._judged & (count == real.sum(dim=1, keepdim=True))
        order = torch.randperm(batch.rows, generator=torch.Generator().manual_seed(seed))
        self.half = order.argsort() % 2
        self.judges = judges and all(bool(self._judged[self.half == half].any()) for half in (0, 1))

    def reference(self, site: Site, half: int) -> Reference:
        """Of the heads and units of a site, for judging rows of this half.

        Values at the last token, where the stream is about to be read out, are ranked among held-out ones of last
        tokens; all others among those of all positions.
        """
        key = site if site.positions == (-1,) else replace(site, positions=None)
        if (key, half) not in self._made:
            everywhere = replace(site, positions=None)
            natural = [select.read(everywhere, run[site.whole], self._batch).cpu() for run in self._runs]
            own = (self.half == half)[:, None]
            ranked = self._last if key.positions else self._judged
            self._made[key, half] = Reference.fit(
                torch.cat([value[self._judged & ~own] for value in natural]).flatten(1),
                torch.cat([value[ranked & own] for value in natural]).flatten(1),
            )
        return self._made[key, half]

    def percentiles(self, values: Tensor, site: Site, rows: Sequence[int] | None = None) -> list[float]:
        """Of values `[row, position, …]` at a site; tokens that are not judged are left out."""
        if not self.judges:
            return []
        held = list(range(self._batch.rows)) if rows is None else list(rows)
        judged = self._judged_at(site.positions, tuple(held))
        values = values.expand(*judged.shape, *values.shape[2:]).cpu()
        found: list[float] = []
        for half in (0, 1):
            chosen = values[judged & (self.half[held] == half)[:, None]]
            if len(chosen):
                found += distance(chosen.flatten(1), self.reference(site, half)).percentile.tolist()
        return found

    def _judged_at(
        self, positions: tuple[int, ...] | None, rows: tuple[int, ...]
    ) -> Bool[Tensor, "row position"]:
        """Which tokens are judged. Every cell of a map asks for the same few."""
        key = positions, rows
        if key not in self._places:
            held = list(rows)
            at = Site("resid_post", 0, positions=positions)
            self._places[key] = select.read(at, self._judged[held][..., None], self._batch.select(held))[
                ..., 0
            ]
        return self._places[key]

    def of_edits(self, edits: Sequence[Edit], base: Mapping[Site, Tensor]) -> float:
        """The median percentile of what edits put in place of the base run's values; NaN where none is judged."""
        found: list[float] = []
        for edit in edits if self.judges else ():
            held = list(range(self._batch.rows)) if edit.rows is None else list(edit.rows)
            before = select.read(edit.site, base[edit.site.whole][held], self._batch.select(held))
            found += self.percentiles(edit.apply(before), edit.site, held)
        return median(found)


def median(percentiles: Sequence[float]) -> float:
    """The median, NaN of none."""
    return float(np.median(percentiles)) if percentiles else float("nan")
