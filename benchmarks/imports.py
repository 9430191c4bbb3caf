"""What does it cost to begin? `python benchmarks/imports.py`: importing, `--help`, and the memory of loading a model.

Each in a process of its own, interleaved with a process that does nothing: CPU and wall seconds, medians. Loading: the
highest resident memory above that before loading, over the size of the checkpoint; its least is 1.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 9
STARTS = {
    "an empty Python": ["-c", "pass"],
    "import microtome": ["-c", "import microtome"],
    "microtome --help": [
        "-c",
        "from microtome.cli import main; import sys; sys.argv[1:] = ['--help']; main()",
    ],
    "microtome methods": [
        "-c",
        "from microtome.cli import main; import sys; sys.argv[1:] = ['methods']; main()",
    ],
}
LOAD = """
import json, sys
from pathlib import Path
import microtome, torch, transformers
from microtome.models import load as _

def status(field):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(field))
    return int(line.split()[1]) * 1024

microtome.load(sys.argv[2])  # whatever is imported or built once
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
model = microtome.load(sys.argv[1])
print(json.dumps(status("VmHWM") - before))
"""


def started(words: list[str]) -> tuple[float, float]:
    """CPU and wall seconds of a process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent, time.perf_counter() - start


def loading() -> float:
    """Highest memory above that before loading, in sizes of a GPT-2-small-shaped checkpoint."""
    import torch
    import transformers

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small", Path(folder) / "large"
        sizes = {
            "n_layer": 1,
            "n_embd": 64,
            "n_head": 2,
            "vocab_size": 100,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
        transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(small)
        transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(large)
        run = subprocess.run(
            [sys.executable, "-c", LOAD, str(large), str(small)],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        size = (large / "model.safetensors").stat().st_size
    return int(json.loads(run.stdout.strip().splitlines()[-1])) / size


def main() -> None:
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in STARTS}
    for words in STARTS.values():
        started(words)
    for _ in range(ROUNDS):
        for name, words in STARTS.items():
            spent[name].append(started(words))
    lines = [
        "# Beginning",
        "",
        "| what | CPU s | wall s | least wall s | target |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, rounds in spent.items():
        cpu, wall = (statistics.median(one[i] for one in rounds) for i in (0, 1))
        least = min(one[1] for one in rounds)
        target = "< 0.5" if name in ("import microtome", "microtome --help") else ""
        lines.append(f"| {name} | {cpu:.2f} | {wall:.2f} | {least:.2f} | {target} |")
    lines += ["", f"Loading a GPT-2-small-shaped checkpoint needs {loading():.2f}× its size (target ≤ 1.1)."]
    text = "\n".join(lines) + "\n"
    Path(__file__).parent.joinpath("results", "imports.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
