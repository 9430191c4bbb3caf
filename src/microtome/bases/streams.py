"""How do values reach a trainer, well mixed and without a detour over the disk? As batches of rows, by number.

Neighbouring tokens are alike, so a batch must come from far apart. The values of `span` tokens are kept in a buffer and
served in random order, and each batch's place is at once taken by the values that come next:

1. Tokens, in the order of a seeded shuffle of the corpus's rows, are counted off into windows of `span`.
2. Each window has its own seeded permutation: its i-th batch are the rows of the window that the permutation says.
3. While window k is served, window k+1 arrives in the places that become free, so that the buffer never holds more
   than `span` rows, nothing is moved, and every value is served exactly once, at most two windows after it came.

A batch is therefore a function of the arguments and its number alone: to resume, `seek` its number, and at most two
windows are harvested again. Nothing of the buffer need be saved.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from microtome.bases.harvest import Harvest
from microtome.core.errors import InputError
from microtome.core.provenance import hash_tensors
from microtome.core.site import Site
from microtome.data.corpus_rows import CorpusRows
from microtome.models.model import Model


class Stream(Protocol):
    """Batches by number. sites, widths: whose values lie side by side in a row. step: the batch that comes next.

    n_steps: how many there are; None where they never end. identity: what decides the batches, in plain JSON.
    """

    sites: tuple[Site, ...]
    widths: tuple[int, ...]
    batch_rows: int
    step: int
    n_steps: int | None

    @property
    def identity(self) -> dict[str, Any]: ...

    def __iter__(self) -> Iterator[Float[Tensor, "row d"]]: ...

    def __next__(self) -> Float[Tensor, "row d"]:
        """The next batch, always of `batch_rows` rows, in memory of its own."""
        ...

    def seek(self, step: int) -> None:
        """Let the next batch be this one."""
        ...


class ArrayStream:
    """Batches of values in memory, in a new random order each epoch; what does not fill a batch is left out."""

    def __init__(
        self,
        values: Float[Tensor, "row d"],
        batch_rows: int,
        seed: int = 0,
        epochs: int | None = None,
        sites: tuple[Site, ...] = (),
        widths: tuple[int, ...] | None = None,
    ) -> None:
        if not 1 <= batch_rows <= len(values):
            raise InputError(
                f"batches of {batch_rows} rows cannot be taken from {len(values)}; give more rows"
            )
        self.sites, self.widths = sites, widths or (values.shape[1],)
        if sum(self.widths) != values.shape[1]:
            raise InputError(f"widths {self.widths} do not add up to the {values.shape[1]} numbers of a row")
        self.batch_rows, self.step = batch_rows, 0
        self._values, self._seed = values, seed
        self._in_epoch = len(values) // batch_rows
        self.n_steps = None if epochs is None else epochs * self._in_epoch
        self._epoch, self._order = -1, np.empty(0, np.int64)

    @property
    def identity(self) -> dict[str, Any]:
        data = hash_tensors({"values": self._values})
        return {"data": data, "batch_rows": self.batch_rows, "seed": self._seed} | _told(
            self.sites, self.widths
        )

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Float[Tensor, "row d"]:
        if self.step == self.n_steps:
            raise StopIteration
        epoch, place = divmod(self.step, self._in_epoch)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self._values))
            self._epoch = epoch
        chosen = self._order[place * self.batch_rows : (place + 1) * self.batch_rows]
        self.step += 1
        return self._values[torch.from_numpy(chosen).to(self._values.device)]

    def seek(self, step: int) -> None:
        """Let the next batch be this one. Raises `InputError` for one that there is not."""
        self.step = _checked(step, self.n_steps)


class ActivationStream:
    """Batches of a model's values on a corpus. harvest: what is read; its rows are shuffled by seed and epoch.

    span: rows in the buffer (more mix better, at `4 · d` bytes each in float32), rounded down to whole batches.
    epochs: how often the corpus is read; None for ever. What does not fill the last batch is left out.
    Raises `InputError` for a corpus that does not fill one batch, and a span of less than two.
    """

    def __init__(
        self,
        harvest: Harvest,
        batch_rows: int = 4096,
        *,
        span: int = 1 << 18,
        seed: int = 0,
        epochs: int | None = 1,
    ) -> None:
        self.sites, self.batch_rows, self.step = harvest.sites, batch_rows, 0
        self._harvest, self._seed = harvest, seed
        self._in_epoch = harvest.rows.n_tokens
        if not 1 <= batch_rows <= self._in_epoch:
            raise InputError(
                f"batches of {batch_rows} rows cannot be taken from a corpus of {self._in_epoch} tokens; give more text"
            )
        if span < 2 * batch_rows:
            raise InputError(
                f"a span of {span} mixes nothing into batches of {batch_rows}; give at least two batches"
            )
        self.span = span // batch_rows * batch_rows
        self.n_steps = None if epochs is None else epochs * self._in_epoch // batch_rows
        first = replace(harvest, together=1).one(0)  # a single row, for the widths
        self.widths = tuple(first.values[site].shape[1] for site in self.sites)
        example = first.values[self.sites[0]]
        slots = self.span if self.n_steps is None else min(self.span, self.n_steps * batch_rows)
        self._slots = torch.empty(slots, sum(self.widths), dtype=example.dtype, device=example.device)
        self._begun = False
        # In the places of `_order` stand the rows being served; those of `_freed` make room for the next window.
        self._order = self._freed = torch.empty(0, dtype=torch.long)

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "harvest": self._harvest.identity(),
            "batch_rows": self.batch_rows,
            "span": self.span,
            "seed": self._seed,
        } | _told(self.sites, self.widths)

    def __iter__(self) -> Self:
        return self

    def seek(self, step: int) -> None:
        """Let the next batch be this one; the buffer is filled again. Raises `InputError` for one that there is not."""
        self.step = _checked(step, self.n_steps)
        self._begun = False

    def __next__(self) -> Float[Tensor, "row d"]:
        if self.step == self.n_steps:
            raise StopIteration
        window, served = divmod(self.step * self.batch_rows, self.span)
        if not self._begun:
            self._begin(window, served)
        elif served == 0:
            self._order = self._freed[self._permutation(window, len(self._freed))]
            self._freed = self._order[: self._size(window + 1)]
        chosen = self._order[served : served + self.batch_rows]
        batch = self._slots.index_select(0, chosen)
        self._begun = False  # should the harvest be interrupted, the buffer is filled anew
        self._receive(self._freed[served : served + self.batch_rows])
        self._begun = True
        self.step += 1
        return batch

    def _begin(self, window: int, served: int) -> None:
        """The buffer as it is after so many rows of a window were served."""
        size = self._size(window)
        self._arriving = self._arrivals(window * self.span)
        self._left: Tensor = self._slots[:0]
        places = torch.arange(size, device=self._slots.device)
        self._receive(places)
        self._order = places[self._permutation(window, size)]
        self._freed = self._order[: self._size(window + 1)]
        # What was served already has made room for the window that comes next.
        self._receive(self._freed[:served])
        self._begun = True

    def _size(self, window: int) -> int:
        """How many rows a window has; the last may have fewer."""
        if self.n_steps is None:
            return self.span
        return max(0, min(self.span, self.n_steps * self.batch_rows - window * self.span))

    def _permutation(self, window: int, size: int) -> Tensor:
        order: NDArray[np.int64] = np.random.default_rng([self._seed, 1, window]).permutation(size)
        return torch.from_numpy(order).to(self._slots.device)

    def _receive(self, places: Tensor) -> None:
        """Put the next rows that arrive into these places."""
        while len(places):
            if not len(self._left):
                self._left = next(self._arriving)
            n = min(len(places), len(self._left))
            self._slots.index_copy_(0, places[:n], self._left[:n])
            places, self._left = places[n:], self._left[n:]

    def _arrivals(self, row: int) -> Iterator[Float[Tensor, "row d"]]:
        """Values in the order in which they are harvested, from the row with this number on."""
        epoch, row = divmod(row, self._in_epoch)
        while True:
            harvest = self._of_epoch(epoch)
            before = harvest.tokens_before()
            first = int(np.searchsorted(before, row, "right")) - 1
            skip = row - int(before[first])
            for values in harvest.values(first):
                yield values[skip:]
                skip = 0
            epoch, row = epoch + 1, 0

    def _of_epoch(self, epoch: int) -> Harvest:
        rows = self._harvest.rows
        order = np.random.default_rng([self._seed, 0, epoch]).permutation(len(rows))
        kept = order if rows.order is None else rows.order[order]
        return self._harvest.on(kept)


def stream(
    model: Model,
    rows: CorpusRows,
    sites: Sequence[Site | str],
    *,
    batch_rows: int = 4096,
    span: int = 1 << 18,
    seed: int = 0,
    epochs: int | None = 1,
    dtype: torch.dtype = torch.float32,
    together: int = 16,
) -> ActivationStream:
    """Batches of a model's values at some sites, side by side, on rows of a corpus; see `ActivationStream`."""
    harvest = Harvest.of(model, rows, sites, dtype=dtype, together=together)
    return ActivationStream(harvest, batch_rows, span=span, seed=seed, epochs=epochs)


def _told(sites: tuple[Site, ...], widths: tuple[int, ...]) -> dict[str, Any]:
    return {"sites": list(map(str, sites)), "widths": list(widths)}


def _checked(step: int, n_steps: int | None) -> int:
    if step < 0 or (n_steps is not None and step > n_steps):
        raise InputError(f"there is no batch {step}; this stream has {'0 …' if n_steps is None else n_steps}")
    return step
