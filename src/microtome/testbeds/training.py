"""How is a small network trained so that the same training can be run again, step for step?

1. Step `n` learns from `batch(n)`, which must depend on `n` and a seed alone: the order of the data is a function, so
   it is recorded by recording the seed, and any step's data can be had again.
2. The weights at the steps asked for are kept, the last among them.
3. Training ends at the last step, or earlier where `done` says that the target is reached.

Nothing here reads the global random state; a network is initialised inside `seeded`.
"""

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.optim import Optimizer

from microtome.core.errors import NotFiniteError

Batch = TypeVar("Batch")
State = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Training:
    """What happened. losses: of every step. checkpoints: the weights after so many steps. reached: `done` said so."""

    losses: tuple[float, ...]
    checkpoints: dict[int, State]
    reached: bool

    @property
    def steps(self) -> int:
        """Optimizer steps done."""
        return len(self.losses)


def train(
    module: nn.Module,
    optimizer: Optimizer,
    batch: Callable[[int], Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    steps: int,
    *,
    rate: Callable[[int], float] = lambda step: 1.0,
    keep: Collection[int] = (),
    done: Callable[[nn.Module], bool] | None = None,
    check_every: int = 100,
    clip: float | None = None,
    title: str = "",
) -> Training:
    """Train in place.

    batch: the data of step `n`, from 0. loss: what is minimised on it.
    rate: what the optimizer's learning rates are multiplied by at step `n`.
    keep: after how many steps the weights are kept (0: before the first), besides the last.
    done: asked every `check_every` steps, with the module in evaluation mode and no gradients.
    clip: largest norm of the gradient. title: shown beside a progress bar; none without.

    Raises `NotFiniteError` at the first loss that is not finite, naming the step.
    """
    groups = [(group, group["lr"]) for group in optimizer.param_groups]
    kept = {0: _copy(module)} if 0 in keep else {}
    losses: list[float] = []
    reached = False
    module.train()
    for step in track(range(steps), title, disable=not title, transient=True):
        for group, highest in groups:
            group["lr"] = highest * rate(step)
        value = loss(module, batch(step))
        optimizer.zero_grad()
        value.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]):
            raise NotFiniteError(f"the loss is {losses[-1]} at step {step}; lower the learning rate")
        optimizer.step()
        if step + 1 in keep:
            kept[step + 1] = _copy(module)
        if done is not None and (step + 1) % check_every == 0 and _asked(done, module):
            reached = True
            break
    for group, highest in groups:
        group["lr"] = highest
    module.eval()
    kept[len(losses)] = _copy(module)
    return Training(tuple(losses), kept, reached)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's global random numbers follow the seed; outside, they go on as if nothing had been."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def tiny_as_zero() -> Iterator[None]:
    """Inside, numbers too small for full precision count as zero, which is much quicker; outside, as before."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _asked(done: Callable[[nn.Module], bool], module: nn.Module) -> bool:
    module.eval()
    with torch.no_grad():
        answer = done(module)
    module.train()
    return answer


def _copy(module: nn.Module) -> State:
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
