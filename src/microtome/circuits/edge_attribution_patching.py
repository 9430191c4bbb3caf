"""Along which of all edges does a behaviour run? An estimate for every edge from a few passes, with its measured error.

1. Run both sides of each pair. The estimate of an edge is the gradient of the metric by the amount that it is cut: what
   its receiver's input is worth, times what its source writes more or less on the other side.
2. `integrate`: where the metric bends, one gradient misleads; average it over steps on the way between the sides.
   `inputs`: from the other side's embeddings to these (k/m, k = 1 … m), with the differences of the two plain runs.
   `activations`: one source at a time goes from what it writes here to what it writes there, and only its own edges
   are counted, so that they add up to what replacing the source does. `layers`: as that is published, all heads of a
   layer go together (k/m, k = 1 … m), nothing comes back through what is put in, and every pass counts for every edge.
   `edges`: all edges are cut by more and more, present differences included: then all estimates add up to the effect
   of cutting everything. Points go where the metric jumps (`adaptive_quadrature`). `ends`: the mean of the gradients at
   both sides.
   `rounds`, of `edges`: what breaks first takes all the credit, for nothing matters behind it. So leave whole what took
   at least a tenth of the most, and go the way again with the rest, until cutting all of it changes nothing; an
   edge's largest estimate counts.
3. On request edges are told apart by the position of what reads: the sum over positions then is taken apart.
4. A random sample of edges is really cut, one at a time, and the error told beside the estimates.

An effect is the metric with the edge cut minus without. Reference: Syed, Rager, Conmy (2023), Attribution Patching
Outperforms Automated Circuit Discovery; Hanna, Pezzelle, Belinkov (2024), Have Faith in Faithfulness, for `inputs`;
Mueller et al. (2025), MIB, for `layers`; Miller et al. (2024), for masks. Misleads at saturated units, whose gradient
is zero though cutting them matters.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.circuits import edge_estimates
from microtome.circuits.adaptive_quadrature import Point, mean_gradient
from microtome.circuits.edge_cut import Ablation
from microtome.circuits.edge_graph import Weights
from microtome.circuits.edge_run import EdgeRun
from microtome.core.card import Card
from microtome.core.cost import Recorder
from microtome.core.edits import Set
from microtome.core.site import Site
from microtome.data.pairs import Pairs
from microtome.models.model import Model

Integrate = Literal["no", "inputs", "activations", "layers", "edges", "ends"]
_FIRST = Site("resid_pre", 0)
_LARGE: Final = 0.1
_STILL: Final = 1e-3
Scores = tuple[Float[Tensor, " row"], Weights]
Way = Callable[[EdgeRun, Ablation, int, Recorder], Scores]

grading = (  # learned positions are a source of their own in the keys
    {"split_positions": True},
    {"split_positions": True, "integrate": "inputs"},
    {"split_positions": True, "integrate": "activations"},
    {"split_positions": True, "integrate": "edges", "steps": 21},
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


class Config(edge_estimates.Config):
    """What cut edges carry, and how the gradient is taken."""

    integrate: Integrate = Field(
        "no",
        description="no: one gradient; inputs, activations, layers, edges, ends: a mean on the way between the sides.",
    )
    steps: int = Field(
        5,
        ge=1,
        description="Steps of the average; one gradient takes none, edges at most these points, five at least.",
    )
    rounds: int = Field(
        1,
        ge=1,
        description="Of edges: integrate again with the strongest left whole, until the rest changes nothing.",
    )


class Result(edge_estimates.Result):
    """See `edge_estimates.Result`."""


def run(model: Model, data: Pairs, config: Config | None = None) -> edge_estimates.Result:
    """Estimate every edge. Raises `InputError` where cutting everything changes nothing, `FamilyError` where the stream
    is not a sum of what parts write."""
    config = config or Config()
    ways: dict[Integrate, Way] = {
        "no": _at_once,
        "inputs": _along_inputs,
        "activations": _along_sources,
        "layers": _along_layers,
        "edges": partial(_along_edges, rounds=config.rounds),
        "ends": _at_both_ends,
    }
    estimate, steps = ways[config.integrate], config.steps

    def estimated(batch: EdgeRun, ablation: Ablation, recorder: Recorder) -> Scores:
        return estimate(batch, ablation, steps, recorder)

    return edge_estimates.estimated(Result, card, model, data, config, estimated)


def _at_once(batch: EdgeRun, ablation: Ablation, steps: int, recorder: Recorder) -> Scores:
    recorder.add(passes=1)
    return batch.gradient(ablation)


def _at_both_ends(batch: EdgeRun, ablation: Ablation, steps: int, recorder: Recorder) -> Scores:
    here, there, gaps = _inputs(batch, ablation)
    recorder.add(passes=3)
    return batch.gradient_along([Set(_FIRST, value=there), Set(_FIRST, value=here)], gaps)


def _along_inputs(batch: EdgeRun, ablation: Ablation, steps: int, recorder: Recorder) -> Scores:
    here, there, gaps = _inputs(batch, ablation)
    recorder.add(passes=steps + 1)
    shares = [step / steps for step in range(1, steps)]
    points = [*(there + share * (here - there) for share in shares), here]
    return batch.gradient_along([Set(_FIRST, value=point) for point in points], gaps)


def _inputs(batch: EdgeRun, ablation: Ablation) -> tuple[Tensor, Tensor, Tensor]:
    """What enters the first block here and there, and what each source writes more there."""
    run = batch.model.run(batch.tokens, batch.ends.origins, mask=batch.mask)
    gaps = (ablation.writes - batch.ends.writes(run)).detach()
    here = run[_FIRST]
    return here, here + gaps[: 1 + batch.graph.splits_positions].sum(dim=0).to(here.dtype), gaps


def _along_sources(batch: EdgeRun, ablation: Ablation, steps: int, recorder: Recorder) -> Scores:
    """Cutting all edges out of a source by a share is to move what it writes by that share."""
    groups = [[column] for column in range(len(batch.graph.sources))]
    mean = torch.zeros(batch.graph.allowed.shape)
    for columns in groups:
        for cut in _shares(batch, columns, steps):
            mean[..., columns] += batch.gradient(ablation, cut)[1].cpu()[..., columns] / steps
    recorder.add(passes=len(groups) * steps + 1)
    return batch.score(torch.zeros_like(mean), ablation), mean


def _along_layers(batch: EdgeRun, ablation: Ablation, steps: int, recorder: Recorder) -> Scores:
    """Each place of the stream where something is added goes from what is added there to what is added here."""
    gaps, places = _inputs(batch, ablation)[2], _places(batch)
    sites = [site for site, _ in places]
    here = batch.model.run(batch.tokens, sites, mask=batch.mask)
    recorder.add(passes=len(places) * steps + 2)
    points = [
        Set(site, value=here[site] + (1 - step / steps) * gaps[columns].sum(dim=0).to(here[site].dtype))
        for site, columns in places
        for step in range(1, steps + 1)
    ]
    return batch.gradient_along(points, gaps)


def _places(batch: EdgeRun) -> list[tuple[Site, list[int]]]:
    """Where embeddings, all heads of a layer, and MLPs enter the stream, with the sources that write there."""
    found: dict[Site, list[int]] = {}
    for column, name in enumerate(batch.graph.sources):
        site = Site.parse(name)
        first = _FIRST if site.layer is None else Site("attn_out", site.layer)
        found.setdefault(site if site.part == "mlp_out" else first, []).append(column)
    return list(found.items())


def _along_edges(batch: EdgeRun, ablation: Ablation, steps: int, recorder: Recorder, rounds: int) -> Scores:
    """In a round the estimates add up to the effect of cutting all edges that are not yet set aside; of an edge's
    rounds, the one counts that sees most of it."""
    left, first = batch.graph.allowed.clone(), 0.0
    found = torch.zeros(left.shape)
    for _ in range(rounds):
        mean = mean_gradient(partial(_cut_point, batch, ablation, left.float()), steps)
        recorder.add(passes=mean.points)
        found = torch.where(left & (mean.gradient.abs() > found.abs()), mean.gradient, found)
        first = first or mean.moved
        if mean.moved <= _STILL * first:
            break
        sizes = mean.gradient.abs()
        left = left & (sizes < _LARGE * sizes.max())
    recorder.add(passes=1)
    return batch.score(torch.zeros_like(found), ablation), found


def _cut_point(batch: EdgeRun, ablation: Ablation, edges: Weights, share: float) -> Point:
    """These edges cut by a share. The sum of their gradients is the slope along the path."""
    scores, gradient = batch.gradient(ablation, edges * share)
    gradient = gradient.cpu() * edges
    return Point(share, float(scores.double().sum()), float(gradient.double().sum()), gradient)


def _shares(batch: EdgeRun, columns: list[int] | range, steps: int) -> Iterator[Weights]:
    """All edges out of these sources, cut by the middle of each step from nothing to all."""
    chosen = torch.zeros_like(batch.graph.allowed)
    chosen[..., list(columns)] = batch.graph.allowed[..., list(columns)]
    for step in range(steps):
        yield chosen.float() * (step + 0.5) / steps
