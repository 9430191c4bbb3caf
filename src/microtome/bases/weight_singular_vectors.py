"""What does a weight matrix pass on, and how strongly? Its singular vectors, as units between what it reads and writes.

    written = read · W + bias = Σ (read · left vector) · singular value · right vector + bias

A basis of what lies between two sites of the model: `W_Q`, `W_K`, `W_V` from `attn_in` to `q_proj`, `k_proj`,
`v_proj`; `W_O` from `z` to `attn_out`; `W_in` (the gate, where there is one) from `mlp_in` to `mlp_pre`; `W_out` from
`mlp_post` to `mlp_out`. With all its units it is the matrix itself; with the first few, the best matrix of that rank.
Exact wherever nothing else stands between the two sites: not where a norm follows (post-norm families), which is
refused.
"""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.bases.basis import Basis
from microtome.core.errors import FamilyError, InputError, SiteError
from microtome.core.site import Site
from microtome.core.weight import Weight
from microtome.models.model import Model
from microtome.models.stream_parts import behind

# What reads, what writes, and the bias that is added.
_BETWEEN: Final[dict[str, tuple[str, str, str]]] = {
    "W_Q": ("attn_in", "q_proj", "b_Q"),
    "W_K": ("attn_in", "k_proj", "b_K"),
    "W_V": ("attn_in", "v_proj", "b_V"),
    "W_O": ("z", "attn_out", "b_O"),
    "W_in": ("mlp_in", "mlp_pre", "b_in"),
    "W_gate": ("mlp_in", "mlp_pre", "b_gate"),
    "W_out": ("mlp_post", "mlp_out", "b_out"),
}


class SingularVectors(Basis):
    """readers `[unit, d_read]`, orthonormal; values `[unit]`, largest first; writers `[unit, d_write]`, orthonormal."""

    def __init__(
        self,
        name: str,
        reads: Site,
        writes: Site,
        matrix: Float[Tensor, "d_read d_write"],
        bias: Float[Tensor, " d_write"],
        units: int | None = None,
    ) -> None:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        if units is not None and not 1 <= units <= len(values):
            raise InputError(f"{name} has {len(values)} singular vectors; {units} were asked for")
        self.name, self.reads, self.writes = name, (reads,), (writes,)
        self.read_widths, self.write_widths = (matrix.shape[0],), (matrix.shape[1],)
        self.readers, self.values, self.writers = left.mT[:units], values[:units], right[:units]
        self.bias = bias
        self.n_units = len(self.values)
        self.n_parameters = self.n_units * (sum(matrix.shape) + 1) + len(bias)

    def encode(self, values: Float[Tensor, "*rows d_read"]) -> Float[Tensor, "*rows unit"]:
        return values @ self.readers.mT

    def decode(self, codes: Float[Tensor, "*rows unit"]) -> Float[Tensor, "*rows d_write"]:
        return codes * self.values @ self.writers + self.bias

    def direction(self, unit: int) -> Float[Tensor, " d_write"]:
        self.unit(unit)
        return self.values[unit] * self.writers[unit]


@torch.no_grad()
def of_weight(model: Model, address: str, units: int | None = None) -> SingularVectors:
    """The basis of a weight such as `W_out.3`, heads side by side.

    Raises `InputError` for weights that lie between no two sites, `SiteError` for one that is not there, and
    `FamilyError` where the family puts something between the two sites.
    """
    weight = Weight.parse(address)
    if weight.name not in _BETWEEN or weight.heads is not None or weight.layer is None:
        raise InputError(f"{address} lies between no two sites; take one of {', '.join(_BETWEEN)}, whole")
    matrix = model.weight(address).detach().float()
    read, write, bias_name = _BETWEEN[weight.name]
    if weight.name == "W_in" and _has(model, f"W_gate.{weight.layer}"):
        raise InputError(
            f"{address} is multiplied by a gate; what mlp_pre holds comes from W_gate.{weight.layer}"
        )
    which = {"W_O": "attn", "W_out": "mlp"}.get(weight.name)
    if which is not None and behind(model.anatomy, weight.layer, which) is not None:
        raise FamilyError(
            f"a norm stands between {address} and {write}, so the matrix alone is not what is written"
        )
    if weight.name == "W_O":
        matrix = matrix.flatten(0, 1)
    elif matrix.dim() == 3:
        matrix = matrix.transpose(0, 1).flatten(1)
    name = f"{bias_name}.{weight.layer}"
    bias = (
        model.weight(name).detach().float().flatten() if _has(model, name) else torch.zeros(matrix.shape[1])
    )
    return SingularVectors(
        address.replace(".", "_"), Site(read, weight.layer), Site(write, weight.layer), matrix, bias, units
    )


def _has(model: Model, address: str) -> bool:
    try:
        model.weight(address)
    except SiteError:
        return False
    return True
