"""What does keeping every value cost? `PEERS_PYTHON=python python benchmarks/caching.py`: this against its peers.

GPT-2-small shape and a tiny shape, random weights, one thread. Each tool keeps what it calls everything, in a process
of its own: CPU seconds (median of interleaved rounds, as a ratio to the plain forward in the same process) and the
highest resident memory above that of the model after a plain forward. `microtome` keeps the values that TransformerLens
keeps by default: every stream, norm, query, key, value, score, pattern, mixed value and neuron. nnsight keeps the
output of every module, which holds neither scores nor patterns: «no attention maps» is the row to compare it with.
«every site» adds what each head writes, a value of the size of the stream for each head.

PEERS_PYTHON is an interpreter with transformer-lens and nnsight; tools that cannot be imported are left out and named.
"""

import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPES: dict[str, tuple[dict[str, int], tuple[int, int], int]] = {
    "GPT-2 small, 8 × 64 tokens": ({}, (8, 64), 5),
    "tiny (4 layers, width 128), 8 × 32 tokens": (
        {"n_layer": 4, "n_embd": 128, "n_head": 4, "vocab_size": 1000},
        (8, 32),
        30,
    ),
}
TOOLS = ("microtome", "microtome, no attention maps", "microtome, every site", "transformer-lens", "nnsight")
ROUNDS = 3


def megabytes(field: str) -> float:
    """A line of this process's status: VmRSS now, VmHWM the highest so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"{field} is not told here; this benchmark needs Linux")


def keeper(tool: str, module: Any, folder: str) -> tuple[Callable[[Any], Any], Callable[[Any], int]]:
    """What keeps everything of a batch, and how many values that were."""
    if tool.startswith("microtome"):
        import microtome

        model = microtome.load(module)
        left_out = {"result", "q_proj", "k_proj", "v_proj", "logits"} if "every" not in tool else {"logits"}
        left_out |= {"scores", "pattern"} if "no attention" in tool else set()
        sites = [site for site in model.sites() if site.part not in left_out]
        return lambda ids: model.run(ids, read=sites, logits=True), lambda run: len(run.values)
    if tool == "transformer-lens":
        from transformer_lens.model_bridge import TransformerBridge

        bridge = TransformerBridge.boot_transformers(folder, device="cpu")
        return bridge.run_with_cache, lambda kept: len(kept[1])
    from nnsight import NNsight

    wrapped = NNsight(module)

    def run(ids: Any) -> Any:
        with wrapped.trace(ids) as tracer:
            kept = tracer.cache()
        return kept

    return run, lambda kept: len(list(kept.keys()))


def measure(tool: str, shape: str) -> None:
    """One process's figures, as a line of JSON."""
    import torch
    import transformers

    torch.set_num_threads(1)
    changes, batch, repetitions = SHAPES[shape]
    torch.manual_seed(0)
    module = transformers.GPT2LMHeadModel(transformers.GPT2Config(**changes)).eval()
    ids = torch.randint(1, module.config.vocab_size, batch)
    with tempfile.TemporaryDirectory() as folder:
        if tool == "transformer-lens":
            module.save_pretrained(folder)
            path = os.environ.get("GPT2_TOKENIZER")
            if path:
                transformers.AutoTokenizer.from_pretrained(path).save_pretrained(folder)
        keep, count = keeper(tool, module, folder)
    with torch.no_grad():
        module(ids)
        keep(ids)
        module(ids)
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = megabytes("VmRSS")
        kept = keep(ids)
        peak = megabytes("VmHWM") - before
        number = count(kept)
        del kept
        spent: dict[str, list[float]] = {"plain": [], "kept": []}
        for _ in range(repetitions):
            for name, work in (("plain", module), ("kept", keep)):
                start = time.process_time()
                work(ids)
                spent[name].append(time.process_time() - start)
    plain, kept_seconds = (statistics.median(spent[name]) for name in ("plain", "kept"))
    print(json.dumps({"plain": plain, "kept": kept_seconds, "peak": peak, "values": number}))


def main() -> None:
    peers = os.environ.get("PEERS_PYTHON", sys.executable)
    lines = [
        "# Keeping every value",
        "",
        "One thread, each tool in its own process; ratio: to the plain forward there.",
    ]
    for shape in SHAPES:
        found: dict[str, list[dict[str, float]]] = {tool: [] for tool in TOOLS}
        failed: dict[str, str] = {}
        for _ in range(ROUNDS):
            for tool in TOOLS:
                python = sys.executable if tool.startswith("microtome") else peers
                run = subprocess.run(
                    [python, __file__, tool, shape],
                    capture_output=True,
                    text=True,
                    env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                )
                if run.returncode:
                    failed[tool] = (run.stderr.strip().splitlines() or ["no output"])[-1]
                else:
                    found[tool].append(json.loads(run.stdout.strip().splitlines()[-1]))
        lines += ["", f"## {shape}", "", "| tool | values | ratio | CPU ms | peak above the model, MB |"]
        lines.append("| --- | --- | --- | --- | --- |")
        for tool, rounds in found.items():
            if not rounds:
                lines.append(f"| {tool} | | not measured: {failed[tool]} | | |")
                continue
            ratio = statistics.median(one["kept"] / one["plain"] for one in rounds)
            milliseconds = 1000 * statistics.median(one["kept"] for one in rounds)
            peak = statistics.median(one["peak"] for one in rounds)
            lines.append(
                f"| {tool} | {rounds[0]['values']} | {ratio:.2f} | {milliseconds:.0f} | {peak:.0f} |"
            )
    text = "\n".join(lines) + "\n"
    Path(__file__).parent.joinpath("results", "caching.md").write_text(text)
    print(text)


if __name__ == "__main__":
    measure(*sys.argv[1:]) if len(sys.argv) > 1 else main()
