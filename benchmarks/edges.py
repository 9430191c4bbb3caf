"""What do edges cost? `python benchmarks/edges.py`: attribution, circuits at ten sizes, single edges, on one thread.

GPT-2-small shape, random weights, 8 × 15 tokens, 32 491 edges; CPU seconds (median and least) and the highest resident
memory above the model, each in a process of its own. Ratio: to one plain forward with backward pass in that process.
Peers' figures for the same shape, measured elsewhere on one thread, are in the targets: auto-circuit 8.7 s and 2.5 GB,
EAP-IG 12.7 s and 2.1 GB for attribution, 44.7 s with five steps; 27.5 and 47.9 s for ten circuits.
"""

import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

import microtome
from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_run import EdgeRun
from microtome.core.edits import Set
from microtome.core.site import Site
from microtome.data.metrics import LogitDifference

TARGETS = {
    "attribution of every edge": "≤ 1.6 s, ≤ 450 MB",
    "the same, 5 steps along the inputs": "≤ 5 s",
    "circuits at ten sizes": "≤ 7 s",
    "50 single edges, exactly": "≤ 12 s (500 in 2 minutes)",
}
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def megabytes(field: str) -> float:
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(field))
    return int(line.split()[1]) / 1024


def work_of(name: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """The work, and a plain forward with backward pass."""
    torch.manual_seed(0)
    module = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    model = microtome.load(module)
    clean, corrupt = (torch.randint(50_000, (8, 15)) for _ in range(2))
    metric = LogitDifference(tuple((i + 5,) for i in range(8)), tuple((i + 50,) for i in range(8)))
    graph = EdgeGraph.of(model)
    batch = EdgeRun(model, graph, clean, metric)

    def plain() -> None:
        loss = metric(module(clean, use_cache=False).logits[:, -1:].gather(2, _ids(metric))).sum()
        torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad][:1])

    def attribution() -> torch.Tensor:
        return batch.gradient(batch.ablation("resample", corrupt))[1]

    def along_inputs() -> torch.Tensor:
        ablation = batch.ablation("resample", corrupt)
        run, first = model.run(clean, batch.ends.origins), Site("resid_pre", 0)
        gaps, here = ablation.writes - batch.ends.writes(run), run[first]
        points = [Set(first, value=here + (1 - step / 5) * gaps[0]) for step in range(1, 6)]
        return batch.gradient_along(points, gaps)[1]

    def circuits() -> list[torch.Tensor]:
        ablation = batch.ablation("resample", corrupt)
        found = []
        for size in SIZES:
            kept = order[: int(size * len(graph))]
            cut = torch.ones(graph.allowed.numel())
            cut[kept] = 0
            found.append(batch.score(cut.view_as(graph.allowed), ablation))
        return found

    def singles() -> torch.Tensor:
        ablation = batch.ablation("resample", corrupt)
        width = graph.allowed.shape[1]
        return batch.effects([(int(one) // width, int(one) % width) for one in order[:50]], ablation)[0]

    order = torch.zeros(0, dtype=torch.long)
    if name in ("circuits at ten sizes", "50 single edges, exactly"):
        weights = attribution().abs().masked_fill(~graph.allowed, -1)
        order = weights.flatten().argsort(descending=True)
    chosen = dict(zip(TARGETS, (attribution, along_inputs, circuits, singles), strict=True))[name]
    return chosen, plain


def _ids(metric: LogitDifference) -> torch.Tensor:
    return torch.tensor(metric.needs.tokens)[:, None]


def measure(name: str, repetitions: int) -> None:
    torch.set_num_threads(1)
    work, plain = work_of(name)
    plain()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = megabytes("VmRSS")
    work()
    peak = megabytes("VmHWM") - before
    spent: dict[str, list[float]] = {"plain": [], "work": []}
    for _ in range(repetitions):
        for which, one in (("plain", plain), ("work", work)):
            start = time.process_time()
            one()
            spent[which].append(time.process_time() - start)
    print(json.dumps({"peak": peak, **spent}))


def main() -> None:
    lines = [
        "# Edges",
        "",
        "| what | CPU s | least | plain forward and backward | ratio | peak MB | target |",
    ]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for name, target in TARGETS.items():
        run = subprocess.run(
            [sys.executable, __file__, name, "3"],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        found = json.loads(run.stdout.strip().splitlines()[-1])
        work, plain = statistics.median(found["work"]), statistics.median(found["plain"])
        lines.append(
            f"| {name} | {work:.2f} | {min(found['work']):.2f} | {plain:.2f} | {work / plain:.2f} | "
            f"{found['peak']:.0f} | {target} |"
        )
    text = "\n".join(lines) + "\n"
    Path(__file__).parent.joinpath("results", "edges.md").write_text(text)
    print(text)


if __name__ == "__main__":
    measure(sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 1 else main()
