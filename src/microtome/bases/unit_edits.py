"""What to do to single units of a basis? Zero, clamp, scale, add, mean, patch, resample: changes of codes, as data.

    model.run(tokens, edit=splice(basis, change=[zero(3), scale(7, 2.0)]))

A change takes the codes of a pass and returns others; `splice` puts it to work. All changes of one splice are made to
the same codes, in their order. For other rows or other positions, use another splice.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Literal, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core.errors import EditError, InputError

How = Literal["set", "scale", "add"]


@dataclass(frozen=True, eq=False)
class UnitEdit:
    """One change of some units.

    units: which; `None` for all. how: set to `value`, multiply by it, or add it.
    value: broadcast over the codes of these units, `[row, position, unit]`.
    by_row: whether the first axis of `value` is the row. origin: what the value is, for reports.
    """

    units: tuple[int, ...] | None
    how: How
    value: Float[Tensor, "..."]
    by_row: bool = False
    origin: str = ""

    def __call__(self, codes: Float[Tensor, "*rows unit"]) -> Float[Tensor, "*rows unit"]:
        """The codes after it. Raises `EditError` for a value that does not fit them."""
        if self.units is None:
            return self._changed(codes)
        units = torch.tensor(self.units, dtype=torch.long, device=codes.device)
        return codes.index_copy(-1, units, self._changed(codes.index_select(-1, units)))

    def _changed(self, chosen: Float[Tensor, "*rows unit"]) -> Float[Tensor, "*rows unit"]:
        value = self.value.to(chosen)
        if not fits(value.shape, chosen.shape, axis_for_axis=self.by_row):
            raise EditError(
                f"{self!r}: a value of shape {list(value.shape)} does not fit codes of shape {list(chosen.shape)} "
                "[row, position, unit]; give codes of the same rows and positions, or one number a unit"
            )
        if self.how == "set":
            return value.expand_as(chosen)
        return chosen * value if self.how == "scale" else chosen + value

    def check(self, n_units: int) -> None:
        """Raise `InputError` for units that a basis of so many does not have, or that are named twice."""
        units = self.units or ()
        if len(set(units)) < len(units):
            raise InputError(f"units {list(units)} name the same one twice; name each once")
        if strange := [unit for unit in units if not 0 <= unit < n_units]:
            raise InputError(f"unit {strange[0]} is out of range; this basis has units 0 … {n_units - 1}")

    def moved(self, index: Sequence[int]) -> "UnitEdit":
        """The same change for these of its rows."""
        if not self.by_row or self.value.shape[0] == 1 or list(index) == list(range(self.value.shape[0])):
            return self
        return replace(self, value=self.value[list(index)])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, UnitEdit):
            return NotImplemented
        mine, yours = (replace(one, value=torch.zeros(())).__dict__ for one in (self, other))
        same = all(mine[name] == yours[name] for name in mine if name != "value")
        return same and self.value.shape == other.value.shape and torch.equal(self.value, other.value)

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        which = "all units" if self.units is None else f"units {list(self.units)}"
        value = f"{float(self.value):g}" if self.value.dim() == 0 else str(list(self.value.shape))
        return f"{self.origin or self.how}({which}, {value})"


def fits(given: Sequence[int], asked: Sequence[int], axis_for_axis: bool) -> bool:
    """Whether numbers of one shape can be laid over those of another; axis_for_axis: with no axis left out."""
    left_out = len(asked) - len(given)
    if left_out < 0 or (left_out and axis_for_axis):
        return False
    return all(one in (1, other) for one, other in zip(given, asked[left_out:], strict=True))


Units = SupportsIndex | Iterable[SupportsIndex] | None
"""One unit, or several, as any kind of whole number; `None` for all."""


def zero(units: Units = None) -> UnitEdit:
    """Switch units off. None: all of them."""
    return UnitEdit(_named(units), "set", torch.zeros(()), origin="zero")


def clamp(units: Units, value: float | Float[Tensor, " unit"]) -> UnitEdit:
    """Hold units at a value, or at one value each."""
    return UnitEdit(_named(units), "set", torch.as_tensor(value, dtype=torch.float32), origin="clamp")


def scale(units: Units, factor: float | Float[Tensor, " unit"]) -> UnitEdit:
    """Multiply; 1 changes nothing, bit for bit."""
    return UnitEdit(_named(units), "scale", torch.as_tensor(factor, dtype=torch.float32), origin="scale")


def add(units: Units, amount: float | Float[Tensor, " unit"]) -> UnitEdit:
    """Add to what there is: steering along the directions of units."""
    return UnitEdit(_named(units), "add", torch.as_tensor(amount, dtype=torch.float32), origin="add")


def mean(units: Units, codes: Float[Tensor, "*rows unit"]) -> UnitEdit:
    """Ablate to the mean of these codes `[…, n_units]`, over all their rows and positions."""
    means = codes.flatten(0, -2).mean(0)
    return UnitEdit(_named(units), "set", _of(units, means), origin="mean")


def patch(units: Units, codes: Float[Tensor, "row *position unit"]) -> UnitEdit:
    """Take units from the codes of another run `[row, position, n_units]`, row for row and position for position."""
    return UnitEdit(_named(units), "set", _of(units, codes), by_row=True, origin="patch")


def resample(units: Units, codes: Float[Tensor, "row *position unit"], seed: int = 0) -> UnitEdit:
    """Ablate by what the units are in another row of these codes: the rows dealt round a random circle.

    Raises `InputError` for one row, which has no other.
    """
    rows = len(codes)
    if rows < 2:
        raise InputError("resampling takes units from other rows; give codes of at least two rows")
    circle = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    other = torch.empty_like(circle)
    other[circle] = circle.roll(1)
    return replace(patch(units, codes[other.to(codes.device)]), origin="resample")


def _named(units: Units) -> tuple[int, ...] | None:
    if units is None:
        return None
    try:
        return (index(units),)  # type: ignore[arg-type]
    except TypeError:
        return tuple(map(index, units))  # type: ignore[arg-type]


def _of(units: Units, codes: Float[Tensor, "*rows unit"]) -> Float[Tensor, "*rows chosen"]:
    named = _named(units)
    if named is None:
        return codes
    if strange := [unit for unit in named if not 0 <= unit < codes.shape[-1]]:
        raise InputError(
            f"unit {strange[0]} is out of range; these codes have units 0 … {codes.shape[-1] - 1}"
        )
    return codes[..., list(named)]
