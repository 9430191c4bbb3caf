"""How do several processes train one dictionary? They share the rows of each batch, or the units of the dictionary.

    torchrun --nproc-per-node 2 -m microtome train … [--share units]

    with joined():  # `processes`, in a script that torchrun starts
        train(ShareOfRows(stream), recipes, learner=DataParallel)  # `shared_rows`
        train(stream, recipes, learner=Sharded)

1. Rows shared: gradients are averaged over processes, counts of units that are on are summed, and the first rows, which
   say the footing, are put together; so every process goes the way that one would go with all rows.
2. Units shared: every process sees all rows. Each offers the k units of its own that are driven most; the k largest of
   all offers are on, which are the k largest of all units. What they write is summed over processes.

3. A choice out of a whole batch (batch-top-k) is made likewise, of what all processes offer.

Both give what one process gives, up to the order of sums. Top-k, batch-top-k, ReLU and gated units can be shared in
both ways; JumpReLU and prefixes with rows shared; matching pursuit, annealing and resampling cannot, and are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, distributed

from microtome.core.errors import InputError
from microtome.core.provenance import Provenance
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.drive import Drive, Entries
from microtome.dictionaries.layout import Layout
from microtome.dictionaries.learner import Learner
from microtome.dictionaries.preparation import Preparation
from microtome.dictionaries.processes import alone, gathered, place, summed
from microtome.dictionaries.recipe import Recipe
from microtome.dictionaries.scene import OwnUnits, Scene, Target, squared_error
from microtome.dictionaries.selection import Selection, above, top_k
from microtome.dictionaries.variants import BatchTopKVariant, Outcome, TopKVariant

_SHARED = ("decoder_bias", "skip")


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
        _check(recipe, ("topk", "batch_topk", "relu", "gated", "jumprelu"))
        super().__init__(recipe, layout, widths, footing, first)
        if recipe.activation == "batch_topk":
            self.variant = _SharedBatchTopK(recipe, place()[1])

    @staticmethod
    def first_rows(rows: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        return gathered(rows)

    @staticmethod
    def keeps() -> bool:
        return place()[0] == 0

    @staticmethod
    def agreed(asked: bool) -> bool:
        return bool(summed(torch.tensor(int(asked))))

    def count_rows(self, values: Float[Tensor, "row d_read"]) -> int:
        return len(values) * place()[1]

    def count_on(self, outcome: Outcome) -> tuple[Float[Tensor, " unit"], float]:
        fired = summed(outcome.drive.firing(outcome.codes))
        return fired, float(fired.sum()) / self._rows

    def reported(self, loss: Float[Tensor, ""]) -> float:
        return float(summed(loss.detach()) / place()[1])

    def pool_gradients(self) -> None:
        for parameter in self.parameters.values():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = summed(gradient) / place()[1]
        # How many units stand near their thresholds is counted apart from gradients.
        if isinstance(slope := getattr(self.variant, "slope", None), Tensor):
            slope.copy_(summed(slope) / place()[1])


@dataclass(frozen=True, eq=False)
class _ShardedScene(Scene):
    """A scene whose units are a share of all: what they write is summed over processes."""

    def rebuilt(self, drive: Drive, codes: Tensor, frozen: bool = False) -> Float[Tensor, "row d_write"]:
        decoder = self.parameters["decoder"]
        shared = {name: self.parameters[name] for name in _SHARED if name in self.parameters}
        if frozen or place()[0]:
            # What all processes add alike has its gradient in one of them.
            shared = {name: tensor.detach() for name, tensor in shared.items()}
        written = (
            _together(drive.written(codes, decoder.detach() if frozen else decoder)) + shared["decoder_bias"]
        )
        return written + self.x @ shared["skip"].mT if "skip" in shared else written

    def pooled(self, paid: Float[Tensor, ""]) -> Float[Tensor, ""]:
        return _together(paid)


class _ShardedTopK(TopKVariant):
    """The k largest of all processes' units."""

    def chosen(self, scene: Scene, k: int) -> Selection:
        x, encoder, bias = scene.product
        return _largest_of_all(top_k(x, encoder, bias, min(k, len(encoder))), k)


