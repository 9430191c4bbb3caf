"""How are the networks of the library trained, and can anybody train the same ones again?

    python -m microtome.testbeds.interchange.train --task look_up --seed 0 --out DIR

Without `--task` every task of the library is trained, one after the other. The same seed, machine and number of
threads give the same weights bit for bit. A network that does not work as its causal model says is not written.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from microtome.testbeds.interchange.library import TASKS, task
from microtome.testbeds.interchange.network import SHIPPED, write


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train networks that work as a causal model says.")
    parser.add_argument("--task", nargs="*", default=[], help="names of tasks; by default all")
    parser.add_argument("--seed", type=int, nargs="*", default=[0], help="one network is trained from each")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="by default among those that ship")
    parser.add_argument("--steps", type=int, help="at most so many steps, for a trial")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums depend on how they are split; and small networks gain nothing from more
    for one in [task(name) for name in given.task] or TASKS:
        for seed in given.seed:
            write(one, seed, given.out, steps=given.steps, title=f"{one.name}, seed {seed}")


if __name__ == "__main__":
    main()
