"""Which activations carry the difference between two prompts, from gradients alone, and how far off is that?

1. Run clean and corrupt prompts, reading every value that could be patched.
2. One backward pass through the base run gives the gradient of the metric at each of these sites. To first order a
   patch adds (other value − base value) · gradient; summed over the units of a cell this is its attribution. All cells
   for the price of about two passes, where patching needs one for each.
3. Integrated gradients: with `steps` above one the gradient is averaged over that many points on the way from the
   base's embeddings to the other's. Then the attributions of `resid_pre.0` sum to the whole gap as steps grow.
4. A random sample of cells is really patched, and the error told: correlation, mean and largest difference.

Reference: Nanda, "Attribution Patching" (2023); Syed, Rager and Conmy (2023); Hanna, Pezzelle and Belinkov, "Have Faith
in Faithfulness" (2024), for integrated gradients. Misleads where the metric bends between the runs: saturated
softmaxes and cells of the whole stream are worst. Trust a cell after patching it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer
from microtome.core.card import Card
from microtome.core.cost import Cost, Recorder, measure
from microtome.core.edits import Edit, Set
from microtome.core.errors import InputError
from microtome.core.shapes import Shape, Table
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.models.sweep import Variant
from microtome.patching import maps, protocol
from microtome.patching.cells import Choice, Map, Part, make_maps
from microtome.patching.contrast import Contrast, Direction, Directions, directions
from microtome.patching.effects import Effects, patched
from microtome.patching.stretches import By, stretches

card = Card(
    name="attribution_patching",
    title="Attribution patching",
    question="Which activations carry the difference between two prompts, by a gradient approximation of patching?",
    steps=(
        "Run clean and corrupt prompts, reading every value that could be patched.",
        "Take the gradient of the metric at each site in one backward pass.",
        "The attribution of a cell is (other value − base value) · gradient, or its integral along the embeddings.",
        "Really patch a random sample of cells and tell the error.",
    ),
    reference="Nanda 2023; Syed, Rager and Conmy 2023; Hanna, Pezzelle and Belinkov 2024",
    misleads=(
        "It is a first-order approximation: where the metric bends between the two runs (saturated attention, whole "
        "streams) it is wrong, in size and in sign. The measured error says how wrong here."
    ),
    needs="pairs",
    causal="intervention",
    claims=("nodes",),
)


class Config(base.Config):
    """What to attribute, and how to check it."""

    parts: tuple[Part, ...] | None = Field(
        None,
        description="Parts to map: resid_pre resid_mid resid_post attn_out mlp_out z mlp_post; None: the usual four.",
    )
    direction: Directions = Field(
        "both", description="denoise (clean into corrupt), noise (corrupt into clean), both."
    )
    metric: str = Field(metrics.DEFAULT, description="Metric by name; it must have a gradient.")
    steps: int = Field(1, ge=1, description="1: the gradient at the base; more: integrated gradients.")
    positions: By = Field(
        "auto", description="Columns of a map: tokens, slots, all; auto: tokens if lengths agree."
    )
    by_position: bool = Field(
        False, description="Map heads and neurons by position too, not over whole prompts."
    )
    layers: tuple[int, ...] | None = Field(None, description="Layers; None: all.")
    heads: tuple[int, ...] | None = Field(None, description="Heads; None: all.")
    units: tuple[int, ...] | None = Field(None, description="Neurons; needed for mlp_post.")
    checked: int = Field(32, ge=0, description="How many cells of each map are really patched; 0: none.")
    seed: base.Seed = Field(0, description="Seed of the sample of cells and of the off-distribution guard.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """Maps of attributions by part (see `microtome.patching.maps`), and of each part `P` the sample really patched:

    `P_sample` names of cells, `P_sample_attributed` and `P_sample_exact` `[direction, sample]`, mean raw effects.
    """

    def answers(self) -> tuple[Answer, ...]:
        """How much heads and MLPs matter: at their most telling position, over both directions."""
        return maps.node_scores(self.data)

    def shapes(self) -> tuple[Shape, ...]:
        parts = self.data.attrs["parts"]
        drawn = [maps.grids(self.data, part, "attribution patching") for part in parts]
        return (
            *(effect for effect, _ in drawn),
            self.errors(),
            maps.largest(self.data, parts),
            protocol.table(self.data),
        )

    def errors(self) -> Table:
        """How far the attributions of the sampled cells are from their exact effects."""
        rows = []
        for part in self.data.attrs["parts"]:
            total = int(np.prod(self.data[f"{part}_normalised"].shape[1:]))
            for case in self.data["direction"].values.tolist():
                guess = self.data[f"{part}_sample_attributed"].sel(direction=case).values
                exact = self.data[f"{part}_sample_exact"].sel(direction=case).values
                error = np.abs(guess - exact)
                rows.append(
                    (
                        part,
                        case,
                        f"{len(exact)} of {total}",
                        _correlation(guess, exact),
                        float(error.mean()) if len(error) else float("nan"),
                        float(error.max()) if len(error) else float("nan"),
                        float(np.abs(exact).max()) if len(exact) else float("nan"),
                    )
                )
        return Table(
            "error against exact patching",
            (
                "part",
                "direction",
                "cells",
                "correlation",
                "mean error",
                "largest error",
                "largest exact effect",
            ),
            tuple(rows),
            caption=f"random cells, really patched; mean raw effects over {self.data.sizes['row']} prompts",
        )


def run(model: Model, data: Pairs, config: Config | None = None) -> Result:
    """Attribute every cell, check some.

    Raises `SiteError` for parts and indices the model lacks (and for integrated gradients without an `embed` to go
    along), `InputError` for unfit pairs and a metric without a gradient.
    """
    config = config or Config()
    if config.metric == metrics.Rank.name:
        raise InputError("rank is a count and has no gradient; use logit-difference or log-probability")
    with measure() as recorder:
        choice = Choice(config.parts, config.layers, config.heads, config.units, config.by_position)
        charts = make_maps(model, stretches(data, config.positions), choice)
        sites = list(dict.fromkeys(cell.site.whole for chart in charts for cell in chart.cells))
        embed = [Site("embed")] if config.steps > 1 else []
        contrast = Contrast.of(model, data, config.metric, [*sites, *embed], config.seed)
        recorder.add(passes=2)
        cases = directions(config.direction)
        slopes = [_gradients(contrast, case, sites, config.steps, recorder) for case in cases]
        found: list[list[Effects]] = []
        errors: dict[str, xr.DataArray] = {}
        for chart in charts:
            sample = _sample(len(chart.cells), config)
            exact = [_exact(contrast, case, chart, sample, recorder) for case in cases]
            found.append(
                [
                    _attributed(
                        contrast, case, chart, slope, dict(zip(sample, known.percentile[1], strict=True))
                    )
                    for case, slope, known in zip(cases, slopes, exact, strict=True)
                ]
            )
            errors |= _errors(chart, cases, sample, found[-1], exact)
        gaps = [contrast.gap(case) for case in cases]
        made = maps.dataset(contrast, cases, gaps, charts, found, ("patch",)).assign(errors)
    return Result.of(
        card,
        made,
        config,
        contrast.provenance,
        recorder.cost(),
        ("The final stream's percentile is known only for cells that were really patched.",),
    )


def _gradients(
    contrast: Contrast, direction: Direction, sites: Sequence[Site], steps: int, recorder: Recorder
) -> Mapping[Site, Tensor]:
    """The gradient of each row's metric at whole sites: at the base, or averaged along the embeddings."""
    one, other = contrast.base(direction), contrast.other(direction)
    total: dict[Site, Tensor] = {}
    for step in range(steps):
        edits: list[Edit] = []
        if steps > 1:
            embed = Site("embed")
            there = (step + 0.5) / steps
            edits = [Set(embed, value=torch.lerp(one.values[embed], other.values[embed], there))]
        run = contrast.model.run(
            one.tokens,
            [site.grad for site in sites],
            edits,
            metric=contrast.metric,
            mask=contrast.pairs.mask,
        )
        recorder.add(passes=2)  # forward and back
        for site in sites:
            total[site] = total.get(site, 0) + run[site.grad] / steps
    return total


