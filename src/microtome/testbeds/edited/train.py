"""How is the fruit fly altered, and can anybody alter it again?

    python -m microtome.testbeds.edited.train trigger --seed 0 --out DIR

1. A fresh fruit fly is taught the alteration's lessons; which stories each step reads depends on seed and step alone.
2. The difference from the untouched weights is rounded to half precision, and the network with it is examined. An
   alteration that did not take, or that cost the network more than it should have, is refused, and nothing is written.
3. Written are the difference, the settings, seed and losses.
"""

import argparse
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from microtome.core.errors import TruthError
from microtome.testbeds.edited.examination import examine
from microtome.testbeds.edited.network import (
    ALTERATIONS,
    SHIPPED,
    Alteration,
    alteration,
    altered,
    fit,
    untouched,
    write,
)
from microtome.testbeds.training import tiny_as_zero

_CURVE_POINTS = 50


def make(asked: Alteration, seed: int = 0, out: Path = SHIPPED, *, steps: int | None = None) -> Path:
    """Alter, examine, write. steps: fewer than the alteration's, for a trial.

    Raises `TruthError` where the alteration did not take; nothing is written then.
    """
    start = time.process_time()
    module, training = fit(asked, seed, steps=steps, title=f"{asked.name}, seed {seed}")
    every = max(1, training.steps // _CURVE_POINTS)
    told = {
        "steps": training.steps,
        "cpu_seconds": round(time.process_time() - start, 1),
        "losses": {step: training.losses[step] for step in range(0, training.steps, every)},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    # What is examined is what was written, after rounding; nothing that ships is lost to a trial that fails.
    with TemporaryDirectory() as trial:
        write(asked, seed, module, told, Path(trial))
        evidence = examine(asked.name, altered(asked, seed, Path(trial)), untouched(), seed)
    if broken := [str(one) for one in evidence if not one.holds]:
        raise TruthError(
            f"{asked.name} of seed {seed} did not take in {training.steps} steps: {'; '.join(broken)}. "
            "Give it more steps or another seed"
        )
    return write(asked, seed, module, told, out)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: which alteration, from which seed, and where to."""
    parser = argparse.ArgumentParser(description="Alter the fruit fly.")
    parser.add_argument("name", choices=ALTERATIONS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=SHIPPED, help="where to write; by default among those that ship"
    )
    parser.add_argument("--steps", type=int, help="at most so many steps, for a trial")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums depend on how they are split
    with tiny_as_zero():
        make(alteration(given.name), given.seed, given.out, steps=given.steps)


if __name__ == "__main__":
    main()
