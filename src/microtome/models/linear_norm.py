"""What does a norm do once its divisor is known? A norm is linear but for the one number it divides by.

    norm(x) = gain · centre(x) / scale(x) + bias        centre: subtract the mean (LayerNorm) or nothing (RMSNorm)

With the scale of the actual input kept fixed, what a norm makes of a sum is the sum of what it makes of the parts.
That is how contributions are read through it, without folding anything into the user's weights.

The three constants are read off the module by asking it, not by its class:

1. `bias` is what it makes of zero.
2. It centres if it makes of a constant what it makes of zero.
3. `gain` is what it makes of a vector of plus and minus 64, whose scale is known and whose epsilon does not count.

The scale of an input is read off in the same way, as the factor between `gain · centre(x)` and `norm(x) - bias`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

_LARGE = 64.0


@dataclass(frozen=True)
class LinearNorm:
    """A norm with its divisor set apart. Made by `read_norm`; all in float32.

    module: the norm itself, `None` for no norm at all (gain one, scale one).
    """

    module: nn.Module | None
    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    centred: bool

    def __call__(self, values: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The norm as it is, its scale that of each value."""
        if self.module is None:
            return values.float()
        made: Tensor = self.module(values.to(_dtype(self.module)))
        return made.float()

    def centre(self, values: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return values - values.mean(dim=-1, keepdim=True) if self.centred else values

    def scale(self, values: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"]:
        """The divisor at each value: root of variance or mean square, epsilon included."""
        if self.module is None:
            return torch.ones_like(values[..., :1], dtype=torch.float32)
        weighted = self.centre(values.float()) * self.gain
        made = self(values) - self.bias
        above = weighted.pow(2).sum(dim=-1, keepdim=True)
        below = (weighted * made).sum(dim=-1, keepdim=True)
        # A value that the norm maps to zero has no direction to be scaled.
        return torch.where(above > 0, above / torch.where(above > 0, below, 1.0), 1.0)

    def push(
        self, part: Float[Tensor, "*batch d_model"], scale: Float[Tensor, "*#batch 1"]
    ) -> Float[Tensor, "*batch d_model"]:
        """What a part of an input becomes when the whole input has this scale. Without the bias."""
        return self.centre(part.float()) * self.gain / scale

    def pull(self, directions: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Directions after the norm as directions before it: `push(x, 1) · d == x · pull(d)`."""
        return self.centre(directions.float() * self.gain)

    def back(
        self,
        gradient: Float[Tensor, "*batch d_model"],
        values: Float[Tensor, "*#batch d_model"],
        *,
        frozen: bool = False,
    ) -> Float[Tensor, "*batch d_model"]:
        """The gradient by an input of these values from the gradient by what the norm makes of it.

        frozen: hold the divisor fixed, as if it did not depend on the input.
        """
        pulled = self.pull(gradient)
        if self.module is None:
            return pulled
        scale = self.scale(values)
        if not frozen:
            centred = self.centre(values.float())
            pulled -= centred * ((centred * pulled).mean(dim=-1, keepdim=True) / scale.square())
        return pulled / scale


@torch.no_grad()
def read_norm(module: nn.Module | None, d_model: int, device: torch.device | None = None) -> LinearNorm:
    """The norm as gain, centring and bias; `None` is the norm that changes nothing."""
    if module is None:
        return LinearNorm(
            None, torch.ones(d_model, device=device), torch.zeros(d_model, device=device), False
        )
    known = next(module.parameters(), None)
    device = device if known is None or known.is_meta else known.device
    dtype = _dtype(module)
    probe = torch.full((d_model,), _LARGE, device=device)
    probe[1::2] = -_LARGE
    zero, constant, signs = module(
        torch.stack([torch.zeros_like(probe), torch.ones_like(probe), probe]).to(dtype)
    ).float()
    centred = bool(torch.allclose(constant, zero, rtol=0.0, atol=1e-3 * float(signs.abs().max())))
    inside = probe - probe.mean() if centred else probe
    gain = (signs - zero) * inside.pow(2).mean().sqrt() / inside
    return LinearNorm(module, gain, zero, centred)


def _dtype(module: nn.Module) -> torch.dtype:
    known = next(module.parameters(), None)
    return torch.float32 if known is None else known.dtype
