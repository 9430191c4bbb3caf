"""Does a circuit stand up to tests? Five hypotheses about it, each with a p-value, beside random circuits of its size.

On pairs that the circuit was not found on, with scores of single pairs:

1. *Equivalence*: with all else cut, it scores above the network as often as below.
2. *Independence*: what each pair scores with it cut says nothing of what it scores in the network; both are counted
   from the pair's score with everything cut, since answers that are likelier anyway would tie them together.
3. *Minimality*: cutting any of its edges does more than cutting an edge of a random path that was added to it,
   corrected for the number of edges.
4. *Sufficiency*: it is nearer to the network than random circuits at least as large are.
5. *Partial necessity*: cutting it takes the network further away than cutting as many edges outside of it does.

The first three suppose an ideal circuit and are failed by a small p; the last two suppose nothing better than luck and
are passed by one. Statistics: `microtome.evaluation.hypothesis_statistics`.

Reference: Shi et al. (2024), Hypothesis Testing the Circuit Hypothesis in LLMs. Misleads: a few pairs
reject little, so that to stand the first three on small data means not much; on much data they fall over anything that
is left, however little.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from microtome.circuits.edge_cut import AblationKind
from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_knockout import EdgeKnockout, Kept
from microtome.circuits.edge_pairs import Direction, EdgePairs
from microtome.circuits.random_circuits import missing_edge, random_circuit, random_path
from microtome.core import config as base
from microtome.core import result
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.errors import InputError
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Cell, Shape, Table
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.evaluation.hypothesis_statistics import better, equivalence, independence, needless
from microtome.models.model import Model

card = Card(
    name="circuit_tests",
    title="Hypothesis tests of a circuit",
    question="Is a circuit equivalent to the network, is nothing of the task outside it, and is it better than luck?",
    steps=(
        "Keep only the circuit, cut only the circuit, and compare scores pair by pair with the network's.",
        "Cut each of its edges, and edges of random paths added to it.",
        "Keep random circuits at least as large; cut as many edges outside of it.",
        "Turn each comparison into a p-value, corrected for the number of edges.",
    ),
    reference="Shi et al. 2024, Hypothesis Testing the Circuit Hypothesis in LLMs",
    misleads="Few pairs reject little: passing equivalence, independence or minimality on small data means not much.",
    needs="pairs",
    causal="intervention",
)

NULLS: Final = {
    "equivalence": "it scores above the network as often as below",
    "independence": "what is left without it says nothing of the network's scores",
    "minimality": "each of its edges does more than edges added at random",
    "sufficiency": "it is no nearer to the network than random circuits",
    "partial necessity": "cutting it does no more than cutting as many random edges outside",
}
TESTS: Final = tuple(NULLS)
_IDEAL: Final = TESTS[:3]
Numbers = NDArray[Any]
_TIE: Final = 1e-5  # of the gap: less is rounding


class Config(base.Config):
    """Which circuit, and how it is tested."""

    circuit: tuple[tuple[str, str, str], ...] = Field(
        (), description="Edges as [source, target, through], such as [z.0.h1, z.1.h2, v]; at least one."
    )
    metric: str = Field(metrics.DEFAULT, description="Metric by name.")
    kind: AblationKind = Field(
        "resample", description="What cut edges carry: the other side, mean, zero, noise."
    )
    direction: Direction = Field("noise", description="noise: clean prompts run; denoise: corrupt ones.")
    level: float = Field(0.05, gt=0, lt=1, description="p-values up to this reject.")
    margin: float = Field(
        0.1, ge=0, lt=0.5, description="Of equivalence: shares of one half give or take this."
    )
    quantile: float = Field(
        0.9, gt=0, lt=1, description="Of random circuits and edges, how many are to be beaten."
    )
    draws: int = Field(40, ge=1, description="Random circuits, and random paths that are added.")
    permutations: int = Field(1000, ge=1, description="Of the test of independence.")
    edges_tested: int = Field(64, ge=1, description="Edges tested for minimality; of more, a random sample.")
    rows: int = Field(16, ge=1, description="Pairs in a batch; fewer need less memory.")
    seed: base.Seed = Field(0, description="Of everything random.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`p`, `statistic`, `passed [test]`; `share`, `low`, `high [which]`: kept by the circuit alone, left without it.

    `loss`, `edge_p [edge]`; `reference [draw]`: effects of cutting added edges. `random_kept`, `random_left [draw]`:
    what random circuits keep, and what is left when random edges outside are cut. Scores: `network`, `alone`,
    `without [row]`.
    """

    def passed(self, test: str) -> bool:
        """Whether the circuit stands this test."""
        return bool(self.data["passed"].sel(test=test))

    def share(self, which: str) -> float:
        """What the circuit keeps alone (`kept`), or what is left when it is cut (`left`)."""
        return float(self.data["share"].sel(which=which))

    def interval(self, which: str) -> tuple[float, float]:
        """Its 95 % bootstrap interval over pairs."""
        at = self.data.sel(which=which)
        return float(at["low"]), float(at["high"])

    def conventions(self) -> str:
        """What the numbers rest on, in a line."""
        c, n = self.config, self.data.attrs["n"]
        return f"{c['metric']}, ratio of means over {n} pairs; {c['direction']}, {c['kind']}; {self.data.attrs['size']}"

    def shapes(self) -> tuple[Shape, ...]:
        data, c = self.data, self.config
        tests: list[tuple[Cell, ...]] = []
        for name, null in NULLS.items():
            at = data.sel(test=name)
            passed = "passed" if bool(at["passed"]) else "failed"
            wanted = f"p > {c['level']:g}" if name in _IDEAL else f"p ≤ {c['level']:g}"
            tests.append((name, null, float(at["statistic"]), float(at["p"]), wanted, passed))
        shares: list[tuple[Cell, ...]] = []
        for which, told, luck in (
            ("kept", "kept by the circuit alone", data["random_kept"].values),
            ("left", "left when it is cut", data["random_left"].values),
        ):
            shares.append(
                (
                    told,
                    self.share(which),
                    *self.interval(which),
                    float(luck.mean()),
                    float(luck.min()),
                    float(luck.max()),
                )
            )
        columns = ("share of the behaviour", "circuit", "low", "high", "random, mean", "least", "greatest")
        order = np.argsort(data["edge_p"].values, kind="stable")
        edges = tuple(
            (str(data["edge"].values[i]), float(data["loss"].values[i]), float(data["edge_p"].values[i]))
            for i in order
        )
        return (
            Table(
                "tests of the circuit",
                ("test", "supposed", "statistic", "p", "to pass", "outcome"),
                tuple(tests),
                caption=f"{self.conventions()}; {c['draws']} random circuits at least as large, sets of edges "
                f"outside, and added edges, of which {c['quantile']:.0%} are to be beaten",
            ),
            Table(
                "what the circuit keeps and leaves",
                columns,
                tuple(shares),
                caption=f"{self.conventions()}; 95 % bootstrap intervals over pairs; {c['draws']} random circuits",
            ),
            Table(
                "is each edge needed?",
                ("edge", "share lost without it", "p of being needed"),
                edges,
                caption=f"{len(edges)} tested, p corrected by Holm; edges added at random change the share by "
                f"{float(np.median(data['reference'].values)):.2g} (median of {data.sizes['draw']}), in absolute size",
            ),
        )


