"""What do the toys cost, and how close do they come to what is known? `python benchmarks/toys.py`, about two minutes.

1. Training times, as recorded in each file that ships when it was trained.
2. The sparsity sweep of five features in two dimensions: ten densities, four beginnings each.
3. Phase diagrams: at what share of the points trained networks agree with the closed forms.
4. Planted data: rows in a second, truth included. The largest setting is much like that of SynthSAEBench-16k, for which
   SAELens 6.54.12 was measured to generate 1061 rows in a second on one core.

Seconds are those of the processor, of one thread.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from microtome.testbeds import kept
from microtome.testbeds.toys import planted_dictionary, superposition
from microtome.testbeds.toys.network import SHIPPED
from microtome.testbeds.toys.phase_diagram import diagram
from microtome.testbeds.toys.planted_dictionary import PlantedDictionary
from microtome.testbeds.toys.superposition import dimensionality, gaps, sweep

RESULTS = Path(__file__).parent / "results" / "toys.md"
SIXTEEN_THOUSAND = planted_dictionary.Setting(
    features=16_384,
    dimensions=768,
    highest=0.4,
    lowest=5e-4,
    roots=128,
    depth=3,
    correlation=0.1,
    signs=25,
    means=(5.0, 4.0),
    deviation=0.5,
    bias=0.5,
)


def training_times() -> Iterator[str]:
    yield "| network | seed | steps | processor seconds | KiB |"
    yield "| --- |" + " ---: |" * 4
    for file in sorted(SHIPPED.glob("*/*.safetensors")):
        _, told = kept.read(file)
        name = f"{told['settings']['testbed']}/{told['settings']['case']}"
        size = file.stat().st_size / 1024
        yield f"| {name} | {told['seed']} | {told['steps']} | {told['cpu_seconds']:.1f} | {size:.0f} |"


def sparsity() -> Iterator[str]:
    densities = tuple(20 ** (-step / 9) for step in range(10))
    start = time.process_time()
    directions, losses = sweep(superposition.Setting(densities=densities, starts=4))
    seconds = time.process_time() - start
    yield f"Ten densities × four beginnings × 2000 steps: {seconds:.1f} processor seconds."
    yield ""
    yield "| density | features | dimensionalities | degrees between neighbours | loss |"
    yield "| ---: | ---: | --- | --- | ---: |"
    for density, found, loss in zip(densities, directions, losses.tolist(), strict=True):
        there = found[found.norm(dim=-1) > superposition.REPRESENTED]
        sizes = " ".join(f"{value:.2f}" for value in dimensionality(there).tolist())
        degrees = " ".join(f"{value:.0f}" for value in gaps(there).tolist())
        yield f"| {density:.3f} | {len(there)} | {sizes} | {degrees} | {loss:.4f} |"


def phases() -> Iterator[str]:
    yield "| features | points | agreement | where the closed forms differ by a tenth | processor seconds |"
    yield "| ---: | ---: | ---: | ---: | ---: |"
    for features, across in ((2, 12), (3, 8)):
        start = time.process_time()
        found = diagram(features, [*np.logspace(-1, 1, across)], [*np.logspace(-2, 0, across)])
        seconds = time.process_time() - start
        share, points = found.agreement()
        clear, of = found.agreement(margin=0.1)
        yield f"| {features} | {points} | {share:.1%} | {clear:.1%} of {of} | {seconds:.1f} |"


def planted() -> Iterator[str]:
    yield "| data | features | dimensions | on in a row | rows in a second |"
    yield "| --- |" + " ---: |" * 4
    for name, setting in {**planted_dictionary.CASES, "as SynthSAEBench-16k": SIXTEEN_THOUSAND}.items():
        made = PlantedDictionary(setting)
        made.chunk(0)
        start, chunks, rows = time.process_time(), 8, 4096
        for number in range(chunks):
            made.chunk(number, rows)
        speed = chunks * rows / (time.process_time() - start)
        yield (
            f"| {name} | {setting.features} | {setting.dimensions} | {made.expected_on():.1f} | {speed:,.0f} |"
        )


def main() -> None:
    torch.set_num_threads(1)
    parts = {
        "Training times": training_times(),
        "Five features in two dimensions": sparsity(),
        "Phase diagrams": phases(),
        "Planted data": planted(),
    }
    lines = [
        "# Toy models and planted data",
        "",
        "From `python benchmarks/toys.py`: one thread on a core shared with other work.",
    ]
    for title, part in parts.items():
        lines += ["", f"## {title}", "", *part]
    lines += [
        "",
        f"torch {torch.__version__}. For SynthSAEBench-16k itself (about 34 on in a row), SAELens 6.54.12 was measured",
        "to generate 1061 rows in a second on one core.",
        "",
    ]
    RESULTS.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
