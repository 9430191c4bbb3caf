"""What does ACDC cost? `python benchmarks/acdc.py [PYTHON]`: two attention-only layers of eight heads, 257 edges.

Width 256, random weights, 8 × 15 tokens, one thread; CPU seconds (median) at a threshold that keeps every edge, which
is the worst case, and at one that keeps fewer. With the vocabulary of GPT-2 most of the time goes into the unembedding
of eight rows, once a test; the vocabulary of the figures that the target was set by is not on record, so a smaller one
is beside it. Ratio: to 257 plain forward passes of the same process with all their logits, which is the least that a
whole pass for each edge costs. With PYTHON, an interpreter that has them (see `circuit_tools.py`), public tools do the
same on the same weights and prompts, where some edges are cut: the original with the smaller vocabulary alone.

The target is 3.2 s where auto-circuit took 13.4, the original 53.7, and a plain forward with backward pass of GPT-2
small 0.71 s: it stands here as 4.5 such passes, and as shares of what the tools take in the same run. The original also
tests whether a head's query, key or value is needed at all (48 tests), and then the edges into it once more; the third
row leaves these tests out. "as ours": edges on which the decision is the same. Beside each tool's seconds stand 257
plain passes of its own process.
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

import microtome
from circuit_cases import MACHINE, PLAIN_THERE, attention_only, by_tool, gpt2_small, prompts
from microtome.circuits import acdc
from microtome.circuits.edge_graph import EdgeGraph

REPETITIONS, EDGES, AIM = 2, 257, 3.2
CASES = ((50257, 1e-9, 0), (50257, 1e-5, 1), (8192, 1e-9, 0), (8192, 1e-5, 3))  # the last: how many tools
TOOLS = {  # name: its own, its work, CPU seconds where the target was set
    "auto-circuit": ("auto-circuit", "acdc", 13.4),
    "ACDC": ("acdc", "acdc", 53.7),
    "ACDC, no test twice": ("acdc", "inputs", 53.7),
}


def seconds(work: Callable[[], object], repetitions: int) -> float:
    """CPU seconds of one, the median."""
    spent = []
    for _ in range(repetitions):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return statistics.median(spent)


def whole_pass() -> float:
    """A plain forward with backward pass of GPT-2 small."""
    module, pairs = gpt2_small(), prompts(50_000)

    def plain() -> None:
        torch.autograd.grad(
            module(pairs.clean, use_cache=False).logits[:, -1, 5].sum(), [module.transformer.wpe.weight]
        )

    plain()
    return seconds(plain, REPETITIONS)


def row(start: str, kept: Bool[Tensor, "receiver source"], same: int, work: float, forwards: float) -> str:
    return f"| {start} | {int(kept.sum())} | {same} | {work:.2f} | {forwards:.2f} | {work / forwards:.2f} |"


def main(python: str | None = None) -> None:
    torch.set_num_threads(1)
    lines = ["# ACDC", "", MACHINE, ""]
    lines += [f"| vocabulary | threshold | by | kept of {EDGES} | as ours | CPU s | {EDGES} plain | ratio |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- | --- |"]
    shares: dict[str, list[float]] = {name: [] for name in TOOLS}
    ours: list[float] = []
    for vocabulary, threshold, count in CASES:
        module, pairs = attention_only(vocabulary), prompts(vocabulary)
        model = microtome.load(module)
        allowed = EdgeGraph.of(model).allowed
        discover = partial(acdc.run, model, pairs, acdc.Config(threshold=threshold))
        kept = torch.from_numpy(discover().data["outcome"].values == "kept")
        with torch.no_grad():
            forwards = EDGES * seconds(partial(module, pairs.clean), 12)
        ours.append(seconds(discover, REPETITIONS))
        start = f"{vocabulary} | {threshold:g}"
        lines.append(row(f"{start} | ours", kept, EDGES, ours[-1], forwards))
        given = {"threshold": torch.tensor(threshold, dtype=torch.float64)}
        for name, (tool, named, _) in list(TOOLS.items())[:count] if python else ():
            figures, found = by_tool(python, tool, named, model, pairs, **given)
            work, plain = (statistics.median(figures[one]) for one in ("work", "plain"))
            shares[name].append(work / ours[-1])
            theirs = found["kept"].bool()
            same = int((theirs == kept)[allowed].sum())
            lines.append(row(f"{start} | {name}", theirs, same, work, EDGES * plain))
    plain = whole_pass()
    lines += [
        "",
        f"A plain forward with backward pass of GPT-2 small takes {plain:.2f} s here: ours takes "
        f"{min(ours) / plain:.1f} to {max(ours) / plain:.1f} of them (target {AIM / PLAIN_THERE:.1f}).",
    ]
    for name, spent in shares.items() if python else ():
        lines.append(
            f"{name} takes {min(spent):.1f} to {max(spent):.1f} times as long as ours (target: at least "
            f"{TOOLS[name][2] / AIM:.1f})."
        )
    text = "\n".join(lines) + "\n"
    Path(__file__).parent.joinpath("results", "acdc.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
