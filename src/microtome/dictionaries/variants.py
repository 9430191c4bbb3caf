"""What makes one kind of dictionary differ from another, in training? Which entries count, what is paid, what is held.

    ReLU          all that is positive; pays a penalty for strength
    TopK          the k largest of each row; pays nothing (beside it, if so asked, an eighth of the loss with more)
    BatchTopK     the largest of the batch, rows times k; holds the threshold that does the same later
    Pursuit       k of each row, each for what those before it left; units read what they write; pays nothing
    JumpReLU      what exceeds a threshold of its own unit, which is learned; holds the number of units on
    Gated         what is positive; another affine function of the same says how strongly; pays for the first alone

With prefixes (Matryoshka) each of them has to rebuild what is wanted alone, and pays for its own units: the loss is the
mean over prefixes, so that a unit that is in few of them pays little, as it is taught little.

Holding the number of units on: ReLU and Gated multiply the coefficient of their penalty, JumpReLU all its thresholds,
by a power of how many too many are on. JumpReLU's gradient of each threshold is that of the error plus λ times that of
the number on, λ such that their sum over units vanishes: which units are on follows from the loss, how many from
what was asked for. A threshold's gradient is estimated from entries within a window about it (straight-through).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core.errors import InputError
from microtome.dictionaries import penalties
from microtome.dictionaries.activations import Activation, Gated, JumpReLU, MatchingPursuit, ReLU, TopK
from microtome.dictionaries.drive import Drive, Entries
from microtome.dictionaries.matching_pursuit import pursued, solved
from microtome.dictionaries.recipe import Recipe
from microtome.dictionaries.scene import Scene
from microtome.dictionaries.selection import Selection, above, batch_top_k, chunks, top_k

_DENSE: Final = 0.1  # of entries on, from which the whole matrix is faster
_FORGET: Final = 0.01  # of what is held, in a step
_GAIN: Final = 0.02  # of the coefficient of a penalty
_SHIFT: Final = 0.1  # of thresholds
_MULTI: Final = 1 / 8


@dataclass(frozen=True, eq=False)
class Outcome:
    """loss: all of it, error: of the reconstruction alone. codes: at the entries of drive."""

    loss: Float[Tensor, ""]
    error: Float[Tensor, ""]
    drive: Drive
    codes: Tensor


class Variant(ABC):
    """One kind of dictionary. What it holds from step to step lies in `held`, by name."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def parameters(self, scene: Scene) -> dict[str, Tensor]:
        """Its own parameters at the beginning, one number for each unit."""
        return {}

    def begin(self, scene: Scene) -> dict[str, float]:
        """What is held at the beginning, given the first rows."""
        return {}

    @abstractmethod
    def run(self, scene: Scene) -> Outcome:
        """A batch."""

    def adjust(self, scene: Scene) -> None:  # noqa: B027  (most have nothing to change)
        """Change gradients before they are used."""

    def hold(self, scene: Scene, on: float) -> None:  # noqa: B027  (some hold nothing)
        """Move what is held towards where it should be."""

    @abstractmethod
    def activation(self, parameters: dict[str, Tensor], held: dict[str, float]) -> Activation:
        """What does the same when training is over."""

    def power(self, share: float) -> float:
        """The power of the penalty when this share of the training is done."""
        recipe = self.recipe
        if recipe.penalty != "lp":
            return 1.0
        return 1 - (1 - recipe.power) * min(1.0, max(0.0, 2 * share - 1)) if recipe.anneal else recipe.power

    def paid(self, scene: Scene, drive: Drive, strength: Tensor) -> Tensor:
        """The penalty of strengths times norms, averaged over rows, with its coefficient."""
        recipe, held = self.recipe, scene.held
        if recipe.decoder == "free":
            strength = strength * drive.each(scene.parameters["decoder"].norm(dim=-1))

        def total(strength: Tensor, power: float) -> Tensor:
            costs = penalties.cost(recipe.penalty, strength, power, recipe.bend)
            if recipe.prefixes:  # what a unit pays is averaged over prefixes, as the error is
                units = torch.arange(recipe.width, device=costs.device)
                bounds = torch.tensor(recipe.prefixes, device=costs.device)
                costs = costs * drive.each((bounds[:, None] > units).to(costs.dtype).mean(0))
            return costs.sum()

        power = self.power(scene.share)
        now = total(strength, power)
        if power != held["power"]:  # annealed: the sum stays what it was
            before = total(strength.detach(), held["power"])
            held["coefficient"] *= float(before / now.detach()) if now > 0 else 1.0
            held["power"] = power
        ramp = min(1.0, scene.share / recipe.warm_up) if recipe.warm_up else 1.0
        return scene.pooled(ramp * held["coefficient"] * now / drive.rows)

    def hold_coefficient(self, scene: Scene, on: float) -> None:
        """Where too many are on, more is paid. What is too many falls, in the first third, from how many were on."""
        if self.recipe.controlled:
            first = scene.held.setdefault("first", max(on, self.recipe.on))
            goal = self.recipe.on * (first / self.recipe.on) ** max(0.0, 1 - 3 * scene.share)
            scene.held["coefficient"] *= math.exp(_GAIN * math.log(max(on, 1e-3) / goal))


