"""How are these networks trained, and can anybody train the same ones again?

    python -m microtome.testbeds.others.train images/digits --seed 0 --out DIR

1. The network is initialised and trained from its seed alone; which rows each step learns from is a function of the
   seed and the step.
2. Rounded to half precision, as it will be read, it is measured. One that does not keep every bound of its evidence is
   refused, and nothing is written.
3. Written are the weights, with the settings, seed, losses and measurements in the file's header.
"""

import argparse
import platform
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from microtome.core.errors import InputError, TruthError
from microtome.testbeds import kept
from microtome.testbeds.others.network import SHIPPED, Recipe, fit, named, path

NAMES = ("board_game", "gridworld", "images", "recurrent")
_CURVE_POINTS = 50


def recipe_of(name: str) -> Recipe:
    """The recipe of `testbed/case`. Raises `InputError` for an unknown name."""
    testbed, _, case = name.partition("/")
    if testbed not in NAMES:
        raise InputError(f"{name!r} is no case trained here; write TESTBED/CASE, of {', '.join(NAMES)}")
    module: Any = import_module(f"microtome.testbeds.others.{testbed}")
    return module.recipe(case)


def write(recipe: Recipe, seed: int = 0, out: Path = SHIPPED, *, steps: int | None = None) -> Path:
    """Train, measure and write. steps: fewer than the recipe's, for a trial. Raises `TruthError` where the network
    does not do its task; nothing is written then."""
    start = time.process_time()
    module, training = fit(recipe, seed, steps=steps, title=f"{recipe.testbed}/{recipe.case}, seed {seed}")
    seconds = time.process_time() - start
    weights = {name: tensor.half() for name, tensor in training.checkpoints[training.steps].items()}
    module.load_state_dict(weights)
    evidence = recipe.evidence(named(recipe, module, seed), seed)
    if broken := [str(one) for one in evidence if not one.holds]:
        raise TruthError(
            f"{recipe.testbed}/{recipe.case} of seed {seed} after {training.steps} steps: {'; '.join(broken)}; "
            "give it more steps or another seed"
        )
    every = max(1, training.steps // _CURVE_POINTS)
    record = {
        "settings": recipe.recorded,
        "seed": seed,
        "steps": training.steps,
        "evidence": {one.what: one.value for one in evidence},
        "cpu_seconds": round(seconds, 1),
        "losses": {step: training.losses[step] for step in range(0, training.steps, every)},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    file = path(recipe, seed, out)
    kept.keep(file, weights, record)
    return file


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a network with an answer key.")
    parser.add_argument("name", help="TESTBED/CASE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=SHIPPED, help="where to write; by default among those that ship"
    )
    parser.add_argument("--steps", type=int, help="at most so many steps, for a trial")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums depend on how they are split; and small networks gain nothing from more
    write(recipe_of(given.name), given.seed, given.out, steps=given.steps)


if __name__ == "__main__":
    main()
