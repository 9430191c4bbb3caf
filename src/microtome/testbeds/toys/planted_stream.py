"""How do planted activations reach a trainer? As batches by number, made when they are asked for and never kept.

A batch is a chunk of the planted dictionary, so that it is a pure function of setting, seed and number; rows to measure
on come from numbers that no training reaches. Where training waits for rows, as a GPU does, threads make them ahead.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Protocol, Self

from jaxtyping import Float
from torch import Tensor

from microtome.core.config import Config
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.testbeds.toys.planted_dictionary import SITE, Chunk

HELD_OUT: Final = -2  # -1 draws the dictionary itself


class Planted(Protocol):
    """What makes rows: `PlantedDictionary`, `SyntheticBenchmark`."""

    seed: int
    dictionary: Tensor

    @property
    def setting(self) -> Config: ...

    def chunk(self, number: int, rows: int = 4096) -> Chunk:
        """Rows number `number`."""
        ...


class PlantedStream:
    """A stream without end, as trainers take it. rows: in a batch. ahead: threads, each making one of the next batches
    before it is asked for; the batches are the same ones."""

    def __init__(self, planted: Planted, rows: int = 1024, ahead: int = 0) -> None:
        if rows < 1:
            raise InputError(f"a batch has at least one row, not {rows}")
        if ahead < 0:
            raise InputError(f"batches are made ahead by 0 threads or more, not by {ahead}")
        self.planted, self.batch_rows = planted, rows
        self.sites: tuple[Site, ...] = (Site.parse(SITE),)
        self.widths: tuple[int, ...] = (planted.dictionary.shape[1],)
        self.step = 0
        self.n_steps: int | None = None
        self._threads = ThreadPoolExecutor(ahead) if ahead else None
        self._ahead, self._coming = ahead, deque[Future[Chunk]]()

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the batches."""
        planted = self.planted
        kind = type(planted).__name__
        setting = planted.setting.model_dump(mode="json")
        return {"planted": kind, "setting": setting, "seed": planted.seed, "batch_rows": self.batch_rows}

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Float[Tensor, "row d"]:
        if self._threads is None:
            chunk = self.planted.chunk(self.step, self.batch_rows)
        else:
            while len(self._coming) <= self._ahead:
                number = self.step + len(self._coming)
                self._coming.append(self._threads.submit(self.planted.chunk, number, self.batch_rows))
            chunk = self._coming.popleft().result()
        self.step += 1
        return chunk.activations

    def seek(self, step: int) -> None:
        """Let the next batch be this one. Raises `InputError` for a negative number."""
        if step < 0:
            raise InputError(f"there is no batch {step}")
        while self._coming:
            self._coming.pop().cancel()
        self.step = step

    def held_out(self, rows: int) -> Chunk:
        """Rows that no training sees, with their truth."""
        return self.planted.chunk(HELD_OUT, rows)