class _Positive(Variant):
    """Those that count what is positive and pay a penalty."""

    def begin(self, scene: Scene) -> dict[str, float]:
        coefficient = self.recipe.coefficient
        return {
            "coefficient": 1.0 if coefficient is None else coefficient,
            "power": 1.0 if self.recipe.anneal else self.power(0.0),
            "density": 1.0,
        }

    def positive(self, scene: Scene) -> Drive:
        if scene.held["density"] > _DENSE:
            return scene.dense()
        floor = torch.zeros_like(scene.parameters["bias"])
        return scene.sparse(above(*scene.product, floor, self.recipe.half))

    def hold(self, scene: Scene, on: float) -> None:
        scene.held["density"] = on / self.recipe.width
        self.hold_coefficient(scene, on)


class _ReLU(_Positive):
    def run(self, scene: Scene) -> Outcome:
        drive = self.positive(scene)
        codes = drive.pre.relu_()  # nobody needs what it was
        error = scene.error(drive, codes)
        return Outcome(error + self.paid(scene, drive, codes), error, drive, codes)

    def activation(self, parameters: dict[str, Tensor], held: dict[str, float]) -> Activation:
        return ReLU()


class _Gated(_Positive):
    def parameters(self, scene: Scene) -> dict[str, Tensor]:
        zeros = torch.zeros_like(scene.parameters["bias"])
        return {"log_scale": zeros.clone(), "shift": zeros.clone()}

    def run(self, scene: Scene) -> Outcome:
        drive = self.positive(scene)
        parameters = scene.parameters
        bare = drive.pre - drive.each(parameters["bias"])
        strength = drive.each(parameters["log_scale"].exp()) * bare + drive.each(parameters["shift"])
        gate = drive.pre.relu()
        codes = strength.relu() * (drive.pre > 0)
        error = scene.error(drive, codes)
        # The gate has to rebuild by itself what the decoder would make of it, and must not teach the decoder.
        alone = scene.error(drive, gate, frozen=True)
        return Outcome(error + alone + self.paid(scene, drive, gate), error, drive, codes)

    def activation(self, parameters: dict[str, Tensor], held: dict[str, float]) -> Activation:
        scale = parameters["log_scale"].exp()
        return Gated(scale, parameters["shift"] - scale * parameters["bias"])


class TopKVariant(Variant):
    """The k largest of each row."""

    def chosen(self, scene: Scene, k: int) -> Selection:
        """The entries that count."""
        return top_k(*scene.product, k, self.recipe.half)

    def run(self, scene: Scene) -> Outcome:
        k = int(self.recipe.on)
        chosen = self.chosen(scene, k * self.recipe.multi)
        drive = scene.sparse(chosen)
        codes = drive.pre.relu()
        if self.recipe.multi == 1:
            error = scene.error(drive, codes)
            return Outcome(error, error, drive, codes)
        more = scene.error(drive, codes)
        ranked = chosen.pre.view(drive.rows, -1)
        kept = torch.zeros_like(ranked).scatter(1, ranked.topk(k, sorted=False).indices, 1.0)
        codes = codes * kept.flatten()
        error = scene.error(drive, codes)
        return Outcome(error + _MULTI * more, error, drive, codes)

    def activation(self, parameters: dict[str, Tensor], held: dict[str, float]) -> Activation:
        return TopK(int(self.recipe.on))


class _MatchingPursuit(Variant):
    def parameters(self, scene: Scene) -> dict[str, Tensor]:
        if not scene.tied:
            raise InputError(
                "matching pursuit takes away what units write from what they read: one site for both"
            )
        return {"encoder": scene.parameters["decoder"]}

    def run(self, scene: Scene) -> Outcome:
        x, directions, _ = scene.product
        k, rows = int(self.recipe.on), len(x)
        parts = []
        for some in x.split(chunks(rows, len(directions))):
            pre = some @ directions.mT
            units, strengths = pursued(pre, directions, directions, k)
            parts.append((units, strengths > 0, pre.gather(1, units)))
        units, on, pre = (torch.cat(part) for part in zip(*parts, strict=True))
        # Entries stand in the order of units, the system in that in which they were taken.
        place, back = (order := units.argsort(-1)), order.argsort(-1)
        row = torch.arange(rows, device=x.device).repeat_interleave(k)
        entries = Entries(row, units.gather(1, place).flatten(), rows, len(directions))
        drive = scene.sparse(Selection(entries, pre.gather(1, place).flatten()))
        decoder = scene.parameters["decoder"]
        strengths = solved(drive.pre.view(rows, k).gather(1, back), units, decoder, decoder) * on
        codes = strengths.gather(1, place).flatten()
        error = scene.error(drive, codes)
        return Outcome(error, error, drive, codes)

    def adjust(self, scene: Scene) -> None:
        gradient = scene.parameters["bias"].grad
        if gradient is not None:
            gradient.zero_()  # biases are zero, and stay so

    def activation(self, parameters: dict[str, Tensor], held: dict[str, float]) -> Activation:
        return MatchingPursuit(int(self.recipe.on))


