"""How do several processes train one dictionary? They share the rows of each batch, or the units of the dictionary.

    torchrun --nproc-per-node 2 script.py

    distributed.init_process_group("gloo")
    train(ShareOfRows(stream), recipes, learner=DataParallel)
    train(stream, recipes, learner=Sharded)
    distributed.destroy_process_group()

1. Rows shared: gradients are averaged over processes, counts of units that are on are summed, and the first rows, which
   say the footing, are put together; so every process goes the way that one would go with all rows.
2. Units shared: every process sees all rows. Each offers the k units of its own that are driven most; the k largest of
   all offers are on, which are the k largest of all units. What they write is summed over processes.

Both give what one process gives, up to the order of sums. Top-k, ReLU and gated units can be shared in both ways;
JumpReLU and prefixes with rows shared; choices out of a whole batch, annealing and resampling cannot, and are refused.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, distributed

from microtome.bases.streams import Stream
from microtome.core.errors import InputError
from microtome.core.provenance import Provenance
from microtome.core.site import Site
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.drive import Drive, Entries
from microtome.dictionaries.layout import Layout
from microtome.dictionaries.learner import Learner
from microtome.dictionaries.preparation import Preparation
from microtome.dictionaries.recipe import Recipe
from microtome.dictionaries.scene import OwnUnits, Scene, Target, squared_error
from microtome.dictionaries.selection import Selection, top_k
from microtome.dictionaries.variants import Outcome, Variant, variant_of

_SHARED = ("decoder_bias", "skip")


class ShareOfRows:
    """A stream's batches, of which each process takes its own consecutive rows.

    Raises `InputError` where they cannot be dealt out evenly.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._rank, self._count = _place()
        if stream.batch_rows % self._count:
            raise InputError(
                f"batches of {stream.batch_rows} rows cannot be dealt out to {self._count} processes evenly"
            )
        self.sites: tuple[Site, ...] = stream.sites
        self.widths, self.n_steps, self.step = stream.widths, stream.n_steps, stream.step
        self.batch_rows = stream.batch_rows // self._count

    @property
    def identity(self) -> dict[str, Any]:
        return self._stream.identity

    def __iter__(self) -> Iterator[Float[Tensor, "row d"]]:
        return self

    def __next__(self) -> Float[Tensor, "row d"]:
        rows = next(iter(self._stream))
        self.step = self._stream.step
        return rows[self._rank * self.batch_rows : (self._rank + 1) * self.batch_rows]

    def seek(self, step: int) -> None:
        self._stream.seek(step)
        self.step = step


