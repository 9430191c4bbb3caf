"""How are the toy networks trained, and can anybody train the same ones again?

    python -m microtome.testbeds.toys.train superposition --case pentagon --seed 0 --out DIR

1. The network is initialised and trained from its seed alone; the data of each step are a function of seed and step.
2. Written are the weights, with the settings, seed, losses and processor seconds in the file's header.
3. Whether the network does its task is measured each time it is served as a case: one that does not is refused there.
"""

import argparse
import platform
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from microtome.core.errors import InputError
from microtome.testbeds import kept
from microtome.testbeds.algorithmic import train as algorithmic
from microtome.testbeds.toys.network import SHIPPED, Recipe, fit, path

NAMES = ("animals", "codes", "computation", "head_superposition", "superposition")
"""Modules of this package that train networks."""
_CURVE_POINTS = 50


def train_case(name: str, case: str, seed: int = 0, out: Path = SHIPPED, *, steps: int | None = None) -> Path:
    """Train and write a module's case: a toy by its recipe, a transformer by its task.

    steps: fewer than is usual, for a trial. Raises `InputError` for an unknown name, and `TruthError` where a
    transformer does not do its task.
    """
    if name not in NAMES:
        raise InputError(f"{name!r} trains no toy network; there are {', '.join(NAMES)}")
    module: Any = import_module(f"microtome.testbeds.toys.{name}")
    if hasattr(module, "task"):
        return algorithmic.write(module.task(case), seed, out, steps=steps)
    return write(module.recipe(case), seed, out, steps=steps)


def write(recipe: Recipe, seed: int = 0, out: Path = SHIPPED, *, steps: int | None = None) -> Path:
    """Train and write. steps: fewer than the recipe's, for a trial."""
    start = time.process_time()
    module, training = fit(recipe, seed, steps=steps, title=f"{recipe.testbed}/{recipe.case}, seed {seed}")
    seconds = time.process_time() - start
    every = max(1, training.steps // _CURVE_POINTS)
    record = {
        "settings": recipe.told,
        "seed": seed,
        "steps": training.steps,
        "cpu_seconds": round(seconds, 1),
        "losses": {step: training.losses[step] for step in range(0, training.steps, every)},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    file = path(recipe, seed, out)
    kept.keep(file, module.state_dict(), record)
    return file


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a toy network with an answer key.")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--case", required=True, help="one of the testbed's trained cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=SHIPPED, help="where to write; by default among those that ship"
    )
    parser.add_argument("--steps", type=int, help="at most so many steps, for a trial")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums depend on how they are split; and small networks gain nothing from more
    train_case(given.name, given.case, given.seed, given.out, steps=given.steps)


if __name__ == "__main__":
    main()
