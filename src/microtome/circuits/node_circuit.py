"""Which heads and MLPs do the task? Rank them by attribution, keep the first that suffice, prune by exact tests.

1. Attribution: on the clean prompts, one backward pass gives the metric's gradient at every head and MLP; times the
   difference to the corrupt run it estimates what replacing each would do (attribution patching).
2. Growing: components are kept in the order of the estimate's size; all sets of that order are tested exactly, with
   everything else replaced, and the smallest that reaches the target share of the behaviour is taken.
3. Pruning: of the set, each component is left out in turn, exactly; the one that is missed least goes, as long as the
   share stays at the target. It ends when every component is needed to stay there.
4. A component's weight is what leaving it out of the finished circuit costs, in shares of the behaviour.

Reference: attribution patching, Nanda (2023) and Syed et al. (2023); keeping only the circuit, Wang et al. (2022).
Misleads where two components back each other up: pruning keeps one and calls the other unneeded; and a share near the
target says nothing of prompts unlike these.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from pydantic import Field
from torch import Tensor

from microtome.circuits.knockout import LEAST_GAP, Kind, Knockout
from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, FoundCircuit, NodeScores
from microtome.core.card import Card
from microtome.core.circuit import Circuit
from microtome.core.cost import Cost, measure
from microtome.core.errors import InputError
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Curve, Shape, Table
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.components import parse, spoken
from microtome.models.model import Model

card = Card(
    name="node_circuit",
    title="Circuit of heads and MLPs (attribution, then exact pruning)",
    question="Which heads and MLPs are enough for the task, with everything else replaced?",
    steps=(
        "Estimate from one gradient what replacing each head and MLP would do.",
        "Keep components in that order until, with everything else replaced, the target share is reached.",
        "Leave out, one at a time and exactly, what is missed least while the target holds.",
    ),
    reference="Wang et al. 2022, Interpretability in the Wild; Nanda 2023, Attribution Patching; Syed et al. 2023",
    misleads="Of two components that back each other up one is kept and the other called unneeded.",
    needs="pairs",
    causal="intervention",
    comprehensiveness="partial",
    claims=("circuit", "nodes"),
)


class Config(base.Config):
    """How much of the behaviour the circuit must keep, and what replaces the rest."""

    target: float = Field(0.9, gt=0, le=1, description="Share of the behaviour that the circuit keeps.")
    kind: Kind = Field(
        "resample", description="What replaces the rest: corrupt twins (resample) or their mean."
    )
    metric: str = Field(metrics.DEFAULT, description="Metric by name; it must be differentiable.")
    seed: base.Seed = Field(0, description="Recorded; nothing here is drawn at random.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`estimate component`, `order component`, `share kept` (grown), `weight component` (NaN outside the circuit)."""

    @property
    def circuit(self) -> Circuit:
        """The components kept, weighted by what leaving each out costs."""
        weight = self.data["weight"]
        kept = weight[np.isfinite(weight.values)]
        return Circuit.of(
            {str(name): float(w) for name, w in zip(kept["component"].values, kept.values, strict=True)}
        )

    def answers(self) -> tuple[Answer, ...]:
        """The circuit itself, and the estimate that all components were ranked by."""
        estimate = self.data["estimate"]
        names = estimate["component"].values.tolist()
        scores = NodeScores(dict(zip(names, estimate.values.tolist(), strict=True)))
        return FoundCircuit(self.circuit), scores

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        n, count = data.attrs["n"], data.sizes["component"]
        grown = Curve(
            "share of the behaviour kept",
            np.arange(data.sizes["kept"], dtype=float),
            data["share"].values[None],
            ("kept in the order of attribution",),
            "components kept",
            "share of the behaviour",
            caption=f"{n} prompts; everything else replaced ({self.config['kind']}); target {self.config['target']:g}",
        )
        rows = []
        for name in sorted(
            self.circuit.nodes, key=lambda node: -self.circuit.weights[self.circuit.nodes.index(node)]
        ):
            at = data.sel(component=name)
            rows.append(
                (spoken(Site.parse(name)), float(at["weight"]), float(at["estimate"]), int(at["order"]) + 1)
            )
        table = Table(
            "circuit",
            ("component", "share lost without it", "estimated change if replaced", "rank"),
            tuple(rows),
            caption=f"{len(rows)} of {count} heads and MLPs keep {data.attrs['kept_share']:.2f} of the behaviour "
            f"on {n} prompts",
        )
        return (table, grown)


