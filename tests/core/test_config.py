"""Settings: unknown keys and seeds that would draw what another one draws are refused in words."""

import pytest
import torch
from pydantic import Field, model_validator

from microtome.core.config import Config, Seed
from microtome.core.errors import InputError


class Drawing(Config):
    seed: Seed = Field(0, description="Of what is drawn.")


class Odd(Drawing):
    @model_validator(mode="after")
    def _fits(self) -> "Odd":
        if self.seed % 2 == 0:
            raise ValueError("an odd seed, please")
        return self


def test_seeds_are_those_that_generators_tell_apart() -> None:
    def drawn(seed: int) -> float:
        return float(torch.rand(1, generator=torch.Generator().manual_seed(seed)))

    assert drawn(2**32) == drawn(0)
    for seed in (-1, 2**32):
        with pytest.raises(InputError, match="seed: Input should be"):
            Drawing.read({"seed": seed})
    assert Drawing.read({"seed": 2**32 - 1}).seed == 2**32 - 1
    assert drawn(2**32 - 1) != drawn(0)


def test_what_does_not_fit_is_told_without_what_is_beside_the_point() -> None:
    with pytest.raises(InputError, match=r"fit: seed: Input should be greater than or equal to 0$"):
        Drawing.read({"seed": -1})
    with pytest.raises(InputError, match=r"fit: an odd seed, please$"):
        Odd.read({"seed": 2})


def test_an_unknown_key_is_named_and_so_are_the_fields() -> None:
    with pytest.raises(InputError, match=r"sede.*The fields are: seed"):
        Drawing.read({"sede": 1})
