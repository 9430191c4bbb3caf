"""How are the algorithmic networks trained, and can anybody train the same ones again?

    python -m microtome.testbeds.algorithmic.train modular_addition --case p53 --seed 0 --out DIR

1. The network is initialised and trained from its seed alone; which rows each step learns from is a function of the
   seed and the step.
2. It is measured on rows that it never saw. One that does not do its task is refused, and nothing is written.
3. Written are the weights in half precision, with the settings, seed, losses and measurements in the file's header;
   and, where steps are named with `--keep`, the weights after so many steps, in a folder beside it.
"""

import argparse
import platform
import time
from collections.abc import Collection, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microtome.core.errors import InputError, TruthError
from microtome.testbeds import kept
from microtome.testbeds.algorithmic.network import SHIPPED, Task, fit, mean_loss, path, right

NAMES = (
    "automata",
    "brackets",
    "digit_addition",
    "induction",
    "modular_addition",
    "sorting",
)
_CURVE_POINTS = 50


def task_of(name: str, case: str = "") -> Task:
    """The task of a testbed's case, its first where none is named. Raises `InputError` for an unknown name."""
    if name not in NAMES:
        raise InputError(f"{name!r} is no algorithmic testbed; there are {', '.join(NAMES)}")
    module: Any = import_module(f"microtome.testbeds.algorithmic.{name}")
    return module.task(case or next(iter(module.cases()), ""))


def write(
    task: Task, seed: int = 0, out: Path = SHIPPED, *, steps: int | None = None, keep: Collection[int] = ()
) -> Path:
    """Train, measure and write. steps: fewer than the task's, for a trial. Raises `TruthError` where the network does
    not do its task; nothing is written then."""
    start = time.process_time()
    module, training = fit(
        task, seed, steps=steps, keep=keep, title=f"{task.testbed}/{task.case}, seed {seed}"
    )
    seconds = time.process_time() - start
    # What is measured is what is written, after rounding.
    module.load_state_dict(_halves(training.checkpoints[training.steps]))
    unseen = task.held_out(seed)
    with torch.no_grad():
        accuracy, loss = float(right(module, unseen).mean()), float(mean_loss(module, unseen))
    if accuracy < task.accuracy:
        raise TruthError(
            f"{task.testbed}/{task.case} of seed {seed} answers {accuracy:.3f} of the unseen rows right after "
            f"{training.steps} steps, wanted {task.accuracy}; give it more steps or another seed"
        )
    every = max(1, training.steps // _CURVE_POINTS)
    record = {
        "settings": task.settings,
        "seed": seed,
        "steps": training.steps,
        "reached": training.reached,
        "accuracy": accuracy,
        "loss": loss,
        "cpu_seconds": round(seconds, 1),
        "losses": {step: training.losses[step] for step in range(0, training.steps, every)},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    file = path(task, seed, out)
    for step, weights in training.checkpoints.items():
        if keep:
            kept.keep(
                file.with_suffix("") / f"step-{step:06d}.safetensors",
                _halves(weights),
                {"settings": task.settings, "seed": seed, "steps": step},
            )
    kept.keep(file, _halves(training.checkpoints[training.steps]), record)
    return file


def _halves(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.half() for name, tensor in weights.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a network with an answer key.")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--case", default="", help="one of the testbed's cases; by default its first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=SHIPPED, help="where to write; by default among those that ship"
    )
    parser.add_argument("--steps", type=int, help="at most so many steps, for a trial")
    parser.add_argument("--keep", type=int, nargs="*", default=(), help="steps after which weights are kept")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums depend on how they are split; and small networks gain nothing from more
    write(task_of(given.name, given.case), given.seed, given.out, steps=given.steps, keep=given.keep)


if __name__ == "__main__":
    main()
