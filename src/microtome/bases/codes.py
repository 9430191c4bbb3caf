"""Which units are on, in which rows, and how strongly? Codes written sparsely: only what is not zero is kept.

Entries are sorted by row, then by unit, and no entry is zero. The dense matrix is a view for who asks: of 16 384 units
and 32 that are on, it is five hundred times as large.
"""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core.errors import InputError


@dataclass(frozen=True, eq=False)
class SparseCodes:
    """Codes of `rows` rows in a basis of `units` units. row, unit, value `[entry]`: what is not zero."""

    row: Int[Tensor, " entry"]
    unit: Int[Tensor, " entry"]
    value: Float[Tensor, " entry"]
    rows: int
    units: int

    @classmethod
    def of(cls, dense: Float[Tensor, "row unit"]) -> Self:
        """What is not zero in a matrix."""
        row, unit = dense.nonzero(as_tuple=True)
        return cls(row, unit, dense[row, unit], *dense.shape)

    @classmethod
    def chosen(cls, units: Int[Tensor, "row k"], values: Float[Tensor, "row k"], n_units: int) -> Self:
        """k units a row, each at most once, in any order; those with value zero are left out."""
        if units.numel() and not 0 <= int(units.min()) <= int(units.max()) < n_units:
            raise InputError(
                f"units run from {int(units.min())} to {int(units.max())}; this basis has 0 … {n_units - 1}"
            )
        ordered, place = units.sort(-1)
        sorted_values = values.gather(-1, place)
        on = sorted_values != 0
        row = torch.arange(len(units), device=units.device)[:, None].expand_as(units)
        return cls(row[on], ordered[on], sorted_values[on], len(units), n_units)

    def dense(self) -> Float[Tensor, "row unit"]:
        """Written out with its zeros."""
        matrix = self.value.new_zeros(self.rows, self.units)
        matrix[self.row, self.unit] = self.value
        return matrix

    def times(self, directions: Float[Tensor, "unit d"]) -> Float[Tensor, "row d"]:
        """Each row's sum of its units' directions, weighted by their values."""
        if len(directions) != self.units:
            raise InputError(f"these codes have {self.units} units; {len(directions)} directions came")
        starts = torch.searchsorted(self.row, torch.arange(self.rows, device=self.row.device))
        return torch.nn.functional.embedding_bag(
            self.unit, directions, starts, mode="sum", per_sample_weights=self.value
        )
