"""How does one step a matrix so that all its directions learn alike?

1. Keep a momentum of the gradients.
2. Replace it by the orthogonal matrix nearest to it, roughly, with five Newton-Schulz iterations.
3. Step by that, longer for matrices that are wider than tall.

Jordan et al. (2024), Muon: an optimizer for hidden layers in neural networks. In float32 throughout, unlike
`torch.optim.Muon`, whose bfloat16 is slow on processors without it. Not for embeddings, biases or norms.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

_QUINTIC = (3.4445, -4.7750, 2.0315)
_MOMENTUM = 0.95


def orthogonalised(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """The same singular vectors with all singular values near 1 (between 0.6 and 1.3)."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / (wide.norm() + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(5):
        square = wide @ wide.T
        wide = a * wide + (b * square + c * square @ square) @ wide
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


class Muon(Optimizer):
    """Muon for ``[in, out]`` matrices.

    Args:
        groups: parameter groups; ``parts`` says of how many matrices side by side each parameter consists,
            ``transposed`` that they are ``[out, in]``.
        lr: learning rate, the length of a step in spectral norm.
        weight_decay: share of the weights lost in each step of rate 1.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "parts": 1, "transposed": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].mul_(_MOMENTUM).add_(parameter.grad)
                ahead = parameter.grad + _MOMENTUM * momentum
                ahead = ahead.T if group["transposed"] else ahead
                steps = [
                    orthogonalised(part) * max(1.0, part.shape[1] / part.shape[0]) ** 0.5
                    for part in ahead.chunk(group["parts"], dim=1)
                ]
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                step = torch.cat(steps, dim=1)
                parameter.add_(step.T if group["transposed"] else step, alpha=-group["lr"])
