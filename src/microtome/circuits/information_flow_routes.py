"""Along which routes does a prediction come about, in one prompt and in many? No contrast, no gradient.

1. One pass over each prompt. From the logits of its last token back, what a part reads is divided among the parts that
   wrote it, by how much nearer each brings one to the sum (`microtome.circuits.information_flow`); shares under
   `least` are dropped. A head's flow goes on to the values it reads at each position, or also to its query and keys.
2. So one unit of flow runs through the graph of edges, down to the embeddings.
3. Edges are ranked by their mean flow over prompts; how often each is on a prompt's graph is told beside it.
4. Of each prompt the strongest routes from an embedding to the logits are followed, and those kept that come back in
   many prompts.
5. A random sample of edges is really cut, to carry their mean over the prompts, and the divergence that this causes
   compared with their flow, by rank.

Reference: Ferrando, Voita (2024), Information Flow Routes: Automatically Interpreting Language Models at Scale; there
the stream after each block is a node, here an edge goes from a part to every later part that reads it. Misleads: what
is large need not matter. A part that writes much that nothing uses carries much flow, whatever the task; compare with
an intervention.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.circuits import edge_estimates
from microtome.circuits.edge_estimates import Sample, absent, edges_of, named
from microtome.circuits.edge_graph import EdgeGraph, members
from microtome.circuits.edge_run import EdgeRun
from microtome.circuits.information_flow import Flow
from microtome.core import config as base
from microtome.core.card import Card
from microtome.core.circuit import Circuit
from microtome.core.cost import Recorder, measure
from microtome.core.logits import LogitSelection
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Graph, Shape, Table
from microtome.data import metrics
from microtome.data.observed import Observed, as_prompts
from microtome.models.model import Model

grading = (  # learned positions are a source of their own in the keys
    {"split_positions": True},
    {"split_positions": True, "patterns": True},
)
_SHOWN: Final = 40

card = Card(
    name="information_flow_routes",
    title="Information-flow routes",
    question="Along which routes does a prediction come about, with no contrast pair and no gradient?",
    steps=(
        "From the logits back, divide what each part reads among those that wrote it, by proximity.",
        "Follow one unit of flow down to the embeddings, in every prompt.",
        "Rank edges by mean flow, tell how often each is used, and keep routes that come back in many prompts.",
        "Cut a random sample of edges for real and compare.",
    ),
    reference="Ferrando and Voita 2024, Information Flow Routes",
    misleads="What is large need not matter: a part that writes much that nothing uses carries much flow.",
    needs="tokens",
    causal="observation",
    claims=("edges", "nodes"),
)


class Config(base.Config):
    """What is followed, and in how many prompts."""

    least: float = Field(0.02, ge=0, lt=1, description="Shares under this are not followed.")
    patterns: bool = Field(False, description="A head's flow goes in thirds to query, keys and values.")
    prompts: int = Field(
        64, ge=1, description="How many prompts are followed, drawn at random where there are more."
    )
    routes: int = Field(8, ge=1, description="How many routes are followed in each prompt.")
    split_positions: bool = Field(
        False, description="Count positions, where they are learned, as a source of their own."
    )
    checked: int = Field(32, ge=0, description="How many random edges are really cut; 0: none.")
    rows: int = Field(16, ge=1, description="Prompts in a batch; fewer need less memory.")
    seed: base.Seed = Field(0, description="Seed of the choice of prompts and of the sample of edges.")


@dataclass(frozen=True, eq=False)
class Result(edge_estimates.Result):
    """`flow [receiver, source]`: mean flow along the edge; NaN where there is none. `frequency`: in which share of the
    prompts there is any. `prompt_flow [prompt, receiver, source]`: that of each prompt.

    `route`, `route_frequency`, `route_flow [route]`: parts from an embedding to the logits; in which share of prompts
    the route is among the strongest, and the mean flow along it where it is.
    `sample_estimated` holds flows, `sample_exact` the mean divergence (nats) when the edge carries its mean instead.
    Attributes: `n`; `arrived`, the share of the flow that reached embeddings (the rest came to sums that no part of
    theirs brings one nearer to).
    """

    measures: ClassVar[str] = "mean flow"
    variable: ClassVar[str] = "flow"

    def prompt(self, number: int) -> Circuit:
        """The graph of one prompt: all edges with any flow."""
        flow = torch.from_numpy(np.nan_to_num(self.data["prompt_flow"].values[number]))
        return self.graph.circuit(flow > 0, flow)

    def setting(self) -> str:
        patterns = "query, keys and values" if self.config["patterns"] else "values"
        data = self.data
        return (
            f"mean over {data.sizes['prompt']} prompts; heads pass flow on to their {patterns}; "
            f"{data.attrs['arrived']:.3f} of it reached embeddings"
        )

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        often = dict(
            zip(
                self.graph.edges(), data["frequency"].values[self.graph.allowed.numpy()].tolist(), strict=True
            )
        )
        ranked = sorted(self.scores().items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]
        edges = Table(
            "edges of largest mean flow",
            ("from", "to", "through", "mean flow", "in share of prompts"),
            tuple((*edge, flow, often[edge]) for edge, flow in ranked),
            caption=f"{len(ranked)} of {len(self.graph)} edges; {self.setting()}",
        )
        routes = Table(
            "frequent routes",
            ("route", "in share of prompts", "mean flow there"),
            tuple(
                zip(
                    data["route"].values.tolist(),
                    data["route_frequency"].values.tolist(),
                    data["route_flow"].values.tolist(),
                    strict=True,
                )
            ),
            caption=f"among the {self.config['routes']} strongest of a prompt; {data.sizes['prompt']} prompts",
        )
        drawn: Graph = self.circuit(30).shape("largest flows on paths to the logits", self.measures)
        return (drawn, routes, edges, self.errors())


def run(model: Model, data: Observed, config: Config | None = None) -> Result:
    """Follow the flow of every prompt. Raises `InputError` for no prompts, `FamilyError` where the stream is not a sum
    of what parts write."""
    config = config or Config()
    graph = edges_of(model, config.split_positions)
    prompts = as_prompts(data, model.tokenizer)
    drawn = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(prompts), generator=drawn)[: config.prompts].sort().values
    tokens, mask = prompts.tokens[chosen], None if prompts.mask is None else prompts.mask[chosen]
    sample = Sample.of(graph, config.checked, config.seed)
    flow = Flow(model, graph, config.least, config.patterns)
    flows: list[Float[Tensor, "row receiver source"]] = []
    with measure() as recorder, torch.no_grad():
        for start in range(0, len(tokens), config.rows):
            part = slice(start, start + config.rows)
            flows.append(flow.along_edges(tokens[part], None if mask is None else mask[part]).cpu())
            recorder.add(passes=1)
        each = torch.cat(flows)
        _cut(model, graph, tokens, mask, sample, recorder)
    mean = absent(graph, each.double().mean(dim=0))
    often = absent(graph, (each > 0).double().mean(dim=0))
    routes = _mined([_routes(graph, one, config.routes) for one in each])[:_SHOWN]
    arrays = xr.Dataset(
        {
            "flow": (("receiver", "source"), mean),
            "frequency": (("receiver", "source"), often),
            "prompt_flow": (("prompt", "receiver", "source"), each.numpy()),
            "route_frequency": (("route",), np.array([share for _, share, _ in routes], dtype=float)),
            "route_flow": (("route",), np.array([strength for _, _, strength in routes], dtype=float)),
        },
        named(graph)
        | {"prompt": chosen.numpy(), "route": np.array([name for name, _, _ in routes], dtype=str)},
        {"n": len(tokens), "arrived": float(each[:, :, : 1 + graph.splits_positions].sum() / len(each))},
    ).merge(sample.arrays(graph, mean))
    return Result.of(
        card,
        arrays,
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), prompts.hash),
        recorder.cost(),
    )


def _cut(
    model: Model, graph: EdgeGraph, tokens: Tensor, mask: Tensor | None, sample: Sample, recorder: Recorder
) -> None:
    """Let the sampled edges carry their mean over the prompts, one at a time."""
    if not sample.places:
        return
    whole = model.run(tokens, logits=LogitSelection((-1,)), mask=mask).logits
    assert whole is not None
    batch = EdgeRun(model, graph, tokens, metrics.KL(whole), mask)
    recorder.add(passes=2)
    recorder.include(sample.cut(batch, batch.ablation("mean", tokens)))


Route = tuple[str, float]


def _routes(graph: EdgeGraph, flow: Float[Tensor, "receiver source"], count: int) -> list[Route]:
    """The strongest routes of one prompt from an embedding to the logits, with the flow along each.

    What reaches a part is divided among its edges as all of its flow is; parts are followed from the logits back, the
    strongest unfinished routes first.
    """
    embeddings = set(graph.sources[: 1 + graph.splits_positions])
    into: dict[str, list[tuple[str, str, float]]] = {}
    for row, (target, kind) in enumerate(graph.receivers):
        for column in flow[row].nonzero()[:, 0].tolist():
            for part in members(target):
                into.setdefault(part, []).append((graph.sources[column], kind, float(flow[row, column])))
    growing: list[tuple[float, tuple[str, ...]]] = [(1.0, ("logits",))]
    done: list[tuple[float, tuple[str, ...]]] = []
    while growing:
        grown: list[tuple[float, tuple[str, ...]]] = []
        for strength, route in growing:
            edges = into.get(route[0], [])
            total = sum(each for _, _, each in edges)
            for source, through, each in edges:
                longer = (strength * each / total, (source, f"[{through}]", *route))
                (done if source in embeddings else grown).append(longer)
        growing = sorted(grown, key=lambda one: (-one[0], one[1]))[: 8 * count]
    ranked = sorted(done, key=lambda one: (-one[0], one[1]))[:count]
    return [(" ".join(route), strength) for strength, route in ranked]


def _mined(prompts: Sequence[list[Route]]) -> list[tuple[str, float, float]]:
    """Routes with the share of prompts that they are in and their mean flow there, most frequent first."""
    flows: dict[str, list[float]] = {}
    for name, strength in (route for routes in prompts for route in routes):
        flows.setdefault(name, []).append(strength)
    found = [(name, len(each) / len(prompts), float(np.mean(each))) for name, each in flows.items()]
    return sorted(found, key=lambda one: (-one[1], -one[2], one[0]))
