"""Which edges can be cut, one after the other, without the network noticing? What cannot is the circuit.

1. Nothing is cut. Receivers are visited from the logits back, and each one's sources in a fixed order, latest first.
2. Each edge is cut for real, in addition to all that stay cut. If the divergence from the uncut run rises by less than
   the threshold, it stays cut; else it is put back.
3. Edges into a part that nothing reads any more go without a test: no cut there can change anything.
4. When cut edges carry the other side (resample), parts that no embedding feeds any more say what they say there, so
   edges out of them go too. Under mean or zero such parts still carry something, and their edges stay.
   Where a norm stands behind the attention (Gemma 2, OLMo 2), the heads of a layer share its divisor: what one says
   changes the others though nothing reads it, so there every edge is tested and none goes by 3 or 4.

The divergence of a pair is that of the next-token distributions, KL(uncut ‖ cut) in nats; with any other metric, how
far the metric moves. Over pairs it is the mean, so that pairs that move apart do not cancel. While a receiver is
visited nothing is cut below it, so each pass is entered at its layer. Where tests keep ending alike, the next few are
made together, as if they ended so too; the first that does not is still right, and what came after it is made again.

Reference: Conmy et al. (2023), Towards Automated Circuit Discovery for Mechanistic Interpretability. Misleads where two
edges back each other up: the one tested first is cut. So the answer depends on the order; compare several.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal, cast

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from microtome.circuits.edge_cut import AblationKind
from microtome.circuits.edge_graph import EdgeGraph, Kind
from microtome.circuits.edge_pairs import Direction, EdgePairs, require_gap
from microtome.circuits.edge_run import EdgeRun
from microtome.circuits.edge_tail import EdgeTail
from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, EdgeScores, FoundCircuit
from microtome.core.card import Card
from microtome.core.circuit import Circuit
from microtome.core.cost import Recorder, measure
from microtome.core.logits import LogitSelection
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Curve, Shape, Table
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.models.stream_parts import behind

Order = Literal["latest", "earliest", "random"]
_SHOWN: Final = 40
_MOST_AHEAD: Final = 8

grading = (  # learned positions are a source of their own in the keys
    {"split_positions": True},
    {"split_positions": True, "kind": "zero"},
)

card = Card(
    name="acdc",
    title="Automatic circuit discovery (ACDC)",
    question="Which edges between heads and MLPs are left when every edge that is not missed is cut?",
    steps=(
        "Visit receivers from the logits back, and each one's sources in a fixed order.",
        "Cut each edge for real, on top of all cut so far; if the divergence from the uncut run rises by less than the "
        "threshold, it stays cut.",
        "Drop edges into parts that nothing reads any more without a test.",
    ),
    reference="Conmy et al. 2023, Towards Automated Circuit Discovery for Mechanistic Interpretability",
    misleads="Of two edges that back each other up the one tested first is cut; the answer depends on the order.",
    needs="pairs",
    causal="intervention",
    claims=("circuit", "edges"),
)


class Config(base.Config):
    """What cut edges carry, what counts as missed, and in which order edges are tried."""

    threshold: float = Field(
        0.01, ge=0, description="An edge stays cut if the divergence rises by less than this."
    )
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
    order: Order = Field("latest", description="Which source of a receiver is tried first; random: by seed.")
    split_positions: bool = Field(
        False, description="Count positions, where they are learned, as a source of their own."
    )
    rows: int = Field(16, ge=1, description="Pairs in a batch; all batches are held in memory.")
    seed: base.Seed = Field(0, description="Seed of the random order.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`outcome [receiver, source]`: kept; cut; unread or unfed, which are cut too; empty where there is no edge.

    `rise [receiver, source]`: by how much cutting it raised the divergence when it was tested; NaN where it was not.
    `order [receiver, source]`: the number of its test, from 0; -1 where it was not tested.
    `divergence`, `edges_cut [test]`: after each test, with what then stayed cut, edges unread counted.
    Attributes: `n` pairs, and `empty`, the divergence with every edge cut.
    """

    @cached_property
    def graph(self) -> EdgeGraph:
        """The edges, to look at."""
        outcome = self.data["outcome"]
        receivers = (name.rsplit(" ", 1) for name in outcome["receiver"].values.tolist())
        return EdgeGraph(
            tuple(outcome["source"].values.tolist()),
            tuple((name, cast(Kind, kind)) for name, kind in receivers),
            torch.from_numpy(outcome.values != ""),
        )

    def circuit(self) -> Circuit:
        """The edges kept. One weighs what cutting it raised the divergence by; a node, what the edges out of it do."""
        kept = torch.from_numpy(self.data["outcome"].values == "kept")
        return self.graph.circuit(kept, torch.from_numpy(np.nan_to_num(self.data["rise"].values)))

    def answers(self) -> tuple[Answer, ...]:
        """The circuit, and the rise of every edge: zero where cutting changed nothing, or brought the run nearer."""
        outcome = self.data["outcome"].values
        rise = np.where(np.isin(outcome, ("kept", "cut")), self.data["rise"].values.clip(min=0), 0.0)
        scores = dict(zip(self.graph.edges(), rise[outcome != ""].tolist(), strict=True))
        return FoundCircuit(self.circuit()), EdgeScores(scores)

    def shapes(self) -> tuple[Shape, ...]:
        unit = "nats" if self.config["metric"] == metrics.KL.name else f"change of {self.config['metric']}"
        drawn = replace(
            self.circuit().shape("edges that are missed when cut", f"rise of the divergence, {unit}"),
            caption=self._told(),
        )
        return (drawn, self.decisions(), self._curve(unit))

    def decisions(self) -> Table:
        """The tests with the largest rise, and how they ended."""
        outcome, rise, order = (self.data[name].values for name in ("outcome", "rise", "order"))
        tested = [tuple(place) for place in np.argwhere(order >= 0)]
        ranked = sorted(tested, key=lambda place: (-rise[place], order[place]))[:_SHOWN]
        named = self.graph
        rows = tuple(
            (
                named.sources[column],
                *named.receivers[row],
                float(rise[row, column]),
                str(outcome[row, column]),
                int(order[row, column]) + 1,
            )
            for row, column in ranked
        )
        return Table(
            "tests with the largest rise",
            ("from", "to", "through", "rise when cut", "outcome", "test"),
            rows,
            caption=f"{len(rows)} of {len(tested)} tests; {self._told()}",
        )

    def _curve(self, unit: str) -> Curve:
        data = self.data
        return Curve(
            "divergence as edges are cut",
            np.concatenate([[0], data["edges_cut"].values]).astype(float),
            np.concatenate([[0.0], data["divergence"].values])[None],
            ("cut so far",),
            "edges cut",
            unit,
            caption=f"{data.attrs['empty']:.3g} with all {len(self.graph)} cut; {self._told()}",
        )

    def _told(self) -> str:
        kept = int((self.data["outcome"].values == "kept").sum())
        config = self.config
        return (
            f"{kept} of {len(self.graph)} edges kept; mean over {self.data.attrs['n']} pairs; threshold "
            f"{config['threshold']:g}, {config['kind']}, {config['direction']}, {config['order']} source first"
        )


