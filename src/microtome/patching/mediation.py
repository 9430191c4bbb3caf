"""Does a component act on the answer itself, or through others? Its total, direct and indirect effects.

With x the component's value in the base run and x' its value in the other run, and M the values of all attention layers
and MLPs that come after it (its mediators), Y the metric:

1. total effect: Y(x', M(x')) − Y(x, M(x)); the component patched, everything after it free to answer;
2. direct effect: Y(x', M(x)) − Y(x, M(x)); the component patched, all mediators frozen at the base;
3. indirect effect, measured by an intervention of its own: Y(x, M(x')) − Y(x, M(x)); the component left alone, all
   mediators set to what they become when it is patched;
4. the remainder, total − direct − indirect, is the interaction of both ways. It is zero in a linear network; where it
   is not small, "direct" and "indirect" are no shares of a whole, and total − direct differs from the indirect effect.

Mediators need holding only where the metric reads logits: there the answer depends on nothing else.

Reference: Pearl, "Direct and Indirect Effects" (2001); Vig et al., "Investigating Gender Bias in Language Models Using
Causal Mediation Analysis" (2020).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float
from pydantic import Field

from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, EdgeScores, NodeScores
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.edits import Set
from microtome.core.shapes import Shape, Table
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.components import components as every_component
from microtome.models.components import parse
from microtome.models.model import Model
from microtome.models.sweep import Variant
from microtome.patching import components, protocol
from microtome.patching.cells import Cell
from microtome.patching.components import END
from microtome.patching.contrast import Contrast, Direction
from microtome.patching.effects import WHERE, Effects, patched, portion_of
from microtome.patching.off_distribution import LIMIT
from microtome.patching.stretches import WHOLE

card = Card(
    name="mediation",
    title="Causal mediation: direct and indirect effects",
    question="Does a head or MLP act on the answer itself, or through the components after it?",
    steps=(
        "Total: patch the component, everything after it free.",
        "Direct: patch it, everything after it frozen at the base.",
        "Indirect: leave it alone, set everything after it to what it becomes when the component is patched.",
        "Interaction: what total leaves over after both.",
    ),
    reference="Pearl 2001, Direct and Indirect Effects; Vig et al. 2020",
    misleads=(
        "Direct and indirect effects are shares of the total only where their interaction is small; and an indirect "
        "effect may be others making up for the component, not passing it on."
    ),
    needs="pairs",
    causal="intervention",
    claims=("nodes", "edges"),
)

EFFECTS = ("total", "direct", "indirect", "interaction")
_Marks = Bool[np.ndarray, "effect component"]


class Config(base.Config):
    """Which components, and in which direction."""

    components: tuple[str, ...] | None = Field(
        None, description="Heads and MLPs, as z.3.h1, mlp_out.2; None: all."
    )
    direction: Direction = Field(
        "noise", description="noise (corrupt into clean) or denoise (clean into corrupt)."
    )
    metric: str = Field(metrics.DEFAULT, description="Metric by name.")
    guard: bool = Field(
        True, description="Whether to judge how far each intervention leads from what is natural."
    )
    seed: base.Seed = Field(0, description="Seed of the off-distribution guard.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`raw` `[effect, component, row]` for total, direct, indirect, interaction; `normalised`, `significant`;
    `percentile` `[where, effect, component]` (NaN for the interaction, which is no run)."""

    def answers(self) -> tuple[Answer, ...]:
        """Total effects as the weight of nodes, direct effects as that of their edges to the logits."""
        names = self.data["component"].values.tolist()
        total, direct = (self.data["normalised"].sel(effect=name).values.tolist() for name in EFFECTS[:2])
        edges = {(name, "logits", "logits"): effect for name, effect in zip(names, direct, strict=True)}
        return NodeScores(dict(zip(names, total, strict=True))), EdgeScores(edges)

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        names = data["component"].values.tolist()
        judged, beyond = self._marks()
        drawn = components.grid(
            "mediation",
            names,
            data["normalised"].values,
            EFFECTS,
            "normalised effect",
            f"{self.config['direction']}; mean over {data.sizes['row']} prompts; 1 = all of the difference between the "
            f"two runs; {int(beyond.sum())} of {int(judged.sum())} effects are off-distribution",
        )
        far = components.grid(
            "mediation, off-distribution",
            names,
            data["percentile"].sel(where=WHERE[1]).values[:3],
            EFFECTS[:3],
            "percentile",
            "of the final stream's distance among held-out natural ones; median prompt",
            diverging=False,
        )
        return (drawn, self._table(names, beyond), protocol.table(data), far)

    def _marks(self) -> tuple[_Marks, _Marks]:
        """Which effects could be judged, and which of them lie beyond the limit."""
        percentile = self.data["percentile"]
        return percentile.notnull().any("where").values, (percentile > LIMIT).any("where").values

    def _table(self, names: Sequence[str], beyond: _Marks) -> Table:
        raw = self.data["raw"].mean("row").values
        significant = self.data["significant"].values
        order = np.argsort(-np.abs(raw[0]), kind="stable")
        rows = tuple(
            (
                names[i],
                *map(float, raw[:, i]),
                float(raw[0, i] - raw[1, i]),
                " ".join(name for name, found in zip(EFFECTS, significant[:, i], strict=True) if found),
                " ".join(name for name, found in zip(EFFECTS, beyond[:, i], strict=True) if found),
            )
            for i in order
        )
        return Table(
            "direct and indirect effects",
            ("component", *EFFECTS, "total − direct", "significant", "beyond the 99th percentile"),
            rows,
            caption=f"raw, mean over {self.data.sizes['row']} prompts; all {len(names)} components by size of total",
        )


