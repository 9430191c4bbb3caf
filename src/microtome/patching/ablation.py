"""What breaks when a component is taken away, and does the answer depend on how it is taken away?

1. Each head and each MLP of the clean run is replaced at every position, in four ways: by *zero*; by its *mean* over
   reference prompts; by *resampling*, its value on another reference prompt, drawn by seed; by itself plus Gaussian
   *noise* of its own spread.
2. The effect is the metric after minus before: raw, and as a share of the gap between clean and corrupt prompts.
3. How the conclusion differs: the rank correlation of components between any two ways, and the components that one
   way calls helpful and another harmful (opposite signs, each more than two standard errors from zero).
4. With `keep`, everything else is ablated at once: what an explanation calls irrelevant should not be missed.

Reference: Chan et al., "Causal Scrubbing" (2022), on resampling; Wang et al. (2022), on mean ablation; Miller et al.,
"Transformer Circuit Faithfulness Metrics are not Robust" (2024). Misleads where a value is unlike any the model sees:
zero and noise break more than they remove, and later components may make up for what is gone.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from pydantic import Field
from scipy import stats
from torch import Tensor

from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, NodeScores
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.edits import Edit, Noise, Set, Zero
from microtome.core.errors import InputError
from microtome.core.shapes import Cell, Shape, Table
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models import select
from microtome.models.components import components as every_component
from microtome.models.components import parse
from microtome.models.model import Model
from microtome.models.sweep import Variant
from microtome.patching import components, protocol
from microtome.patching.contrast import Contrast, Side
from microtome.patching.effects import WHERE, patched
from microtome.patching.off_distribution import LIMIT

card = Card(
    name="ablation",
    title="Ablation (zero, mean, resample, noise)",
    question="What breaks when a head or MLP is taken away, and does the answer depend on how?",
    steps=(
        "Replace each head and MLP by zero, by its mean, by its value on another prompt, or by itself plus noise.",
        "The effect is the change of the metric, raw and as a share of the gap between clean and corrupt prompts.",
        "Compare the ways: rank correlation of components, and components whose effect changes its sign.",
        "With `keep`, ablate everything else at once.",
    ),
    reference="Chan et al. 2022, Causal Scrubbing; Wang et al. 2022; Miller et al. 2024",
    misleads=(
        "Zero and noise put in values that no prompt gives, so effects may be mere breakage; and later components may "
        "make up for what is gone, so a small effect is no proof of idleness."
    ),
    needs="pairs",
    causal="intervention",
    claims=("nodes",),
)

Kind = Literal["zero", "mean", "resample", "noise"]


class Config(base.Config):
    """How to ablate, and what to compare with."""

    kinds: tuple[Kind, ...] = Field(
        ("zero", "mean", "resample", "noise"), min_length=1, description="Ways to take a component away."
    )
    metric: str = Field(metrics.DEFAULT, description="Metric by name.")
    reference: Literal["corrupt", "clean", "both"] = Field(
        "corrupt", description="Prompts that means are taken over and values are resampled from."
    )
    mean_over: Literal["positions", "prompts"] = Field(
        "positions",
        description="One mean over prompts and positions, or one at each position (equal lengths only).",
    )
    noise: float = Field(1.0, gt=0, description="Standard deviation of the noise, in that of the values.")
    components: tuple[str, ...] | None = Field(
        None, description="Components, as z.3.h1 and mlp_out.2; None: all."
    )
    keep: tuple[str, ...] | None = Field(
        None, description="Also ablate at once everything but these; None: do not."
    )
    seed: base.Seed = Field(0, description="Seed of resampling, noise and the off-distribution guard.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`effect` `[kind, component, row]`, `normalised`, `significant`, `percentile`, `agreement`, `flips`.

    With `keep`: `everything_else` `[kind, row]`, the metric with all but the kept components ablated.
    """

    def answers(self) -> tuple[Answer, ...]:
        """How much each head and MLP matters: its mean effect over the kinds of ablation."""
        effect = self.data["normalised"].mean("kind")
        names = self.data["component"].values.tolist()
        return (NodeScores(dict(zip(names, effect.values.tolist(), strict=True))),)

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        kinds, names = data["kind"].values.tolist(), data["component"].values.tolist()
        n, beyond = data.sizes["row"], (data["percentile"] > LIMIT).any("where").values
        effects = components.grid(
            "ablation",
            names,
            data["normalised"].values,
            kinds,
            "normalised effect",
            f"mean over {n} prompts; 1 = as bad as the corrupt prompt; {int(beyond.sum())} of {beyond.size} effects "
            f"are off-distribution (beyond the {LIMIT:.0f}th percentile)",
        )
        far = components.off_distribution("ablation", names, data["percentile"], kinds)
        drawn: list[Shape] = [effects]
        if "everything_else" in data:
            drawn.append(self._everything_else(kinds))
        if len(kinds) > 1:
            drawn += [self._agreement(kinds), self._flips(kinds, names)]
        return (*drawn, self._largest(kinds, names), protocol.table(data), far)

    def _everything_else(self, kinds: list[str]) -> Table:
        kept = self.data["everything_else"]
        clean, corrupt = (float(self.data[f"{side}_metric"].mean()) for side in ("clean", "corrupt"))
        far = self.data["everything_else_percentile"].max("where")
        rows = tuple(
            (
                kind,
                float(kept.sel(kind=kind).mean()),
                float(kept.sel(kind=kind).std(ddof=0)),
                float(far.sel(kind=kind)),
            )
            for kind in kinds
        )
        return Table(
            "everything else ablated",
            ("kind", "metric", "spread over prompts", "percentile"),
            (("nothing ablated", clean, None, None), *rows, ("corrupt prompts", corrupt, None, None)),
            caption=f"kept: {', '.join(self.config['keep']) or 'nothing'}; mean over {self.data.sizes['row']} prompts; "
            f"off-distribution beyond the {LIMIT:.0f}th percentile",
        )

    def _agreement(self, kinds: list[str]) -> Table:
        agreement = self.data["agreement"].values
        rows: tuple[tuple[Cell, ...], ...] = tuple(
            (kind, *map(float, agreement[i])) for i, kind in enumerate(kinds)
        )
        count = self.data.sizes["component"]
        return Table(
            "do the kinds agree?",
            ("rank correlation", *kinds),
            rows,
            caption=f"Spearman, of the mean effects of {count} components",
        )

    def _flips(self, kinds: list[str], names: list[str]) -> Table:
        flips, effect = self.data["flips"].values, self.data["effect"].mean("row").values
        rows = tuple(
            (names[c], kinds[i], float(effect[i, c]), kinds[j], float(effect[j, c]))
            for i, j in combinations(range(len(kinds)), 2)
            for c in np.flatnonzero(flips[i, j])
        )
        return Table(
            "sign flips",
            ("component", "kind", "effect", "other kind", "its effect"),
            rows,
            caption="components that one kind calls helpful and another harmful, each beyond two standard errors; "
            f"{len(rows)} in {len(names)} components × {len(kinds) * (len(kinds) - 1) // 2} pairs of kinds",
        )

    def _largest(self, kinds: list[str], names: list[str]) -> Table:
        data = self.data
        size = np.nan_to_num(np.abs(data["normalised"].values))
        top = np.argsort(-size, axis=None)[:20]
        rows = []
        for kind, component in zip(*np.unravel_index(top, size.shape), strict=True):
            place = {"kind": kind, "component": component}
            near, far = data["percentile"].isel(place).values.tolist()
            rows.append(
                (
                    names[component],
                    kinds[kind],
                    float(data["normalised"].isel(place)),
                    float(data["effect"].isel(place).mean()),
                    bool(data["significant"].isel(place)),
                    near,
                    far,
                    "beyond" if max(np.nan_to_num([near, far])) > LIMIT else "",
                )
            )
        return Table(
            "largest effects",
            ("component", "kind", "normalised", "raw", "significant", "site %ile", "final %ile", "mark"),
            tuple(rows),
            caption=f"{len(rows)} of {size.size} effects, each over {data.sizes['row']} prompts",
        )


