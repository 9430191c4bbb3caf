"""How is a corpus fed to a model? As rows of so many columns, which remember which token of the corpus stands where.

packed       documents behind each other, cut every so many tokens: no column is empty, but a row may begin inside a
             document and hold the end of another one, which the model sees.
documents    each document by itself, a long one in several rows, a short one padded: nothing foreign is seen, and
             columns are wasted.

A row may begin with a token of its own (`begin`, the model's beginning-of-sequence): it belongs to no document, and
nothing is kept of it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from microtome.core.errors import InputError
from microtome.data.corpus import Corpus

NO_TOKEN = -1
"""Stands where a column holds no token of the corpus."""


@dataclass(frozen=True, eq=False)
class RowBatch:
    """Some rows. ids: what the model reads. mask: 1 at what is no padding; None where nothing is.

    token: which token of the corpus stands in each column, `NO_TOKEN` where none does.
    """

    ids: Int[Tensor, "row column"]
    mask: Int[Tensor, "row column"] | None
    token: Int[Tensor, "row column"]


@dataclass(frozen=True, eq=False)
class CorpusRows:
    """A corpus in rows. columns: how many tokens the model reads at once, `begin` included.

    order: which rows, in which order; None for all as they come. Raises `InputError` for too few columns, a token
    outside the vocabulary, and rows that are not there.
    """

    corpus: Corpus
    columns: int
    layout: Literal["packed", "documents"] = "packed"
    begin: int | None = None
    order: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.room < 1:
            raise InputError(f"{self.columns} columns leave no room for a token of the corpus; give more")
        if self.layout not in ("packed", "documents"):
            raise InputError(f"rows are packed or documents, not {self.layout!r}")
        if self.begin is not None and not 0 <= self.begin < self.corpus.vocabulary:
            raise InputError(f"begin={self.begin}, but the vocabulary is 0 … {self.corpus.vocabulary - 1}")
        order = self.order
        if order is not None and len(order) and not 0 <= order.min() <= order.max() < self._whole:
            raise InputError(f"the order names rows that are not among 0 … {self._whole - 1}")

    @property
    def room(self) -> int:
        """How many tokens of the corpus a row can hold."""
        return self.columns - (self.begin is not None)

    @cached_property
    def _rows_before(self) -> NDArray[np.int64]:
        """For each document the number of rows before it; the last entry counts all."""
        lengths = np.diff(self.corpus.starts)
        return np.concatenate([[0], np.cumsum(-(-lengths // self.room))])

    @property
    def _whole(self) -> int:
        if self.layout == "packed":
            return -(-self.corpus.n_tokens // self.room)
        return int(self._rows_before[-1])

    def __len__(self) -> int:
        return self._whole if self.order is None else len(self.order)

    def spans(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first token of each row, and how many it holds."""
        rows = rows if self.order is None else self.order[rows]
        if self.layout == "packed":
            first = rows * self.room
            return first, np.minimum(self.room, self.corpus.n_tokens - first)
        document = np.searchsorted(self._rows_before, rows, "right") - 1
        first = self.corpus.starts[document] + (rows - self._rows_before[document]) * self.room
        return first, np.minimum(self.room, self.corpus.starts[document + 1] - first)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """How many tokens of the corpus each row holds."""
        return self.spans(np.arange(len(self)))[1]

    @property
    def n_tokens(self) -> int:
        """How many tokens of the corpus all rows hold."""
        return int(self.lengths.sum())

    def batch(self, rows: Sequence[int] | NDArray[np.int64]) -> RowBatch:
        """Some rows by number, as wide as the longest of them."""
        first, length = self.spans(np.asarray(rows, np.int64))
        column = np.arange(int(length.max()))
        real = column < length[:, None]
        token = np.where(real, first[:, None] + column, NO_TOKEN)
        # Padding is behind the text, where no causal model looks; an encoder is told by the mask.
        ids = np.where(real, self.corpus.tokens[np.where(real, token, 0)].astype(np.int64), 0)
        if self.begin is not None:
            edge = np.ones((len(token), 1), np.int64)
            real, ids, token = (
                np.concatenate([edge * begin, rest], 1)
                for begin, rest in ((1, real), (self.begin, ids), (NO_TOKEN, token))
            )
        mask = None if real.all() else torch.from_numpy(real.astype(np.int64))
        return RowBatch(torch.from_numpy(ids), mask, torch.from_numpy(token))

    def shuffled(self, seed: int) -> Self:
        """The same rows in another order."""
        kept = np.arange(len(self)) if self.order is None else self.order
        return replace(self, order=np.random.default_rng(seed).permutation(kept))

    def split(self, share: float, seed: int = 0) -> tuple[Self, Self]:
        """Most rows, and a random share of them held out; each in the order in which they were.

        Packed rows share no token, but neighbours may share a document. Raises `InputError` where a part is empty.
        """
        held = round(len(self) * share)
        if not 0 < held < len(self):
            raise InputError(
                f"{share:g} of {len(self)} rows leaves one part empty; give another share or more text"
            )
        chosen = np.zeros(len(self), bool)
        chosen[np.random.default_rng(seed).permutation(len(self))[:held]] = True
        kept = np.arange(len(self)) if self.order is None else self.order
        return replace(self, order=kept[~chosen]), replace(self, order=kept[chosen])

    def first(self, n_tokens: int) -> Self:
        """As many of the first rows as hold so many tokens. Raises `InputError` where the corpus is smaller."""
        reached = np.cumsum(self.lengths)
        if not len(reached) or reached[-1] < n_tokens:
            raise InputError(
                f"the rows hold {self.n_tokens} tokens, {n_tokens} were asked for; give more text"
            )
        kept = np.arange(len(self)) if self.order is None else self.order
        return replace(self, order=kept[: int(np.searchsorted(reached, n_tokens)) + 1])

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What these rows are, in plain JSON."""
        order = (
            None if self.order is None else hashlib.sha256(np.ascontiguousarray(self.order).data).hexdigest()
        )
        return {
            "corpus": self.corpus.hash,
            "columns": self.columns,
            "layout": self.layout,
            "begin": self.begin,
            "order": order,
        }