def run(model: Model, data: Pairs, config: Config | None = None) -> Result:
    """Measure each component. Raises `SiteError` for unknown ones, `FamilyError` where mediators cannot be held."""
    config = config or Config()
    chosen = parse(model, config.components) if config.components else every_component(model)
    with measure() as recorder:
        mediators = components.between(model, (-1, 0), END)
        sites = [*chosen, *mediators]
        contrast = Contrast.of(model, data, config.metric, sites, config.seed, guard=config.guard)
        recorder.add(passes=2)
        at = contrast.metric.needs.positions
        portion = portion_of(model, data.clean, [s if at is None else s.at(*at) for s in mediators])
        raw: list[Float[np.ndarray, "effect component row"]] = []
        percentile: list[Float[np.ndarray, "where effect component"]] = []
        for start in range(0, len(chosen), portion):
            measured = _effects(contrast, config.direction, chosen[start : start + portion])
            for effects in measured:
                recorder.include(effects.cost)
            raw.append(np.stack([effects.raw.double().cpu().numpy() for effects in measured]))
            percentile.append(np.stack([effects.percentile.double().numpy() for effects in measured], axis=1))
    three, far = np.concatenate(raw, axis=1), np.concatenate(percentile, axis=2)
    total, direct, indirect = three
    found = np.concatenate([three, (total - direct - indirect)[None]])
    shape = found.shape[:2]
    arrays = {
        "raw": (("effect", "component", "row"), found),
        "normalised": (("effect", "component"), contrast.share(found, config.direction)),
        "significant": (
            ("effect", "component"),
            protocol.significant(found.reshape(-1, len(data))).reshape(shape),
        ),
        "percentile": (
            ("where", "effect", "component"),
            np.concatenate([far, np.full((len(WHERE), 1, len(chosen)), np.nan)], axis=1),
        ),
        **contrast.metrics,
    }
    coords = {"effect": list(EFFECTS), "component": list(map(str, chosen)), "where": list(WHERE)}
    items = protocol.checklist(contrast, (config.direction,), ("patch",), int(np.prod(shape)), far)
    return Result.of(
        card,
        xr.Dataset(arrays, coords).assign(protocol.stored(items)),
        config,
        contrast.provenance,
        recorder.cost(),
    )


def _effects(
    contrast: Contrast, direction: Direction, chosen: Sequence[Site]
) -> tuple[Effects, Effects, Effects]:
    """Total, direct and indirect effects of components."""
    model, one, other = contrast.model, contrast.base(direction), contrast.other(direction)
    at = contrast.metric.needs.positions
    after = [components.between(model, components.order(model, site), END) for site in chosen]
    sent = [Cell(site, WHOLE).patch(other.values, contrast.batch) for site in chosen]
    read = {site: site if at is None else site.at(*at) for sites in after for site in sites}
    total = patched(contrast, direction, [Variant(patch) for patch in sent], read=list(read.values()))
    held = [components.freeze(sites, one.values, contrast.batch, at) for sites in after]
    direct = patched(
        contrast,
        direction,
        [Variant((*patch, *frozen)) for patch, frozen in zip(sent, held, strict=True)],
        judged=sent,
    )
    moved = [
        tuple(Set(read[site], value=total.values[read[site]][number], origin="patch") for site in sites)
        for number, sites in enumerate(after)
    ]
    indirect = patched(contrast, direction, [Variant(edits) for edits in moved])
    return total, direct, indirect
