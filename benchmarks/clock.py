"""CPU seconds of interleaved repetitions on one thread: medians, and the ratio to the first."""

import statistics
import time
from collections.abc import Callable

import torch


def interleaved(work: dict[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """CPU seconds of each repetition of each piece of work, taken in turn so that drift hits all alike."""
    torch.set_num_threads(1)
    for run in work.values():
        run()
    spent: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repetitions):
        for name, run in work.items():
            start = time.process_time()
            run()
            spent[name].append(time.process_time() - start)
    return spent


def row(name: str, spent: list[float], per: float, target: str = "") -> str:
    """One line of a Markdown table: median, least and greatest CPU milliseconds, and the ratio to `per` seconds."""
    middle = statistics.median(spent)
    return (
        f"| {name} | {1000 * middle:.2f} | {1000 * min(spent):.2f} – {1000 * max(spent):.2f} | "
        f"{middle / per:.3f} | {target} |"
    )