class DataParallel(Learner):
    """A learner that sees a share of the rows, and learns from all."""

    def __init__(
        self,
        recipe: Recipe,
        layout: Layout,
        widths: tuple[tuple[int, ...], tuple[int, ...]],
        footing: tuple[Preparation, Preparation],
        first: tuple[Tensor, Tensor],
    ) -> None:
        _check(recipe, ("topk", "relu", "gated", "jumprelu"))
        super().__init__(recipe, layout, widths, footing, first)

    @staticmethod
    def first_rows(rows: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        return _gathered(rows)

    @staticmethod
    def keeps() -> bool:
        return _place()[0] == 0

    def count_rows(self, values: Float[Tensor, "row d_read"]) -> int:
        return len(values) * _place()[1]

    def count_on(self, outcome: Outcome) -> tuple[Float[Tensor, " unit"], float]:
        fired = _summed(outcome.drive.firing(outcome.codes))
        return fired, float(fired.sum()) / self._rows

    def reported(self, loss: Float[Tensor, ""]) -> float:
        return float(_summed(loss.detach()) / _place()[1])

    def pool_gradients(self) -> None:
        for parameter in self.parameters.values():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = _summed(gradient) / _place()[1]
        # How many units stand near their thresholds is counted apart from gradients.
        if isinstance(slope := getattr(self.variant, "slope", None), Tensor):
            slope.copy_(_summed(slope) / _place()[1])


@dataclass(frozen=True, eq=False)
class _ShardedScene(Scene):
    """A scene whose units are a share of all: what they write is summed over processes."""

    def rebuilt(self, drive: Drive, codes: Tensor, frozen: bool = False) -> Float[Tensor, "row d_write"]:
        decoder = self.parameters["decoder"]
        shared = {name: self.parameters[name] for name in _SHARED if name in self.parameters}
        if frozen or _place()[0]:
            # What all processes add alike has its gradient in one of them.
            shared = {name: tensor.detach() for name, tensor in shared.items()}
        written = (
            _together(drive.written(codes, decoder.detach() if frozen else decoder)) + shared["decoder_bias"]
        )
        return written + self.x @ shared["skip"].mT if "skip" in shared else written

    def pooled(self, paid: Float[Tensor, ""]) -> Float[Tensor, ""]:
        return _together(paid)


class _ShardedTopK(Variant):
    """The k largest of all processes' units."""

    def __init__(self, recipe: Recipe, whole: Variant) -> None:
        super().__init__(recipe)
        self._whole = whole

    def run(self, scene: Scene) -> Outcome:
        x, encoder, bias = scene.product
        k = int(self.recipe.on)
        chosen = _largest_of_all(top_k(x, encoder, bias, min(k, len(encoder))), k)
        drive = scene.sparse(chosen)
        codes = drive.pre.relu()
        error = scene.error(drive, codes)
        return Outcome(error, error, drive, codes)

    def activation(self, parameters: dict[str, Tensor], held: dict[str, float]) -> Any:
        return self._whole.activation(parameters, held)


class Sharded(Learner):
    """A learner that holds a share of the units, consecutive ones, and sees all rows. It begins with all of them."""

    def __init__(
        self,
        recipe: Recipe,
        layout: Layout,
        widths: tuple[tuple[int, ...], tuple[int, ...]],
        footing: tuple[Preparation, Preparation],
        first: tuple[Tensor, Tensor],
    ) -> None:
        _check(recipe, ("topk", "relu", "gated"))
        if recipe.prefixes or recipe.multi > 1:
            raise InputError(
                "prefixes and multi-top-k need all units in one process; share rows instead (DataParallel)"
            )
        rank, count = _place()
        if recipe.width % count:
            raise InputError(
                f"{recipe.width} units cannot be dealt out to {count} processes evenly; change the width"
            )
        super().__init__(recipe, layout, widths, footing, first)
        size = recipe.width // count
        self._own = slice(rank * size, (rank + 1) * size)
        self.parameters = {
            name: self._share(name, tensor.detach()).clone().requires_grad_()
            for name, tensor in self.parameters.items()
        }
        self.masks = {name: mask[self._own] for name, mask in self.masks.items()}
        self.idle = self.idle[self._own].clone()
        if recipe.activation == "topk":
            self.variant = _ShardedTopK(recipe, variant_of(recipe))
        self.adam = torch.optim.Adam(
            list(self.parameters.values()), recipe.learning_rate, betas=recipe.betas, fused=True
        )

    def _share(self, name: str, tensor: Tensor) -> Tensor:
        return tensor if name in _SHARED or not tensor.ndim else tensor[self._own]

    @staticmethod
    def keeps() -> bool:
        return _place()[0] == 0

    def scene(
        self,
        values: Float[Tensor, "row d_read"],
        wanted: Float[Tensor, "row d_write"],
        target: Target | OwnUnits = squared_error,
    ) -> Scene:
        return _ShardedScene(**vars(super().scene(values, wanted, target)))

    def count_dead(self, dead: Bool[Tensor, " unit"]) -> int:
        return int(_summed(dead.sum()))

    def count_on(self, outcome: Outcome) -> tuple[Float[Tensor, " unit"], float]:
        fired = outcome.drive.firing(outcome.codes)
        return fired, float(_summed(fired.sum())) / self._rows

    def auxiliary(
        self, scene: Scene, dead: Bool[Tensor, " unit"], left: Float[Tensor, "row d_write"]
    ) -> Float[Tensor, ""]:
        x, encoder, bias = scene.product
        units = dead.nonzero()[:, 0]
        k = min(self.count_dead(dead), max(1, left.shape[1] // 2))
        own = min(k, len(units))
        offered = top_k(x, encoder[units], bias[units], own) if own else _nothing(x)
        chosen = _largest_of_all(offered, k)
        entries = Entries(chosen.entries.row, units[chosen.entries.unit], len(x), len(encoder))
        drive = scene.sparse(Selection(entries, chosen.pre))
        written = _together(drive.written(drive.pre.relu(), scene.parameters["decoder"]))
        return (written - left.detach()).square().sum(-1).mean()

    def pool_gradients(self) -> None:
        for name in _SHARED:
            if name in self.parameters:
                parameter = self.parameters[name]
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = _summed(gradient)

    def clip(self, most: float) -> None:
        squares = {name: _square(parameter) for name, parameter in self.parameters.items()}
        own = torch.stack([square for name, square in squares.items() if name not in _SHARED]).sum()
        alike = torch.stack([square for name, square in squares.items() if name in _SHARED]).sum()
        norm = (_summed(own) + alike).sqrt()
        factor = (most / (norm + 1e-6)).clamp(max=1.0)
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def dictionary(self, provenance: Provenance | None = None) -> Dictionary:
        own = self.parameters
        self.parameters = {name: self._all(name, tensor.detach()) for name, tensor in own.items()}
        try:
            return super().dictionary(provenance)
        finally:
            self.parameters = own

    def _all(self, name: str, tensor: Tensor) -> Tensor:
        return tensor if name in _SHARED or not tensor.ndim else _gathered(tensor)

    def state(self) -> dict[str, Tensor]:
        return {key: self._all(_parameter_of(key), tensor) for key, tensor in super().state().items()}

    def restore(self, state: Mapping[str, Tensor], held: Mapping[str, float], step: int) -> None:
        super().restore(
            {key: self._share(_parameter_of(key), tensor).clone() for key, tensor in state.items()},
            held,
            step,
        )


def _parameter_of(key: str) -> str:
    """The parameter whose state this is; its own name for what belongs to none."""
    parts = key.split(".")
    return parts[1] if len(parts) > 1 else key


def _check(recipe: Recipe, known: tuple[str, ...]) -> None:
    if recipe.activation not in known or recipe.anneal or recipe.dead_units == "resample":
        raise InputError(
            f"several processes train {', '.join(known)} in this way, neither annealed nor resampled; "
            f"got {recipe.activation}{', annealed' * recipe.anneal}, dead units: {recipe.dead_units}"
        )


def _largest_of_all(offered: Selection, k: int) -> Selection:
    """Of what each process offers in a row, what is among the k largest of all. The same on every process."""
    entries = offered.entries
    mine = offered.pre.view(entries.rows, len(offered.pre) // entries.rows)
    padded = mine.new_full((entries.rows, k), -torch.inf)
    padded[:, : mine.shape[1]] = mine
    rank, count = _place()
    every = [torch.empty_like(padded) for _ in range(count)]
    distributed.all_gather(every, padded)
    together = torch.cat(every, -1)
    on = torch.zeros_like(together, dtype=torch.bool).scatter_(-1, together.topk(k, -1).indices, True)
    kept = on[:, rank * k : rank * k + mine.shape[1]].flatten()
    return Selection(
        Entries(entries.row[kept], entries.unit[kept], entries.rows, entries.units), offered.pre[kept]
    )


def _nothing(x: Float[Tensor, "row d"]) -> Selection:
    none = torch.empty(0, dtype=torch.long, device=x.device)
    return Selection(Entries(none, none, len(x), 0), x.new_empty(0))


class _Together(torch.autograd.Function):
    """A sum over processes, which all compute the same loss from it: so the gradient of each share is the whole's."""

    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:
        return _summed(share)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def _together(share: Tensor) -> Tensor:
    found: Tensor = _Together.apply(share)  # type: ignore[no-untyped-call]
    return found


def _square(parameter: Tensor) -> Float[Tensor, ""]:
    return parameter.new_zeros(()) if parameter.grad is None else parameter.grad.square().sum()


def _place() -> tuple[int, int]:
    """This process's number, and how many there are. Raises `InputError` where there is no group of processes."""
    if not distributed.is_initialized():
        raise InputError(
            "there is no group of processes; start with torchrun, and call torch.distributed.init_process_group first"
        )
    return distributed.get_rank(), distributed.get_world_size()


def _summed(tensor: Tensor) -> Tensor:
    found = tensor.clone()
    distributed.all_reduce(found)
    return found


def _gathered(tensor: Tensor) -> Tensor:
    parts = [torch.empty_like(tensor) for _ in range(_place()[1])]
    distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)
