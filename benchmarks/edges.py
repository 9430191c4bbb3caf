"""What do edges cost? `python benchmarks/edges.py [PYTHON FOLDER]`: attribution, ten circuits, single edges.

GPT-2-small shape, random weights, 8 × 15 tokens, 32 491 edges, one thread. Each row is a process of its own: CPU
seconds (median), those of a plain forward with backward pass in that process, their ratio, and the highest resident
memory above the model. With PYTHON, an interpreter that has them (see `circuit_tools.py`), public tools do the same on
the same weights, prompts and circuits; of single edges EAP-IG does two, which are counted 25 times. What they find is
left in FOLDER, for `edge_parity.py`.
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
from safetensors.torch import save_file
from torch import Tensor

import microtome
from circuit_cases import MACHINE, PLAIN_THERE, by_tool, gpt2_small, prompts
from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_run import EdgeRun
from microtome.core.edits import Set
from microtome.core.site import Site
from microtome.data import metrics
from microtome.models.model import Model

SINGLE, STEPS, SHOWN = 50, 5, "50 single edges, exactly"
WORK = {  # CPU seconds aimed at where a plain pass takes PLAIN_THERE, and the tools that do the same
    "attribution of every edge": (1.6, {"auto-circuit": "attribution", "EAP-IG": "attribution"}),
    "the same, 5 steps along the inputs": (5.0, {"EAP-IG": "steps"}),
    "circuits at ten sizes": (7.0, {"auto-circuit": "circuits", "EAP-IG": "circuits"}),
    SHOWN: (12.0, {"EAP-IG": "edges"}),
}
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def megabytes(field: str) -> float:
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(field))
    return int(line.split()[1]) / 1024


class Case:
    """The work, on one batch."""

    def __init__(self) -> None:
        self.module, self.pairs = gpt2_small(), prompts(50_000)
        self.model: Model = microtome.load(self.module)
        self.graph = EdgeGraph.of(self.model)
        self.metric = metrics.build("logit-difference", self.pairs)
        self.batch = EdgeRun(self.model, self.graph, self.pairs.clean, self.metric)
        self.order = torch.zeros(0, dtype=torch.long)

    def rank(self) -> None:
        """Edges by attribution."""
        weights = self.attribution().abs().masked_fill(~self.graph.allowed, -1)
        self.order = weights.flatten().argsort(descending=True)

    def kept(self) -> Tensor:
        """Circuits at ten sizes `[circuit, receiver, source]`."""
        found = torch.zeros(len(SIZES), self.graph.allowed.numel(), dtype=torch.bool)
        for number, size in enumerate(SIZES):
            found[number, self.order[: int(size * len(self.graph))]] = True
        return found.view(-1, *self.graph.allowed.shape)

    def single(self) -> list[tuple[int, int]]:
        width = self.graph.allowed.shape[1]
        return [(int(one) // width, int(one) % width) for one in self.order[:SINGLE]]

    def plain(self) -> None:
        """A forward with backward pass; no gradients of weights."""
        logits = self.module(self.pairs.clean, use_cache=False).logits[:, -1:]
        ids = torch.tensor(self.metric.needs.tokens)[:, None]
        loss = self.metric(logits.gather(2, ids)).sum()
        torch.autograd.grad(loss, [self.module.transformer.wpe.weight])

    def attribution(self) -> Tensor:
        return self.batch.gradient(self.batch.ablation("resample", self.pairs.corrupt))[1]

    def along_inputs(self) -> Tensor:
        ablation = self.batch.ablation("resample", self.pairs.corrupt)
        run, first = self.model.run(self.pairs.clean, self.batch.ends.origins), Site("resid_pre", 0)
        gaps, here = ablation.writes - self.batch.ends.writes(run), run[first]
        points = [Set(first, value=here + (1 - step / STEPS) * gaps[0]) for step in range(1, STEPS + 1)]
        return self.batch.gradient_along(points, gaps)[1]

    def circuits(self) -> Tensor:
        ablation = self.batch.ablation("resample", self.pairs.corrupt)
        cut = (self.graph.allowed & ~self.kept()).float()
        return torch.stack([self.batch.score(one, ablation) for one in cut])

    def singles(self) -> Tensor:
        ablation = self.batch.ablation("resample", self.pairs.corrupt)
        return self.batch.effects(self.single(), ablation)[0]

    def work(self, name: str) -> Callable[[], Tensor]:
        found = (self.attribution, self.along_inputs, self.circuits, self.singles)
        return dict(zip(WORK, found, strict=True))[name]


def measure(name: str, repetitions: int) -> None:
    """One row of ours."""
    torch.set_num_threads(1)
    case = Case()
    if name in ("circuits at ten sizes", SHOWN):
        case.rank()
    work = case.work(name)
    case.plain()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = megabytes("VmRSS")
    spent: dict[str, list[float]] = {"plain": [], "work": []}
    peak = None
    for _ in range(repetitions):
        for which, one in (("work", work), ("plain", case.plain)):
            start = time.process_time()
            one()
            spent[which].append(time.process_time() - start)
        peak = peak or megabytes("VmHWM") - before
    print(json.dumps({"peak": peak, **spent}))


def row(name: str, by: str, found: dict[str, list[float]], times: float, target: str) -> str:
    work, plain = statistics.median(found["work"]) * times, statistics.median(found["plain"])
    return (
        f"| {name} | {by} | {work:.2f} | {plain:.2f} | {work / plain:.2f} | {found['peak']:.0f} | {target} |"
    )


def main(python: str | None = None, folder: str = "") -> None:
    lines = ["# Edges", "", MACHINE, ""]
    lines += [
        "| what | by | CPU s | plain pass | ratio | peak MB | target |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    case = Case()
    case.rank()
    given = {"circuits": case.kept().to(torch.uint8), "edges": torch.tensor(case.single())}
    if python:
        Path(folder).mkdir(exist_ok=True)
        save_file(given, Path(folder, "given.safetensors"))
    for name, (aim, tools) in WORK.items():
        run = subprocess.run(
            [sys.executable, __file__, "measure", name, "3" if aim < 2 else "2"],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        found = json.loads(run.stdout.strip().splitlines()[-1])
        memory = ", ≤ 450 MB" if name == "attribution of every edge" else ""
        target = f"ratio ≤ {aim / PLAIN_THERE:.2f} ({aim:g} / {PLAIN_THERE}){memory}"
        lines.append(row(name, "ours", found, 1.0, target))
        for tool, work in tools.items() if python else ():
            figures, theirs = by_tool(python, tool.lower(), work, case.model, case.pairs, **given)
            save_file(theirs, Path(folder, f"{tool}, {work}.safetensors"))
            lines.append(row(name, tool, figures, SINGLE / 2 if work == "edges" else 1.0, ""))
    text = "\n".join(lines) + "\n"
    Path(__file__).parent.joinpath("results", "edges.md").write_text(text)
    print(text)


if __name__ == "__main__":
    measure(sys.argv[2], int(sys.argv[3])) if "measure" in sys.argv else main(*sys.argv[1:])
