"""What do methods share that learn which edges to keep? Settings, the found circuit with exact weights, and its error.

A method says what it costs that gates are open; see `microtome.circuits.learned_mask` for the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from microtome.circuits import edge_estimates
from microtome.circuits.edge_cut import AblationKind
from microtome.circuits.edge_estimates import Sample, absent, edges_of, named
from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_pairs import Direction, EdgePairs, require_gap
from microtome.circuits.learned_mask import Aim, Grain, Mask, Price, faithful
from microtome.core import config as base
from microtome.core.answers import Answer, EdgeScores, FoundCircuit, NodeScores
from microtome.core.card import Card
from microtome.core.circuit import Circuit
from microtome.core.cost import Recorder, measure
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Curve, Shape, Table
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.models.stream_parts import behind


class Config(base.Config):
    """What is masked, what must not change, and how long the mask is learned."""

    grain: Grain = Field("edges", description="edges: a gate for each; nodes: one for each head and MLP.")
    metric: str = Field(
        metrics.KL.name,
        description="kl: divergence of next-token distributions, in nats; another metric by name: how far it moves.",
    )
    kind: AblationKind = Field(
        "resample", description="What cut edges carry: the other side (resample), mean, zero, noise."
    )
    direction: Direction = Field(
        "noise", description="noise: clean runs, corrupt is put in; denoise: the reverse."
    )
    most: float = Field(
        0.01, ge=0, description="The circuit is the fewest edges, by their gates, that keep the loss at this."
    )
    start: float = Field(4.0, description="Where gates start; 0: half open, 2.4: open but for the noise.")
    steps: int = Field(200, ge=1, description="Steps of learning.")
    rate: float = Field(
        0.05, gt=0, description="Learning rate of the gates (Adam); faster breaks deep networks."
    )
    split_positions: bool = Field(
        False, description="Count positions, where they are learned, as a source of their own."
    )
    checked: int = Field(32, ge=0, description="How many random edges are really cut; 0: none.")
    rows: int = Field(64, ge=1, description="Pairs in a batch; all batches are held in memory.")
    seed: base.Seed = Field(0, description="Seed of the gates' noise and of the sample of edges.")


@dataclass(frozen=True, eq=False)
class Result(edge_estimates.Result):
    """`chance [receiver, source]`: that its gate is open; NaN where there is no edge or no gate.

    `kept [receiver, source]`: whether the edge is in the circuit. `effect [receiver, source]`: by how much cutting a
    kept edge as well, or a kept node with all its edges, raises the loss; NaN outside the circuit.
    `loss`, `open [step]`: while learning, with gates drawn; how many are open, expected.
    `sample_estimated` holds chances. Attributes: `n`; `whole` 0, `empty` (the loss with every edge cut), `left` (that
    of the circuit).
    """

    measures: ClassVar[str] = "chance of being kept"
    variable: ClassVar[str] = "chance"

    @cached_property
    def graph(self) -> EdgeGraph:
        """The edges, to look at."""
        return edge_estimates.graph_of(self.data["allowed"].where(self.data["allowed"] > 0))

    def circuit(self, n: int | None = None) -> Circuit:
        """What was kept, weighted by what cutting it as well costs; or at least `n` edges likeliest to be kept."""
        if n is not None:
            return super().circuit(n)
        kept = torch.from_numpy(self.data["kept"].values > 0)
        effect = torch.from_numpy(np.nan_to_num(self.data["effect"].values))
        if self.config["grain"] == "edges":
            return self.graph.circuit(kept, effect)
        gated = torch.from_numpy(np.isfinite(self.data["chance"].values))
        columns = (kept & gated).any(dim=0).nonzero()[:, 0].tolist()
        return Circuit.of({self.graph.sources[c]: float(effect[-1, c]) for c in columns})

    def scores(self) -> dict[tuple[str, str, str], float]:
        values = np.where(self.graph.allowed.numpy(), self.data["chance"].values, np.nan)
        at = self.graph.allowed.numpy()
        named = zip(self.graph.edges(), values[at].tolist(), strict=True)
        return {edge: value for edge, value in named if np.isfinite(value)}

    def answers(self) -> tuple[Answer, ...]:
        """The circuit; how likely each edge, or each node, is to be kept."""
        chances = self.scores()
        if self.config["grain"] == "edges":
            return (FoundCircuit(self.circuit()), EdgeScores(chances))
        nodes = {source: value for (source, _, _), value in chances.items()}
        return (FoundCircuit(self.circuit()), NodeScores(nodes))

    def shapes(self) -> tuple[Shape, ...]:
        data, found = self.data, self.circuit()
        rows = [
            (*edge.ends, edge.weight)
            for edge in sorted(found.edges, key=lambda edge: (-abs(edge.weight), edge))
        ] or [(name, "", "", weight) for name, weight in zip(found.nodes, found.weights, strict=True)]
        steps = np.arange(data.sizes["step"], dtype=float)
        learned = Curve(
            "loss while the mask is learned",
            steps,
            data["loss"].values[None],
            ("loss",),
            "step",
            self.config["metric"],
            caption=f"with gates drawn; {data['open'].values[-1]:.1f} of {self._gates} expected to be open at the end",
        )
        table = Table(
            "circuit",
            ("from", "to", "through", "rise of the loss without it"),
            tuple(rows),
            caption=f"{len(rows)} of {self._gates} {self.config['grain']} leave the loss at {data.attrs['left']:.4f}; "
            f"{self.setting()}",
        )
        return (found.shape("circuit", "rise of the loss without it"), table, learned, self.errors())

    @property
    def _gates(self) -> int:
        chance = self.data["chance"].values
        return int(
            np.isfinite(chance).sum() if self.config["grain"] == "edges" else np.isfinite(chance[-1]).sum()
        )


def learned(
    kind: type[Result],
    card: Card,
    model: Model,
    data: Pairs,
    config: Config,
    price: Callable[[int], Price],
) -> Result:
    """Learn a mask and read the circuit off it. price: for a number of gates, what it costs that they are open.

    Raises `InputError` where cutting everything changes nothing, `FamilyError` where the stream is not a sum.
    """
    graph = edges_of(model, config.split_positions)
    pairs = EdgePairs(
        model, graph, data, config.metric, config.kind, config.direction, config.rows, seed=config.seed
    )
    sample = Sample.of(graph, config.checked, config.seed)
    with measure() as recorder:
        aims = faithful(pairs, recorder)
        mask = Mask.of(graph, config.grain, config.start)
        empty = _of_cut(aims, graph.allowed.float())
        require_gap(empty, model, config.kind)
        mask.learn(aims, price(len(mask.gates.location)), config.steps, config.rate, config.seed)
        recorder.add(passes=config.steps * len(aims))
        kept, passes = mask.trimmed(aims, mask.least(aims, config.most), config.most)
        recorder.add(passes=passes)
        found = (mask.cut(kept.float()) == 0) & graph.allowed
        if config.grain == "edges" and config.kind == "resample" and _apart(model):
            found = graph.connected(found)
        left, effect = _rises(mask, aims, found, config.grain, recorder)
        for aim in aims:
            recorder.include(sample.cut(aim.batch, aim.ablation))
    chance = absent(graph, mask.spread(mask.gates.chance().detach()))
    arrays = xr.Dataset(
        {
            "chance": (("receiver", "source"), chance),
            "allowed": (("receiver", "source"), graph.allowed.float().numpy()),
            "kept": (("receiver", "source"), found.numpy()),
            "effect": (("receiver", "source"), effect.double().numpy()),
            "loss": (("step",), np.array(mask.losses)),
            "open": (("step",), np.array(mask.opened)),
        },
        named(graph),
        {"n": len(data), "whole": 0.0, "empty": empty, "left": left},
    ).merge(sample.arrays(graph, chance))
    return kind.of(
        card,
        arrays,
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), data.hash),
        recorder.cost(),
    )


def _apart(model: Model) -> bool:
    """Whether heads of a layer share no divisor, so that what nothing reads cannot matter."""
    return all(behind(model.anatomy, layer, "attn") is None for layer in range(model.n_layers))


def _of_cut(aims: list[Aim], cut: Float[Tensor, "receiver source"]) -> float:
    return sum(aim.weight * float(aim.batch.score(cut, aim.ablation).double().mean()) for aim in aims)


def _rises(
    mask: Mask, aims: list[Aim], found: Bool[Tensor, "receiver source"], grain: Grain, recorder: Recorder
) -> tuple[float, Float[Tensor, "receiver source"]]:
    """The loss of the circuit, and by how much cutting each kept edge, or each kept node's edges, raises it."""
    cut = (mask.graph.allowed & ~found).float()
    left = _of_cut(aims, cut)
    effect = torch.full(cut.shape, float("nan"))
    places = (found & (mask.groups >= 0)).nonzero().tolist()
    if grain == "edges":
        parts = [(slice(row, row + 1), column) for row, column in places]
    else:
        parts = [(slice(None), column) for column in sorted({column for _, column in places})]
    for rows, column in parts:
        more = cut.clone()
        more[rows, column] = mask.graph.allowed[rows, column].float()
        effect[rows, column] = _of_cut(aims, more) - left
    recorder.add(passes=(len(parts) + 2) * len(aims))
    return left, effect
