"""Planted batches by number: the same ones after a seek, and others than those held out."""

import pytest
import torch

from microtome.core.errors import InputError
from microtome.testbeds.toys.planted_dictionary import PlantedDictionary, Setting
from microtome.testbeds.toys.planted_stream import PlantedStream


def test_batches_depend_on_their_number_alone() -> None:
    stream = PlantedStream(PlantedDictionary(Setting(), 3), rows=16)
    first = [next(stream) for _ in range(3)]
    stream.seek(1)
    assert torch.equal(next(iter(stream)), first[1])
    assert stream.step == 2
    assert not torch.equal(first[0], first[1])
    assert first[0].shape == (16, sum(stream.widths))
    assert not any(torch.equal(stream.held_out(16).activations, one) for one in first)


def test_batches_made_ahead_are_the_same_ones() -> None:
    planted = PlantedDictionary(Setting(), 3)
    plain, ahead = PlantedStream(planted, 16), PlantedStream(planted, 16, ahead=2)
    for start in (0, 5, 1):
        plain.seek(start)
        ahead.seek(start)
        assert all(torch.equal(next(ahead), next(plain)) for _ in range(4))
        assert ahead.step == plain.step
    assert ahead.identity == plain.identity


def test_identity_tells_settings_and_seeds_apart() -> None:
    one, other = (PlantedStream(PlantedDictionary(Setting(noise=noise)), 8) for noise in (0.0, 0.1))
    assert one.identity != other.identity
    assert one.identity == PlantedStream(PlantedDictionary(Setting()), 8).identity


def test_bad_numbers_are_refused() -> None:
    planted = PlantedDictionary(Setting())
    with pytest.raises(InputError, match="at least one row"):
        PlantedStream(planted, 0)
    with pytest.raises(InputError, match="not by -1"):
        PlantedStream(planted, 8, ahead=-1)
    with pytest.raises(InputError, match="no batch -1"):
        PlantedStream(planted, 8).seek(-1)
