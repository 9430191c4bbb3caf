"""Which head drives a unit of an attention-output dictionary, and from which tokens? Exact shares of its drive.

1. A unit is driven by a sum over what it reads: reader · z + offset, and z lies in heads. So each head has its share.
2. A head's z is a sum over the tokens it attends to: pattern · v. So each token has its share of the head's.
3. All shares and the offset add up to what the unit is driven by, to rounding; nothing is estimated.

Kissane et al. (2024), Interpreting attention layer outputs with sparse autoencoders. It misleads on *why* heads attend
there: patterns are taken as given.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.bases.basis import Basis
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.models.inputs import Tokens
from microtome.models.model import Model


@dataclass(frozen=True, eq=False)
class UnitShares:
    """What drives some units at one position, in their order.

    drive `[row, unit]`: before the activation. offset `[unit]`: of that, whatever the values.
    heads `[row, unit, head]`; sources `[row, unit, head, key]`: keys are columns of the tokens; padding has no share.
    """

    units: tuple[int, ...]
    drive: Float[Tensor, "row unit"]
    offset: Float[Tensor, " unit"]
    heads: Float[Tensor, "row unit head"]
    sources: Float[Tensor, "row unit head key"]


@torch.no_grad()
def unit_shares(
    model: Model,
    tokens: Tokens,
    basis: Basis,
    units: Sequence[int],
    position: int = -1,
    mask: Tensor | None = None,
) -> UnitShares:
    """Shares of heads and of tokens in what drives these units at a position, counted among real tokens.

    Raises `InputError` for a basis that does not read the heads of one layer (z), and for units that are not there.
    """
    if len(basis.reads) != 1 or basis.reads[0].part != "z":
        told = ", ".join(map(str, basis.reads))
        raise InputError(
            f"{basis.name} reads {told}; shares of heads are of a basis that reads z of one layer"
        )
    for unit in units:
        basis.unit(unit)
    here = basis.reads[0]
    layer, stack = here.layer, here.stack
    z_at = here.at(position)
    pattern_at = Site("pattern", layer, positions=(position,), stack=stack)
    values_at = Site("v", layer, stack=stack)
    run = model.run(tokens, [z_at, pattern_at, values_at], mask=mask)
    z, pattern, v = run[z_at][:, 0], run[pattern_at][:, :, 0], run[values_at]
    heads, d_head = z.shape[1:]
    # Query heads share keys and values in groups, neighbours together.
    v = v.repeat_interleave(heads // v.shape[2], 2)
    readers, offset = basis.drives(torch.tensor(list(units), device=z.device))
    by_head = readers.view(len(units), heads, d_head)
    sources = torch.einsum("uhd,rkhd,rhk->ruhk", by_head, v.to(by_head), pattern.to(by_head))
    shares = torch.einsum("uhd,rhd->ruh", by_head, z.to(by_head))
    return UnitShares(tuple(units), shares.sum(-1) + offset, offset, shares, sources)
