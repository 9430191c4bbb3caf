"""How do several processes share a stream? Each runs the model on its own passes, and learns from its own rows.

    train(ShareOfRows(ActivationStream(SharedHarvest.of(model, rows, sites), 4096)), recipes, learner=DataParallel)

1. Of so many passes as there are processes, each runs one; the values are then put together on all. So every process
   has the same batches as one alone, bit for bit, for a share of the work.
2. Of each batch every process takes its own consecutive rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, distributed

from microtome.bases.harvest import Harvest
from microtome.bases.streams import Stream
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.dictionaries.processes import place


@dataclass(frozen=True, eq=False)
class SharedHarvest(Harvest):
    """A harvest whose passes are dealt out to processes; all of them have to ask for the same values."""

    def values(self, first: int = 0) -> Iterator[Float[Tensor, "token d"]]:
        rank, count = place()
        tokens = np.diff(self.tokens_before())
        for start in range(first, self.n_passes, count):
            numbers = range(start, min(start + count, self.n_passes))
            mine = start + rank if rank < len(numbers) else start  # for its width, where there is none left
            own = torch.cat([*self.one(mine).values.values()], 1)
            parts = [own.new_empty(int(tokens[number]), own.shape[1]) for number in numbers]
            for owner, part in enumerate(parts):
                if owner == rank:
                    part.copy_(own)
                distributed.broadcast(part, owner)
            yield from parts


class ShareOfRows:
    """A stream's batches, of which each process takes its own consecutive rows.

    Raises `InputError` where they cannot be dealt out evenly.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._rank, self._count = place()
        if stream.batch_rows % self._count:
            raise InputError(
                f"batches of {stream.batch_rows} rows cannot be dealt out to {self._count} processes evenly"
            )
        self.sites: tuple[Site, ...] = stream.sites
        self.widths, self.n_steps, self.step = stream.widths, stream.n_steps, stream.step
        self.batch_rows = stream.batch_rows // self._count

    @property
    def identity(self) -> dict[str, Any]:
        return self._stream.identity

    def __iter__(self) -> Iterator[Float[Tensor, "row d"]]:
        return self

    def __next__(self) -> Float[Tensor, "row d"]:
        rows = next(iter(self._stream))
        self.step = self._stream.step
        return rows[self._rank * self.batch_rows : (self._rank + 1) * self.batch_rows]

    def seek(self, step: int) -> None:
        self._stream.seek(step)
        self.step = step