def run(model: Model, data: Pairs, config: Config | None = None) -> Result:
    """Cut what is not missed. Raises `InputError` where cutting everything changes nothing, `FamilyError` where the
    stream is not a sum of what parts write."""
    config = config or Config()
    graph = EdgeGraph.of(model, config.split_positions and model.has(Site("pos_embed")))
    with measure() as recorder:
        walk = _Walk(_Behaviour(model, data, graph, config, recorder), config)
        walk.back()
    coords = {"receiver": [f"{name} {kind}" for name, kind in graph.receivers], "source": list(graph.sources)}
    arrays = {
        "outcome": (("receiver", "source"), walk.outcome),
        "rise": (("receiver", "source"), walk.rise),
        "order": (("receiver", "source"), walk.order),
        "divergence": (("test",), np.array(walk.divergence, dtype=float)),
        "edges_cut": (("test",), np.array(walk.edges_cut, dtype=int)),
    }
    return Result.of(
        card,
        xr.Dataset(arrays, coords, {"n": len(data), "empty": walk.behaviour.empty}),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), data.hash),
        recorder.cost(),
        ("A rise is that of the moment: with other edges cut before, it would be another.",),
    )


class _Behaviour:
    """What must not change: all pairs with nothing cut, and how far any cut takes them from there."""

    def __init__(
        self, model: Model, data: Pairs, graph: EdgeGraph, config: Config, recorder: Recorder
    ) -> None:
        self.model, self.graph, self._recorder, self._n = model, graph, recorder, len(data)
        pairs = EdgePairs(
            model, graph, data, config.metric, config.kind, config.direction, config.rows, seed=config.seed
        )
        none = torch.zeros(graph.allowed.shape)
        self._batches: list[tuple[EdgeTail, Float[Tensor, " row"]]] = []
        for batch, ablation in pairs.batches():
            if config.metric == metrics.KL.name:
                batch = _from_uncut(batch)
                recorder.add(passes=1)
            tail = EdgeTail(batch, ablation)
            if tail.reason:
                recorder.note(f"fell back to plain passes: {tail.reason}")
            self._batches.append((tail, tail.score(none)))
            recorder.add(passes=5)
        self.empty = self.divergence(graph.allowed.float())
        require_gap(self.empty, model, config.kind)

    def divergence(self, cut: Float[Tensor, "receiver source"]) -> float:
        """How far the pairs are from their uncut runs, on average."""
        return self.divergences([cut])[0]

    def divergences(self, cuts: Sequence[Float[Tensor, "receiver source"]]) -> list[float]:
        """The same of several cuts."""
        total = torch.zeros(len(cuts), dtype=torch.float64)
        for batch, uncut in self._batches:
            total += (batch.scores(cuts) - uncut).abs().double().sum(dim=1).cpu()
            self._recorder.add(passes=len(cuts))
        found: list[float] = (total / self._n).tolist()
        return found


