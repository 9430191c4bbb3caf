"""How far are units driven, and what do those that are on write? Two ways to know it, with exact gradients.

`SparseDrive` holds entries (row, unit) and the pre-activation of each; `DenseDrive` the whole matrix. What is computed
from either is written once:

    on = drive.pre.relu()                    a number for each entry
    rebuilt = drive.written(on, decoder)     [row, d]
    drive.each(threshold)                    a number of each unit, at each entry

Gradients of the sparse form follow from the entries alone. With r the gradient of what is written:

    entry (b, i):  ∂pre = ∂on = ⟨r_b, decoder_i⟩
    weights of i:  Σ_b on · r_b   and   Σ_b ∂pre · (x_b − centre): sums over the entries of a unit, added in one order
    the centre:    −encoderᵀ Σ_b ∂pre, a product with one vector, where x − centre would cost one with all rows

Entries not held have no gradient: choosing them is not differentiated.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


class Drive(ABC):
    """Pre-activations, of entries or of all."""

    pre: Tensor
    rows: int
    units: int

    @abstractmethod
    def each(self, numbers: Float[Tensor, " unit"]) -> Tensor:
        """The number of its unit, at each entry."""

    @abstractmethod
    def written(
        self, values: Tensor, decoder: Float[Tensor, "unit d"], prefixes: Sequence[int] = ()
    ) -> Float[Tensor, "*prefix row d"]:
        """Each row's sum of directions, weighted by values; for prefixes, by the first so many units each."""

    @abstractmethod
    def firing(self, values: Tensor) -> Float[Tensor, " unit"]:
        """In how many rows each unit's value is not zero."""


class Entries:
    """Places (row, unit), sorted by row, then by unit; each at most once."""

    def __init__(
        self, row: Int[Tensor, " entry"], unit: Int[Tensor, " entry"], rows: int, units: int
    ) -> None:
        self.row, self.unit, self.rows, self.units = row, unit, rows, units

    @cached_property
    def by_unit(self) -> tuple[Int[Tensor, " entry"], Int[Tensor, " entry"], Int[Tensor, " unit"]]:
        """The order that sorts entries by unit, then by row; their rows in it; and where each unit starts."""
        sorted_units, order = self.unit.sort(stable=True)
        starts = torch.searchsorted(sorted_units, torch.arange(self.units, device=self.unit.device))
        return order, self.row[order], starts

    @cached_property
    def starts(self) -> Int[Tensor, " row"]:
        """Where each row starts."""
        return torch.searchsorted(self.row, torch.arange(self.rows, device=self.row.device))

    def over_rows(
        self, values: Float[Tensor, " entry"], vectors: Float[Tensor, "row d"]
    ) -> Float[Tensor, "unit d"]:
        """For each unit, the sum over its entries of value times the row's vector."""
        order, row, starts = self.by_unit
        return functional.embedding_bag(row, vectors, starts, mode="sum", per_sample_weights=values[order])

    def dot(self, left: Float[Tensor, "row d"], right: Float[Tensor, "unit d"]) -> Float[Tensor, " entry"]:
        """For each entry, its row of one times its unit's row of the other, nothing written but the products."""
        found: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            left, right, self.unit, self.starts, self.row, 0
        )
        return found


class _PreAt(torch.autograd.Function):
    """The pre-activations of entries, which whoever chose them has computed already, and their gradients."""

    @staticmethod
    def forward(
        ctx: Any, entries: Entries, pre: Tensor, x: Tensor, centre: Tensor, encoder: Tensor, bias: Tensor
    ) -> Tensor:
        ctx.entries = entries
        ctx.save_for_backward(x, centre, encoder)
        return pre.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        entries: Entries = ctx.entries
        x, centre, encoder = ctx.saved_tensors
        grad = grads[0]
        for_bias = torch.zeros(entries.units, dtype=grad.dtype, device=grad.device)
        for_bias.index_add_(0, entries.unit, grad)
        for_encoder = entries.over_rows(grad, x)
        for_encoder.addr_(for_bias, centre, alpha=-1)
        for_centre = -(for_bias @ encoder) if ctx.needs_input_grad[3] else None
        return None, None, None, for_centre, for_encoder, for_bias


