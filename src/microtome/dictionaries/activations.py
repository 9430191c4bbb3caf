"""Which units are on, and how strongly, given how far each is driven? Functions from pre-activations to codes.

    ReLU        what is positive
    TopK        the k largest of a row, where positive (or the k largest in magnitude, with their signs)
    JumpReLU    what exceeds a threshold of its unit; BatchTopK, once trained, is this with one threshold for all
    Gated       what is positive decides which, an affine function of it decides how strongly

All but TopK look at each unit alone. `rescaled` says the same of units whose pre-activations are multiplied by positive
factors, so that norms can be moved from decoders into encoders.

Gao et al. (2024), Scaling and evaluating sparse autoencoders; Rajamanoharan et al. (2024), Gated, and JumpReLU.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.bases.codes import SparseCodes
from microtome.core.errors import InputError


class Activation(ABC):
    """A function from pre-activations to codes. Its fields, plain settings and tensors `[unit]`, are kept in files."""

    word: ClassVar[str]

    @abstractmethod
    def __call__(self, pre: Float[Tensor, "*rows unit"]) -> Float[Tensor, "*rows unit"]:
        """The codes. Differentiable where they are on."""

    def sparsely(self, pre: Float[Tensor, "row unit"]) -> SparseCodes:
        """The same, zeros left out."""
        return SparseCodes.of(self(pre))

    @abstractmethod
    def rescaled(self, factor: Float[Tensor, " unit"]) -> "Activation":
        """The one that gives `factor` times the codes for `factor` times the pre-activations; factors are > 0."""

    def settings(self) -> dict[str, int | bool]:
        """Its plain fields."""
        return {}

    def tensors(self) -> dict[str, Float[Tensor, " unit"]]:
        """Its fields that hold a number for each unit."""
        return {}

    def mapped(self, tensors: Mapping[str, Tensor]) -> "Activation":
        """The same with other tensors in the place of its own."""
        return type(self)(**self.settings(), **tensors)


@dataclass(frozen=True)
class ReLU(Activation):
    """What is positive."""

    word = "relu"

    def __call__(self, pre: Float[Tensor, "*rows unit"]) -> Float[Tensor, "*rows unit"]:
        return pre.relu()

    def rescaled(self, factor: Float[Tensor, " unit"]) -> "ReLU":
        return self


@dataclass(frozen=True, eq=False)
class TopK(Activation):
    """The k largest of a row, where positive; `signed`: the k largest in magnitude, whatever their sign.

    weight `[unit]`: units are ranked by pre-activation times weight; None: by pre-activation.
    """

    k: int
    signed: bool = False
    weight: Float[Tensor, " unit"] | None = None
    word = "topk"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"top-k keeps at least one unit; got k = {self.k}")

    def __call__(self, pre: Float[Tensor, "*rows unit"]) -> Float[Tensor, "*rows unit"]:
        units, values = self._chosen(pre)
        return torch.zeros_like(pre).scatter(-1, units, values)

    def sparsely(self, pre: Float[Tensor, "row unit"]) -> SparseCodes:
        units, values = self._chosen(pre)
        return SparseCodes.chosen(units, values, pre.shape[-1])

    def _chosen(self, pre: Float[Tensor, "*rows unit"]) -> tuple[Tensor, Tensor]:
        if self.k > pre.shape[-1]:
            raise InputError(f"top-k with k = {self.k} needs as many units; there are {pre.shape[-1]}")
        ranked = pre if self.weight is None else pre * self.weight
        units = (ranked.abs() if self.signed else ranked).topk(self.k, sorted=False).indices
        values = pre.gather(-1, units)
        return units, values if self.signed else values.relu()

    def rescaled(self, factor: Float[Tensor, " unit"]) -> "TopK":
        weight = torch.ones_like(factor) if self.weight is None else self.weight
        return TopK(self.k, self.signed, weight / factor)

    def settings(self) -> dict[str, int | bool]:
        return {"k": self.k, "signed": self.signed}

    def tensors(self) -> dict[str, Float[Tensor, " unit"]]:
        return {} if self.weight is None else {"weight": self.weight}


@dataclass(frozen=True, eq=False)
class JumpReLU(Activation):
    """The pre-activation where it is positive and exceeds its unit's threshold `[unit]`, else zero."""

    threshold: Float[Tensor, " unit"]
    word = "jumprelu"

    def __call__(self, pre: Float[Tensor, "*rows unit"]) -> Float[Tensor, "*rows unit"]:
        return pre.relu() * (pre > self.threshold)

    def rescaled(self, factor: Float[Tensor, " unit"]) -> "JumpReLU":
        return JumpReLU(self.threshold * factor)

    def tensors(self) -> dict[str, Float[Tensor, " unit"]]:
        return {"threshold": self.threshold}


@dataclass(frozen=True, eq=False)
class Gated(Activation):
    """Where the pre-activation is positive: `scale · pre + shift`, or zero if that is less; each `[unit]`."""

    scale: Float[Tensor, " unit"]
    shift: Float[Tensor, " unit"]
    word = "gated"

    def __call__(self, pre: Float[Tensor, "*rows unit"]) -> Float[Tensor, "*rows unit"]:
        return (self.scale * pre + self.shift).relu() * (pre > 0)

    def rescaled(self, factor: Float[Tensor, " unit"]) -> "Gated":
        return Gated(self.scale, self.shift * factor)

    def tensors(self) -> dict[str, Float[Tensor, " unit"]]:
        return {"scale": self.scale, "shift": self.shift}


ACTIVATIONS: Final[Mapping[str, type[Activation]]] = {
    kind.word: kind for kind in (ReLU, TopK, JumpReLU, Gated)
}