def run(model: Model, data: Pairs, config: Config | None = None) -> Result:
    """Ablate each component of the clean prompts. Raises `SiteError` for unknown components, `InputError` for pairs
    that give no reference (positions that do not align, nothing to resample from)."""
    config = config or Config()
    with measure() as recorder:
        chosen = every_component(model) if config.components is None else parse(model, config.components)
        kept = None if config.keep is None else parse(model, config.keep)
        removed = () if kept is None else tuple(s for s in every_component(model) if s not in kept)
        contrast = Contrast.of(model, data, config.metric, [*chosen, *removed], config.seed)
        recorder.add(passes=2)
        ablate = _Ablation(contrast, config)
        variants = [Variant((ablate.edit(kind, site),)) for kind in config.kinds for site in chosen]
        if kept is not None:
            variants += [Variant(tuple(ablate.edit(kind, site) for site in removed)) for kind in config.kinds]
        found = patched(contrast, "noise", variants)
        recorder.include(found.cost)
    count, shape = len(config.kinds) * len(chosen), (len(config.kinds), len(chosen))
    raw = found.raw.double().cpu().numpy()[:count]
    percentile = found.percentile.double().numpy()
    effect = raw.reshape(*shape, -1)
    coords = {"kind": list(config.kinds), "component": list(map(str, chosen)), "where": list(WHERE)}
    arrays = {
        "effect": (("kind", "component", "row"), effect),
        "normalised": (("kind", "component"), contrast.share(effect, "noise")),
        "significant": (("kind", "component"), protocol.significant(raw).reshape(shape)),
        "percentile": (("where", "kind", "component"), percentile[:, :count].reshape(2, *shape)),
        "agreement": (("kind", "other"), _agreement(effect.mean(axis=2))),
        "flips": (("kind", "other", "component"), _flips(effect)),
        **contrast.metrics,
    }
    if kept is not None:
        arrays["everything_else"] = (("kind", "row"), found.metric[count:].double().cpu().numpy())
        arrays["everything_else_percentile"] = (("where", "kind"), percentile[:, count:])
    items = protocol.checklist(contrast, ("ablate",), config.kinds, count, percentile)
    return Result.of(
        card,
        xr.Dataset(arrays, coords | {"other": list(config.kinds)}).assign(protocol.stored(items)),
        config,
        contrast.provenance,
        recorder.cost(),
    )