class BatchTopKVariant(Variant):
    """The largest of the batch, rows times k. rows: of the whole batch, for each that a scene holds."""

    def __init__(self, recipe: Recipe, rows: int = 1) -> None:
        super().__init__(recipe)
        self._rows = rows

    def begin(self, scene: Scene) -> dict[str, float]:
        return {"threshold": batch_top_k(*scene.product, max(1, round(self.recipe.on * len(scene.x)))).least}

    def chosen(self, scene: Scene, count: int, guess: float) -> Selection:
        """The entries that count, of this many. guess: something below the smallest of them makes it faster."""
        return batch_top_k(*scene.product, count, guess, self.recipe.half)

    def run(self, scene: Scene) -> Outcome:
        count = max(1, round(self.recipe.on * len(scene.x) * self._rows))
        chosen = self.chosen(scene, count, 0.8 * scene.held["threshold"])
        drive = scene.sparse(chosen)
        self._least = chosen.least
        codes = drive.pre.relu()
        error = scene.error(drive, codes)
        return Outcome(error, error, drive, codes)

    def hold(self, scene: Scene, on: float) -> None:
        scene.held["threshold"] += _FORGET * (self._least - scene.held["threshold"])

    def activation(self, parameters: dict[str, Tensor], held: dict[str, float]) -> Activation:
        return JumpReLU(torch.full_like(parameters["bias"], held["threshold"]))


class _Jump(torch.autograd.Function):
    """pre where it exceeds its threshold; the slope in log threshold is taken from a window about it."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, log_threshold: Tensor, window: float) -> Tensor:
        ratio = pre * torch.exp(-log_threshold)
        ctx.save_for_backward(pre, ratio)
        ctx.window = window
        return pre * (ratio > 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pre, ratio = ctx.saved_tensors
        grad = grads[0]
        near = (ratio - 1).abs() < ctx.window / 2
        return grad * (ratio > 1), -grad * pre / ratio * near / ctx.window, None


class _JumpReLU(Variant):
    def parameters(self, scene: Scene) -> dict[str, Tensor]:
        least = batch_top_k(*scene.product, max(1, round(self.recipe.on * len(scene.x)))).least
        return {"log_threshold": torch.full_like(scene.parameters["bias"], math.log(max(least, 1e-6)))}

    def run(self, scene: Scene) -> Outcome:
        window = self.recipe.window
        log_threshold = scene.parameters["log_threshold"]
        threshold = log_threshold.detach().exp()
        drive = scene.sparse(above(*scene.product, threshold * (1 - window / 2), self.recipe.half))
        codes = _Jump.apply(drive.pre, drive.each(log_threshold), window)  # type: ignore[no-untyped-call]
        near = (drive.pre.detach() / drive.each(threshold) - 1).abs() < window / 2
        self.slope = -drive.firing(near.to(codes.dtype)) / (window * drive.rows)
        error = scene.error(drive, codes)
        return Outcome(error, error, drive, codes)

    def adjust(self, scene: Scene) -> None:
        gradient = scene.parameters["log_threshold"].grad
        total = float(self.slope.sum())
        if gradient is not None and total < 0:
            gradient.add_(self.slope, alpha=-float(gradient.sum()) / total)

    def hold(self, scene: Scene, on: float) -> None:
        shift = _SHIFT * math.log(max(on, 1e-3) / self.recipe.on)
        with torch.no_grad():
            scene.parameters["log_threshold"].add_(shift)

    def activation(self, parameters: dict[str, Tensor], held: dict[str, float]) -> Activation:
        return JumpReLU(parameters["log_threshold"].exp())


def variant_of(recipe: Recipe) -> Variant:
    """The kind of dictionary that a recipe asks for."""
    kinds: dict[str, type[Variant]] = {
        "relu": _ReLU,
        "topk": TopKVariant,
        "batch_topk": BatchTopKVariant,
        "jumprelu": _JumpReLU,
        "gated": _Gated,
        "matching_pursuit": _MatchingPursuit,
    }
    return kinds[recipe.activation](recipe)
