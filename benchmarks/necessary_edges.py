"""Which edges does a compiled program need? `python benchmarks/necessary_edges.py`: brute force, by kind of ablation.

Every edge of every program's network is cut alone, exactly, in all pairs: by what it carries on the other side
(resample), by its mean over the pairs (mean), by nothing (zero). Counted are the edges whose cutting moves the
difference between the right and the wrong answer in some pair, by more than a thousandth of the largest, and those that
make some answer wrong; beside them the edges of the program itself, and how many edges move anything though the program
does not have them.

«Necessary» means nothing without the kind: positions and constants are the same on both sides of a pair, so only zero
shows them.
"""

import torch

from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_pairs import EdgePairs
from microtome.testbeds.programs.testbed import build, cases

LEAST = 1e-3


def main() -> None:
    torch.set_num_threads(1)
    print("| program | edges | program's own | resample: move, wrong, others | mean | zero |")
    print("|---" * 6 + "|")
    for name in cases():
        case = build(name)
        if case.pairs is None:
            print(f"| {name} | no single token changes its last answer | | | | |")
            continue
        graph = EdgeGraph.of(case.model, split_positions=True)
        edges = graph.edges()
        assert case.truth.circuit is not None
        own = {edge.ends for edge in case.truth.circuit.edges}
        cells = []
        for kind in ("resample", "mean", "zero"):
            pairs = EdgePairs(
                case.model, graph, case.pairs, "logit-difference", kind, "noise", len(case.pairs)
            )
            ((run, ablation),) = pairs.batches()
            effects, _ = run.effects([graph.place(ends) for ends in edges], ablation)
            whole = run.score(torch.zeros(graph.allowed.shape), ablation)
            moved = (effects.abs() > LEAST * whole.abs().max()).any(dim=1)
            wrong = (effects + whole <= 0).any(dim=1)
            others = [
                ends for ends, move in zip(edges, moved.tolist(), strict=True) if move and ends not in own
            ]
            cells.append(f"{int(moved.sum())}, {int(wrong.sum())}, {len(others)}")
        print(f"| {name} | {len(edges)} | {len(own)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