def run(model: Model, data: Pairs, config: Config | None = None) -> Result:
    """Find the circuit. Raises `InputError` where clean and corrupt prompts do not differ, so that there is nothing
    to explain."""
    config = config or Config()
    with measure() as recorder:
        knockout = Knockout(model, data, config.kind, config.metric)
        if not abs(knockout.gap) > LEAST_GAP:
            raise InputError(
                f"replacing everything changes the metric by {knockout.gap:.1e}: {model.name} treats clean and corrupt "
                "prompts alike, so there is no behaviour to explain; look at the task or the model"
            )
        estimate = attribution(knockout)
        order = sorted(range(len(estimate)), key=lambda i: (-abs(estimate[i]), i))
        ranked = [knockout.components[i] for i in order]
        share = knockout.shares([ranked[:size] for size in range(len(ranked) + 1)])
        size = (
            int((share >= config.target).int().argmax())
            if bool((share >= config.target).any())
            else len(ranked)
        )
        kept_share, without = _prune(knockout, ranked[:size], config.target)
        recorder.include(knockout.cost + Cost(passes=1))
    names = [str(site) for site in knockout.components]
    rank = {site: place for place, site in enumerate(ranked)}
    weight = {site: kept_share - lost for site, lost in without.items()}
    arrays = {
        "estimate": (("component",), np.array(estimate)),
        "order": (("component",), np.array([rank[site] for site in knockout.components])),
        "share": (("kept",), share.cpu().numpy()),
        "weight": (("component",), np.array([weight.get(site, np.nan) for site in knockout.components])),
    }
    found = xr.Dataset(
        arrays, {"component": names}, {"n": len(data), "kept_share": kept_share, "gap": knockout.gap}
    )
    return Result.of(
        card,
        found,
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), data.hash),
        recorder.cost(),
    )


def attribution(knockout: Knockout) -> list[float]:
    """The estimated change of the mean metric when each component is replaced: gradient times difference."""
    model, pairs = knockout.model, knockout.pairs
    wholes = sorted({site.whole for site in knockout.components}, key=lambda site: site.depth)
    read = [*wholes, *(site.grad for site in wholes)]
    run = model.run(pairs.clean, read=read, metric=knockout.metric, mask=pairs.mask)
    real = model.inputs(pairs.clean, pairs.mask).batch.real(model.device)
    effects: dict[Site, Tensor] = {}
    for site in wholes:
        difference = (knockout.replacement(site) - run[site]).float() * run[site.grad].float()
        effects[site] = (
            difference.sum(dim=-1) * real.view(*real.shape, *(1 for _ in difference.shape[3:]))
        ).sum(dim=1)
    mean = {site: effect.double().mean(dim=0) for site, effect in effects.items()}
    return [float(mean[s.whole][s.heads[0]] if s.heads else mean[s.whole]) for s in knockout.components]


def _prune(knockout: Knockout, start: list[Site], target: float) -> tuple[float, dict[Site, float]]:
    """Leave out what is missed least while the target holds. Returns the share that stays, and the share without each
    of what stays."""
    kept = list(start)
    kept_share = float(knockout.shares([kept])[0])
    while kept:
        shares = knockout.shares([[s for s in kept if s != site] for site in kept])
        without = dict(zip(kept, shares.tolist(), strict=True))
        least = max(kept, key=lambda site: without[site])
        if without[least] < target:
            return kept_share, without
        kept_share = without[least]
        kept.remove(least)
    return kept_share, {}


def kept_of(model: Model, circuit: Circuit) -> tuple[Site, ...]:
    """The components of a circuit as sites of this model."""
    return parse(model, circuit.nodes)