def run(model: Model, data: Pairs, config: Config | None = None) -> Result:
    """Test a circuit on pairs.

    Raises `InputError` for no edges, edges that the network does not have, a circuit of all edges, and pairs without
    a difference to explain.
    """
    config = config or Config()
    if not config.circuit:
        raise InputError(
            'no circuit was given: name its edges, for example circuit=[["embed", "z.0.h1", "v"]]'
        )
    named = {end for edge in config.circuit for end in edge[:2]}
    with measure() as recorder:
        graph = EdgeGraph.of(model, split_positions="pos_embed" in named)
        circuit = graph.mask(config.circuit)
        if int(circuit.sum()) == len(graph):
            raise InputError(
                f"the circuit holds all {len(graph)} edges, so there is nothing to test it against"
            )
        pairs = EdgePairs(
            model, graph, data, config.metric, config.kind, config.direction, config.rows, seed=config.seed
        )
        tested = _Tested(EdgeKnockout(pairs), circuit, config)
        arrays, coords = tested.arrays()
        recorder.add(passes=tested.passes)
    size = f"{int(circuit.sum())} of {len(graph)} edges"
    return Result.of(
        card,
        xr.Dataset(arrays, coords, {"n": len(data), "size": size}),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), data.hash),
        recorder.cost(),
    )