class _SharedBatchTopK(BatchTopKVariant):
    """The largest of all processes' rows and units."""

    def chosen(self, scene: Scene, count: int, guess: float) -> Selection:
        return _largest_of_batch(scene, count, guess)


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
        _check(recipe, ("topk", "batch_topk", "relu", "gated"))
        if recipe.prefixes or recipe.multi > 1:
            raise InputError(
                "prefixes and multi-top-k need all units in one process; share rows instead (DataParallel)"
            )
        rank, count = place()
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
            self.variant = _ShardedTopK(recipe)
        elif recipe.activation == "batch_topk":
            self.variant = _SharedBatchTopK(recipe, 1)
        self.adam = torch.optim.Adam(
            list(self.parameters.values()), recipe.learning_rate, betas=recipe.betas, fused=True
        )

    def _share(self, name: str, tensor: Tensor) -> Tensor:
        return tensor if name in _SHARED or not tensor.ndim else tensor[self._own]

    @staticmethod
    def keeps() -> bool:
        return place()[0] == 0

    @staticmethod
    def agreed(asked: bool) -> bool:
        return bool(summed(torch.tensor(int(asked))))

    def scene(
        self,
        values: Float[Tensor, "row d_read"],
        wanted: Float[Tensor, "row d_write"],
        target: Target | OwnUnits = squared_error,
    ) -> Scene:
        return _ShardedScene(**vars(super().scene(values, wanted, target)))

    def count_dead(self, dead: Bool[Tensor, " unit"]) -> int:
        return int(summed(dead.sum()))

    def count_on(self, outcome: Outcome) -> tuple[Float[Tensor, " unit"], float]:
        fired = outcome.drive.firing(outcome.codes)
        return fired, float(summed(fired.sum())) / self._rows

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
                parameter.grad = summed(gradient)

    def clip(self, most: float) -> None:
        squares = {name: _square(parameter) for name, parameter in self.parameters.items()}
        own = torch.stack([square for name, square in squares.items() if name not in _SHARED]).sum()
        alike = torch.stack([square for name, square in squares.items() if name in _SHARED]).sum()
        norm = (summed(own) + alike).sqrt()
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
        return tensor if name in _SHARED or not tensor.ndim else gathered(tensor)

    def state(self) -> dict[str, Tensor]:
        return {key: self._all(_parameter_of(key), tensor) for key, tensor in super().state().items()}

    def restore(self, state: Mapping[str, Tensor], held: Mapping[str, float], step: int) -> None:
        super().restore(
            {key: self._share(_parameter_of(key), tensor).clone() for key, tensor in state.items()},
            held,
            step,
        )


def learner(share: str) -> type[Learner]:
    """The kind for processes that share `rows` or `units`; where there is one alone, the plain one."""
    if alone():
        return Learner
    return DataParallel if share == "rows" else Sharded


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
    rank, count = place()
    every = [torch.empty_like(padded) for _ in range(count)]
    distributed.all_gather(every, padded)
    together = torch.cat(every, -1)
    on = torch.zeros_like(together, dtype=torch.bool).scatter_(-1, together.topk(k, -1).indices, True)
    kept = on[:, rank * k : rank * k + mine.shape[1]].flatten()
    return Selection(
        Entries(entries.row[kept], entries.unit[kept], entries.rows, entries.units), offered.pre[kept]
    )


def _largest_of_batch(scene: Scene, count: int, guess: float) -> Selection:
    """Of what each process drives above zero, what is among the `count` largest of all.

    guess: something below the smallest of them makes it faster.
    """
    x, encoder, bias = scene.product
    for floor in dict.fromkeys((max(guess, 0.0), 0.0)):
        offered = above(x, encoder, bias, torch.full_like(bias, floor), scene.recipe.half)
        sizes = gathered(torch.tensor([len(offered.pre)], device=x.device))
        if int(sizes.sum()) >= count:
            break
    padded = offered.pre.new_full((int(sizes.max()),), -torch.inf)
    padded[: len(offered.pre)] = offered.pre
    together = gathered(padded)
    best = together.topk(min(count, int(sizes.sum())), sorted=False)
    on = torch.zeros_like(together, dtype=torch.bool)
    on[best.indices] = True
    mine = on[place()[0] * len(padded) :][: len(offered.pre)]
    entries = offered.entries
    kept = Entries(entries.row[mine], entries.unit[mine], entries.rows, entries.units)
    return Selection(kept, offered.pre[mine], float(best.values.min()) if len(best.values) else 0.0)


def _nothing(x: Float[Tensor, "row d"]) -> Selection:
    none = torch.empty(0, dtype=torch.long, device=x.device)
    return Selection(Entries(none, none, len(x), 0), x.new_empty(0))


class _Together(torch.autograd.Function):
    """A sum over processes, which all compute the same loss from it: so the gradient of each share is the whole's."""

    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:
        return summed(share)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def _together(share: Tensor) -> Tensor:
    found: Tensor = _Together.apply(share)  # type: ignore[no-untyped-call]
    return found


def _square(parameter: Tensor) -> Float[Tensor, ""]:
    return parameter.new_zeros(()) if parameter.grad is None else parameter.grad.square().sum()
