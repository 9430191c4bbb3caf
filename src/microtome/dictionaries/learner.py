"""How does one dictionary learn from a batch? Choose entries, write, compare, go down the gradient, hold the norms.

1. Which units are on is chosen without gradients (`selection`); pre-activations at those entries have exact ones
   (`drive`). Where more than a tenth of all entries is on, the whole matrix is used instead.
2. The loss: squared error, summed over dimensions and averaged over rows (over prefixes too, for Matryoshka), or a
   target of your own; what the variant adds (`variants`); the loss of dead units (`dead_units`).
3. Adam. The part of a gradient along a direction of norm 1 is taken out before, and the norm restored after.
4. Whatever is to be held (units on, the threshold of batch-top-k) is moved towards where it should be.

All that one step leaves to the next is in `state` and `held`: a learner can be kept, and go on as if nothing had been.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from microtome.core.draws import generator
from microtome.core.errors import InputError, NotFiniteError
from microtome.core.provenance import Provenance
from microtome.dictionaries.dead_units import auxiliary_loss, fresh_start
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.layout import Layout
from microtome.dictionaries.preparation import Preparation
from microtome.dictionaries.recipe import Recipe
from microtome.dictionaries.scene import OwnUnits, Scene, Target, squared_error
from microtome.dictionaries.variants import Outcome, Variant, variant_of


@dataclass(frozen=True)
class Taken:
    """What came of a step. loss: all of it; error: of the reconstruction; on: units on in a row; dead: units."""

    loss: float
    error: float
    on: float
    dead: int


class Learner:
    """A dictionary in training. Made from a recipe, what it reads and writes, the footings, and some first rows.

    parameters: by name, see `Scene`. idle `[unit]`: rows since each was on. held: numbers that the variant holds.
    """

    def __init__(
        self,
        recipe: Recipe,
        layout: Layout,
        widths: tuple[tuple[int, ...], tuple[int, ...]],
        footing: tuple[Preparation, Preparation],
        first: tuple[Float[Tensor, "row d_read"], Float[Tensor, "row d_write"]],
    ) -> None:
        self.recipe, self.layout, self.widths = recipe, layout, widths
        self.footing = footing
        self.step = 0
        self.tied = layout.in_place if recipe.tied is None else recipe.tied
        if self.tied and not layout.in_place:
            raise InputError(
                "what is added last can be subtracted first only where the sites read are written"
            )
        self.masks = {
            name: _spread(layout.mask(kinds, recipe.width), sizes, first[0].device)
            for name, kinds, sizes in (
                ("encoder", layout.reads_of, widths[0]),
                ("decoder", layout.writes_of, widths[1]),
            )
            if kinds
        }
        self.parameters = self._first_parameters(
            *(foot.apply(rows) for foot, rows in zip(footing, first, strict=True))
        )
        self.idle = torch.zeros(recipe.width, device=first[0].device)
        self.variant: Variant = variant_of(recipe)
        self.held: dict[str, float] = {}
        scene = self.scene(*first)
        self.parameters |= self.variant.parameters(scene)
        self.held |= self.variant.begin(scene)
        for parameter in self.parameters.values():
            parameter.requires_grad_()
        self.adam = torch.optim.Adam(
            list(self.distinct.values()), recipe.learning_rate, betas=recipe.betas, fused=True
        )

    @property
    def distinct(self) -> dict[str, Tensor]:
        """Parameters, each once: units that read what they write have one tensor for both."""
        same = self.parameters["encoder"] is self.parameters["decoder"]
        return {name: one for name, one in self.parameters.items() if not (same and name == "encoder")}

    def _first_parameters(
        self, x: Float[Tensor, "row d_read"], wanted: Float[Tensor, "row d_write"]
    ) -> dict[str, Tensor]:
        """Directions of norm 1, at random or those of rows; each unit reads what it writes, where that is the same."""
        recipe = self.recipe
        source = torch.Generator().manual_seed(recipe.seed)
        d_read, d_write = x.shape[1], wanted.shape[1]
        if recipe.initial == "random":
            reading = torch.randn(recipe.width, d_read, generator=source).to(x.device)
            writing = torch.randn(recipe.width, d_write, generator=source).to(x.device)
        else:
            rows = torch.randint(len(x), (recipe.width,), generator=source)
            reading, writing = x[rows], wanted[rows]
            jitter = torch.randn(recipe.width, d_write, generator=source).to(x.device)
            writing = writing + 0.1 * writing.norm(dim=-1, keepdim=True) * d_write**-0.5 * jitter
        if self.layout.in_place:
            reading = writing
        encoder, decoder = self._masked("encoder", reading), self._masked("decoder", writing)
        decoder = functional.normalize(decoder, dim=-1)
        encoder = functional.normalize(encoder, dim=-1)
        found = {
            "encoder": encoder.clone(),
            "bias": torch.zeros(recipe.width, device=x.device),
            "decoder": decoder.clone(),
            "decoder_bias": torch.zeros(d_write, device=x.device),
        }
        if self.layout.skip:
            found["skip"] = torch.zeros(d_write, d_read, device=x.device)
        return found

    def _masked(self, name: str, tensor: Tensor) -> Tensor:
        return tensor * self.masks[name] if name in self.masks else tensor

    def scene(
        self,
        values: Float[Tensor, "row d_read"],
        wanted: Float[Tensor, "row d_write"],
        target: Target | OwnUnits = squared_error,
    ) -> Scene:
        """A batch as this learner sees it now."""
        x = self.footing[0].apply(values)
        y = x if wanted is values and self.footing[0] is self.footing[1] else self.footing[1].apply(wanted)
        share = self.step / self.recipe.steps
        target = target.on(self.footing[1]) if isinstance(target, OwnUnits) else target
        return Scene(self.recipe, x, y, self.parameters, self.held, share, self.tied, target)

    @property
    def dead(self) -> Bool[Tensor, " unit"]:
        """Which units have not been on for as many rows as the recipe allows."""
        return self.idle >= self._patience

    @property
    def _patience(self) -> float:
        recipe = self.recipe
        if recipe.dead_after is not None:
            return recipe.dead_after
        return self._rows * max(20, recipe.steps // 20)

    _rows: int = 1

    def learn(
        self,
        values: Float[Tensor, "row d_read"],
        wanted: Float[Tensor, "row d_write"],
        target: Target | OwnUnits = squared_error,
    ) -> Taken:
        """One step. Raises `NotFiniteError`, with no weight changed, where the loss is none; `InputError` where no unit
        has been on for as long as makes one dead."""
        recipe, self._rows = self.recipe, self.count_rows(values)
        scene = self.scene(values, wanted, target)
        outcome = self.variant.run(scene)
        loss = outcome.loss
        dead = self.dead
        count = self.count_dead(dead)
        if count == recipe.width:
            raise InputError(
                f"all {count} units of {recipe.name} are dead at step {self.step}: none has been on for "
                f"{int(self._patience)} rows. Lower the coefficient or the learning rate, or ask for more units on"
            )
        if count and recipe.dead_units == "auxk":
            loss = loss + recipe.auxiliary * self.auxiliary(scene, dead, self._left(scene, outcome))
        total = self.reported(loss)
        if not math.isfinite(total):
            what = (
                "the batch holds NaN or infinity"
                if not bool(values.isfinite().all())
                else "it grew without bound"
            )
            raise NotFiniteError(
                f"the loss of {recipe.name} is {total} at step {self.step}: {what}. Nothing of this step was kept; "
                + ("mend the values" if "batch" in what else "lower the learning rate")
            )
        self._descend(loss, scene)
        with torch.no_grad():
            fired, on = self.count_on(outcome)
            self.idle = torch.where(fired > 0, 0.0, self.idle + self._rows)
            self.variant.hold(scene, on)
            if self._to_resample():
                self._resample(scene, outcome)
        self.step += 1
        return Taken(total, float(outcome.error.detach()), on, count)

    # What is the same for one process, and different where several share the work (`parallel`):

    @staticmethod
    def first_rows(rows: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """The whole of a batch that says the footing."""
        return rows

    @staticmethod
    def keeps() -> bool:
        """Whether this process writes what is kept."""
        return True

    @staticmethod
    def agreed(asked: bool) -> bool:
        """Whether this or another process is asked to stop."""
        return asked

    def count_rows(self, values: Float[Tensor, "row d_read"]) -> int:
        """Rows of the whole batch."""
        return len(values)

    def count_dead(self, dead: Bool[Tensor, " unit"]) -> int:
        """Dead units of the whole dictionary."""
        return int(dead.sum())

    def count_on(self, outcome: Outcome) -> tuple[Float[Tensor, " unit"], float]:
        """In how many rows of the whole batch each unit was on, and how many units of all in a row."""
        fired = outcome.drive.firing(outcome.codes)
        return fired, float(fired.double().sum()) / outcome.drive.rows

    def auxiliary(
        self, scene: Scene, dead: Bool[Tensor, " unit"], left: Float[Tensor, "row d_write"]
    ) -> Float[Tensor, ""]:
        """The loss of dead units."""
        return auxiliary_loss(scene, dead, left)

    def reported(self, loss: Float[Tensor, ""]) -> float:
        """The loss of the whole batch and dictionary."""
        return float(loss.detach())

    def pool_gradients(self) -> None:
        """Make gradients those of the whole batch."""

    def clip(self, most: float) -> None:
        """Make the norm of all gradients together at most this."""
        torch.nn.utils.clip_grad_norm_(self.distinct.values(), most)

    def _left(self, scene: Scene, outcome: Outcome) -> Float[Tensor, "row d_write"]:
        with torch.no_grad():
            rebuilt = scene.rebuilt(outcome.drive, outcome.codes)
            return scene.wanted - (rebuilt if rebuilt.ndim == 2 else rebuilt[-1])

    def _descend(self, loss: Float[Tensor, ""], scene: Scene) -> None:
        recipe, parameters = self.recipe, self.parameters
        self.adam.zero_grad()
        loss.backward()
        with torch.no_grad():
            self.pool_gradients()
            self.variant.adjust(scene)
            decoder = parameters["decoder"]
            for name in self.masks:
                parameters[name].grad = self._masked(name, _gradient(parameters[name]))
            if recipe.decoder == "unit":
                gradient = _gradient(decoder)
                gradient.addcmul_(decoder, (gradient * decoder).sum(-1, keepdim=True), value=-1)
            if recipe.clip is not None:
                self.clip(recipe.clip)
            for group in self.adam.param_groups:
                group["lr"] = self._rate()
            self.adam.step()
            if recipe.decoder == "unit":
                decoder.div_(decoder.norm(dim=-1, keepdim=True).clamp_min(1e-12))

    def _rate(self) -> float:
        recipe = self.recipe
        rise = min(1.0, (self.step + 1) / max(1.0, recipe.warm_up * recipe.steps))
        fall = min(1.0, (recipe.steps - self.step) / max(1.0, recipe.decay * recipe.steps))
        return recipe.learning_rate * rise * fall

    def _to_resample(self) -> bool:
        recipe = self.recipe
        if recipe.dead_units != "resample":
            return False
        every = max(1, 3 * recipe.steps // (4 * recipe.resamplings))
        return self.step > 0 and self.step % every == 0 and self.step <= 3 * recipe.steps // 4

    def _resample(self, scene: Scene, outcome: Outcome) -> None:
        dead = self.dead
        if not bool(dead.any()):
            return
        source = generator(self.recipe.seed, self.step)
        fresh_start(scene, dead, self._left(scene, outcome), source)
        for name in ("encoder", "decoder", "bias"):
            self.parameters[name].copy_(self._masked(name, self.parameters[name]))
            for moment in ("exp_avg", "exp_avg_sq"):
                self.adam.state[self.parameters[name]][moment][dead] = 0.0
        self.idle[dead] = 0.0

    def dictionary(self, provenance: Provenance | None = None) -> Dictionary:
        """What has been learned so far, with the footings gone into it. Codes are in the units of what is written."""
        read, write = self.footing
        own = {name: tensor.detach() for name, tensor in self.parameters.items()}
        # Directions keep their norms if all dimensions have one scale: then codes carry it.
        size = float(write.scale.double().log().mean().exp()) if write.matrix is None else 1.0
        added = write.back(own["decoder_bias"])
        skip, centre = None, read.centre + (read.back(own["decoder_bias"]) if self.tied else 0.0)
        decoder_bias = write.centre + added
        if "skip" in own:
            skip = write.back(read.forth(own["skip"]).mT).mT.contiguous()
            decoder_bias = decoder_bias - skip @ read.centre
        layout, recipe = self.layout, self.recipe
        activation = self.variant.activation(own, self.held)
        tensors = {name: tensor / size for name, tensor in activation.tensors().items() if name != "scale"}
        kept = {name: tensor for name, tensor in activation.tensors().items() if name == "scale"}
        return Dictionary(
            name=recipe.name,
            reads=layout.reads,
            writes=layout.writes,
            read_widths=self.widths[0],
            write_widths=self.widths[1],
            activation=activation.mapped(tensors | kept),
            encoder=read.forth(own["encoder"]) / size,
            encoder_bias=own["bias"] / size,
            decoder=write.back(own["decoder"]) * size,
            decoder_bias=decoder_bias,
            centre=centre,
            skip=skip,
            reads_of=layout.mask(layout.reads_of, recipe.width),
            writes_of=layout.mask(layout.writes_of, recipe.width),
            provenance=provenance or Provenance(),
            recipe=recipe.model_dump(mode="json"),
        )

    def state(self) -> dict[str, Tensor]:
        """All tensors that the next step depends on. With `held`, `step` and the footings, it is everything."""
        found = {f"parameter.{name}": tensor.detach() for name, tensor in self.distinct.items()}
        for name, tensor in self.distinct.items():
            for moment, value in self.adam.state.get(tensor, {}).items():
                found[f"adam.{name}.{moment}"] = value
        return found | {"idle": self.idle}

    def restore(self, state: Mapping[str, Tensor], held: Mapping[str, float], step: int) -> None:
        """Go on from there."""
        self.step, self.held = step, dict(held)
        with torch.no_grad():
            self.idle.copy_(state["idle"])
            for name, tensor in self.distinct.items():
                tensor.copy_(state[f"parameter.{name}"])
                prefix = f"adam.{name}."
                self.adam.state[tensor] = {
                    key.removeprefix(prefix): value.to(tensor.device)
                    for key, value in state.items()
                    if key.startswith(prefix)
                }


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _spread(
    mask: Bool[Tensor, "unit site"] | None, widths: tuple[int, ...], device: torch.device
) -> Float[Tensor, "unit d"]:
    """From sites to the numbers of each."""
    assert mask is not None
    return mask.repeat_interleave(torch.tensor(widths), 1).float().to(device)
