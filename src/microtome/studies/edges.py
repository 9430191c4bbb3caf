"""Along which edges does a behaviour run? The stages of a study at the grain of edges.

1. *Found* on the prompts for finding: ranked by attribution, grown to the target, pruned by exact tests.
2. *Claimed*: what the circuit will keep and leave on held-out prompts, registered before these are run.
3. *Tested* there: five hypothesis tests beside random circuits; and the whole ranking over circuit size, beside random
   orders and the order that a twin with shuffled weights gives.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from microtome.circuits import edge_circuit
from microtome.core.circuit import Circuit
from microtome.core.claim import Claim, Evidence, Ledger, Prediction
from microtome.core.result import Result
from microtome.data.pairs import Pairs
from microtome.evaluation import circuit_curves, circuit_tests
from microtome.evaluation.whole_replacement import Replacement, replace
from microtome.models.model import Model
from microtome.store.study_folder import StudyFolder

KEPT: Final = "share of the behaviour kept when every edge outside the circuit is cut (resample)"
LEFT: Final = "share of the behaviour left when the edges of the circuit are cut (resample)"
LEAST_KEPT, MOST_LEFT = 0.7, 0.3
DRAWS: Final = 29  # the least of which to beat 90 % at a level of 0.05 means to beat all
SIZES: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
ROWS: Final = 32

Stage = Callable[[str, Callable[[], Result]], Result]


@dataclass(frozen=True)
class EdgeStages:
    """The stages of one task. stage: makes a result under a name, once, or reads it."""

    model: Model
    task: str
    metric: str
    target: float
    seed: int
    stage: Stage

    def find(self, pairs: Pairs) -> edge_circuit.Result:
        """The circuit of edges."""
        config = edge_circuit.Config(target=self.target, metric=self.metric, rows=ROWS, seed=self.seed)
        found = self.stage("edge_circuit", lambda: edge_circuit.run(self.model, pairs, config))
        assert isinstance(found, edge_circuit.Result)
        return found

    def claim(self, circuit: Circuit, unseen: Pairs) -> tuple[Claim, tuple[Prediction, Prediction]]:
        """What is claimed of the circuit, and what follows for held-out prompts."""
        claim = Claim(
            f"these {len(circuit.edges)} edges do {self.task}, and no others are needed",
            tuple(f"{edge.source} -> {edge.target} {edge.kind}" for edge in circuit.edges),
            f"{self.task} prompts like those of its templates",
        )
        control = "random circuits with at least as many edges (their best)"
        return claim, (
            Prediction(claim.key, KEPT, unseen.hash, LEAST_KEPT, None, "above", control),
            Prediction(claim.key, LEFT, unseen.hash, None, MOST_LEFT),
        )

    def register(self, ledger: Ledger, circuit: Circuit, unseen: Pairs) -> None:
        """Write the claim and its predictions down."""
        claim, predictions = self.claim(circuit, unseen)
        ledger.add(claim)
        for prediction in predictions:
            ledger.register(prediction)

    def test(
        self, found: edge_circuit.Result, pairs: Pairs, unseen: Pairs, ledger: Ledger
    ) -> dict[str, Result]:
        """Tests and curves on held-out prompts, the predictions' outcomes recorded."""
        circuit = found.circuit
        config = circuit_tests.Config(
            circuit=tuple(edge.ends for edge in circuit.edges),
            metric=self.metric,
            draws=DRAWS,
            rows=ROWS,
            seed=self.seed,
        )
        tests = self.stage("circuit_tests", lambda: circuit_tests.run(self.model, unseen, config))
        assert isinstance(tests, circuit_tests.Result)
        over_size = circuit_curves.Config(
            metric=self.metric,
            settings={"integrate": "inputs", "checked": 0, "metric": self.metric, "rows": ROWS},
            sizes=SIZES,
            random_orders=1,
            checked=0,
            rows=ROWS,
            seed=self.seed,
        )
        curves = self.stage(
            "circuit_curves",
            lambda: circuit_curves.of(self.model, unseen, found.estimates, over_size, found_on=pairs),
        )
        _, (kept, left) = self.claim(circuit, unseen)
        best = float(tests.data["random_kept"].max())
        for prediction, which, control in ((kept, "kept", best), (left, "left", None)):
            evidence = Evidence(
                tests.share(which),
                len(unseen),
                "interventional",
                unseen.hash,
                tests.interval(which),
                control_value=control,
            )
            ledger.record(prediction, evidence)
        return {"edge_circuit": found, "circuit_tests": tests, "circuit_curves": curves}


def together(
    model: Model, found: Mapping[str, tuple[Circuit, Pairs]], folder: StudyFolder, metric: str, seed: int
) -> Replacement | None:
    """All tasks' circuits in the network's place, on held-out prompts; none without circuits."""
    if not found:
        return None
    circuits = {name: circuit for name, (circuit, _) in found.items()}
    unseen = {name: pairs for name, (_, pairs) in found.items()}
    made = folder.stage(
        "whole_replacement", lambda: replace(model, circuits, unseen, metric, seed=seed, rows=ROWS).plain()
    )
    return Replacement(**made)


def summary(results: dict[str, Result]) -> dict[str, Any]:
    """The numbers of a task's circuit of edges, as plain values."""
    found, tests, curves = (results[name] for name in ("edge_circuit", "circuit_tests", "circuit_curves"))
    assert isinstance(found, edge_circuit.Result)
    assert isinstance(tests, circuit_tests.Result)
    assert isinstance(curves, circuit_curves.Result)
    total, size = found.data.sizes["edge"], len(found.circuit.edges)
    return {
        "edges": size,
        "total": total,
        "bits": math.log2(math.comb(total, size)),
        "kept": tests.share("kept"),
        "interval": list(tests.interval("kept")),
        "left": tests.share("left"),
        "random": float(tests.data["random_kept"].mean()),
        "random_best": float(tests.data["random_kept"].max()),
        "tests": {
            name: {"p": float(tests.data["p"].sel(test=name)), "passed": tests.passed(name)}
            for name in circuit_tests.TESTS
        },
        "cpr": curves.area("CPR", "asked"),
        "cmd": curves.area("CMD", "asked"),
    }
