"""Do scores find the edges that a program needs? `python benchmarks/edge_methods.py`: AUROC by method and ablation.

Truth is brute force: each edge of a program’s network is cut alone, exactly, and counts as needed where that moves
the difference between the right and the wrong answer in some of 24 pairs by over a thousandth of the largest. Plain
gradients fail on `histogram`, whose steps are saturated at both ends; integrated over masks they do not. Last columns:
how many edges edge pruning keeps, against how many are needed, and whether they are the same ones (an edge that is
needed in a pair may still be spared where others carry on).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from microtome.circuits import (
    edge_attribution_patching,
    edge_pruning,
    information_flow_routes,
    relevance_patching,
)
from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_pairs import EdgePairs
from microtome.evaluation.marks import auroc
from microtome.testbeds.case import Case
from microtome.testbeds.programs.testbed import build

LEAST = 1e-3
PROGRAMS = ("reverse", "fraction_of_previous", "histogram", "sort", "dyck_1")
PRUNED = ("reverse", "fraction_of_previous")
SCORED: dict[str, tuple[Any, dict[str, Any]]] = {
    "gradient": (edge_attribution_patching, {}),
    "along inputs": (edge_attribution_patching, {"integrate": "inputs"}),
    "along masks": (edge_attribution_patching, {"integrate": "edges", "steps": 20}),
    "relp": (relevance_patching, {}),
    "gim": (relevance_patching, {"rules": "gim"}),
}


def needed(case: Case, kind: str) -> dict[tuple[str, str, str], bool]:
    """Every edge, and whether cutting it alone moves an answer."""
    graph = EdgeGraph.of(case.model, split_positions=True)
    assert case.pairs is not None
    pairs = EdgePairs(case.model, graph, case.pairs, "logit-difference", kind, rows=len(case.pairs))
    ((run, ablation),) = pairs.batches()
    edges = graph.edges()
    effects, _ = run.effects([graph.place(ends) for ends in edges], ablation)
    whole = run.score(torch.zeros(graph.allowed.shape), ablation)
    moved = (effects.abs() > LEAST * whole.abs().max()).any(dim=1)
    return dict(zip(edges, moved.tolist(), strict=True))


def main() -> None:
    torch.set_num_threads(1)
    lines = ["# Scores of edges against the edges that programs need", ""]
    names = [*SCORED, "flow"]
    lines.append(f"| program | ablation | edges | needed | {' | '.join(names)} | pruning keeps | the same |")
    lines.append("| --- " * (len(names) + 6) + "|")
    for program in PROGRAMS:
        case = build(program)
        for kind in ("resample", "zero"):
            truth = needed(case, kind)
            hits = np.array(list(truth.values()))
            cells = []
            for module, settings in SCORED.values():
                config = module.Config(split_positions=True, checked=0, kind=kind, **settings)
                scores = module.run(case.model, case.pairs, config).scores()
                sizes = np.abs([scores[edge] for edge in truth])
                cells.append(f"{auroc(rankdata(sizes.round(9)), hits):.3f}")
            flow = information_flow_routes.Config(split_positions=True, checked=0, patterns=True, prompts=24)
            scores = information_flow_routes.run(case.model, case.pairs, flow).scores()
            cells.append(f"{auroc(rankdata([scores[edge] for edge in truth]), hits):.3f}")
            if program in PRUNED:
                config = edge_pruning.Config(split_positions=True, checked=0, kind=kind)
                found = edge_pruning.run(case.model, case.pairs, config).circuit()
                kept = {edge.ends for edge in found.edges}
                cells += [str(len(kept)), "yes" if kept == {e for e, one in truth.items() if one} else "no"]
            else:
                cells += ["", ""]
            lines.append(f"| {program} | {kind} | {len(truth)} | {hits.sum()} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    Path(__file__).parent.joinpath("results", "edge_methods.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
