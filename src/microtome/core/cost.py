"""What did it cost? Passes, floating-point operations, wall seconds and peak memory of a block of work.

    with measure() as recorder:
        recorder.add(passes=12, flops=3_000_000)
        recorder.note("fell back to plain passes: this family cannot be re-entered")
    result = Result(..., cost=recorder.cost())

Passes and operations are counted by whoever makes them; seconds and memory are measured here.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What a piece of work took. Two runs of the same work are equal: what was *measured* is not compared.

    passes: forward passes, a batch counting as one. flops: operations, 0 where nobody counted them.
    seconds: wall time. peak_bytes: largest memory in use, see `measure`.
    notes: what made it dearer or cheaper than expected.
    """

    passes: int = 0
    flops: int = 0
    seconds: float = field(default=0.0, compare=False)
    peak_bytes: int = field(default=0, compare=False)
    notes: tuple[str, ...] = ()

    def __add__(self, other: "Cost") -> "Cost":
        """One after the other: everything adds up, except memory, of which the larger counts."""
        return Cost(
            self.passes + other.passes,
            self.flops + other.flops,
            self.seconds + other.seconds,
            max(self.peak_bytes, other.peak_bytes),
            tuple(dict.fromkeys(self.notes + other.notes)),
        )

    def sentence(self) -> str:
        """In words a person reads: `412 passes, 3.2 GFLOP, 1.4 s, peak 810 MB`."""
        passes = f"{self.passes} pass" if self.passes == 1 else f"{self.passes} passes"
        flops = f"{_scaled(self.flops)}FLOP" if self.flops else "operations not counted"
        memory = f"peak {_scaled(self.peak_bytes)}B" if self.peak_bytes else "memory not measured"
        return ", ".join((passes, flops, f"{self.seconds:.3g} s", memory))


class Recorder:
    """Collects the cost of the block it was opened for; `cost()` may be asked inside the block and after it."""

    def __init__(self) -> None:
        self._spent = Cost()
        self._start = time.perf_counter()
        self._closed: Cost | None = None

    def add(self, passes: int = 0, flops: int = 0) -> None:
        """Count passes and operations as they are made."""
        self._spent += Cost(passes, flops)

    def include(self, cost: Cost) -> None:
        """Count the passes, operations and notes of work done inside this block that kept its own account."""
        self._spent += Cost(cost.passes, cost.flops, notes=cost.notes)

    def note(self, text: str) -> None:
        """Say once what a reader of the cost should know."""
        self._spent += Cost(notes=(text,))

    def cost(self) -> Cost:
        """The account so far; once the block has ended, of the whole block."""
        if self._closed is not None:
            return self._closed
        seconds = time.perf_counter() - self._start
        return self._spent + Cost(seconds=seconds, peak_bytes=_peak_bytes())


@contextmanager
def measure() -> Iterator[Recorder]:
    """Time a block and watch its memory.

    With a CUDA device in use the peak is that of its allocator within the outermost open block. Without one it
    is the highest resident memory of the *whole process so far*: an upper bound, since an operating system does
    not tell what one block needed.
    """
    global _open_blocks
    if _open_blocks == 0 and (cuda := _cuda()) is not None:
        cuda.reset_peak_memory_stats()
    _open_blocks += 1
    recorder = Recorder()
    try:
        yield recorder
    finally:
        _open_blocks -= 1
        recorder._closed = recorder.cost()


_open_blocks = 0


def _cuda() -> Any:
    """`torch.cuda` where this process already uses it; torch is never imported only to measure."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _peak_bytes() -> int:
    if (cuda := _cuda()) is not None:
        return int(cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # not a Unix
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _scaled(amount: float) -> str:
    for unit in ("", "k", "M", "G", "T", "P"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} E"
