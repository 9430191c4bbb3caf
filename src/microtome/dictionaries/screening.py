"""Which pre-activations are large, where products in bfloat16 are cheap? Screened in bfloat16, decided in float32.

1. All products in bfloat16. What was rounded away of row x and of units e bounds their error (Cauchy and Schwarz):

       |x − x̃| · max |ẽ|  +  |x| · max |e − ẽ|  +  rounding of the sums, and of the result

2. Whatever could by that bound be among those sought is a candidate, and computed again in float32.
3. Where a fixed number of candidates has to do (`largest_of`), a row is certified if its k-th exact value is no less
   than all others can be; a row that is not is done anew in float32.

So what is chosen is what float32 would choose, always; only how fast depends on the data. A GPU and processors with
bfloat16 products gain; others lose, for they make such products four times as slowly.
"""

from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.dictionaries.drive import Entries

MORE: Final = 32  # candidates beyond k
_ROUND: Final = 2.0**-8 * (1 + 2.0**-8)  # half the distance of neighbours in bfloat16, relative to either
_SUMS: Final = 2.0**-23  # of a sum's terms, made twice in float32


class Screen:
    """Rows and units in bfloat16, with what that costs. error `[row]`: of any product with a unit, before rounding."""

    def __init__(
        self, x: Float[Tensor, "row d"], encoder: Float[Tensor, "unit d"], bias: Float[Tensor, " unit"]
    ) -> None:
        self.x, self.encoder, self.bias = x, encoder, bias
        self._low_x, self._low_encoder = x.bfloat16(), encoder.bfloat16()
        longest = self._low_encoder.float().norm(dim=-1).max()
        lost = (encoder - self._low_encoder.float()).norm(dim=-1).max()
        sums = x.shape[1] * _SUMS * longest
        self.error = (x - self._low_x.float()).norm(dim=-1) * longest + x.norm(dim=-1) * (lost + sums)

    def pre(self, rows: slice) -> Float[Tensor, "some unit"]:
        """Pre-activations of these rows, nearly."""
        return (self._low_x[rows] @ self._low_encoder.mT).float() + self.bias

    def reach(self, level: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """How far rounding of the result can carry what is at a level, beyond `error`."""
        return _ROUND * (level.abs() + self.bias.abs().max())

    def exact(self, row: Int[Tensor, " entry"], unit: Int[Tensor, " entry"]) -> Float[Tensor, " entry"]:
        """Pre-activations at entries that are sorted by row."""
        entries = Entries(row, unit, len(self.x), len(self.encoder))
        return entries.dot(self.x, self.encoder) + self.bias[unit]

    def above(
        self, rows: slice, floor: Float[Tensor, " unit"]
    ) -> tuple[Int[Tensor, " entry"], Int[Tensor, " entry"], Float[Tensor, " entry"]]:
        """Row (of all), unit and exact value where these rows exceed their unit's floor."""
        lowest = floor - self.reach(floor) - self.error[rows, None]
        row, unit = (self.pre(rows) > lowest).nonzero(as_tuple=True)
        row = row + rows.start
        values = self.exact(row, unit)
        kept = values > floor[unit]
        return row[kept], unit[kept], values[kept]


def largest_of(
    screen: Screen, k: int, size: int
) -> tuple[Int[Tensor, "row k"], Float[Tensor, "row k"], Bool[Tensor, " row"]]:
    """The k largest candidates of each row in order of unit, with exact values; and which rows are certified.

    size: rows whose products are written at once.
    """
    count, units = len(screen.x), len(screen.encoder)
    kept = min(k + MORE, units)
    offered, least = [], []
    for start in range(0, count, size):
        top = screen.pre(slice(start, start + size)).topk(kept, sorted=False)
        offered.append(top.indices.sort(-1).values)
        least.append(top.values.amin(-1))
    unit, bar = torch.cat(offered), torch.cat(least)
    row = torch.arange(count, device=unit.device).repeat_interleave(kept)
    exact = screen.exact(row, unit.flatten()).view_as(unit)
    best = exact.topk(k, sorted=False)
    certified = best.values.amin(-1) >= bar + screen.error + screen.reach(bar)
    place = best.indices.sort(-1).values
    return unit.gather(1, place), exact.gather(1, place), certified | (kept == units)
