"""Which of several processes is this, and how do they meet? A group as torchrun starts it; else one process alone.

    torchrun --nproc-per-node 2 -m microtome train …

1. `joined` makes the group that the launcher describes, and leaves it at the end. Every process has a graphics card of
   its own where there are as many; else they share.
2. The first process alone prints and writes; what it has to do before the others is done `in_turn`.
3. `summed` and `gathered` go over all processes, and give the same on each.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor, distributed

from microtome.core.errors import InputError, MicrotomeError


@contextmanager
def joined() -> Iterator[bool]:
    """Within, this process is one of those that torchrun started. Yields whether it is the first, as one alone is."""
    if not distributed.is_torchelastic_launched():
        yield True
        return
    cards = torch.cuda.device_count()
    if cards:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % cards)
    # By default tensors on a card meet by NCCL, which refuses two processes on one card, and others by gloo.
    distributed.init_process_group(None if cards >= int(os.environ["LOCAL_WORLD_SIZE"]) else "gloo")
    rank = distributed.get_rank()
    try:
        yield rank == 0
        distributed.barrier()
    except MicrotomeError as error:
        raise type(error)(f"process {rank}: {error}") from error
    except RuntimeError as error:
        if "closed by peer" not in str(error):
            raise
        raise MicrotomeError(f"process {rank}: another process ended; it says itself why") from error
    finally:
        distributed.destroy_process_group()


def leave() -> NoReturn:
    """End this process at once, in good order. Threads of gloo that still let go of tensors abort where they meet an
    interpreter that ends (pytorch#190489)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def alone() -> bool:
    """Whether there is no group of processes."""
    return not distributed.is_initialized()


@contextmanager
def in_turn() -> Iterator[None]:
    """What stands within is done by the first process, then by all others."""
    if not alone() and place()[0] > 0:
        distributed.barrier()
    yield
    if not alone() and place()[0] == 0:
        distributed.barrier()


def place() -> tuple[int, int]:
    """This process's number, and how many there are. Raises `InputError` where there is no group of processes."""
    if alone():
        raise InputError(
            "there is no group of processes; start with torchrun, and call torch.distributed.init_process_group first"
        )
    return distributed.get_rank(), distributed.get_world_size()


def summed(tensor: Tensor) -> Tensor:
    """The sum over processes."""
    found = tensor.clone()
    distributed.all_reduce(found)
    return found


def gathered(tensor: Tensor) -> Tensor:
    """What all processes hold, of one shape, in their order, behind each other."""
    parts = [torch.empty_like(tensor) for _ in range(place()[1])]
    distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)
