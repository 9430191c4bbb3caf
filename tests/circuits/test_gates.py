"""Hard concrete gates: within bounds, open as often as they say, and the same again from the same seed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.circuits.gates import Gates


@settings(max_examples=20, deadline=None)
@given(location=st.floats(-20, 20), seed=st.integers(0, 2**31))
def test_gates_lie_between_shut_and_open_and_replay(location: float, seed: int) -> None:
    gates = Gates.of(50, location)
    one, two = (gates.drawn(torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(one, two)
    assert bool(((one >= 0) & (one <= 1)).all())
    assert bool(((gates.settled() >= 0) & (gates.settled() <= 1)).all())


@pytest.mark.parametrize("location", [-2.0, 0.0, 1.5])
def test_they_are_open_as_often_as_they_say(location: float) -> None:
    gates = Gates.of(20_000, location)
    share = float((gates.drawn(torch.Generator().manual_seed(0)) > 0).double().mean())
    chance = float(gates.chance()[0].detach())
    # Five standard deviations of a mean of 20 000 coins.
    assert abs(share - chance) < 5 * (chance * (1 - chance) / 20_000) ** 0.5


def test_a_gate_in_between_has_a_gradient() -> None:
    gates = Gates.of(2000, 0.0)
    drawn = gates.drawn(torch.Generator().manual_seed(0))
    (found,) = torch.autograd.grad(drawn.sum(), gates.location)
    between = (drawn > 0) & (drawn < 1)
    assert torch.equal(found != 0, between)
    assert 0.2 < float(between.double().mean()) < 1
