"""How are all edges scored, and how far off are the scores? What methods share that estimate the effect of every edge.

An effect is the metric with the edge cut minus without, as a mean over pairs. A method says how a batch is estimated;
here batches are added up, a random sample of edges is really cut, one at a time, and the error told beside the
estimates. Methods whose scores are no effects (masks, shares of a flow) are compared by rank alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Final, cast

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import rankdata
from torch import Tensor

from microtome.circuits.edge_cut import Ablation, AblationKind
from microtome.circuits.edge_graph import EdgeGraph, Kind, Weights
from microtome.circuits.edge_pairs import Direction, EdgePairs, require_gap
from microtome.circuits.edge_run import EdgeRun
from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, EdgeScores, NodeScores
from microtome.core.card import Card
from microtome.core.circuit import Circuit
from microtome.core.cost import Cost, Recorder, measure
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Graph, Shape, Table
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.model import Model

Estimate = Callable[[EdgeRun, Ablation, Recorder], tuple[Float[Tensor, " row"], Weights]]
"""Of a batch: the metric of each row with no edge cut, and the estimate of every edge, summed over rows."""
Matrix = Float[NDArray[np.floating], "*position receiver source"]
_SHOWN: Final = 40


class Config(base.Config):
    """What cut edges carry, and how many are cut to measure the error."""

    metric: str = Field(metrics.DEFAULT, description="Metric by name; it must have a gradient.")
    kind: AblationKind = Field(
        "resample", description="What cut edges carry: the other side (resample), mean, zero, noise."
    )
    noise: float = Field(1.0, ge=0, description="Width of the noise, in spreads of what each source writes.")
    direction: Direction = Field(
        "noise", description="noise: clean runs, corrupt is put in; denoise: the reverse."
    )
    split_positions: bool = Field(
        False, description="Count positions, where they are learned, as a source of their own."
    )
    per_position: bool = Field(
        False, description="Tell edges apart by the position of what reads (prompts of one length)."
    )
    checked: int = Field(32, ge=0, description="How many random edges are really cut; 0: none.")
    rows: int = Field(16, ge=1, description="Pairs in a batch; fewer need less memory.")
    seed: base.Seed = Field(0, description="Seed of the sample of edges, and of noise.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`effect [receiver, source]`: estimated mean change of the metric when the edge is cut; NaN where there is none.
    With `position` before them where edges are told apart by the position of what reads.

    `sample_estimated`, `sample_exact [sample]`: of the edges really cut, named by `sample_edge`.
    Attributes: `n`, `whole` (the metric with no edge cut) and `empty` (with every edge cut).
    """

    measures: ClassVar[str] = "estimated effect"
    """What a score is. Where it is no effect, only its rank is compared with the exact ones."""
    variable: ClassVar[str] = "effect"

    @cached_property
    def graph(self) -> EdgeGraph:
        """The edges, to look at."""
        return graph_of(self.data[self.variable])

    def circuit(self, n: int) -> Circuit:
        """At least `n` edges of largest absolute effect on paths to the logits (`EdgeGraph.strongest`)."""
        effect = torch.from_numpy(np.nan_to_num(self.data[self.variable].values))
        return self.graph.circuit(self.graph.strongest(effect, n), effect)

    def scores(self) -> dict[tuple[str, str, str], float]:
        """The score of every edge (source, target, kind)."""
        values = self.data[self.variable].values
        return dict(zip(self.graph.edges(), values[np.isfinite(values)].tolist(), strict=True))

    def answers(self) -> tuple[Answer, ...]:
        """Every edge, all its positions together; and every source, as the sum of the edges out of it."""
        edges: dict[tuple[str, str, str], float] = {}
        nodes: dict[str, float] = {}
        for (source, target, kind), effect in self.scores().items():
            edge = (source, target, kind.partition("@")[0])
            edges[edge] = edges.get(edge, 0.0) + effect
            nodes[source] = nodes.get(source, 0.0) + effect
        return (EdgeScores(edges), NodeScores(nodes))

    def shapes(self) -> tuple[Shape, ...]:
        ranked = sorted(self.scores().items(), key=lambda item: (-abs(item[1]), item[0]))[:_SHOWN]
        table = Table(
            f"edges of largest {self.measures}",
            ("from", "to", "through", self.measures),
            tuple((*edge, effect) for edge, effect in ranked),
            caption=f"{len(ranked)} of {len(self.graph)} edges; {self.setting()}",
        )
        drawn: Graph = self.circuit(30).shape("largest edges on paths to the logits", self.measures)
        return (drawn, table, self.errors())

    def setting(self) -> str:
        """The metric at both ends, and by what conventions."""
        data, config = self.data, self.config
        whole, empty = data.attrs["whole"], data.attrs["empty"]
        return (
            f"mean over {data.attrs['n']} pairs; {config['metric']} {whole:.3f} with none cut, {empty:.3f} with all "
            f"cut ({config['kind']}, {config['direction']})"
        )

    def errors(self) -> Table:
        """How far the scores of the sampled edges are from cutting them."""
        data = self.data
        comparable = type(self).measures == Result.measures
        return errors(
            data["sample_estimated"].values, data["sample_exact"].values, len(self.graph), comparable
        )


def graph_of(matrix: xr.DataArray) -> EdgeGraph:
    """The edges of a matrix `[receiver, source]`, or one for each position, that is finite where there are edges."""
    named = (str(name).rpartition(" ") for name in matrix["receiver"].values.tolist())
    receivers = tuple((target, cast(Kind, kind)) for target, _, kind in named)
    return EdgeGraph(
        tuple(matrix["source"].values.tolist()), receivers, torch.from_numpy(np.isfinite(matrix.values))
    )


