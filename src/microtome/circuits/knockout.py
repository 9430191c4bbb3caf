"""Keep some components of a network, replace the others: what is left of a behaviour?

The replaced components take values that do not know the answer: those of the corrupt twin of each prompt
(`resample`), or their mean over the corrupt prompts (`mean`; at each position where all prompts are equally long,
over all real positions otherwise). The embedding is always kept. Every share is measured between two fixed points:

    share(kept) = (metric(kept) - metric(nothing kept)) / (metric(everything kept) - metric(nothing kept))

as a ratio of means over prompts, so that no single prompt with a small gap blows it up.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core.cost import Cost
from microtome.core.edits import Edit, Set
from microtome.core.errors import InputError
from microtome.core.logits import Metric
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.components import components
from microtome.models.felt import felt
from microtome.models.model import Model
from microtome.models.sweep import Variant, sweep

Kind = Literal["resample", "mean"]
LEAST_GAP = 1e-6


@dataclass
class Knockout:
    """Runs of clean prompts in which all but some components are replaced.

    kind: where replacements come from. cost: what the runs took so far.
    """

    model: Model
    pairs: Pairs
    kind: Kind = "resample"
    metric_name: str = metrics.DEFAULT
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        self.components = components(self.model)
        self.metric: Metric = metrics.build(self.metric_name, self.pairs)
        wholes = sorted({site.whole for site in self.components}, key=lambda site: site.depth)
        run = self.model.run(self.pairs.corrupt, read=wholes, metric=self.metric, mask=self.pairs.mask)
        assert run.metric is not None
        self.corrupt: Float[Tensor, " row"] = run.metric.float()
        self._values = {site: self._replacement(run[site]) for site in wholes}
        self._clean = self.model.run(self.pairs.clean, read=wholes, mask=self.pairs.mask).values
        self._batch = self.model.inputs(self.pairs.clean, self.pairs.mask).batch
        self.cost += Cost(passes=2)
        everything, nothing = self.scores([self.components, ()])
        self.whole, self.empty = everything, nothing

    def _replacement(self, value: Tensor) -> Tensor:
        if self.kind == "resample":
            return value
        if len(set(self.pairs.lengths)) == 1:
            return value.mean(dim=0, keepdim=True).expand_as(value)
        real = self.model.inputs(self.pairs.corrupt, self.pairs.mask).batch.real(value.device)
        return value[real].mean(dim=0).expand_as(value)

    def replacement(self, whole: Site) -> Tensor:
        """What replaces the values of a whole site."""
        return self._values[whole]

    @property
    def gap(self) -> float:
        """Mean metric with everything kept minus with nothing kept."""
        return float((self.whole - self.empty).double().mean())

    def edits(self, kept: Iterable[Site]) -> tuple[Edit, ...]:
        """Edits that replace every component but these, one for each layer's heads and one for each MLP."""
        stay = set(kept)
        if unknown := stay - set(self.components):
            raise InputError(f"{min(map(str, unknown))} is not a head or MLP of {self.model.name}")
        found: list[Edit] = []
        for whole, value in self._values.items():
            gone = [s for s in self.components if s.whole == whole and s not in stay]
            if not gone:
                continue
            if whole.part == "z":
                heads = tuple(h for site in gone for h in site.heads or ())
                found.append(
                    Set(Site("z", whole.layer, heads=heads), value=value[:, :, list(heads)], origin=self.kind)
                )
            else:
                found.append(Set(whole, value=value, origin=self.kind))
        return tuple(found)

    def scores(self, keeping: Sequence[Iterable[Site]]) -> Float[Tensor, "set row"]:
        """The metric of each clean prompt with only these components kept, for several sets at once."""
        causal = self.model.anatomy.family.causal
        variants = [
            felt(Variant(self.edits(kept)), self._clean, self._batch, causal=causal) for kept in keeping
        ]
        found = sweep(self.model, self.pairs.clean, variants, self.metric, mask=self.pairs.mask)
        self.cost += found.cost
        return found.metric.where(~found.metric.isnan(), found.base)

    def share(self, scores: Float[Tensor, "*set row"]) -> Float[Tensor, "*set"]:
        """Mean scores on the scale where nothing kept is 0 and everything kept is 1; NaN where there is no gap."""
        above = (scores - self.empty).double().mean(dim=-1)
        return above / (self.gap if abs(self.gap) > LEAST_GAP else float("nan"))

    def shares(self, keeping: Sequence[Iterable[Site]]) -> Float[Tensor, " set"]:
        """What is kept of the behaviour when only these components are, for several sets at once."""
        return self.share(self.scores(keeping))

    def interval(
        self, scores: Float[Tensor, " row"], seed: int = 0, draws: int = 1000
    ) -> tuple[float, float]:
        """A 95 % bootstrap interval over prompts of the share of one set of scores."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(scores), (draws, len(scores)), generator=generator)
        above = (scores - self.empty).double().cpu()[rows].mean(dim=1)
        gaps = (self.whole - self.empty).double().cpu()[rows].mean(dim=1)
        low, high = torch.quantile(above / gaps, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return low, high
