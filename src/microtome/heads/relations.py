"""Which earlier tokens stand in which relation to a token? The places where known kinds of heads look.

    previous    the token just before
    first       the first token of the text
    itself      the token itself
    duplicate   earlier occurrences of the same token, all of them
    induction   the tokens that followed earlier occurrences of the same token, all of them

All occurrences count, not only the last: a head that spreads over several earlier places is no worse an induction head.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NAMES = ("previous", "first", "itself", "duplicate", "induction")


def allowed(real: Bool[Tensor, "row column"], causal: bool) -> Bool[Tensor, "row query key"]:
    """Where a token may look: at real tokens, not ahead of itself in a causal model."""
    may = real[:, :, None] & real[:, None, :]
    return may.tril() if causal else may


def relations(
    ids: Int[Tensor, "row column"], real: Bool[Tensor, "row column"], causal: bool = True
) -> dict[str, Bool[Tensor, "row query key"]]:
    """By name, the keys in that relation to each query; only where a token may look."""
    may = allowed(real, causal)
    column = torch.arange(ids.shape[1], device=ids.device)
    offset = column[:, None] - column[None, :]
    first = real.int().argmax(dim=1)[:, None] == column[None, :]
    same = (ids[:, :, None] == ids[:, None, :]) & real[:, None, :] & (offset > 0)
    after_same = torch.zeros_like(same)
    after_same[:, :, 1:] = same[:, :, :-1]
    found = {
        "previous": (offset == 1).expand_as(may),
        "first": first[:, None, :].expand_as(may),
        "itself": (offset == 0).expand_as(may),
        "duplicate": same,
        "induction": after_same,
    }
    return {name: places & may for name, places in found.items()}


def mass(
    pattern: Float[Tensor, "row head query key"], places: Bool[Tensor, "row query key"]
) -> Float[Tensor, "row head"]:
    """Mean attention on these places over the queries that have any; NaN for a row without such a query."""
    on_them = (pattern * places[:, None]).sum(-1)
    asks = places.any(-1)[:, None]
    count = asks.sum(-1).float()
    return torch.where(count > 0, (on_them * asks).sum(-1) / count, torch.nan)


def uniform(may: Bool[Tensor, "row query key"]) -> Float[Tensor, "row one query key"]:
    """The pattern of a head without preference: the same attention on every token it may look at."""
    count = may.sum(-1, keepdim=True).clamp_min(1)
    return (may / count)[:, None]
