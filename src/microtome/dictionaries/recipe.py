"""What dictionary is to be trained, and how? One choice in each respect; all that fit together may be combined.

    recipe = Recipe(width=4096, activation="topk", l0=32)
    recipes = sweep(Recipe(activation="jumprelu"), l0=[16, 32, 64], seed=[0, 1, 2])

How many units are on is asked for in one of two ways. `l0`: so many; top-k keeps exactly that many, JumpReLU moves
its thresholds until it is so, ReLU and Gated move the coefficient of their penalty. `coefficient`: of the penalty, and
the number of units on is what comes of it.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from microtome.core.config import Config, Seed
from microtome.dictionaries.penalties import Penalty

Kind = Literal["relu", "topk", "batch_topk", "jumprelu", "gated", "matching_pursuit"]


class Recipe(Config):
    """How one dictionary is trained. Lengths are told in scaled values, whose mean square is 1 in each dimension."""

    name: str = Field("dictionary", description="One word, from which units take their names.")
    width: int = Field(1024, ge=1, description="How many units.")
    seed: Seed = Field(0, description="Draws the first directions, and rows for resampling.")

    activation: Kind = Field("topk", description="Which units are on, given how far each is driven.")
    l0: float | None = Field(
        None, gt=0, description="Units on in a row, on average; 32 where nothing is said."
    )
    coefficient: float | None = Field(
        None, ge=0, description="Weight of the penalty, where no l0 is asked for."
    )
    penalty: Penalty = Field("l1", description="What is paid for strength, by relu and gated.")
    power: float = Field(1.0, gt=0, le=1, description="p of the penalty lp; where it ends, if annealed.")
    anneal: bool = Field(
        False, description="Whether the power falls to p from 1 in the second half of training."
    )
    bend: float = Field(1.0, gt=0, description="Where the penalties tanh and log bend.")
    window: float = Field(
        0.5, gt=0, description="Breadth of what is taken for slope at a jumprelu threshold."
    )
    multi: int = Field(
        1, ge=1, description="Top-k: the loss of so many times k units, an eighth, is added if > 1."
    )
    prefixes: tuple[int, ...] = Field(
        (),
        description="Matryoshka: the first so many units have to do alone, each of these, and pay alone; "
        "the last is the width.",
    )

    centring: Literal["mean", "median", "no"] = Field("mean", description="What is subtracted from values.")
    scaling: Literal["rms", "whiten", "no"] = Field(
        "rms", description="One scale for all; or all directions alike; or none."
    )
    tied: bool | None = Field(
        None,
        description="Whether what is added last is subtracted first; by default where sites read are written.",
    )
    initial: Literal["random", "data"] = Field(
        "random", description="First directions: at random; or of rows, for few steps."
    )
    decoder: Literal["unit", "free"] = Field(
        "unit", description="Directions of norm 1; or free, and penalties weighted by their norms."
    )
    dead_units: Literal["auxk", "resample", "no"] = Field(
        "auxk", description="What is done for units never on."
    )
    dead_after: int | None = Field(
        None,
        ge=1,
        description="Rows without being on, to count as dead; by default 1/20 of all, 20 batches at least.",
    )
    auxiliary: float = Field(1 / 32, ge=0, description="Weight of the loss that dead units have.")
    resamplings: int = Field(4, ge=1, description="How often dead units start anew, in the first 3/4.")

    steps: int = Field(10_000, ge=1, description="Batches to train on.")
    rate: float | None = Field(None, gt=0, description="Learning rate; by default 2e-4 · √(16384 / width).")
    warm_up: float = Field(0.02, ge=0, lt=1, description="Share of the steps in which rate and penalty rise.")
    decay: float = Field(
        0.2, ge=0, le=1, description="Share of the steps, at the end, in which the rate falls to 0."
    )
    betas: tuple[float, float] = Field((0.9, 0.999), description="Of Adam.")
    clip: float | None = Field(
        1.0, gt=0, description="Largest norm of all gradients together; none: as they are."
    )
    half: bool = Field(
        False,
        description="Products in bfloat16, weights in float32; sparse kinds choose exactly even so. For GPUs.",
    )

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        top = self.activation in ("topk", "batch_topk", "matching_pursuit")
        if self.l0 is not None and self.coefficient is not None:
            raise ValueError("l0 and coefficient both say how many units are on; give one of them")
        if self.coefficient is not None and (top or self.activation == "jumprelu"):
            raise ValueError(f"{self.activation} has no penalty; ask for l0")
        if self.activation in ("topk", "matching_pursuit") and self.on != int(self.on):
            raise ValueError(
                f"{self.activation} keeps a whole number of units in each row, not l0 = {self.on}"
            )
        if self.activation == "matching_pursuit" and (self.tied is False or self.decoder == "free"):
            raise ValueError("matching_pursuit reads what it writes: tied, with directions of norm 1")
        if self.controlled and self.on * self.multi > self.width:
            raise ValueError(
                f"{self.on * self.multi:g} units are to be on, of {self.width}; ask for fewer, or widen"
            )
        if self.prefixes and (
            sorted(set(self.prefixes)) != list(self.prefixes)
            or self.prefixes[0] < 1
            or self.prefixes[-1] != self.width
        ):
            raise ValueError(f"prefixes rise and end with the width {self.width}; got {self.prefixes}")
        if self.multi > 1 and self.activation != "topk":
            raise ValueError("multi goes with topk")
        if self.penalty == "lp" and self.power == 1 and self.activation in ("relu", "gated"):
            raise ValueError("the penalty lp needs a power below 1; with 1 it is l1")
        if self.anneal and self.penalty != "lp":
            raise ValueError("only the power of the penalty lp can be annealed")
        return self

    @property
    def on(self) -> float:
        """Units to be on in a row."""
        return 32.0 if self.l0 is None else self.l0

    @property
    def controlled(self) -> bool:
        """Whether a number of units on is asked for, rather than a penalty given."""
        return self.coefficient is None

    @property
    def learning_rate(self) -> float:
        return 2e-4 * (16384 / self.width) ** 0.5 if self.rate is None else self.rate


def sweep(base: Recipe, **choices: Sequence[Any]) -> list[Recipe]:
    """Every combination of these choices, the last one changing fastest. Raises `InputError` for what does not fit."""
    names = list(choices)
    return [
        Recipe.read({**base.model_dump(exclude_unset=True), **dict(zip(names, combination, strict=True))})
        for combination in itertools.product(*choices.values())
    ]
