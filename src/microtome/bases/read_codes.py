"""Which units are on, what would the metric gain by more of each, and what does the basis leave out? One pass.

1. Run the model once, reading what each basis reads and writes, and the gradient of the metric where it writes.
2. Codes are the basis's own. The error is what stands where it writes minus what the codes make there.
3. The gradient at a code is that of the metric by one more of the unit: the gradient where the basis writes, taken back
   through its decoder. The gradient at the error is the one at the site.

These are gradients of the model itself. For those that flow from unit to unit alone, give
`edit=splice(basis, error="freeze")` for every basis. Marks et al. (2024), Sparse Feature Circuits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.bases.basis import Basis, as_rows, parted
from microtome.core.edits import Edit
from microtome.core.logits import Metric
from microtome.core.site import Site
from microtome.models.inputs import Tokens
from microtome.models.model import Model


@dataclass(frozen=True, eq=False)
class Reading:
    """What one basis says of a pass.

    codes `[row, position, unit]`. errors, by site written: `[row, position, d]`, heads side by side.
    gradients, error_gradients: of the sum of the metric, in the same shapes; None and nothing without a metric.
    metric `[row]`.
    """

    codes: Float[Tensor, "*rows unit"]
    errors: Mapping[Site, Tensor]
    gradients: Float[Tensor, "*rows unit"] | None = None
    error_gradients: Mapping[Site, Tensor] = field(default_factory=dict)
    metric: Float[Tensor, " row"] | None = None


def read_codes(
    model: Model,
    tokens: Tokens,
    bases: Sequence[Basis],
    metric: Metric | None = None,
    *,
    edit: Sequence[Edit] = (),
    mask: Int[Tensor, "row column"] | None = None,
) -> tuple[Reading, ...]:
    """One reading for each basis, all of the same pass. Raises what `Model.run` raises, and `InputError` for a basis
    whose widths are not the model's."""
    written = [site for basis in bases for site in basis.writes]
    sites = list(dict.fromkeys([*(site for basis in bases for site in basis.reads), *written]))
    slopes = [] if metric is None else [site.grad for site in dict.fromkeys(written)]
    run = model.run(tokens, [*sites, *slopes], edit, metric=metric, mask=mask)
    return tuple(_reading(basis, run.values, run.metric) for basis in bases)


def _reading(basis: Basis, values: Mapping[Site, Tensor], metric: Float[Tensor, " row"] | None) -> Reading:
    rows = basis.rows_of(values)
    with torch.no_grad():
        codes = basis.encode(rows).detach()
    with torch.set_grad_enabled(metric is not None):
        leaf = codes.clone().requires_grad_(metric is not None)
        made = basis.rebuilt(rows, leaf)
    errors = {
        site: as_rows(values[site], width, site).to(made.dtype) - part.detach()
        for site, width, part in zip(
            basis.writes, basis.write_widths, parted(made, basis.write_widths), strict=True
        )
    }
    if metric is None:
        return Reading(codes, errors)
    slopes = {
        site: as_rows(values[site.grad], width, site).to(made.dtype)
        for site, width in zip(basis.writes, basis.write_widths, strict=True)
    }
    (gradients,) = torch.autograd.grad(made, leaf, torch.cat([slopes[site] for site in basis.writes], -1))
    return Reading(codes, errors, gradients, slopes, metric)
