"""Which units are on, and how strongly, given how far each is driven? Functions from pre-activations to codes.

    ReLU              what is positive
    TopK              the k largest of a row, where positive (or the k largest in magnitude, with their signs)
    JumpReLU          what exceeds a threshold of its unit; BatchTopK, once trained, is this with one threshold for all
    Gated             what is positive decides which, an affine function of it decides how strongly
    MatchingPursuit   one after the other, what is driven most by what those before left

All but TopK and MatchingPursuit look at each unit alone. `rescaled` says the same of units whose pre-activations are
multiplied by positive factors, so that norms can be moved from decoders into encoders.

Gao et al. (2024), Scaling and evaluating sparse autoencoders; Rajamanoharan et al. (2024), Gated, and JumpReLU.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.bases.codes import SparseCodes
from microtome.core.errors import InputError
from microtome.dictionaries.matching_pursuit import pursued, solved


class Activation(ABC):
    """A function from pre-activations to codes. Its fields, plain settings and tensors `[unit]`, are kept in files."""

    word: ClassVar[str]
    competes: ClassVar[bool] = False  # whether it depends on other units which ones are on

    def of(
        self, readers: Float[Tensor, "unit d_read"], writers: Float[Tensor, "unit d_write"]
    ) -> "Activation":
        """The same for units that read and write these directions: for most it makes no difference."""
        return self

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
    competes = True

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


@dataclass(frozen=True, eq=False)
class MatchingPursuit(Activation):
    """At most k units, each chosen for what those before it left; see `matching_pursuit`.

    weight `[unit]`: units are ranked by pre-activation times weight; None: by pre-activation. readers, writers
    `[unit, d]`: whose pre-activations these are, and what they write; a dictionary knows, see `of`.
    """

    k: int
    weight: Float[Tensor, " unit"] | None = None
    readers: Float[Tensor, "unit d"] | None = None
    writers: Float[Tensor, "unit d"] | None = None
    word = "matching_pursuit"
    competes = True

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"matching pursuit keeps at least one unit; got k = {self.k}")

    def of(
        self, readers: Float[Tensor, "unit d_read"], writers: Float[Tensor, "unit d_write"]
    ) -> "MatchingPursuit":
        if readers.shape != writers.shape:
            raise InputError(
                "matching pursuit takes away what units write from what they read, so both are the same sites; got "
                f"{readers.shape[1]} numbers read and {writers.shape[1]} written"
            )
        return replace(self, readers=readers, writers=writers)

    def __call__(self, pre: Float[Tensor, "*rows unit"]) -> Float[Tensor, "*rows unit"]:
        rows = pre.reshape(-1, pre.shape[-1])
        units, values = self._chosen(rows)
        return torch.zeros_like(rows).scatter(-1, units, values).view(pre.shape)

    def sparsely(self, pre: Float[Tensor, "row unit"]) -> SparseCodes:
        units, values = self._chosen(pre)
        return SparseCodes.chosen(units, values, pre.shape[-1])

    def _chosen(self, pre: Float[Tensor, "row unit"]) -> tuple[Tensor, Tensor]:
        if self.readers is None or self.writers is None:
            raise InputError("matching pursuit needs to know what units read and write; ask a dictionary")
        units, values = pursued(pre, self.readers, self.writers, self.k, self.weight)
        if torch.is_grad_enabled() and pre.requires_grad:
            values = solved(pre.gather(-1, units), units, self.readers, self.writers) * (values > 0)
        return units, values

    def rescaled(self, factor: Float[Tensor, " unit"]) -> "MatchingPursuit":
        weight = torch.ones_like(factor) if self.weight is None else self.weight
        return MatchingPursuit(self.k, weight / factor)

    def settings(self) -> dict[str, int | bool]:
        return {"k": self.k}

    def tensors(self) -> dict[str, Float[Tensor, " unit"]]:
        return {} if self.weight is None else {"weight": self.weight}


ACTIVATIONS: Final[Mapping[str, type[Activation]]] = {
    kind.word: kind for kind in (ReLU, TopK, JumpReLU, Gated, MatchingPursuit)
}
