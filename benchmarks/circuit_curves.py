"""What does a curve over circuit size cost? `python benchmarks/circuit_curves.py`: ten circuits, on one thread.

GPT-2-small shape, random weights, 8 × 15 tokens, 32 491 edges ranked by attribution; CPU seconds (median and least of
three) of scoring circuits at ten sizes, the values of cut edges included, as a ratio to one plain forward with backward
pass in the same process; of the two ends of the scale; and the largest difference, over four of the circuits, from the
definition written out: every receiver's stream summed by hand, head by head, without any of our passes. Peers' figures
for the same shape, measured elsewhere on one thread: auto-circuit 27.5 s, EAP-IG 47.9 s.
"""

import statistics
import time
from pathlib import Path

import torch
import transformers
from torch import Tensor
from torch.nn import functional

import microtome
from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_knockout import EdgeKnockout
from microtome.circuits.edge_pairs import EdgePairs
from microtome.core.answers import EdgeScores
from microtome.data.pairs import Pairs
from microtome.evaluation.curve_areas import FRACTIONS
from microtome.evaluation.ranked_circuits import Ranking

ROWS, LENGTH, REPETITIONS = 8, 15, 3
COMPARED = (0, 4, 7, 9)


def pairs() -> Pairs:
    clean, corrupt = torch.randint(50_000, (2, ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    right, wrong = (tuple((row + start,) for row in range(ROWS)) for start in (5, 50))
    empty = ("",) * ROWS
    return Pairs(clean, corrupt, None, right, wrong, ({},) * ROWS, empty, empty, {})


@torch.no_grad()
def written_out(module: transformers.GPT2LMHeadModel, data: Pairs, kept: Tensor) -> Tensor:
    """The metric of a circuit by definition: the corrupt stream, plus what kept sources write now and did not there."""
    body, heads = module.transformer, module.config.n_head
    width = module.config.n_embd // heads
    places = body.wpe(torch.arange(LENGTH))
    here, there = ([body.wte(tokens) + places] for tokens in (data.clean, data.corrupt))
    constant, row = torch.zeros(module.config.n_embd), 0

    def read() -> Tensor:
        nonlocal row
        columns = kept[row].nonzero().flatten().tolist()
        row += 1
        total = torch.stack(there).sum(0) + constant
        for column in columns:
            total = total + here[column] - there[column]
        return total

    def head(block: torch.nn.Module, number: int, streams: list[Tensor]) -> Tensor:
        made = []
        for part, stream in enumerate(streams):
            at = slice(part * heads * width + number * width, part * heads * width + (number + 1) * width)
            weight, bias = block.attn.c_attn.weight[:, at], block.attn.c_attn.bias[at]
            made.append(block.ln_1(stream) @ weight + bias)
        z = functional.scaled_dot_product_attention(*made, is_causal=True)
        return z @ block.attn.c_proj.weight[number * width : (number + 1) * width]

    for block in body.h:
        streams = [[read() for _ in range(heads)] for _ in range(3)]
        before = torch.stack(there).sum(0) + constant
        new = [head(block, n, [kind[n] for kind in streams]) for n in range(heads)]
        old = [head(block, n, [before] * 3) for n in range(heads)]
        here, there, constant = here + new, there + old, constant + block.attn.c_proj.bias
        stream = read()
        before = torch.stack(there).sum(0) + constant
        here = [*here, block.mlp(block.ln_2(stream))]
        there = [*there, block.mlp(block.ln_2(before))]
    last = body.ln_f(read())[:, -1]
    logits = module.lm_head(last)
    right, wrong = (torch.tensor([ids[0] for ids in side])[:, None] for side in (data.answers, data.wrong))
    return (logits.gather(1, right) - logits.gather(1, wrong))[:, 0]


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    model, data = microtome.load(module), pairs()
    graph = EdgeGraph.of(model)
    batches = EdgePairs(model, graph, data, "logit-difference", rows=ROWS)
    ((run, ablation),) = batches.batches()
    slope = run.gradient(ablation)[1]
    scores = EdgeScores(dict(zip(graph.edges(), slope[graph.allowed].tolist(), strict=True)))
    ranking = Ranking.of(graph, scores, "negative", prune=True)
    ordered = ranking.ordered("absolute")
    circuits = [ranking.circuit(ordered, size) for size in FRACTIONS]

    def plain() -> None:
        loss = run.metric(module(data.clean, use_cache=False).logits[:, -1:].gather(2, ids)).sum()
        torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad][:1])

    ids = torch.tensor(run.metric.needs.tokens)[:, None]
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
    gap = max(
        float((found[number] - written_out(module, data, circuits[number])).abs().max())
        for number in COMPARED
    )
    ends = knockout.scores([graph.allowed, torch.zeros_like(graph.allowed)])
    whole, empty = (model.run(side, metric=run.metric).metric for side in (data.clean, data.corrupt))
    assert whole is not None
    assert empty is not None
    exact = torch.equal(ends[0], whole.detach()) and torch.equal(ends[1], empty.detach())
    ten, ends_only, one = (statistics.median(spent[name]) for name in ("ten", "ends", "plain"))
    lines = [
        "# Curves over circuit size",
        "",
        "| what | CPU s | least | plain forward and backward | ratio | target |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| circuits at ten sizes | {ten:.2f} | {min(spent['ten']):.2f} | {one:.2f} | {ten / one:.2f} | ≤ 7 s |",
        f"| both ends of the scale, once | {ends_only:.2f} | {min(spent['ends']):.2f} | {one:.2f} | "
        f"{ends_only / one:.2f} | |",
        "",
        f"Edges in them: {', '.join(str(int(circuit.sum())) for circuit in circuits)}. Largest difference of four of "
        f"them from the definition written out: {gap:.1e} logits, of a gap between clean and corrupt of "
        f"{float((whole - empty).abs().max()):.2f} (target 1e-6). The circuit of all edges is the clean run and "
        f"that of none the corrupt one, bit for bit: {'yes' if exact else 'no'}.",
    ]
    text = "\n".join(lines) + "\n"
    Path(__file__).parent.joinpath("results", "circuit_curves.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
