"""Along which of all edges does a behaviour run? An estimate for every edge from a few passes, with its measured error.

1. Run both sides of each pair. The estimate of an edge is the gradient of the metric by the amount that it is cut: what
   its receiver's input is worth, times what its source writes more or less on the other side.
2. `integrate`: where the metric bends, one gradient misleads. `inputs` averages the gradient over steps on the way from
   the other side's embeddings to these (k/m, k = 1 … m), with the differences of the two plain runs. `edges` takes the
   gradient by the amount cut at steps of cutting every edge at once, present differences included: these estimates add
   up to the whole effect of cutting everything, as steps grow.
3. A random sample of edges is really cut, one at a time, and the error told beside the estimates.

An effect is the metric with the edge cut minus without. Reference: Syed, Rager, Conmy (2023), Attribution Patching
Outperforms Automated Circuit Discovery; Hanna, Pezzelle, Belinkov (2024), Have Faith in Faithfulness, for `inputs`;
Miller et al. (2024), for masks. Misleads at saturated units, whose gradient is zero though cutting them matters.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, cast

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.circuits.edge_cut import Ablation, AblationKind
from microtome.circuits.edge_graph import EdgeGraph, Kind
from microtome.circuits.edge_pairs import Direction, EdgePairs, require_gap
from microtome.circuits.edge_run import EdgeRun
from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, EdgeScores, NodeScores
from microtome.core.card import Card
from microtome.core.circuit import Circuit
from microtome.core.cost import Recorder, measure
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Graph, Shape, Table
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.model import Model

Integrate = Literal["no", "inputs", "edges"]
_SHOWN: Final = 40

grading = (  # learned positions are a source of their own in the keys
    {"split_positions": True},
    {"split_positions": True, "integrate": "inputs"},
    {"split_positions": True, "integrate": "edges"},
)

card = Card(
    name="edge_attribution_patching",
    title="Edge attribution patching",
    question="Which edges between heads and MLPs carry the behaviour, estimated for all of them at once?",
    steps=(
        "Run both sides of each pair; take the gradient of the metric at every input of a head or MLP.",
        "An edge's estimate is that gradient times the difference of what its source writes.",
        "On request, average gradients on the way between the sides.",
        "Cut a random sample of edges for real and tell the error.",
    ),
    reference="Syed, Rager and Conmy 2023; Hanna, Pezzelle and Belinkov 2024; Miller et al. 2024",
    misleads="A saturated unit has no gradient: edges through it score nothing though cutting them matters; integrate.",
    needs="pairs",
    causal="intervention",
    claims=("edges", "nodes"),
)


class Config(base.Config):
    """What cut edges carry, and how the gradient is taken."""

    metric: str = Field(metrics.DEFAULT, description="Metric by name; it must have a gradient.")
    kind: AblationKind = Field(
        "resample", description="What cut edges carry: the other side (resample), mean, zero."
    )
    direction: Direction = Field(
        "noise", description="noise: clean runs, corrupt is put in; denoise: the reverse."
    )
    integrate: Integrate = Field("no", description="no: one gradient; inputs, edges: averaged over steps.")
    steps: int = Field(5, ge=1, description="Steps of the average; one gradient takes none.")
    split_positions: bool = Field(
        False, description="Count positions, where they are learned, as a source of their own."
    )
    checked: int = Field(32, ge=0, description="How many random edges are really cut; 0: none.")
    rows: int = Field(16, ge=1, description="Pairs in a batch; fewer need less memory.")
    seed: int = Field(0, description="Seed of the sample of edges.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`effect [receiver, source]`: estimated mean change of the metric when the edge is cut; NaN where there is none.

    `sample_estimated`, `sample_exact [sample]`: of the edges really cut, named by `sample_edge`.
    Attributes: `n`, `whole` (the metric with no edge cut) and `empty` (with every edge cut).
    """

    @cached_property
    def graph(self) -> EdgeGraph:
        """The edges, to look at."""
        effect = self.data["effect"]
        receivers = tuple(_receiver(name) for name in effect["receiver"].values.tolist())
        sources = tuple(effect["source"].values.tolist())
        return EdgeGraph(sources, receivers, torch.from_numpy(np.isfinite(effect.values)))

    def circuit(self, n: int) -> Circuit:
        """At least `n` edges of largest absolute effect on paths to the logits (`EdgeGraph.strongest`)."""
        effect = torch.from_numpy(np.nan_to_num(self.data["effect"].values))
        return self.graph.circuit(self.graph.strongest(effect, n), effect)

    def _effects(self) -> dict[tuple[str, str, str], float]:
        values = self.data["effect"].values
        return dict(zip(self.graph.edges(), values[np.isfinite(values)].tolist(), strict=True))

    def answers(self) -> tuple[Answer, ...]:
        edges = self._effects()
        nodes: dict[str, float] = {}
        for (source, _, _), effect in edges.items():
            nodes[source] = nodes.get(source, 0.0) + effect
        return (EdgeScores(edges), NodeScores(nodes))

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        total = len(self.graph)
        ranked = sorted(self._effects().items(), key=lambda item: (-abs(item[1]), item[0]))[:_SHOWN]
        rows = tuple((*edge, effect) for edge, effect in ranked)
        whole, empty = data.attrs["whole"], data.attrs["empty"]
        table = Table(
            "edges of largest estimated effect",
            ("from", "to", "through", "effect of cutting"),
            rows,
            caption=f"{len(rows)} of {total} edges; mean over {data.attrs['n']} pairs; {self.config['metric']} "
            f"{whole:.3f} with none cut, {empty:.3f} with all cut ({self.config['kind']}, {self.config['direction']})",
        )
        drawn: Graph = self.circuit(30).shape("largest edges on paths to the logits", "effect of cutting")
        return (drawn, table, self.errors())

    def errors(self) -> Table:
        """How far the estimates of the sampled edges are from cutting them."""
        guess, exact = self.data["sample_estimated"].values, self.data["sample_exact"].values
        error = np.abs(guess - exact)
        some = len(exact) > 0
        varied = len(exact) > 2 and exact.std() > 0 and guess.std() > 0
        return Table(
            "error against cutting edges for real",
            ("edges", "correlation", "mean error", "largest error", "largest exact effect"),
            (
                (
                    f"{len(exact)} of {len(self.graph)}",
                    float(np.corrcoef(guess, exact)[0, 1]) if varied else float("nan"),
                    float(error.mean()) if some else float("nan"),
                    float(error.max()) if some else float("nan"),
                    float(np.abs(exact).max()) if some else float("nan"),
                ),
            ),
            caption="a random sample of edges, each cut alone and exactly",
        )


