"""How surprised is a model by a corpus? The loss it was trained on, summed over each row: the scalar of gradients.

The sum, not the mean, so that a gradient does not depend on how many tokens share its row.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core.errors import InputError
from microtome.core.logits import LogitSelection
from microtome.data.metrics import IGNORED


@dataclass(frozen=True, eq=False)
class NextTokenLoss:
    """Negative log-probability, in nats, of each position's target, summed over a row; 0 for a row without one.

    targets: ids for every column, `IGNORED` where nothing is asked; see `metrics.next_tokens`.
    """

    targets: Int[Tensor, "batch position"]
    name = "next-token-loss"

    @property
    def needs(self) -> LogitSelection:
        return LogitSelection(None)

    def __call__(self, logits: Float[Tensor, "batch position token"]) -> Float[Tensor, " batch"]:
        if logits.shape[:2] != self.targets.shape:
            raise InputError(
                f"expected logits for {list(self.targets.shape)} targets, got {list(logits.shape[:2])}"
            )
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).transpose(1, 2)
        targets = self.targets.to(logits.device)
        return torch.nn.functional.cross_entropy(wide, targets, ignore_index=IGNORED, reduction="none").sum(
            -1
        )

    def for_rows(self, rows: list[int]) -> "NextTokenLoss":
        return NextTokenLoss(self.targets[rows])
