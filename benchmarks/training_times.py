"""How long does it take to train each network of the algorithmic testbeds? What was recorded when it was trained.

    python benchmarks/training_times.py            read what ships, write benchmarks/results/training_times.md
    python benchmarks/training_times.py --again    train all of them again first, one after another (many minutes)

Seconds are those of the processor, of one thread: what a quiet core needs; on a loaded machine the clock shows more.
"""

import argparse
import tempfile
from pathlib import Path

from microtome.testbeds import kept
from microtome.testbeds.algorithmic.network import SHIPPED
from microtome.testbeds.algorithmic.train import task_of, write

RESULTS = Path(__file__).parent / "results" / "training_times.md"
HEADER = "| network | seed | steps | processor seconds | unseen rows right | loss on them (nats) | KiB |"


def shipped(folder: Path) -> list[Path]:
    """The trained networks of a folder, without their checkpoints."""
    return sorted(folder.glob("*/*-seed*.safetensors"))


def row(file: Path) -> str:
    """One line of the table."""
    _, told = kept.read(file)
    name = f"{told['settings']['testbed']}/{told['settings']['case']}"
    return (
        f"| {name} | {told['seed']} | {told['steps']} | {told['cpu_seconds']:.1f} | {told['accuracy']:.4f} "
        f"| {told['loss']:.2g} | {file.stat().st_size / 1024:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Training times of the algorithmic testbeds.")
    parser.add_argument("--again", action="store_true", help="train all of them again first")
    again = parser.parse_args().again
    with tempfile.TemporaryDirectory() as folder:
        files = shipped(SHIPPED)
        if again:
            for file in files:
                case, seed = file.stem.split("-seed")
                write(task_of(file.parent.name, case), int(seed), Path(folder))
            files = shipped(Path(folder))
        lines = [row(file) for file in files]
    RESULTS.write_text(
        "\n".join(
            [
                "# Training times of the algorithmic testbeds",
                "",
                "From `python benchmarks/training_times.py`: recorded in each file when it was trained; one thread on",
                "a core shared with other work. Networks are as they ship, in half precision.",
                "",
                HEADER,
                "| --- |" + " ---: |" * 6,
                *lines,
                "",
            ]
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
