"""What if a value came from another input along some directions, along each by a share? A swap that can be learned.

`Swap` exchanges the span of directions wholly. To learn which directions, their shares must vary between nothing and
all; at shares of one the two are the same.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from microtome.core.edits import Edit
from microtome.core.errors import EditError


@dataclass(frozen=True, eq=False, repr=False)
class PartialSwap(Edit):
    """Along each of the orthonormal `directions` `[direction, d]`, go `share` `[direction]` of the way to `value`."""

    directions: Float[Tensor, "direction d"] = field(kw_only=True)
    share: Float[Tensor, " direction"] = field(kw_only=True)
    value: Tensor = field(kw_only=True)
    kind: ClassVar[str] = "partial_swap"

    def apply(self, value: Tensor) -> Tensor:
        if self.value.shape != value.shape or self.directions.shape[1] != value.shape[-1]:
            raise EditError(
                f"PartialSwap at {self.site}: values of shape {list(self.value.shape)} and directions "
                f"{list(self.directions.shape)} do not fit the selection {list(value.shape)}"
            )
        difference = (self.value - value) @ self.directions.T
        return value + (difference * self.share) @ self.directions
