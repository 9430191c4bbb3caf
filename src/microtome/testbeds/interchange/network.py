"""How is a network of the library trained, kept, and had again?

1. `fit` trains from a seed alone, until everything that is measured holds on rows kept from it, or to the last step.
2. `write` rounds the weights to half precision, measures again, and keeps the network with its record; one that does
   not work as its causal model says is refused.
3. `network` reads the one that ships, or trains it where none does.
"""

import platform
import time
from pathlib import Path
from typing import Any

import torch

from microtome.core.draws import generator
from microtome.core.errors import TruthError
from microtome.models.transformer import Transformer
from microtome.testbeds import kept
from microtome.testbeds.interchange.measured import Measured, measure
from microtome.testbeds.interchange.objective import loss, step
from microtome.testbeds.interchange.task import Task
from microtome.testbeds.training import Training, train

SHIPPED = Path(__file__).parent / "weights"
MEASURED = 300  # rows, at most
_ENOUGH = 0.995
_CHECK_EVERY = 100
_CURVE_POINTS = 50


def fit(
    task: Task, seed: int = 0, *, steps: int | None = None, title: str = ""
) -> tuple[Transformer, Training]:
    """Train a new network. steps: fewer than the task's, if given. Whether the target was reached is in `Training`."""
    module = task.new_module(seed)
    watched = task.held_out(task.watched, generator(seed, -1))
    optimizer = torch.optim.AdamW(module.parameters(), task.rate, betas=(0.9, 0.98), weight_decay=0.01)

    def done(module: torch.nn.Module) -> bool:
        assert isinstance(module, Transformer)
        return all(one.holds for one in measure(task, module, watched).evidence(_ENOUGH))

    training = train(
        module,
        optimizer,
        lambda number: step(task, seed, number),
        lambda module, given: loss(task, module, given),
        task.steps if steps is None else steps,
        rate=lambda number: min(1.0, (number + 1) / 50, 3 * (task.steps - number) / task.steps),
        done=done,
        check_every=_CHECK_EVERY,
        clip=1.0,
        title=title,
    )
    return module, training


def write(
    task: Task, seed: int = 0, out: Path = SHIPPED, *, steps: int | None = None, title: str = ""
) -> Path:
    """Train, round, measure and write. steps: fewer than the task's, for a trial.

    Raises `TruthError` where the network does not work as its causal model says; nothing is written then.
    """
    start = time.process_time()
    module, training = fit(task, seed, steps=steps, title=title)
    seconds = time.process_time() - start
    halves = {name: tensor.half() for name, tensor in module.state_dict().items()}
    module.load_state_dict(halves)  # what is measured is what is written
    evidence = measured(task, module, seed).evidence()
    if broken := [str(one) for one in evidence if not one.holds]:
        raise TruthError(
            f"{task.name} of seed {seed} does not work as its causal model says after {training.steps} steps: "
            f"{'; '.join(broken)}. Give it more steps or another seed"
        )
    file = path(task, seed, out)
    every = max(1, training.steps // _CURVE_POINTS)
    record: dict[str, Any] = {
        "settings": task.settings,
        "seed": seed,
        "steps": training.steps,
        "reached": training.reached,
        "evidence": {one.what: one.value for one in evidence},
        "cpu_seconds": round(seconds, 1),
        "losses": {number: training.losses[number] for number in range(0, training.steps, every)},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    kept.keep(file, halves, record)
    return file


def measured(task: Task, module: Transformer, seed: int) -> Measured:
    """What it does on rows that it never learned from, drawn apart from those that told when to stop.

    Of a task with few rows, the two draws share some.
    """
    return measure(task, module, task.held_out(MEASURED, generator(seed, -2)))


def path(task: Task, seed: int, folder: Path = SHIPPED) -> Path:
    """Where the trained network lies."""
    return folder / f"{task.name}-seed{seed}.safetensors"


def network(task: Task, seed: int = 0, folder: Path = SHIPPED) -> Transformer:
    """The trained network: the one that ships, or, for another seed, one that is trained here and now.

    Raises `StoreError` for a file that was trained with other settings, or cannot be read.
    """
    file = path(task, seed, folder)
    if not file.exists():
        return fit(task, seed, title=f"{task.name}, seed {seed}")[0].eval()
    module = task.new_module(seed)
    kept.restore(file, module, task.settings)
    return module
