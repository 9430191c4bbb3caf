"""How much of a behaviour do circuits of each size keep? Faithfulness over size, from the strongest edges to all.

1. A method ranks all edges (or nodes) on one part of the pairs. Two orders: by signed effect, what helps most first;
   and by absolute effect.
2. On the other part, for each size, the circuit of the first so many is kept and the rest cut, exactly. Where cut edges
   carry the other side's values, edges on no path of kept edges are left out: they change nothing.
3. Faithfulness: the share of the behaviour that the circuit keeps. What its complement keeps: with the circuit cut and
   all else kept; little, where the circuit is complete. Areas: CPR and CMD, on both known axes.
4. Minimality: of the smallest circuit that reaches the target, what some of its edges are worth: cut one at a time.
5. Controls: random orders; and the order that the same method gives on a twin with random weights, put to the model.

With resampled values the circuit of all edges is the clean run, and that of none the corrupt one, bit for bit.
Reference: Wang et al. (2022); Hanna et al. (2024); Mueller et al. (2025), MIB; Miller et al. (2024) on conventions.
Misleads where a share above one is taken for a good circuit: leaving out what works against an answer exaggerates it.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from microtome.circuits.edge_cut import AblationKind
from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_knockout import EdgeKnockout, Kept
from microtome.circuits.edge_pairs import Direction, EdgePairs
from microtome.core import config as base
from microtome.core import plugins, result
from microtome.core.answers import EdgeScores, NodeScores
from microtome.core.card import Card
from microtome.core.cost import Recorder, measure
from microtome.core.errors import InputError
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Cell, Curve, Shape, Table
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.evaluation.curve_areas import AXES, FRACTIONS, Axis, cmd, cpr, places
from microtome.evaluation.ranked_circuits import Order, Ranking, graph_of
from microtome.models.model import Model
from microtome.models.random_twin import random_twin

Grain = Literal["edge", "node"]
ORDERS: Final[tuple[Order, ...]] = ("signed", "absolute")
Scores = EdgeScores | NodeScores

card = Card(
    name="circuit_curves",
    title="Faithfulness over circuit size (CPR, CMD)",
    question="How much of the behaviour do the strongest edges or nodes of a ranking keep, at every size?",
    steps=(
        "Rank all edges or nodes by a method on one part of the pairs.",
        "On the other part, keep the first so many, cut the rest exactly, at ten sizes; and the reverse.",
        "Tell the areas under faithfulness and between it and one, on both known axes.",
        "Do the same with random orders and with the order that a random-weight twin gives.",
    ),
    reference="Hanna, Pezzelle and Belinkov 2024; Mueller et al. 2025, MIB; Miller et al. 2024",
    misleads="A share above one is no better circuit: leaving out what works against an answer exaggerates it.",
    needs="pairs",
    causal="intervention",
    comprehensiveness="partial",
)


class Config(base.Config):
    """Whose ranking, at which grain and sizes, and what cut edges carry."""

    method: str = Field("edge_attribution_patching", description="The method whose scores rank.")
    settings: dict[str, Any] = Field(default_factory=dict, description="Settings of that method.")
    helpful: Literal["negative", "positive"] = Field(
        "negative", description="Sign of a score that helps; negative: scores are effects of cutting."
    )
    grain: Grain = Field("edge", description="edge, or node: all edges out of a source at once.")
    sizes: tuple[float, ...] = Field(FRACTIONS, min_length=2, description="Fractions of edges or nodes kept.")
    kind: AblationKind = Field(
        "resample", description="What cut edges carry: the other side, mean, zero, noise."
    )
    direction: Direction = Field("noise", description="noise: clean prompts run; denoise: corrupt ones.")
    metric: str = Field(metrics.DEFAULT, description="Metric by name.")
    target: float = Field(0.9, gt=0, le=1, description="Share that the circuit taken for minimality keeps.")
    checked: int = Field(16, ge=0, description="How many random edges of that circuit are cut alone.")
    random_orders: int = Field(2, ge=0, description="Random orders, for control.")
    twin: bool = Field(True, description="Whether to rank by a random-weight twin, for control.")
    fraction: float = Field(0.5, gt=0, lt=1, description="Part of the pairs on which the ranking is found.")
    rows: int = Field(16, ge=1, description="Pairs in a batch; fewer need less memory.")
    seed: base.Seed = Field(
        0, description="Of the split of pairs, random orders, the twin and the sample of edges."
    )


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`share`, `complement`, `realised` `[order, size]`; `score`, `complement_score [order, size, row]`; `whole`,
    `empty [row]`; `random [draw, size]`; `twin [size]` (NaN without); `loss [edge]`: of the circuit for minimality.

    Attributes: `n`, `count` (of edges or nodes), `twin_note`.
    """

    def area(self, which: Literal["CPR", "CMD"], axis: Axis) -> float:
        """CPR of the signed order, or CMD of the absolute one."""
        order, measure_of = ("signed", cpr) if which == "CPR" else ("absolute", cmd)
        at = self.data.sel(order=order)
        return measure_of(
            places(axis, self.data["size"].values, at["realised"].values.astype(float)), at["share"].values
        )

    def conventions(self) -> str:
        """What the numbers rest on, in a line."""
        c = self.config
        carried = {"resample": "the other side's values", "mean": "means", "zero": "zero"}[c["kind"]]
        return (
            f"{c['metric']}, ratio of means over {self.data.attrs['n']} pairs; {c['direction']}; cut edges carry "
            f"{carried}; {c['grain']}s ranked by {c['method']}, {c['helpful']} scores help"
        )

    def shapes(self) -> tuple[Shape, ...]:
        return (self._curve(), self._areas(), *self._minimality())

    def _curve(self) -> Curve:
        data = self.data
        drawn = {f"{order} order": data["share"].sel(order=order).values for order in ORDERS}
        drawn |= {
            f"complement, {order} order": data["complement"].sel(order=order).values for order in ORDERS
        }
        if data.sizes["draw"]:
            drawn["random orders (mean)"] = data["random"].mean("draw").values
        if not np.isnan(data["twin"].values).all():
            drawn["order of a random-weight twin"] = data["twin"].values
        return Curve(
            "share of the behaviour kept over circuit size",
            data["size"].values,
            np.stack(list(drawn.values())),
            tuple(drawn),
            f"fraction of {data.attrs['count']} {self.config['grain']}s",
            "share of the behaviour",
            caption=f"{self.conventions()}. {data.attrs['twin_note']}".strip(),
        )

    def _areas(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        asked = self.data["size"].values
        for axis in AXES:
            # Of random orders and of the twin's, no other count is known than the one asked for.
            luck = (
                self.data["random"].mean("draw").values
                if self.data.sizes["draw"]
                else np.full(len(asked), np.nan)
            )
            twin = self.data["twin"].values
            controls = (
                [f(asked, values) for values in (luck, twin) for f in (cpr, cmd)]
                if axis == "asked"
                else [None] * 4
            )
            rows.append((axis, self.area("CPR", axis), self.area("CMD", axis), *controls))
        return Table(
            "areas over circuit size",
            ("x-axis", "CPR", "CMD", "CPR, random", "CMD, random", "CPR, twin", "CMD, twin"),
            tuple(rows),
            caption=f"{self.conventions()}. CPR: area under the share, of the signed order; CMD: area between it "
            f"and 1, of the absolute order; sizes {asked[0]:g} to {asked[-1]:g}, so a perfect CPR on the axis of asked "
            f"sizes is {asked[-1] - asked[0]:g}",
        )

    def _minimality(self) -> tuple[Table, ...]:
        loss = self.data["loss"]
        order = np.argsort(loss.values, kind="stable")
        rows = tuple((str(loss["edge"].values[i]), float(loss.values[i])) for i in order)
        if not rows:
            return ()
        return (
            Table(
                "what single parts of the smallest circuit at the target are worth",
                ("part", "share lost without it"),
                rows,
                caption=f"{len(rows)} random ones of {self.data.attrs['minimal']}; {self.conventions()}",
            ),
        )


def run(model: Model, data: Pairs, config: Config | None = None) -> Result:
    """Rank on one part of the pairs, measure on the other. Raises `InputError` for a method without scores of that
    grain, for pairs that cannot be split, and where there is no behaviour to keep."""
    config = config or Config()
    first, second = data.split(config.fraction, config.seed)
    with measure() as recorder:
        found = ranked(model, first, config, recorder)
        return of(model, second, found, config, found_on=first, recorder=recorder)


def ranked(model: Model, pairs: Pairs, config: Config, recorder: Recorder) -> Scores:
    """The scores that the method of the settings gives on these pairs."""
    method = plugins.method(config.method)
    answered = method.run(model, pairs, method.Config.read(config.settings))
    recorder.include(answered.cost)
    wanted = EdgeScores if config.grain == "edge" else NodeScores
    for answer in answered.answers():
        if isinstance(answer, wanted) and not getattr(answer, "role", ""):
            return answer
    raise InputError(
        f"{config.method} gives no scores of {config.grain}s to rank by; name a method that claims {config.grain}s"
    )


def of(
    model: Model,
    pairs: Pairs,
    scores: Scores,
    config: Config,
    *,
    found_on: Pairs | None = None,
    recorder: Recorder | None = None,
) -> Result:
    """The curves of given scores. found_on: pairs on which a twin is to be ranked; without them there is no twin."""
    if (tuple(sorted(config.sizes)) != config.sizes) or not 0 < config.sizes[0] <= config.sizes[-1] <= 1:
        raise InputError(f"sizes are fractions above 0 up to 1 in rising order, got {config.sizes}")
    if recorder is None:
        with measure() as recorder:
            return of(model, pairs, scores, config, found_on=found_on, recorder=recorder)
    curves = _Curves(model, pairs, scores, config)
    made = curves.arrays()
    twin, note = curves.twin(found_on, recorder)
    by_size = ORDERS.index("absolute")
    minimal, loss = curves.minimality(made["realised"][1][by_size], made["share"][1][by_size])
    recorder.add(passes=curves.passes)
    arrays = {
        **made,
        "random": (("draw", "size"), curves.random()),
        "twin": (("size",), twin),
        "loss": (("edge",), np.array(list(loss.values()))),
        "whole": (("row",), curves.knockout.whole.numpy()),
        "empty": (("row",), curves.knockout.empty.numpy()),
    }
    coords = {"order": list(ORDERS), "size": list(config.sizes), "edge": np.array(list(loss), dtype=str)}
    attrs = {"n": len(pairs), "count": len(curves.units), "twin_note": note, "minimal": minimal}
    return Result.of(
        card,
        xr.Dataset(arrays, coords, attrs),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), pairs.hash),
        recorder.cost(),
    )


