"""Which logits a metric needs: positions and tokens, so that nothing else is computed.

The unembedding is a third of GPT-2 small's arithmetic; a logit difference at the last position needs two of its
rows and one of its columns.
"""

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LogitSelection:
    """Positions (and optionally tokens) at which logits are wanted.

    positions: counted over real tokens, negative from the end; `None` = all columns.
    tokens: ids shared by all rows `[token]`, or per row `[row][token]`; `None` = the whole vocabulary.
    """

    positions: tuple[int, ...] | None = (-1,)
    tokens: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None

    @property
    def per_row(self) -> bool:
        return bool(self.tokens) and isinstance(self.tokens[0], tuple)  # type: ignore[index]

    def for_rows(self, rows: list[int]) -> "LogitSelection":
        """The same selection for a batch made of these rows of the original batch (repeats allowed)."""
        if self.tokens is None or not self.per_row:
            return self
        return LogitSelection(self.positions, tuple(self.tokens[r] for r in rows))  # type: ignore[arg-type]


class Metric(Protocol):
    """A scalar of logits per example. It declares what it needs; it is linear in nothing and owns no model."""

    name: str

    @property
    def needs(self) -> LogitSelection: ...

    def __call__(self, logits: Float[Tensor, "batch position token"]) -> Float[Tensor, " batch"]:
        """`logits` hold exactly the positions and tokens of `needs`, in that order."""
        ...

    def for_rows(self, rows: list[int]) -> "Metric":
        """The same metric for a batch made of these rows of the original batch (repeats allowed)."""
        ...