def _from_uncut(batch: EdgeRun) -> EdgeRun:
    """The batch judged by its divergence from its own uncut run, whichever side that is."""
    run = batch.model.run(batch.tokens, logits=LogitSelection((-1,)), mask=batch.mask)
    assert run.logits is not None
    return replace(batch, metric=metrics.KL(run.logits))


class _Walk:
    """The tests and how they end."""

    def __init__(self, behaviour: _Behaviour, config: Config) -> None:
        self.behaviour, self._config, self._graph = behaviour, config, behaviour.graph
        model = behaviour.model
        self._apart = all(behind(model.anatomy, layer, "attn") is None for layer in range(model.n_layers))
        self._drawn = torch.Generator().manual_seed(config.seed)
        shape = tuple(self._graph.allowed.shape)
        self._cut = torch.zeros(shape)
        self.outcome = np.where(self._graph.allowed.numpy(), "kept", "").astype("<U6")
        self.rise, self.order = np.full(shape, np.nan), np.full(shape, -1)
        self.divergence: list[float] = []
        self.edges_cut: list[int] = []
        self._foresees_cut, self._ahead = True, 1

    def back(self) -> None:
        """From the logits to the first layer."""
        graph = self._graph
        for row in reversed(range(len(graph.receivers))):
            # Below this receiver nothing is cut, so its edges lie on paths exactly if something reads its part.
            if not self._apart or graph.connected(self._kept)[row].any():
                self._test(row, self._sources(row))
            else:
                self._cut[row] = graph.allowed[row].float()
                self.outcome[row, graph.allowed[row].numpy()] = "unread"
        if self._config.kind == "resample" and self._apart:
            self.outcome[(self._kept & ~graph.connected(self._kept)).numpy()] = "unfed"

    @property
    def _kept(self) -> Bool[Tensor, "receiver source"]:
        return self._graph.allowed & (self._cut == 0)

    def _sources(self, row: int) -> Sequence[int]:
        columns = self._graph.allowed[row].nonzero()[:, 0]
        if self._config.order == "random":
            columns = columns[torch.randperm(len(columns), generator=self._drawn)]
        elif self._config.order == "latest":
            columns = columns.flip(0)
        found: list[int] = columns.tolist()
        return found

    def _test(self, row: int, columns: Sequence[int]) -> None:
        """Test a receiver's edges in this order, a few ahead as long as they end as foreseen."""
        done = 0
        while done < len(columns):
            ahead = columns[done : done + self._ahead]
            afters = self.behaviour.divergences(self._foreseen(row, ahead))
            self._ahead = min(2 * self._ahead, _MOST_AHEAD)
            for column, after in zip(ahead, afters, strict=True):
                done += 1
                if self._ended(row, column, after) != self._foresees_cut:
                    self._foresees_cut, self._ahead = not self._foresees_cut, 1
                    break

    def _foreseen(self, row: int, columns: Sequence[int]) -> list[Float[Tensor, "receiver source"]]:
        """What is cut in each of the next tests, if those before it end as foreseen."""
        found: list[Tensor] = []
        before = self._cut
        for column in columns:
            one = before.clone()
            one[row, column] = 1
            found.append(one)
            before = one if self._foresees_cut else before
        return found

    def _ended(self, row: int, column: int, after: float) -> bool:
        """Note how the test of an edge ended; whether it stays cut."""
        before = self.divergence[-1] if self.divergence else 0.0
        self.rise[row, column], self.order[row, column] = after - before, len(self.divergence)
        stays = after - before < self._config.threshold
        if stays:
            self._cut[row, column] = 1
            self.outcome[row, column] = "cut"
        self.divergence.append(after if stays else before)
        self.edges_cut.append(int(self._cut.sum()))
        return stays