def run(model: Model, data: Pairs, config: Config | None = None) -> Result:
    """Estimate every edge. Raises `InputError` where cutting everything changes nothing, `FamilyError` where the stream
    is not a sum of what parts write."""
    config = config or Config()
    graph = EdgeGraph.of(model, config.split_positions and model.has(Site("pos_embed")))
    pairs = EdgePairs(model, graph, data, config.metric, config.kind, config.direction, config.rows)
    total = torch.zeros(graph.allowed.shape, dtype=torch.float64)
    whole, empty = [], []
    sample = _sample(graph, config.checked, config.seed)
    exact: list[Tensor] = []
    with measure() as recorder:
        for batch, ablation in pairs.batches():
            intact, estimate = _estimate(batch, ablation, config, recorder)
            total += estimate.double().cpu()
            whole.append(intact)
            empty.append(batch.score(graph.allowed.float(), ablation))
            recorder.add(passes=2)
            if sample:
                found, cost = batch.effects(sample, ablation)
                recorder.include(cost)
                exact.append(found)
        before, after = (float(torch.cat(rows).double().mean()) for rows in (whole, empty))
        require_gap(after - before, model, config.kind)
        effect = (
            (total / len(data)).where(graph.allowed, torch.tensor(float("nan"), dtype=torch.float64)).numpy()
        )
    arrays = {
        "effect": (("receiver", "source"), effect),
        "sample_estimated": (("sample",), np.array([effect[edge] for edge in sample])),
        "sample_exact": (
            ("sample",),
            torch.cat(exact, dim=1).double().mean(dim=1).cpu().numpy() if sample else np.zeros(0),
        ),
    }
    coords = {
        "receiver": [f"{name} {kind}" for name, kind in graph.receivers],
        "source": list(graph.sources),
        "sample_edge": ("sample", np.array([" -> ".join(_named(graph, edge)) for edge in sample], dtype=str)),
    }
    return Result(
        card.name,
        xr.Dataset(arrays, coords, {"n": len(data), "whole": before, "empty": after}),
        config.model_dump(mode="json"),
        config.seed,
        Provenance(model.name, model_hash(model.module.state_dict()), data.hash),
        recorder.cost(),
        notes=("An effect is the metric with the edge cut minus without.", card.misleads),
        scope=card.scope,
    )


def _estimate(
    batch: EdgeRun, ablation: Ablation, config: Config, recorder: Recorder
) -> tuple[Float[Tensor, " row"], Float[Tensor, "receiver source"]]:
    """The metric of each row with no edge cut, and the estimate of every edge, summed over rows."""
    graph, steps = batch.graph, config.steps
    if config.integrate == "no":
        recorder.add(passes=1)
        return batch.gradient(ablation)
    mean = torch.zeros(graph.allowed.shape)
    if config.integrate == "edges":
        recorder.add(passes=steps + 1)
        for step in range(steps):
            mean += batch.gradient(ablation, graph.allowed.float() * (step + 0.5) / steps)[1].cpu() / steps
        return batch.score(torch.zeros(graph.allowed.shape), ablation), mean
    first = Site("resid_pre", 0)
    entering = batch.model.run(
        batch.tokens, list(dict.fromkeys([*batch.ends.origins, first])), mask=batch.mask
    )
    gaps = (ablation.writes - batch.ends.writes(entering)).detach()
    here = entering[first]
    there = here + gaps[: 1 + graph.splits_positions].sum(dim=0).to(here.dtype)
    intact = torch.zeros(0)
    recorder.add(passes=steps + 1)
    for step in range(1, steps + 1):
        share = step / steps
        embedding = here if step == steps else there + share * (here - there)
        scores, gradient = batch.gradient(ablation, embedding=embedding, gaps=gaps)
        mean += gradient.cpu() / steps
        intact = scores  # of the last step, which is the plain run
    return intact, mean


def _sample(graph: EdgeGraph, count: int, seed: int) -> list[tuple[int, int]]:
    places = graph.allowed.nonzero()
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:count]
    return [(int(row), int(column)) for row, column in places[order].tolist()]


def _named(graph: EdgeGraph, edge: tuple[int, int]) -> tuple[str, str]:
    row, column = edge
    return graph.sources[column], " ".join(graph.receivers[row])


def _receiver(name: str) -> tuple[str, Kind]:
    target, _, kind = name.rpartition(" ")
    return target, cast(Kind, kind)