class _Tested:
    """A circuit, its parts and its rivals, run and compared."""

    def __init__(self, knockout: EdgeKnockout, circuit: Kept, config: Config) -> None:
        self.knockout, self.circuit, self.config = knockout, circuit, config
        self.graph, self.gap = knockout.graph, abs(knockout.gap)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.passes = knockout.passes(2)

    def scores(self, kept: list[Kept]) -> Numbers:
        self.passes += self.knockout.passes(len(kept))
        return self.knockout.scores(kept).double().numpy()

    def arrays(self) -> tuple[dict[str, tuple[tuple[str, ...], Numbers]], dict[str, list[str]]]:
        config, knockout = self.config, self.knockout
        network = knockout.whole.double().numpy()
        alone, without = self.scores([self.circuit, self._rest(self.circuit)])
        places, loss, edge_p, reference = self._minimality(alone)
        rivals = [
            random_circuit(self.graph, int(self.circuit.sum()), self.generator) for _ in range(config.draws)
        ]
        kept, left = self.scores(rivals), self.scores([self._without_others() for _ in range(config.draws)])
        far = [np.abs(one - network).mean(axis=-1) for one in (alone, kept, without, left)]
        found = {
            "equivalence": equivalence(alone - network, config.margin, config.seed, _TIE * self.gap),
            "independence": independence(
                self._above(without), self._above(network), config.permutations, config.seed
            ),
            "minimality": (float((edge_p > config.level).mean()), float(edge_p.min())),
            "sufficiency": better(float(far[0]), far[1], config.quantile),
            "partial necessity": better(-float(far[2]), -far[3], config.quantile),
        }
        passed = [(p > config.level) == (name in _IDEAL) for name, (_, p) in found.items()]
        ends = [torch.from_numpy(one).float() for one in (alone, without)]
        intervals = np.array([knockout.interval(one, config.seed) for one in ends])
        arrays: dict[str, tuple[tuple[str, ...], Numbers]] = {
            "statistic": (("test",), np.array([statistic for statistic, _ in found.values()])),
            "p": (("test",), np.array([p for _, p in found.values()])),
            "passed": (("test",), np.array(passed)),
            "share": (("which",), self._shares(np.stack([alone, without]))),
            "low": (("which",), intervals[:, 0]),
            "high": (("which",), intervals[:, 1]),
            "loss": (("edge",), loss),
            "edge_p": (("edge",), edge_p),
            "reference": (("draw",), reference / self.gap),
            "random_kept": (("draw",), self._shares(kept)),
            "random_left": (("draw",), self._shares(left)),
            "network": (("row",), network),
            "alone": (("row",), alone),
            "without": (("row",), without),
        }
        edges = [" ".join((self.graph.sources[c], "->", *self.graph.receivers[r])) for r, c in places]
        return arrays, {"test": list(TESTS), "which": ["kept", "left"], "edge": edges}

    def _above(self, scores: Numbers) -> Numbers:
        """Scores counted from nothing kept, rounding taken as nothing."""
        above: Numbers = scores - self.knockout.empty.double().numpy()
        return np.where(np.abs(above) <= _TIE * self.gap, 0.0, above)

    def _without_others(self) -> Kept:
        """Everything but as many random edges outside of the circuit as it has, or all of these if fewer."""
        outside = self._rest(self.circuit).nonzero()
        some = torch.randperm(len(outside), generator=self.generator)[: int(self.circuit.sum())]
        kept = self.graph.allowed.clone()
        kept[tuple(outside[some].T)] = False
        return kept

    def _rest(self, kept: Kept) -> Kept:
        return self.graph.allowed & ~kept

    def _shares(self, scores: Numbers) -> Numbers:
        found: Numbers = self.knockout.share(torch.from_numpy(scores).float()).numpy()
        return found

    def _minimality(self, alone: Numbers) -> tuple[list[tuple[int, int]], Numbers, Numbers, Numbers]:
        """Edges tested, the share lost without each, their p-values, and the effects of added edges."""
        config = self.config
        edges = self.circuit.nonzero()
        chosen = torch.randperm(len(edges), generator=self.generator)[: config.edges_tested].sort().values
        places = [(int(row), int(column)) for row, column in edges[chosen].tolist()]
        cut = self.scores([_minus(self.circuit, place) for place in places])
        inflated, thinned = [], []
        for _ in range(config.draws):
            added = missing_edge(self.graph, self.circuit, self.generator)
            inflated.append(self.circuit | random_path(self.graph, added, self.generator))
            thinned.append(_minus(inflated[-1], added))
        reference = np.abs(self.scores(inflated) - self.scores(thinned)).mean(axis=-1)
        effect = np.abs(cut - alone).mean(axis=-1)
        p = needless(effect, reference, config.quantile, _TIE * self.gap)
        return places, self._shares(alone[None])[0] - self._shares(cut), p, reference


def _minus(kept: Kept, place: tuple[int, int]) -> Tensor:
    found = kept.clone()
    found[place] = False
    return found
