"""How is a network of any architecture trained from a seed, kept, and served only if it does what it is said to do?

1. A `Recipe` says how the module is made, what each step learns from and minimises, and how the trained network is
   measured. Step `n` under a seed always learns from the same rows.
2. `fit` trains a new one; the same seed, machine and number of threads give the same weights bit for bit.
3. `network` reads the one that ships, or trains it where none does. It is measured each time it is served as a case.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from microtome.models.load import load
from microtome.models.model import Model
from microtome.testbeds import kept
from microtome.testbeds.case import Evidence
from microtome.testbeds.training import Training, seeded, train

SHIPPED = Path(__file__).parent / "weights"


@dataclass(frozen=True, eq=False)
class Recipe:
    """How a network is made, trained and measured.

    testbed, case: whose it is. make: the module before training; called inside a seed.
    batch: what step `n` under a seed learns from. loss: what is minimised on it.
    evidence: the numbers, with their bounds, on which a case of this network rests.
    rate, weight_decay, steps: of AdamW; over 50 steps the rate rises, and in the last third it falls
    to nothing.
    settings: all else that the trained weights depend on, besides the seed and the code.
    """

    testbed: str
    case: str
    make: Callable[[], nn.Module]
    batch: Callable[[int, int], Any]
    loss: Callable[[nn.Module, Any], Tensor]
    evidence: Callable[[Model, int], tuple[Evidence, ...]]
    rate: float
    steps: int
    weight_decay: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recorded(self) -> dict[str, Any]:
        """The settings as the file of a trained network records them."""
        names = ("testbed", "case", "rate", "steps", "weight_decay")
        return {name: getattr(self, name) for name in names} | dict(self.settings)


def new_module(recipe: Recipe, seed: int) -> nn.Module:
    """The network before training."""
    with seeded(seed):
        return recipe.make()


def fit(
    recipe: Recipe, seed: int = 0, *, steps: int | None = None, keep: Collection[int] = (), title: str = ""
) -> tuple[nn.Module, Training]:
    """Train a new network. steps: fewer than the recipe's, if given. keep: after how many steps weights are kept."""
    module = new_module(recipe, seed)
    optimizer = torch.optim.AdamW(
        module.parameters(), recipe.rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    training = train(
        module,
        optimizer,
        lambda step: recipe.batch(seed, step),
        recipe.loss,
        recipe.steps if steps is None else steps,
        rate=lambda step: min(1.0, (step + 1) / 50, 3 * (recipe.steps - step) / recipe.steps),
        keep=keep,
        title=title,
    )
    return module, training


def path(recipe: Recipe, seed: int, folder: Path = SHIPPED) -> Path:
    """Where the trained network lies."""
    return folder / recipe.testbed / f"{recipe.case}-seed{seed}.safetensors"


def network(recipe: Recipe, seed: int = 0, folder: Path = SHIPPED) -> Model:
    """The trained network: the one that ships, or, for another seed, one that is trained here and now.

    Raises `StoreError` for a file that was trained with other settings, or cannot be read.
    """
    file = path(recipe, seed, folder)
    if file.exists():
        module = new_module(recipe, seed)
        kept.restore(file, module, recipe.recorded)
    else:
        module, _ = fit(recipe, seed, title=f"{recipe.testbed}/{recipe.case}, seed {seed}")
    return named(recipe, module, seed)


def named(recipe: Recipe, module: nn.Module, seed: int) -> Model:
    """The module as a model: by its family's map where it has a configuration, by module paths where it has none."""
    model = load(module.eval())
    model.name = f"{recipe.testbed}/{recipe.case} (seed {seed})"
    return model
