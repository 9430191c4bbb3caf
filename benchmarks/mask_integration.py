"""What do gradients along masks see of the edges that a program needs? `python benchmarks/mask_integration.py`.

Truth is brute force, by kind of ablation (`edge_methods.needed`): the edges whose cutting alone moves an answer in some
of 24 pairs. Scores are ranked by size; AUROC is the chance that a needed edge stands above another. Beside the plain
gradient and equal steps: points that go where the metric jumps, and rounds in which what took the credit is left whole.
The last of them also on weights drawn at random. What still stands above a needed edge, or below another, is cut
for real: alone, and together with one other edge.

Edge pruning is held to another truth, for the fewest edges that are enough need not hold every edge that is needed
beside all others: its circuit must leave the answers as they are, and lose them without any one of its edges.
"""

import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from edge_methods import PROGRAMS, PRUNED, needed
from microtome.circuits import edge_attribution_patching, edge_estimates, edge_pruning
from microtome.circuits.edge_cut import AblationKind
from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_pairs import EdgePairs
from microtome.evaluation.marks import auroc
from microtome.models.model import Model
from microtome.models.random_twin import random_twin
from microtome.testbeds.case import Case
from microtome.testbeds.programs.testbed import build

Ends = tuple[str, str, str]
KINDS: tuple[AblationKind, ...] = ("resample", "zero")
EQUAL = 20
SEEDS = (0, 1)
WAYS: dict[str, dict[str, Any]] = {
    "gradient": {},
    "21 points": {"integrate": "edges", "steps": 21},
    "41 points": {"integrate": "edges", "steps": 41},
    "41, 10 rounds": {"integrate": "edges", "steps": 41, "rounds": 10},
}


def area(scores: dict[Ends, float], truth: dict[Ends, bool]) -> float:
    sizes = np.abs([scores[edge] for edge in truth])
    return float(auroc(rankdata(sizes.round(9)), np.array(list(truth.values()))))


def scored(model: Model, case: Case, kind: AblationKind, way: dict[str, Any]) -> edge_estimates.Result:
    assert case.pairs is not None
    config = edge_attribution_patching.Config(
        split_positions=True, checked=0, rows=len(case.pairs), kind=kind, **way
    )
    return edge_attribution_patching.run(model, case.pairs, config)


class Cuts:
    """Exact cuts of a program's network."""

    def __init__(self, case: Case, kind: AblationKind) -> None:
        assert case.pairs is not None
        self.graph = EdgeGraph.of(case.model, split_positions=True)
        pairs = EdgePairs(case.model, self.graph, case.pairs, "logit-difference", kind, rows=len(case.pairs))
        ((self.run, self.ablation),) = pairs.batches()
        self.whole = self.run.score(torch.zeros(self.graph.allowed.shape), self.ablation)

    def moved(self, edges: list[Ends]) -> float:
        """How far an answer moves, the most of all pairs, of the largest answer."""
        after = self.run.score(self.graph.mask(edges).float(), self.ablation)
        return float((after - self.whole).abs().max() / self.whole.abs().max())

    def equal(self) -> dict[Ends, float]:
        """Scores at equal steps."""
        every = self.graph.allowed.float()
        cuts = [every * (step + 0.5) / EQUAL for step in range(EQUAL)]
        total = torch.stack([self.run.gradient(self.ablation, cut)[1] for cut in cuts]).mean(dim=0)
        return {edge: float(total[self.graph.place(edge)]) for edge in self.graph.edges()}


def misplaced(scores: dict[Ends, float], truth: dict[Ends, bool], cuts: Cuts) -> list[str]:
    """Edges that stand above a needed one though they are not, or below others though they are, cut for real."""
    size = {edge: abs(score) for edge, score in scores.items()}
    least = min(size[edge] for edge in truth if truth[edge])
    most = max(size[edge] for edge in truth if not truth[edge])
    lines = []
    above = sorted(
        (edge for edge in truth if not truth[edge] and size[edge] > least + 1e-9), key=size.__getitem__
    )
    for edge in above[::-1][:3]:
        alone = cuts.moved([edge])
        others = [other for other in truth if not truth[other] and other != edge]
        rest, more = cuts.moved([edge, *others]), cuts.moved([*others])
        lines.append(
            f"not needed, {scores[edge]:.3f}: `{' '.join(edge)}`; cut alone moves {alone:.3f}, with all others that "
            f"are not needed {rest:.3f} (these without it {more:.3f})"
        )
    below = sorted((edge for edge in truth if truth[edge] and size[edge] < most - 1e-9), key=size.__getitem__)
    for edge in below[:3]:
        lines.append(
            f"needed, {scores[edge]:.3f}: `{' '.join(edge)}`; cut alone moves {cuts.moved([edge]):.3f}"
        )
    return lines


