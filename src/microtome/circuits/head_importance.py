"""How sensitive is the behaviour to each head and MLP, by the size of one gradient? The plainest baseline.

1. Run both sides of each pair, and one pass back from the metric on the clean ones.
2. The importance of a part is the mean over pairs of `|Σ (there - here) · gradient|`, the sum over positions and units
   of what it writes; under `zero` the difference is that to nothing.
3. Importances are divided by the root of the sum of squares of their layer, as published: they compare the parts of a
   layer, and layers only roughly.
4. A random sample of parts is really replaced, one at a time, and the error told beside the unnormalised importances.

The absolute value is taken of each pair, so that a part which helps here and hurts there counts. Reference: Michel,
Levy, Neubig (2019), Are Sixteen Heads Really Better than One?; normalised after Molchanov et al. (2017); as a baseline
for circuits, Conmy et al. (2023). Misleads as every first-order estimate does, and a layer in which nothing matters is
blown up to the size of the others: see the unnormalised importances.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.circuits.edge_estimates import errors
from microtome.circuits.edge_pairs import require_gap
from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, NodeScores
from microtome.core.card import Card
from microtome.core.cost import Recorder, measure
from microtome.core.edits import Set
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Shape, Table
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models import select
from microtome.models.components import components, spoken
from microtome.models.model import Model
from microtome.models.sweep import Variant, sweep

card = Card(
    name="head_importance",
    title="Head importance score (HISP)",
    question="How sensitive is the behaviour to each head and MLP, by the size of one gradient?",
    steps=(
        "Take the gradient of the metric at what each head and MLP writes.",
        "A part's importance is the mean over pairs of the size of gradient times difference.",
        "Divide by the root of the sum of squares of the layer.",
        "Replace a random sample of parts for real and tell the error.",
    ),
    reference="Michel, Levy and Neubig 2019; Molchanov et al. 2017; Conmy et al. 2023",
    misleads="A layer in which nothing matters is blown up to the size of the others by the normalisation.",
    needs="pairs",
    causal="intervention",
    claims=("nodes",),
)


class Config(base.Config):
    """What a part is compared with, and how importances are scaled."""

    metric: str = Field(metrics.DEFAULT, description="Metric by name; it must have a gradient.")
    kind: Literal["resample", "zero"] = Field(
        "resample",
        description="What replaces a part: what it writes on the other side (resample), nothing (zero).",
    )
    normalised: bool = Field(True, description="Divide by the root of the sum of squares of the layer.")
    checked: int = Field(16, ge=0, description="How many random parts are really replaced; 0: none.")
    rows: int = Field(16, ge=1, description="Pairs in a batch; fewer need less memory.")
    seed: base.Seed = Field(0, description="Seed of the sample of parts.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`importance component`, after normalising; `raw component`, before.

    `sample_estimated`, `sample_exact [sample]`: raw importance, and the mean size of the real change of the metric, of
    the parts really replaced, named by `sample_component`. Attribute: `n` pairs.
    """

    def answers(self) -> tuple[Answer, ...]:
        """How important each head and MLP is."""
        found = self.data["importance"]
        return (
            NodeScores(dict(zip(found["component"].values.tolist(), found.values.tolist(), strict=True))),
        )

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        order = np.argsort(-data["importance"].values, kind="stable")
        names = data["component"].values.tolist()
        rows = tuple(
            (spoken(Site.parse(names[i])), float(data["importance"][i]), float(data["raw"][i])) for i in order
        )
        ranked = Table(
            "importance",
            ("component", "importance", "before normalising"),
            rows,
            caption=f"{len(names)} heads and MLPs; mean size over {data.attrs['n']} pairs; {self.config['metric']}, "
            f"{self.config['kind']}",
        )
        guess, exact = data["sample_estimated"].values, data["sample_exact"].values
        return (ranked, errors(guess, exact, len(names), what="components"))