def _attributed(
    contrast: Contrast,
    direction: Direction,
    chart: Map,
    slopes: Mapping[Site, Tensor],
    streams: Mapping[int, Tensor],
) -> Effects:
    """The attribution of every cell, in the form of measured effects.

    streams: the final stream's percentile of the cells that were really patched, by their number.
    """
    one, other = contrast.base(direction), contrast.other(direction)
    by_token: dict[Site, Tensor] = {}
    for site in {cell.site.whole for cell in chart.cells}:
        product = (other.values[site] - one.values[site]) * slopes[site]
        by_token[site] = product if chart.part == "mlp_post" else product.sum(dim=-1)
    raw: list[Tensor] = []
    near: list[float] = []
    for cell in chart.cells:
        index = cell.site.heads or cell.site.units
        values = by_token[cell.site.whole]
        values = values if index is None else values[..., index[0]]
        raw.append((values * cell.stretch.covers(contrast.batch).to(values.device)).sum(dim=1))
        near.append(contrast.natural.of_edits(cell.patch(other.values, contrast.batch), one.values))
    far = [float(streams.get(number, torch.nan)) for number in range(len(near))]
    return Effects(
        one.metric, one.metric + torch.stack(raw).to(one.metric), torch.tensor([near, far]), {}, Cost()
    )


def _sample(count: int, config: Config) -> list[int]:
    """Numbers of the cells to patch for comparison, drawn without replacement."""
    generator = torch.Generator().manual_seed(config.seed)
    return torch.randperm(count, generator=generator)[: config.checked].sort().values.tolist()


def _exact(
    contrast: Contrast, direction: Direction, chart: Map, sample: Sequence[int], recorder: Recorder
) -> Effects:
    """The sampled cells, really patched."""
    values = contrast.other(direction).values
    if not sample:
        metric = contrast.base(direction).metric
        return Effects(metric, metric[None][:0], torch.zeros(2, 0), {}, Cost())
    variants = [Variant(chart.cells[number].patch(values, contrast.batch)) for number in sample]
    found = patched(contrast, direction, variants)
    recorder.include(found.cost)
    return found


def _errors(
    chart: Map,
    cases: Sequence[Direction],
    sample: Sequence[int],
    attributed: Sequence[Effects],
    exact: Sequence[Effects],
) -> dict[str, xr.DataArray]:
    """Mean raw effects of the sampled cells, by gradient and by patching."""
    dim = f"{chart.part}_sample"
    coords = {"direction": list(cases), dim: [chart.name(number) for number in sample]}
    guess = [effects.raw[list(sample)] for effects in attributed]
    truth = [effects.raw for effects in exact]
    return {
        f"{dim}_{name}": xr.DataArray(
            np.stack([effects.double().mean(dim=1).cpu().numpy() for effects in found]),
            coords,
            ("direction", dim),
        )
        for name, found in (("attributed", guess), ("exact", truth))
    }


def _correlation(one: Float[np.ndarray, " sample"], other: Float[np.ndarray, " sample"]) -> float:
    """Pearson's, NaN where one side does not vary."""
    if len(one) < 2 or one.std() == 0 or other.std() == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])