class _Ablation:
    """Makes the edit that takes a component away, from the values of reference prompts."""

    def __init__(self, contrast: Contrast, config: Config) -> None:
        self._contrast = contrast
        self._config = config
        both = {"clean": contrast.clean, "corrupt": contrast.corrupt}
        self._sides: list[Side] = (
            list(both.values()) if config.reference == "both" else [both[config.reference]]
        )
        self._real = contrast.batch.real(contrast.model.device)
        self._donors = self._draw() if "resample" in config.kinds else []

    def edit(self, kind: Kind, site: Site) -> Edit:
        """The edit at all positions of the clean run."""
        match kind:
            case "zero":
                return Zero(site)
            case "mean":
                return Set(site, value=self._mean(site), origin="mean")
            case "resample":
                values = self._values(site)
                drawn = torch.stack([values[side][row] for side, row in self._donors])
                return Set(site, value=drawn, origin="resample")
            case "noise":
                own = select.read(site, self._contrast.clean.values[site.whole], self._contrast.batch)
                scale = self._config.noise * float(own[self._real].float().std(dim=0).pow(2).mean().sqrt())
                return Noise(site, scale=scale, seed=self._config.seed)

    def _values(self, site: Site) -> list[Tensor]:
        return [select.read(site, side.values[site.whole], self._contrast.batch) for side in self._sides]

    def _mean(self, site: Site) -> Tensor:
        values = self._values(site)
        if self._config.mean_over == "positions":
            return torch.cat([value[self._real] for value in values]).mean(dim=0)[None, None]
        if len(set(self._contrast.pairs.lengths)) > 1:
            raise InputError(
                "a mean at each position needs prompts of one length, these differ; use mean_over=positions"
            )
        return torch.cat(values).mean(dim=0, keepdim=True)

    def _draw(self) -> list[tuple[int, int]]:
        """For each row another prompt of its length: (side, row). Never the clean prompt of the row itself.

        From the row's own half of the prompts where possible: the guard judges it by the other half.
        """
        pairs, half = self._contrast.pairs, self._contrast.natural.half
        generator = torch.Generator().manual_seed(self._config.seed)
        drawn = []
        for row, length in enumerate(pairs.lengths):
            own = pairs.clean[row][self._real[row].cpu()]
            fit = [
                (number, other)
                for number, side in enumerate(self._sides)
                for other in range(len(pairs))
                if pairs.lengths[other] == length
                and not torch.equal(side.tokens[other][self._real[other].cpu()], own)
            ]
            if not fit:
                raise InputError(
                    f"row {row} ({length} tokens) has no other prompt of its length to resample from; give more pairs, "
                    "reference=both, or leave out the kind resample"
                )
            fit = [(side, other) for side, other in fit if half[other] == half[row]] or fit
            drawn.append(fit[int(torch.randint(len(fit), (), generator=generator))])
        return drawn


def _agreement(means: Float[np.ndarray, "kind component"]) -> Float[np.ndarray, "kind kind"]:
    """Spearman's rank correlation between kinds; NaN where all components are equal."""
    ranks = stats.rankdata(means, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    length = np.sqrt((ranks**2).sum(axis=1))
    with np.errstate(invalid="ignore"):
        return (ranks @ ranks.T) / np.outer(length, length)


def _flips(effect: Float[np.ndarray, "kind component row"]) -> Bool[np.ndarray, "kind kind component"]:
    """Components whose effects under two kinds have opposite signs, each beyond two standard errors."""
    n = effect.shape[2]
    if n < 2:
        return np.zeros((len(effect), len(effect), effect.shape[1]), dtype=bool)
    mean, error = effect.mean(axis=2), effect.std(axis=2, ddof=1) / np.sqrt(n)
    sign = np.sign(mean) * (np.abs(mean) > 2 * error)
    return sign[:, None] * sign[None] < 0
