"""From the residual stream to logits by the model's own head: final norm, projection, unembedding, caps and scales.

Only the tokens asked for are computed: a logit difference needs two columns of the unembedding, not fifty thousand.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from microtome.core.errors import InputError, SiteError
from microtome.core.logits import LogitSelection
from microtome.models.anatomy import Anatomy


def unembed(
    anatomy: Anatomy,
    resid: Float[Tensor, "*batch d_model"],
    tokens: Sequence[int] | Float[Tensor, "row token"] | Tensor | None = None,
) -> Float[Tensor, "*batch token"]:
    """Logits of a residual stream.

    tokens: ids shared by all rows; or, for a stream `[row, position, d_model]`, a tensor of ids `[row, token]`.
    Raises `SiteError` if the model has no head, `InputError` for ids out of range.
    """
    head = anatomy.role("head")
    if head is None:
        raise SiteError(
            f"this {type(anatomy.module).__name__} has no unembedding, so there are no logits; load it with its head"
        )
    hidden = resid
    for role in ("final_norm", "before_head"):
        if (module := anatomy.role(role)) is not None:
            hidden = module(hidden)
    config: Any = anatomy.module.config
    if getattr(config, "scale_decoder_outputs", False):
        hidden = hidden * config.d_model**-0.5
    logits = head(hidden) if tokens is None or not _is_plain(head) else _columns(head, hidden, tokens)
    logits = _capped(logits, config)
    return logits if tokens is None or _is_plain(head) else _chosen(logits, tokens)


def select_logits(logits: Tensor, selection: LogitSelection) -> Tensor:
    """The selected tokens of logits `[row, position, token]` whose positions are already selected."""
    return logits if selection.tokens is None else _chosen(logits, ids_of(selection, logits.device))


def ids_of(selection: LogitSelection, device: torch.device) -> Tensor:
    """Token ids `[token]`, or `[row, token]` where each row has its own."""
    return torch.tensor(selection.tokens, device=device)


def _is_plain(head: nn.Module) -> bool:
    return (
        type(head) is nn.Linear
        and not head._forward_hooks
        and not head._forward_pre_hooks
        and not hasattr(head, "_hf_hook")
    )


def _columns(head: nn.Module, hidden: Tensor, tokens: Any) -> Tensor:
    assert isinstance(head, nn.Linear)
    ids = _ids(tokens, head.out_features, hidden.device)
    weight = head.weight[ids]
    bias = None if head.bias is None else head.bias[ids]
    if ids.dim() == 1:
        return nn.functional.linear(hidden, weight, bias)
    logits = torch.einsum("rpm,rtm->rpt", hidden, weight)
    return logits if bias is None else logits + bias[:, None]


def _chosen(logits: Tensor, tokens: Any) -> Tensor:
    ids = _ids(tokens, logits.shape[-1], logits.device)
    if ids.dim() == 1:
        return logits.index_select(-1, ids)
    return logits.gather(-1, ids[:, None].expand(-1, logits.shape[1], -1))


def _ids(tokens: Any, count: int, device: torch.device) -> Tensor:
    ids = tokens.to(device) if isinstance(tokens, Tensor) else torch.tensor(tokens, device=device)
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < count:
        raise InputError(
            f"token ids go from {int(ids.min())} to {int(ids.max())}, but there are {count} tokens"
        )
    return ids


def _capped(logits: Tensor, config: Any) -> Tensor:
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    if (factor := getattr(config, "logit_scale", None)) is not None:
        logits = logits * factor
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    return logits