def main() -> None:
    torch.set_num_threads(1)
    lines = [*gradients(), "", *pruning()]
    Path(__file__).parent.joinpath("results", "mask_integration.md").write_text("\n".join(lines) + "\n")


def gradients() -> list[str]:
    names = ["gradient", f"{EQUAL} equal steps", *list(WAYS)[1:]]
    lines = ["# Gradients along masks against the edges that programs need", ""]
    head = [
        "program",
        "ablation",
        "edges",
        "needed",
        *names,
        "passes",
        "CPU s",
        "cutting each, CPU s",
        "random weights",
    ]
    lines += ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    notes = []
    for program, kind in product(PROGRAMS, KINDS):
        case = build(program)
        begun = time.process_time()
        truth = needed(case, kind)
        exactly, cuts = time.process_time() - begun, Cuts(case, kind)
        cells = []
        for way in WAYS.values():
            begun = time.process_time()
            found = scored(case.model, case, kind, way)
            taken = time.process_time() - begun
            cells.append(f"{area(found.scores(), truth):.3f}")
        cells.insert(1, f"{area(cuts.equal(), truth):.3f}")
        twin = scored(random_twin(case.model, how="drawn"), case, kind, way)
        cells += [
            str(found.cost.passes),
            f"{taken:.1f}",
            f"{exactly:.1f}",
            f"{area(twin.scores(), truth):.3f}",
        ]
        lines.append(f"| {program} | {kind} | {len(truth)} | {sum(truth.values())} | {' | '.join(cells)} |")
        notes += [f"- {program}, {kind}: {line}" for line in misplaced(found.scores(), truth, cuts)]
        print(lines[-1], flush=True)
    lines += [
        "",
        "Passes and CPU seconds are those of the last setting, on one thread.",
        "",
        "## Out of place",
        "",
    ]
    return [*lines, *notes]


def pruning() -> list[str]:
    lines = ["## Edge pruning", ""]
    head = [
        "program",
        "ablation",
        "needed",
        "seed",
        "kept",
        "of them needed",
        "loss",
        "least rise without one",
    ]
    lines += ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    spared: dict[tuple[str, AblationKind], set[Ends]] = {}
    for program, kind, seed in product(PRUNED, KINDS, SEEDS):
        case = build(program)
        assert case.pairs is not None
        true = {edge for edge, one in needed(case, kind).items() if one}
        config = edge_pruning.Config(split_positions=True, checked=0, kind=kind, seed=seed)
        pruned = edge_pruning.run(case.model, case.pairs, config)
        rises = {edge.ends: edge.weight for edge in pruned.circuit().edges}
        lines.append(
            f"| {program} | {kind} | {len(true)} | {seed} | {len(rises)} | {len(rises.keys() & true)} "
            f"| {pruned.data.attrs['left']:.4f} | {min(rises.values()):.2f} |"
        )
        print(lines[-1], flush=True)
        spared[program, kind] = spared.get((program, kind), set()) | (true - rises.keys())
    return [*lines, "", *explained(spared)]


def explained(spared: dict[tuple[str, AblationKind], set[Ends]]) -> list[str]:
    """Needed edges that are spared: which one other edge, cut as well, makes up for cutting them."""
    lines = []
    for (program, kind), edges in spared.items():
        cuts = Cuts(build(program), kind)
        for edge in sorted(edges):
            others = [
                " ".join(other)
                for other in cuts.graph.edges()
                if other != edge and cuts.moved([edge, other]) < 1e-3
            ]
            lines.append(
                f"`{' '.join(edge)}` ({program}, {kind}): cut alone moves {cuts.moved([edge]):.3f} of the answer; "
                f"nothing, where one of these is cut too: {', '.join(f'`{other}`' for other in others) or 'none'}."
            )
    return lines


if __name__ == "__main__":
    main()
