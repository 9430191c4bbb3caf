"""What does a dictionary in training see at one step? A batch, its parameters, and how far the training is."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core.errors import InputError
from microtome.dictionaries.drive import DenseDrive, Drive, SparseDrive
from microtome.dictionaries.preparation import Preparation
from microtome.dictionaries.recipe import Recipe
from microtome.dictionaries.selection import Selection

Target = Callable[[Float[Tensor, "*prefix row d"], Float[Tensor, "row d"]], Float[Tensor, "*prefix"]]


def squared_error(
    rebuilt: Float[Tensor, "*prefix row d"], wanted: Float[Tensor, "row d"]
) -> Float[Tensor, "*prefix"]:
    """Summed over dimensions, averaged over rows: the loss where no other is given."""
    return (rebuilt - wanted).square().sum(-1).mean(-1)


class OwnUnits(ABC):
    """A loss of values as the model has them, where a plain `Target` sees them as they are prepared."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides the loss, beside the values, in plain JSON."""

    @abstractmethod
    def loss(self, rebuilt: Float[Tensor, "row d"], wanted: Float[Tensor, "row d"]) -> Float[Tensor, ""]:
        """Of all rows of a batch, in order."""

    def on(self, footing: Preparation) -> Target:
        """The same loss of values prepared so; of each prefix in turn, where there are several."""

        def of_prepared(rebuilt: Tensor, wanted: Tensor) -> Tensor:
            own = footing.undo(wanted)
            if rebuilt.ndim == 2:
                return self.loss(footing.undo(rebuilt), own)
            return torch.stack([self.loss(footing.undo(prefix), own) for prefix in rebuilt])

        return of_prepared


def told(target: Target | OwnUnits) -> dict[str, Any]:
    """What is trained for, as it is kept with a training: a function by its name, for its text cannot be compared.

    Raises `InputError` for what has no name, such as a partial function.
    """
    if isinstance(target, OwnUnits):
        return {"kind": type(target).__qualname__} | target.identity
    name = getattr(target, "__qualname__", None)
    if name is None:
        raise InputError(
            f"a training that is kept has to know its target again; {type(target).__name__} has no name. "
            "Give a function, or a subclass of OwnUnits with an identity"
        )
    return {"kind": f"{target.__module__}.{name}"}


@dataclass(frozen=True, eq=False)
class Scene:
    """x `[row, d_read]`, wanted `[row, d_write]`: prepared. share: of the training that is done, 0 … 1.

    parameters: encoder `[unit, d_read]`, bias `[unit]`, decoder `[unit, d_write]`, decoder_bias `[d_write]`, with a
    skip `[d_write, d_read]` where there is one, and the variant's own. held: what the variant holds.
    """

    recipe: Recipe
    x: Float[Tensor, "row d_read"]
    wanted: Float[Tensor, "row d_write"]
    parameters: dict[str, Tensor]
    held: dict[str, float]
    share: float
    tied: bool
    target: Target = squared_error

    @property
    def centre(self) -> Float[Tensor, " d_read"]:
        """What is subtracted before encoding: what is added after decoding, if they are tied."""
        return self.parameters["decoder_bias"] if self.tied else torch.zeros_like(self.x[0])

    @property
    def product(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, directions and biases whose product the pre-activations are; without gradients."""
        parameters = self.parameters
        x = self.x - self.centre.detach() if self.tied else self.x
        return x, parameters["encoder"].detach(), parameters["bias"].detach()

    def sparse(self, chosen: Selection) -> SparseDrive:
        """Pre-activations at entries, with gradients."""
        encoder, bias = self.parameters["encoder"], self.parameters["bias"]
        return SparseDrive(chosen.entries, chosen.pre, self.x, self.centre, encoder, bias)

    def dense(self) -> DenseDrive:
        """All pre-activations, with gradients."""
        parameters, half = self.parameters, self.recipe.half
        return DenseDrive(self.x, self.centre, parameters["encoder"], parameters["bias"], half)

    def rebuilt(
        self, drive: Drive, codes: Tensor, frozen: bool = False
    ) -> Float[Tensor, "*prefix row d_write"]:
        """What codes write; frozen: without gradients for what writes."""
        decoder, bias = self.parameters["decoder"], self.parameters["decoder_bias"]
        if frozen:
            decoder, bias = decoder.detach(), bias.detach()
        written = drive.written(codes, decoder, self.recipe.prefixes) + bias
        if "skip" in self.parameters:
            skip = self.parameters["skip"]
            written = written + self.x @ (skip.detach() if frozen else skip).mT
        return written

    def pooled(self, paid: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """What is paid for all units, given what is paid for these; they are all, where one process holds them."""
        return paid

    def error(self, drive: Drive, codes: Tensor, frozen: bool = False) -> Float[Tensor, ""]:
        """How far what codes write is from what is wanted, averaged over prefixes."""
        return self.target(self.rebuilt(drive, codes, frozen), self.wanted).mean()