def errors(
    guess: Float[NDArray[np.floating], " sample"],
    exact: Float[NDArray[np.floating], " sample"],
    total: int,
    comparable: bool = True,
    what: str = "edges",
) -> Table:
    """Scores against exact effects: correlations, and where both are the same quantity, differences."""
    error = np.abs(guess - exact) if comparable else np.full(exact.shape, np.nan)
    some = len(exact) > 0
    sizes = [rankdata(np.abs(values)) for values in (guess, exact)]
    return Table(
        f"error against cutting {what} for real",
        (
            what,
            "correlation",
            "rank correlation of sizes",
            "mean error",
            "largest error",
            "largest exact effect",
        ),
        (
            (
                f"{len(exact)} of {total}",
                _correlation(guess, exact),
                _correlation(*sizes),
                float(error.mean()) if some else float("nan"),
                float(error.max()) if some else float("nan"),
                float(np.abs(exact).max()) if some else float("nan"),
            ),
        ),
        caption=f"a random sample of {what}, each cut alone and exactly",
    )


def _correlation(
    one: Float[NDArray[np.floating], " sample"], other: Float[NDArray[np.floating], " sample"]
) -> float:
    """Pearson's; NaN where one side does not vary."""
    varied = len(one) > 2 and one.std() > 0 and other.std() > 0
    return float(np.corrcoef(one, other)[0, 1]) if varied else float("nan")


@dataclass(frozen=True, eq=False)
class Sample:
    """Random edges (row and column of a matrix) and, added batch by batch, the exact effect of cutting each alone."""

    places: tuple[tuple[int, ...], ...]
    _effects: list[Float[Tensor, "sample row"]]

    @staticmethod
    def of(graph: EdgeGraph, count: int, seed: int) -> "Sample":
        """Edges drawn without replacement."""
        places = graph.allowed.nonzero()
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:count]
        return Sample(tuple(map(tuple, places[order].tolist())), [])

    def cut(self, batch: EdgeRun, ablation: Ablation) -> Cost:
        """Cut them in one more batch."""
        if not self.places:
            return Cost()
        effects, cost = batch.effects(self.places, ablation)
        self._effects.append(effects)
        return cost

    def arrays(self, graph: EdgeGraph, scores: Matrix) -> xr.Dataset:
        """`sample_estimated`, `sample_exact [sample]`, with the edges' names."""
        exact = np.zeros(0)
        if self.places:
            exact = torch.cat(self._effects, dim=1).double().mean(dim=1).cpu().numpy()
        edges = [graph.edge(place) for place in self.places]
        names = [f"{source} -> {target} {kind}" for source, target, kind in edges]
        return xr.Dataset(
            {
                "sample_estimated": (
                    "sample",
                    np.array([scores[place] for place in self.places], dtype=float),
                ),
                "sample_exact": ("sample", exact),
            },
            {"sample_edge": ("sample", np.array(names, dtype=str))},
        )


def named(graph: EdgeGraph) -> dict[str, Sequence[str]]:
    """Coordinates of a matrix of edges."""
    return {"receiver": [f"{name} {kind}" for name, kind in graph.receivers], "source": list(graph.sources)}


def edges_of(model: Model, split_positions: bool, positions: int | None = None) -> EdgeGraph:
    """The edges of a model, positions apart where that is wanted and the model has learned ones."""
    return EdgeGraph.of(model, split_positions and model.has(Site("pos_embed")), positions)


def absent(graph: EdgeGraph, scores: Weights) -> Matrix:
    """Scores with NaN where there is no edge."""
    nan = torch.tensor(float("nan"), dtype=torch.float64)
    found: Matrix = scores.double().cpu().where(graph.allowed, nan).numpy()
    return found


def estimated(
    kind: type[Result], card: Card, model: Model, data: Pairs, config: Config, estimate: Estimate
) -> Result:
    """Estimate every edge and measure the error. Raises `InputError` where cutting everything changes nothing,
    `FamilyError` where the stream is not a sum of what parts write."""
    columns = data.clean.shape[1] if config.per_position else None
    graph = edges_of(model, config.split_positions, columns)
    pairs = EdgePairs(
        model,
        graph,
        data,
        config.metric,
        config.kind,
        config.direction,
        config.rows,
        config.noise,
        config.seed,
    )
    total = torch.zeros(graph.allowed.shape, dtype=torch.float64)
    whole, empty = [], []
    sample = Sample.of(graph, config.checked, config.seed)
    with measure() as recorder:
        for batch, ablation in pairs.batches():
            intact, found = estimate(batch, ablation, recorder)
            total += found.double().cpu()
            whole.append(intact)
            empty.append(batch.score(graph.allowed.float(), ablation))
            recorder.add(passes=2)
            recorder.include(sample.cut(batch, ablation))
        before, after = (float(torch.cat(rows).double().mean()) for rows in (whole, empty))
        require_gap(after - before, model, config.kind)
        effect = absent(graph, total / len(data))
    arrays = xr.Dataset(
        {"effect": (("position", "receiver", "source")[-effect.ndim :], effect)},
        named(graph),
        {"n": len(data), "whole": before, "empty": after},
    ).merge(sample.arrays(graph, effect))
    return kind.of(
        card,
        arrays,
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), data.hash),
        recorder.cost(),
        ("An effect is the metric with the edge cut minus without.",),
    )
