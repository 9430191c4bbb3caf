"""How is a toy network trained, kept and had again? By a recipe: what it starts as, what it learns from, how long.

1. A `Recipe` makes the module from a seed and gives the data of each step as a function of seed and step.
2. `fit` trains it; the same seed, machine and number of threads give the same weights bit for bit. A module may hold
   several instances that differ in how they began: `choose` serves one of them.
3. `network` reads the trained network that ships, or trains it where none does. Toy networks are no transformers:
   their sites are module paths.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from microtome.core.errors import InputError
from microtome.models.load import load
from microtome.models.model import Model
from microtome.testbeds import kept
from microtome.testbeds.training import Training, train

SHIPPED = Path(__file__).parent / "weights"


def as_made(module: nn.Module, seed: int) -> nn.Module:
    """The trained module itself is what is served."""
    return module


@dataclass(frozen=True, eq=False)
class Recipe:
    """How a toy network is trained.

    testbed, case: whose it is. make: the module before training, from a seed. batch: the data of step `n` under a seed.
    loss: what is minimised. rate, steps: of Adam; in the last third of the steps the rate falls to nothing.
    settings: whatever else the trained weights depend on, besides the seed and the code.
    choose: the network served, of the module trained under a seed. empty: a network of the served shape, to load into.
    """

    testbed: str
    case: str
    make: Callable[[int], nn.Module]
    batch: Callable[[int, int], Any]
    loss: Callable[[nn.Module, Any], Tensor]
    rate: float
    steps: int
    settings: Mapping[str, Any]
    choose: Callable[[nn.Module, int], nn.Module] = as_made
    empty: Callable[[], nn.Module] | None = None

    @property
    def told(self) -> dict[str, Any]:
        """All that the trained weights depend on, besides the seed and the code."""
        names = ("testbed", "case", "rate", "steps")
        return {name: getattr(self, name) for name in names} | dict(self.settings)


def fit(
    recipe: Recipe, seed: int = 0, *, steps: int | None = None, title: str = ""
) -> tuple[nn.Module, Training]:
    """Train a new network and choose what is served. steps: fewer than the recipe's, if given."""
    module = recipe.make(seed)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    training = train(
        module,
        torch.optim.Adam(trained, recipe.rate),
        lambda step: recipe.batch(seed, step),
        recipe.loss,
        recipe.steps if steps is None else steps,
        rate=lambda step: min(1.0, 3 * (recipe.steps - step) / recipe.steps),
        title=title,
    )
    with torch.no_grad():
        return recipe.choose(module, seed).eval(), training


def path(recipe: Recipe, seed: int, folder: Path = SHIPPED) -> Path:
    """Where the trained network lies."""
    return folder / recipe.testbed / f"{recipe.case}-seed{seed}.safetensors"


def network(recipe: Recipe, seed: int = 0, folder: Path = SHIPPED) -> Model:
    """The trained network: the one that ships, or, for another seed, one that is trained here and now.

    Raises `StoreError` for a file that was trained with other settings, or cannot be read.
    """
    file = path(recipe, seed, folder)
    if file.exists():
        module = recipe.make(seed) if recipe.empty is None else recipe.empty()
        kept.restore(file, module, recipe.told)
    else:
        module, _ = fit(recipe, seed, title=f"{recipe.testbed}/{recipe.case}, seed {seed}")
    return model_of(module, f"{recipe.testbed}/{recipe.case} (seed {seed})")


def model_of(module: nn.Module, name: str) -> Model:
    """A module as a model whose sites are module paths."""
    model = load(module.eval(), family=None)
    model.name = name
    return model


def known(case: str, cases: tuple[str, ...], testbed: str) -> None:
    """Raise `InputError` where the testbed has no such case."""
    if case not in cases:
        raise InputError(f"{testbed} has no case {case!r}; it has {', '.join(cases)}")
