"""Which components work against or for each other? What two do together beyond what each does alone.

1. Each component is ablated alone, and each pair together. The interaction of a pair is what both do, less what each
   does: zero where effects add up. Where losing both costs more than the sum, each covers for the other (backup, OR);
   where it costs less, losing one makes the other idle (AND, or a chain).
2. An importance that counts interactions: the effect alone plus half of every interaction. The ranking by single
   effects misleads about the components whose rank differs most.
3. What is mediated: for each MLP and each head after it, how much of the MLP's effect is gone when the head is held at
   its value in the base run.

Reference: Bereska and Gavves (2024) on second-order effects; the halves are the second-order Shapley–Taylor shares of
Dhamdhere et al. (2020). Misleads where three or more back each other up: pairs do not show it.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import xarray as xr
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import rankdata

from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, NodeScores
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.errors import InputError
from microtome.core.shapes import Cell, Grid, Shape, Table
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.components import components, parse, spoken
from microtome.models.model import Model
from microtome.patching.components import order
from microtome.patching.contrast import Contrast
from microtome.patching.joint_effects import Joint, Kind
from microtome.patching.protocol import significant

card = Card(
    name="second_order",
    title="Second-order (pairwise) interactions",
    question="Which pairs of heads and MLPs do together what they do not do alone, and whom does that misrank?",
    steps=(
        "Ablate each component alone and each pair together.",
        "A pair's interaction is what both do less what each does.",
        "Rank components by their own effect plus half of their interactions, beside their own effect alone.",
        "Ablate each MLP with each later head held still: what is gone was mediated by the head.",
    ),
    reference="Bereska and Gavves 2024; Dhamdhere, Agarwal and Sundararajan 2020, the Shapley–Taylor index",
    misleads="Where three or more components back each other up, no pair of them shows it.",
    needs="pairs",
    causal="intervention",
    claims=("nodes",),
)


class Config(base.Config):
    """Which components, and how they are ablated."""

    components: tuple[str, ...] = Field((), description="Heads and MLPs, as z.3.h1, mlp_out.2; none: all.")
    most: int = Field(
        48, ge=2, description="More components than this are refused; pairs grow with the square."
    )
    kind: Kind = Field("resample", description="Ablated to the corrupt twin (resample), its mean, or zero.")
    metric: str = Field(metrics.DEFAULT, description="Metric by name.")
    seed: base.Seed = Field(0, description="Recorded; nothing here is drawn at random.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`effect [component]`: change of the metric when it is ablated alone, as a share of the behaviour.

    `interaction`, `significant [component, other]`: symmetric, nought on the diagonal. `importance`, `rank`,
    `rank_alone [component]`: with half of all interactions; ranks from 1 by size. `mediated [mlp, head]`: share of the
    behaviour that the MLP's effect loses when the head is held; NaN where the head comes before.
    """

    def answers(self) -> tuple[Answer, ...]:
        """Importance with interactions counted."""
        data = self.data
        return (
            NodeScores(
                dict(zip(data["component"].values.tolist(), data["importance"].values.tolist(), strict=True))
            ),
        )

    def shapes(self) -> tuple[Shape, ...]:
        data, c = self.data, self.config
        names = tuple(spoken(Site.parse(str(name))) for name in data["component"].values)
        told = f"{c['metric']}, ratio of means over {data.attrs['n']} pairs; ablated by {c['kind']}"
        pairs = int(data["significant"].values.sum() // 2)
        grid = Grid(
            "what two components do beyond the sum",
            data["interaction"].values,
            "component",
            names,
            "other",
            names,
            unit="share of the behaviour",
            caption=f"{told}; negative: losing both costs more than the sum. {pairs} of "
            f"{len(names) * (len(names) - 1) // 2} pairs differ from zero (t-test, false discovery rate 5 %)",
        )
        moved = np.abs(data["rank"].values - data["rank_alone"].values)
        rows: list[tuple[Cell, ...]] = []
        for i in np.argsort(-moved, kind="stable"):
            strongest = int(np.abs(data["interaction"].values[i]).argmax())
            rows.append(
                (
                    names[i],
                    float(data["effect"].values[i]),
                    int(data["rank_alone"].values[i]),
                    float(data["importance"].values[i]),
                    int(data["rank"].values[i]),
                    names[strongest],
                    float(data["interaction"].values[i, strongest]),
                )
            )
        ranks = Table(
            "where ranking by single ablations misleads",
            ("component", "alone", "rank", "with interactions", "rank", "most with", "interaction"),
            tuple(rows),
            caption=f"{told}; by how far the rank moves",
        )
        return (grid, ranks, *self._mediated(told))

    def _mediated(self, told: str) -> tuple[Grid, ...]:
        values = self.data["mediated"]
        if not values.size:
            return ()
        rows, columns = (
            tuple(spoken(Site.parse(str(name))) for name in values[axis].values) for axis in ("mlp", "head")
        )
        return (
            Grid(
                "what MLPs do through heads",
                values.values,
                "MLP",
                rows,
                "head",
                columns,
                unit="share of the behaviour",
                caption=f"{told}; the MLP's effect less that with the head held still",
            ),
        )


def run(model: Model, data: Pairs, config: Config | None = None) -> Result:
    """Measure all pairs. Raises `InputError` for fewer than two or too many components, and where clean and corrupt
    prompts are treated alike; `SiteError` for a component that the model does not have."""
    config = config or Config()
    sites = parse(model, config.components) if config.components else components(model)
    if len(set(sites)) != len(sites) or not 2 <= len(sites) <= config.most:
        raise InputError(
            f"expected between 2 and {config.most} different components, got {len(sites)}; name the strongest with "
            "components=…, or raise most"
        )
    pairs = list(combinations(range(len(sites)), 2))
    through = [
        (mlp, head)
        for mlp in range(len(sites))
        for head in range(len(sites))
        if not sites[mlp].heads and sites[head].heads and order(model, sites[mlp]) < order(model, sites[head])
    ]
    with measure() as recorder:
        contrast = Contrast.of(model, data, config.metric, sites, config.seed)
        joint = Joint(contrast, config.kind)
        recorder.add(passes=2)
        alone, cost = joint.effects([(site,) for site in sites])
        together, more = joint.effects([(sites[one], sites[other]) for one, other in pairs])
        recorder.include(cost + more)
        held = np.zeros((0, len(data)))
        if through:
            found, cost = joint.effects(
                [(sites[mlp],) for mlp, _ in through], [(sites[head],) for _, head in through]
            )
            held = found.numpy()
            recorder.include(cost)
    single = alone.numpy()
    beyond = together.numpy() - np.array([single[one] + single[other] for one, other in pairs])
    effect = single.mean(axis=1) / joint.gap
    interaction, differs = (
        _square(beyond.mean(axis=1) / joint.gap, pairs),
        _square(significant(beyond), pairs),
    )
    importance = effect + interaction.sum(axis=1) / 2
    mlps = [i for i, site in enumerate(sites) if not site.heads]
    heads = [i for i, site in enumerate(sites) if site.heads]
    mediated = np.full((len(mlps), len(heads)), np.nan)
    for (mlp, head), row in zip(through, held, strict=True):
        mediated[mlps.index(mlp), heads.index(head)] = effect[mlp] - row.mean() / joint.gap
    names = list(map(str, sites))
    arrays = {
        "effect": (("component",), effect),
        "interaction": (("component", "other"), interaction),
        "significant": (("component", "other"), differs.astype(bool)),
        "importance": (("component",), importance),
        "rank_alone": (("component",), rankdata(-np.abs(effect), method="min")),
        "rank": (("component",), rankdata(-np.abs(importance), method="min")),
        "mediated": (("mlp", "head"), mediated),
    }
    coords = {
        "component": names,
        "other": names,
        "mlp": np.array([names[i] for i in mlps], dtype=str),
        "head": np.array([names[i] for i in heads], dtype=str),
    }
    return Result.of(
        card,
        xr.Dataset(arrays, coords, {"n": len(data), "gap": joint.gap}),
        config,
        contrast.provenance,
        recorder.cost(),
    )


def _square(
    values: NDArray[np.generic], pairs: list[tuple[int, int]]
) -> Float[NDArray[np.float64], "component component"]:
    size = max(other for _, other in pairs) + 1
    found = np.zeros((size, size))
    for (one, other), value in zip(pairs, values.tolist(), strict=True):
        found[one, other] = found[other, one] = value
    return found