def run(model: Model, data: Pairs, config: Config | None = None) -> Result:
    """Score every head and MLP. Raises `InputError` for a model without a map, and where both sides do the same."""
    config = config or Config()
    parts = components(model)
    order = torch.randperm(len(parts), generator=torch.Generator().manual_seed(config.seed))
    sample = [parts[number] for number in order[: config.checked].tolist()]
    sizes: list[Float[Tensor, "component row"]] = []
    real: list[Float[Tensor, "sample row"]] = []
    gap = 0.0
    with measure() as recorder:
        for start in range(0, len(data), config.rows):
            pairs = data.rows(range(start, min(start + config.rows, len(data))))
            batch = _Batch(model, pairs, config, recorder)
            gap += batch.gap
            sizes.append(batch.estimates(parts).abs())
            real.append(batch.effects(sample).abs())
        require_gap(gap / len(data), model, config.kind)
    raw = torch.cat(sizes, dim=1).mean(dim=1).numpy()
    exact = torch.cat(real, dim=1).mean(dim=1).numpy()
    at = {site: number for number, site in enumerate(parts)}
    arrays = xr.Dataset(
        {
            "importance": (("component",), _by_layer(raw, parts) if config.normalised else raw),
            "raw": (("component",), raw),
            "sample_estimated": (("sample",), np.array([raw[at[site]] for site in sample], dtype=float)),
            "sample_exact": (("sample",), exact),
        },
        {
            "component": [str(site) for site in parts],
            "sample_component": ("sample", np.array([str(site) for site in sample], dtype=str)),
        },
        {"n": len(data)},
    )
    return Result.of(
        card,
        arrays,
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), data.hash),
        recorder.cost(),
    )


class _Batch:
    """Both sides of some pairs, with the gradient on the clean one."""

    def __init__(self, model: Model, pairs: Pairs, config: Config, recorder: Recorder) -> None:
        self._model, self._pairs, self._recorder = model, pairs, recorder
        self._metric = metrics.build(config.metric, pairs)
        self._wholes = list(dict.fromkeys(site.whole for site in components(model)))
        read = [*self._wholes, *(site.grad for site in self._wholes)]
        here = model.run(pairs.clean, read, metric=self._metric, mask=pairs.mask)
        there = model.run(pairs.corrupt, self._wholes, metric=self._metric, mask=pairs.mask)
        assert here.metric is not None and there.metric is not None
        recorder.add(passes=3)
        self._clean = here.metric.float()
        self.gap = float((there.metric - here.metric).abs().double().sum())
        self._other = {
            site: torch.zeros_like(here[site]) if config.kind == "zero" else there[site]
            for site in self._wholes
        }
        real = model.inputs(pairs.clean, pairs.mask).batch.real(model.device)
        self._products = {}
        for site in self._wholes:
            product = ((self._other[site] - here[site]).float() * here[site.grad].float()).sum(dim=-1)
            self._products[site] = (product * real.view(*real.shape, *(1 for _ in product.shape[2:]))).sum(
                dim=1
            )

    def estimates(self, parts: Sequence[Site]) -> Float[Tensor, "component row"]:
        """Gradient times difference of each part."""
        found = [
            self._products[s.whole][:, s.heads[0]] if s.heads else self._products[s.whole] for s in parts
        ]
        return torch.stack(found).double().cpu()

    def effects(self, parts: Sequence[Site]) -> Float[Tensor, "component row"]:
        """What replacing each of these alone adds to the metric."""
        if not parts:
            return torch.zeros(0, len(self._clean), dtype=torch.float64)
        batch = self._model.inputs(self._pairs.clean, self._pairs.mask).batch
        variants = [
            Variant((Set(site, value=select.read(site, self._other[site.whole], batch), origin="patch"),))
            for site in parts
        ]
        swept = sweep(self._model, self._pairs.clean, variants, self._metric, mask=self._pairs.mask)
        self._recorder.include(swept.cost)
        return (swept.metric - swept.base).double().cpu()


def _by_layer(raw: Float[np.ndarray, " component"], parts: Sequence[Site]) -> Float[np.ndarray, " component"]:
    """Each divided by the root of the sum of squares of its layer; a layer of zeros stays zero."""
    layers = np.array([site.layer for site in parts])
    norms = np.array([np.sqrt((raw[layers == layer] ** 2).sum()) for layer in layers])
    return np.divide(raw, norms, out=np.zeros_like(raw), where=norms > 0)
