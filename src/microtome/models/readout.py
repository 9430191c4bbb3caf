"""How does a direction in the last residual stream move a logit? The model's own head as a linear view.

    logit[t] = cap( scale(x)⁻¹ · x · direction[t] + norm_bias[t] + bias[t] )

`direction[t]` is column t of the unembedding, pulled back through the projection before it (OPT) and through gain and
centring of the final norm; `scale(x)` is that norm's divisor at the actual stream. Nothing is folded into weights:
only the columns asked for are multiplied. What is capped at the end is stated and left to the caller.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core.errors import FamilyError, SiteError
from microtome.models.linear_norm import LinearNorm, read_norm
from microtome.models.model import Model


@dataclass(frozen=True)
class Readout:
    """The head, taken apart. Made by `readout`.

    norm: the final norm. cap: the soft cap of the logits, if the model has one. multiplier: of all logits.
    """

    norm: LinearNorm
    cap: float | None
    multiplier: float
    _columns: Tensor
    _bias: Tensor | None
    _before: tuple[Tensor, Tensor | None] | None

    @property
    def n_tokens(self) -> int:
        return int(self._columns.shape[0])

    @torch.no_grad()
    def directions(self, ids: Int[Tensor, "*ids"]) -> Float[Tensor, "*ids d_model"]:
        """Per token the direction in the stream before the norm; divide by the norm's scale."""
        return self.norm.pull(self.after_norm(ids))

    @torch.no_grad()
    def after_norm(self, ids: Int[Tensor, "*ids"]) -> Float[Tensor, "*ids d_model"]:
        """Per token the direction in the normed stream."""
        rows = self._columns[ids].float()
        if self._before is not None:
            rows = rows @ self._before[0].float()
        return rows * self.multiplier

    @torch.no_grad()
    def norm_bias(self, ids: Int[Tensor, "*ids"]) -> Float[Tensor, "*ids"]:
        """What the bias of the final norm adds to each token's logit."""
        return self.after_norm(ids) @ self.norm.bias

    @torch.no_grad()
    def bias(self, ids: Int[Tensor, "*ids"]) -> Float[Tensor, "*ids"]:
        """What the head's own biases add to each token's logit."""
        found = torch.zeros(ids.shape, device=self._columns.device)
        if self._before is not None and self._before[1] is not None:
            found = found + self._columns[ids].float() @ self._before[1].float()
        if self._bias is not None:
            found = found + self._bias[ids].float()
        return found * self.multiplier

    def capped(self, logits: Float[Tensor, "*ids"]) -> Float[Tensor, "*ids"]:
        """The logits as the model gives them."""
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


def readout(model: Model) -> Readout:
    """The head of a model as directions in its stream.

    Raises `SiteError` for a model without a head, `FamilyError` for a head that is more than one linear layer.
    """
    anatomy = model.anatomy
    head = anatomy.role("head")
    if head is None:
        raise SiteError(f"{model.name} has no unembedding, so there are no logits; load it with its head")
    columns = getattr(head, "weight", None)
    if not isinstance(columns, Tensor) or columns.dim() != 2:
        raise FamilyError(
            f"the head of {model.name} ({type(head).__name__}) is not one linear layer, so no direction of the stream "
            "stands for a token; use a causal language model"
        )
    config: Any = anatomy.module.config
    before = anatomy.role("before_head")
    projection = (
        None if before is None else (_parameter(before, "weight", model), getattr(before, "bias", None))
    )
    multiplier = 1.0
    if getattr(config, "scale_decoder_outputs", False):
        multiplier *= float(config.d_model) ** -0.5
    cap = getattr(config, "final_logit_softcapping", None)
    # A factor behind the cap would not be linear; no architecture has both.
    if getattr(config, "logit_scale", None) is not None:
        multiplier *= float(config.logit_scale)
    if getattr(config, "logits_scaling", None) is not None:
        multiplier /= float(config.logits_scaling)
    norm = read_norm(anatomy.role("final_norm"), model.sizes["d_model"], model.device)
    return Readout(
        norm,
        None if cap is None else float(cap),
        multiplier,
        columns,
        getattr(head, "bias", None),
        projection,
    )


def _parameter(module: torch.nn.Module, name: str, model: Model) -> Tensor:
    found = getattr(module, name, None)
    if not isinstance(found, Tensor) or found.dim() != 2:
        raise FamilyError(
            f"{type(module).__name__} before the head of {model.name} is not a linear layer; its logits cannot be "
            "taken apart"
        )
    return found