class _Curves:
    """The circuits of all orders and sizes, run."""

    def __init__(self, model: Model, pairs: Pairs, scores: Scores, config: Config) -> None:
        self.model, self.pairs, self.config = model, pairs, config
        whole = EdgeGraph.of(model)
        split = EdgeGraph.of(model, split_positions=True) if model.has("pos_embed") else None
        self.graph = graph_of(whole, split, scores)
        self.prune = config.kind == "resample"
        self.ranking = Ranking.of(self.graph, scores, config.helpful, self.prune)
        edge_pairs = EdgePairs(
            model,
            self.graph,
            pairs,
            config.metric,
            config.kind,
            config.direction,
            config.rows,
            seed=config.seed,
        )
        self.knockout = EdgeKnockout(edge_pairs)
        self.passes = self.knockout.passes(2)

    @property
    def units(self) -> Tensor:
        return self.ranking.units

    def scores(self, kept: list[Kept]) -> Float[Tensor, "circuit row"]:
        self.passes += self.knockout.passes(len(kept))
        return self.knockout.scores(kept)

    def circuits(self, ordered: Tensor) -> list[Kept]:
        return [self.ranking.circuit(ordered, size) for size in self.config.sizes]

    def arrays(self) -> dict[str, tuple[tuple[str, ...], NDArray[Any]]]:
        circuits = [one for order in ORDERS for one in self.circuits(self.ranking.ordered(order))]
        shape = (len(ORDERS), len(self.config.sizes))
        scores = self.scores(circuits)
        without = self.scores([self.graph.allowed & ~one for one in circuits])
        dims = ("order", "size")
        return {
            "share": (dims, self.knockout.share(scores).view(shape).numpy()),
            "complement": (dims, self.knockout.share(without).view(shape).numpy()),
            "realised": (dims, np.array([int(one.sum()) for one in circuits]).reshape(shape)),
            "score": ((*dims, "row"), scores.view(*shape, -1).numpy()),
            "complement_score": ((*dims, "row"), without.view(*shape, -1).numpy()),
        }

    def random(self) -> Float[NDArray[np.float64], "draw size"]:
        found = np.zeros((self.config.random_orders, len(self.config.sizes)))
        for draw in range(self.config.random_orders):
            circuits = self.circuits(self.ranking.shuffled(self.config.seed * 1009 + draw))
            found[draw] = self.knockout.share(self.scores(circuits)).numpy()
        return found

    def twin(
        self, found_on: Pairs | None, recorder: Recorder
    ) -> tuple[Float[NDArray[np.float64], " size"], str]:
        """What circuits keep in the order of a twin that has learned nothing, and how that order came about."""
        nothing = np.full(len(self.config.sizes), np.nan)
        if not self.config.twin or found_on is None:
            return nothing, "No random-weight twin was ranked."
        try:
            scores = ranked(random_twin(self.model, self.config.seed), found_on, self.config, recorder)
        except InputError as error:
            return nothing, f"The random-weight twin cannot be ranked: {error}"
        ranking = Ranking.of(self.graph, scores, self.config.helpful, self.prune)
        circuits = self.circuits(ranking.ordered("absolute"))
        return self.knockout.share(self.scores(circuits)).numpy(), "The twin's order is by absolute score."

    def minimality(self, realised: NDArray[Any], share: NDArray[Any]) -> tuple[str, dict[str, float]]:
        """The smallest circuit of the absolute order that reaches the target, and losses without some of its edges."""
        reached = (share >= self.config.target).nonzero()[0]
        if not len(reached) or not self.config.checked:
            return "no circuit: none reaches the target", {}
        number = int(reached[0])
        circuit = self.ranking.circuit(self.ranking.ordered("absolute"), self.config.sizes[number])
        edges = circuit.nonzero().tolist()
        generator = torch.Generator().manual_seed(self.config.seed)
        chosen = torch.randperm(len(edges), generator=generator)[: self.config.checked].tolist()
        circuits = []
        for one in chosen:
            circuits.append(circuit.clone())
            circuits[-1][tuple(edges[one])] = False
        left = self.knockout.share(self.scores(circuits)).tolist()
        names = [
            " ".join((self.graph.sources[column], "->", *self.graph.receivers[row])) for row, column in edges
        ]
        told = f"the {realised[number]} edges of the circuit at size {self.config.sizes[number]:g}"
        return told, {
            names[one]: float(share[number]) - value for one, value in zip(chosen, left, strict=True)
        }