class _Written(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, entries: Entries, values: Tensor, decoder: Tensor) -> Tensor:
        ctx.entries = entries
        ctx.save_for_backward(values, decoder)
        return functional.embedding_bag(
            entries.unit, decoder, entries.starts, mode="sum", per_sample_weights=values
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        entries: Entries = ctx.entries
        values, decoder = ctx.saved_tensors
        grad = grads[0].contiguous()
        for_values = entries.dot(grad, decoder) if ctx.needs_input_grad[1] else None
        for_decoder = entries.over_rows(values, grad) if ctx.needs_input_grad[2] else None
        return None, for_values, for_decoder


class SparseDrive(Drive):
    """Pre-activations of some entries, from x `[row, d]`, centre `[d]`, encoder `[unit, d]` and bias `[unit]`.

    pre: what `x − centre` times the encoder plus bias is at the entries, computed when they were chosen.
    """

    def __init__(
        self,
        entries: Entries,
        pre: Float[Tensor, " entry"],
        x: Float[Tensor, "row d"],
        centre: Float[Tensor, " d"],
        encoder: Float[Tensor, "unit d"],
        bias: Float[Tensor, " unit"],
    ) -> None:
        self.entries, self.rows, self.units = entries, entries.rows, entries.units
        self.pre = _PreAt.apply(entries, pre, x, centre, encoder, bias)  # type: ignore[no-untyped-call]

    def each(self, numbers: Float[Tensor, " unit"]) -> Float[Tensor, " entry"]:
        return numbers.index_select(0, self.entries.unit)

    def written(
        self, values: Tensor, decoder: Float[Tensor, "unit d"], prefixes: Sequence[int] = ()
    ) -> Float[Tensor, "*prefix row d"]:
        if not prefixes:
            found: Tensor = _Written.apply(self.entries, values, decoder)  # type: ignore[no-untyped-call]
            return found
        entries, groups = self.entries, len(prefixes)
        bounds = torch.tensor(prefixes, device=entries.unit.device)
        group = torch.searchsorted(bounds, entries.unit, right=True).clamp_max(groups - 1)
        # A bag for each row and group: entries are sorted by unit, so groups follow each other within a row.
        bags = Entries(entries.row * groups + group, entries.unit, self.rows * groups, self.units)
        apart: Tensor = _Written.apply(bags, values, decoder)  # type: ignore[no-untyped-call]
        return apart.view(self.rows, groups, -1).movedim(1, 0).cumsum(0)

    def firing(self, values: Tensor) -> Float[Tensor, " unit"]:
        return torch.bincount(self.entries.unit[values != 0], minlength=self.units).to(values.dtype)


class _PreOfAll(torch.autograd.Function):
    """The product of all rows with all units; the centre's gradient costs a product with one vector."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, centre: Tensor, encoder: Tensor, bias: Tensor, half: bool) -> Tensor:
        centred = x - centre
        ctx.save_for_backward(centred, encoder)
        ctx.half = half
        return _product(centred, encoder.mT, half) + bias if half else torch.addmm(bias, centred, encoder.mT)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        centred, encoder = ctx.saved_tensors
        grad = grads[0]
        for_bias = grad.sum(0)
        for_centre = -(for_bias @ encoder) if ctx.needs_input_grad[1] else None
        return None, for_centre, _product(grad.mT, centred, ctx.half), for_bias, None


def _product(left: Float[Tensor, "a b"], right: Float[Tensor, "b c"], half: bool) -> Float[Tensor, "a c"]:
    return (left.bfloat16() @ right.bfloat16()).float() if half else left @ right


class DenseDrive(Drive):
    """All pre-activations: better where more than about a tenth of them are on. half: products in bfloat16."""

    def __init__(
        self,
        x: Float[Tensor, "row d"],
        centre: Float[Tensor, " d"],
        encoder: Float[Tensor, "unit d"],
        bias: Float[Tensor, " unit"],
        half: bool = False,
    ) -> None:
        self.rows, self.units, self._half = len(x), len(encoder), half
        self.pre = _PreOfAll.apply(x, centre, encoder, bias, half)  # type: ignore[no-untyped-call]

    def each(self, numbers: Float[Tensor, " unit"]) -> Float[Tensor, "row unit"]:
        return numbers.expand(self.rows, -1)

    def written(
        self, values: Tensor, decoder: Float[Tensor, "unit d"], prefixes: Sequence[int] = ()
    ) -> Float[Tensor, "*prefix row d"]:
        if not prefixes:
            return _product(values, decoder, self._half)
        starts = (0, *prefixes[:-1])
        parts = [
            _product(values[:, a:b], decoder[a:b], self._half) for a, b in zip(starts, prefixes, strict=True)
        ]
        return torch.stack(parts).cumsum(0)

    def firing(self, values: Tensor) -> Float[Tensor, " unit"]:
        # In chunks that stay in the cache; counting the whole at once takes three times as long.
        counts = [(rows != 0).to(values.dtype).sum(0) for rows in values.detach().split(256)]
        return torch.stack(counts).sum(0)
