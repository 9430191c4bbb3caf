"""What does a curve over circuit size cost? `python benchmarks/circuit_curves.py`: ten circuits, on one thread.

GPT-2-small shape, random weights, 8 × 15 tokens, 32 491 edges ranked by attribution; CPU seconds (median and least of
three) of scoring circuits at ten sizes, the values of cut edges included, as a ratio to one plain forward with backward
pass in the same process; of the two ends of the scale; and how far four of the circuits are from the definition
written out (`written_out.py`) in float64, beside how far that itself is in float32. The same beside public tools, and
their costs: `edge_parity.py`, `edges.py`.
"""

import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

import microtome
from circuit_cases import MACHINE, PLAIN_THERE, ROWS, gpt2_small, prompts
from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_knockout import EdgeKnockout
from microtome.circuits.edge_pairs import EdgePairs
from microtome.core.answers import EdgeScores
from microtome.evaluation.curve_areas import FRACTIONS
from microtome.evaluation.ranked_circuits import Ranking
from written_out import circuit, difference

REPETITIONS, AIM = 3, 7.0
COMPARED = (0, 4, 7, 9)


def main() -> None:
    torch.set_num_threads(1)
    module, data = gpt2_small(), prompts(50_000)
    model = microtome.load(module)
    graph = EdgeGraph.of(model)
    batches = EdgePairs(model, graph, data, "logit-difference", rows=ROWS)
    ((run, ablation),) = batches.batches()
    slope = run.gradient(ablation)[1]
    scores = EdgeScores(dict(zip(graph.edges(), slope[graph.allowed].tolist(), strict=True)))
    ranking = Ranking.of(graph, scores, "negative", prune=True)
    ordered = ranking.ordered("absolute")
    circuits = [ranking.circuit(ordered, size) for size in FRACTIONS]

    chosen = torch.tensor(run.metric.needs.tokens)[:, None]

    def plain() -> None:
        loss = run.metric(module(data.clean, use_cache=False).logits[:, -1:].gather(2, chosen)).sum()
        torch.autograd.grad(loss, [module.transformer.wpe.weight])

    spent: dict[str, list[float]] = {"plain": [], "ends": [], "ten": []}
    knockout = EdgeKnockout(batches)
    found = torch.zeros(0)
    for repetition in range(REPETITIONS + 1):
        for name in spent:
            start = time.process_time()
            if name == "plain":
                plain()
            elif name == "ends":
                knockout = EdgeKnockout(batches)
            else:
                ablated = run.ablation("resample", data.corrupt)
                assert ablated.writes.shape == ablation.writes.shape
                found = knockout.scores(circuits)
            if repetition:
                spent[name].append(time.process_time() - start)
    ends = knockout.scores([graph.allowed, torch.zeros_like(graph.allowed)])
    whole, empty = (model.run(side, metric=run.metric).metric for side in (data.clean, data.corrupt))
    assert whole is not None
    assert empty is not None
    exact = torch.equal(ends[0], whole.detach()) and torch.equal(ends[1], empty.detach())
    ten, ends_only, one = (statistics.median(spent[name]) for name in ("ten", "ends", "plain"))
    ids = [[one for (one,) in side] for side in (data.answers, data.wrong)]

    def by_definition() -> Tensor:
        logits = [circuit(module, data.clean, data.corrupt, circuits[number]) for number in COMPARED]
        return torch.stack([difference(one, *ids) for one in logits]).double()

    rounded = by_definition()
    module.double()
    true = by_definition()
    apart = [float((one.double() - true).abs().max()) for one in (found[list(COMPARED)], rounded)]
    lines = [
        "# Curves over circuit size",
        "",
        MACHINE,
        "",
        "| what | CPU s | least | plain forward and backward | ratio | target |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| circuits at ten sizes | {ten:.2f} | {min(spent['ten']):.2f} | {one:.2f} | {ten / one:.2f} | "
        f"ratio ≤ {AIM / PLAIN_THERE:.1f} ({AIM:g} / {PLAIN_THERE}) |",
        f"| both ends of the scale, once | {ends_only:.2f} | {min(spent['ends']):.2f} | {one:.2f} | "
        f"{ends_only / one:.2f} | |",
        "",
        f"Edges in them: {', '.join(str(int(one.sum())) for one in circuits)}. Largest difference of four of them from "
        f"the definition written out in float64: {apart[0]:.1e} logits, of the definition in float32: {apart[1]:.1e}; "
        f"the gap between clean and corrupt is {float((whole - empty).abs().max()):.2f} (target 1e-6). The circuit of "
        f"all edges is the clean run and that of none the corrupt one, bit for bit: {'yes' if exact else 'no'}.",
    ]
    text = "\n".join(lines) + "\n"
    Path(__file__).parent.joinpath("results", "circuit_curves.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
