"""What do several components do together? The metric with a set of heads and MLPs replaced at once.

`noise`: clean prompts run, and the set takes the values of the corrupt twin (resample), their mean over corrupt
prompts, or zero. `denoise`: corrupt prompts run, and the set takes the values of the clean twin. Other components may
be held at their values in the base run meanwhile.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core.cost import Cost
from microtome.core.edits import Edit, Set
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.models.sweep import Sweep, Variant, sweep
from microtome.patching.contrast import Contrast, Direction

Kind = Literal["resample", "mean", "zero"]
LEAST_GAP = 1e-6


@dataclass(frozen=True, eq=False)
class Joint:
    """Runs of a contrast with components replaced together. Raises `InputError` where the two sides do not differ, or
    where restoring is asked for with anything but the other side's values."""

    contrast: Contrast
    kind: Kind = "resample"
    direction: Direction = "noise"

    def __post_init__(self) -> None:
        if self.direction == "denoise" and self.kind != "resample":
            raise InputError(f"to denoise is to put clean values in; {self.kind} values are for noise")
        gap = self.contrast.gap("denoise")
        if not abs(gap) > LEAST_GAP:
            raise InputError(
                f"clean and corrupt prompts differ by {gap:.1e} in the metric: {self.contrast.model.name} treats them "
                "alike, so there is no behaviour to take apart; look at the task or the model"
            )

    @property
    def gap(self) -> float:
        """Mean metric of clean prompts minus that of corrupt ones."""
        return self.contrast.gap("denoise")

    def replaced(self, site: Site) -> Edit:
        """The edit that replaces one component."""
        return Set(site, value=self._pick(site, self._value(site.whole)), origin=_ORIGIN[self.kind])

    def held(self, site: Site) -> Edit:
        """The edit that holds one component at its value in the base run."""
        return Set(
            site,
            value=self._pick(site, self.contrast.base(self.direction).values[site.whole]),
            origin="patch",
        )

    def sweep(
        self,
        sets: Sequence[Iterable[Site]],
        held: Sequence[Iterable[Site]] | None = None,
        read: Sequence[Site] = (),
    ) -> Sweep:
        """All sets, each with the components held that `held` names for it."""
        keep: Sequence[Iterable[Site]] = [()] * len(sets) if held is None else held
        variants = [
            Variant((*map(self.held, still), *map(self.replaced, sites)))
            for sites, still in zip(sets, keep, strict=True)
        ]
        contrast = self.contrast
        tokens = contrast.base(self.direction).tokens
        return sweep(contrast.model, tokens, variants, contrast.metric, read=read, mask=contrast.pairs.mask)

    def effects(
        self, sets: Sequence[Iterable[Site]], held: Sequence[Iterable[Site]] | None = None
    ) -> tuple[Float[Tensor, "set row"], Cost]:
        """What replacing each set adds to the metric, and what it cost to find out."""
        found = self.sweep(sets, held)
        return (found.metric - found.base).double().cpu(), found.cost

    def _value(self, whole: Site) -> Tensor:
        value = self.contrast.other(self.direction).values[whole]
        if self.kind == "zero":
            return torch.zeros_like(value)
        if self.kind == "resample":
            return value
        if len(set(self.contrast.pairs.lengths)) == 1:
            return value.mean(dim=0, keepdim=True).expand_as(value)
        return value[self.contrast.batch.real(value.device)].mean(dim=0).expand_as(value)

    def _pick(self, site: Site, value: Tensor) -> Tensor:
        return value[:, :, list(site.heads)] if site.heads else value


_ORIGIN: dict[Kind, Literal["patch", "mean", "set"]] = {"resample": "patch", "mean": "mean", "zero": "set"}
