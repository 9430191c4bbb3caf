"""Attention scores and patterns on request, from the very arguments the user's own kernel receives.

    scores = cap(scale · q kᵀ) + bias, masked;  pattern = softmax(scores, sinks);  z = pattern · v

Computed in float32 at least, whatever the model's dtype. The caller compares `z` with the kernel's and refuses on
difference.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def scores(
    module: nn.Module,
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "batch kv_head key d_head"],
    mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> Float[Tensor, "batch head query key"]:
    """Masked scores; -inf where a query may not look."""
    groups = q.shape[1] // k.shape[1]
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    grouped = _precise(q).unflatten(1, (k.shape[1], groups))
    raw = (grouped @ _precise(k).unsqueeze(2).transpose(-1, -2)).flatten(1, 2) * scale
    if softcap is not None:
        raw = torch.tanh(raw / softcap) * softcap
    if position_bias is not None:
        raw = raw + position_bias.to(raw.dtype)
    queries, keys = raw.shape[-2:]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if mask is None:
        if causal and queries > 1:
            allowed = torch.ones(queries, keys, dtype=torch.bool, device=raw.device).tril(keys - queries)
            raw = raw.masked_fill(~allowed, float("-inf"))
        return raw
    mask = mask[..., :keys]
    if mask.dtype == torch.bool:
        return raw.masked_fill(~mask, float("-inf"))
    forbidden = mask <= torch.finfo(mask.dtype).min / 2
    return (raw + mask.to(raw.dtype)).masked_fill(forbidden, float("-inf"))


def pattern(
    given: Float[Tensor, "batch head query key"], sinks: Float[Tensor, " head"] | None = None
) -> Float[Tensor, "batch head query key"]:
    """Softmax over keys (and a sink, where there is one); rows that may look nowhere are zero."""
    if sinks is not None:
        column = sinks.to(given.dtype).view(1, -1, 1, 1).expand(given.shape[0], -1, given.shape[2], 1)
        return torch.softmax(torch.cat([given, column], dim=-1), dim=-1)[..., :-1]
    nowhere = torch.isneginf(given).all(dim=-1, keepdim=True)
    return torch.softmax(given.masked_fill(nowhere, 0.0), dim=-1).masked_fill(nowhere, 0.0)


def mix(
    weights: Float[Tensor, "batch head query key"], v: Float[Tensor, "batch kv_head key d_head"]
) -> Float[Tensor, "batch query head d_head"]:
    """Values mixed by the pattern, in the values' dtype."""
    groups = weights.shape[1] // v.shape[1]
    grouped = weights.unflatten(1, (v.shape[1], groups))
    mixed = grouped @ _precise(v).to(grouped.dtype).unsqueeze(2)
    return mixed.flatten(1, 2).transpose(1, 2).to(v.dtype)


def _precise(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))
