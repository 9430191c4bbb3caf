"""How long do the interchange-trained networks take, and how well do they keep to their causal models? As recorded.

    python benchmarks/interchange_training.py    read what ships, write benchmarks/results/interchange_training.md

To train them again: python -m microtome.testbeds.interchange.train --seed 0 1
"""

from pathlib import Path

from microtome.testbeds import kept
from microtome.testbeds.interchange.network import SHIPPED

RESULTS = Path(__file__).parent / "results" / "interchange_training.md"


def row(file: Path) -> str:
    """One line of the table."""
    _, told = kept.read(file)
    shares = " | ".join(f"{share:.3f}" for share in told["evidence"].values())
    return (
        f"| {told['settings']['name']} | {told['seed']} | {told['steps']} | {told['cpu_seconds']:.1f} | {shares} "
        f"| {file.stat().st_size / 1024:.0f} |"
    )


def main() -> None:
    files = sorted(SHIPPED.glob("*.safetensors"))
    _, first = kept.read(files[0])
    columns = ["network", "seed", "steps", "processor seconds", *first["evidence"], "KiB"]
    RESULTS.write_text(
        "\n".join(
            [
                "# Networks trained by interchange",
                "",
                "From `python benchmarks/interchange_training.py`: recorded in each file when it was trained; one",
                "thread on a core shared with other work. Shares are of rows that no training sees, in half precision.",
                "",
                f"| {' | '.join(columns)} |",
                "| --- |" + " ---: |" * (len(columns) - 1),
                *map(row, files),
                "",
            ]
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
