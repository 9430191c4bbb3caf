"""NaN and infinity are errors, told with the first place where they stand."""

from collections.abc import Mapping

import torch
from torch import Tensor

from microtome.core.errors import NotFiniteError
from microtome.core.site import Site


def check_finite(values: Mapping[Site, Tensor], logits: Tensor | None) -> None:
    """Raise for the first value in the order of the pass that holds NaN or infinity (scores may hold -inf: masked)."""
    for site in sorted(values, key=lambda s: s.depth):
        value = values[site]
        if site.part != "scores" and value.is_floating_point() and not bool(torch.isfinite(value.sum())):
            _raise_not_finite(str(site), value)
    if logits is not None and not bool(torch.isfinite(logits.sum())):
        _raise_not_finite("logits", logits)


def _raise_not_finite(where: str, value: Tensor) -> None:
    bad = int((~torch.isfinite(value)).sum())
    if bad == 0:
        return
    raise NotFiniteError(
        f"{where} holds {bad} NaN or infinite values of {value.numel()}; look at the edits, the weights "
        "(microtome.load checks them) or the dtype. run(..., check_finite=False) returns them as they are"
    )
