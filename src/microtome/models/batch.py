"""Which column of the batch is position 3 of row 2? The geometry of a batch, padding and all.

Positions count real tokens; columns count what the tensors hold. While a sequence grows (generation) or only its
end is recomputed (a sweep), tensors hold the last columns only: `end` is the number of columns the whole batch has.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from microtome.core.errors import SiteError


@dataclass(frozen=True)
class Batch:
    """rows, columns (`end`), and per row the column of its first real token and how many it has."""

    rows: int
    end: int
    first: tuple[int, ...] | None = None
    length: tuple[int, ...] | None = None
    growing: bool = False

    @staticmethod
    def of(rows: int, columns: int, mask: Int[Tensor, "row column"] | None) -> "Batch":
        """From a padding mask (1 = real), the real tokens of each row side by side."""
        if mask is None or bool(mask.all()):
            return Batch(rows, columns)
        real = mask.bool().int()
        first = real.argmax(dim=1)
        length = real.sum(dim=1)
        return Batch(rows, columns, tuple(first.tolist()), tuple(length.tolist()))

    def grown(self, columns: int) -> "Batch":
        """The same rows after more columns were appended."""
        extra = columns - self.end
        length = None if self.length is None else tuple(n + extra for n in self.length)
        return Batch(self.rows, columns, self.first, length, growing=True)

    def select(self, rows: Sequence[int]) -> "Batch":
        """A batch made of these rows, repeats allowed."""
        return Batch(
            len(rows),
            self.end,
            None if self.first is None else tuple(self.first[r] for r in rows),
            None if self.length is None else tuple(self.length[r] for r in rows),
            self.growing,
        )

    def column(self, row: int, position: int) -> int:
        """The column of a position of a row. Raises `SiteError` if the row is shorter; -1 while growing is refused."""
        first = 0 if self.first is None else self.first[row]
        length = self.end if self.length is None else self.length[row]
        if self.growing and position < 0:
            raise SiteError(
                f"position {position} counts from the end, which moves while generating; give positions from the start"
            )
        if position >= length and self.growing:
            return self.end
        if not -length <= position < length:
            raise SiteError(
                f"position {position} is out of range: row {row} has {length} tokens (0 … {length - 1})"
            )
        return first + (position if position >= 0 else length + position)

    def columns(self, positions: Sequence[int], rows: Sequence[int]) -> list[list[int]]:
        """Columns `[row][position]`."""
        if self.first is None and self.length is None and not self.growing:
            same = [self.column(0, p) for p in positions]
            return [same] * len(rows)
        return [[self.column(r, p) for p in positions] for r in rows]

    def real(self, device: torch.device) -> Tensor:
        """`[row, column]`, true where a real token stands."""
        columns = torch.arange(self.end, device=device)
        if self.first is None or self.length is None:
            return torch.ones(self.rows, self.end, dtype=torch.bool, device=device)
        first = torch.tensor(self.first, device=device)[:, None]
        length = torch.tensor(self.length, device=device)[:, None]
        return (columns >= first) & (columns < first + length)
