"""Do penalties make ideal units undershoot by what the closed forms say?"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microtome.dictionaries.penalties import Penalty, cost, slope, suppressed

X = torch.tensor([0.25, 0.5, 1.0, 2.0])
TABLE = [
    (0.1, 1.0, [0.2000, 0.4500, 0.9500, 1.9500]),
    (0.1, 0.75, [0.1935, 0.4543, 0.9621, 1.9683]),
    (0.1, 0.5, [0.1931, 0.4633, 0.9747, 1.9822]),
    (0.1, 0.25, [0.0, 0.4783, 0.9874, 1.9926]),
    (0.5, 1.0, [0.0, 0.25, 0.75, 1.75]),
    (0.5, 0.5, [0.0, 0.0, 0.8657, 1.9095]),
]


@pytest.mark.parametrize(("coefficient", "p", "expected"), TABLE)
def test_the_published_values(coefficient: float, p: float, expected: list[float]) -> None:
    found = suppressed(X, coefficient, "lp" if p < 1 else "l1", p)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.double), atol=6e-5)


def test_a_power_of_a_half_has_a_closed_form() -> None:
    # (x − z)² + λ√z: with u = √z, u³ − x u + λ/4 = 0, whose largest root is trigonometric.
    for coefficient in (0.05, 0.1, 0.3):
        for x in (0.5, 1.0, 2.0):
            angle = math.acos(-coefficient / 8 * (3 / x) ** 1.5)
            z = (2 * math.sqrt(x / 3) * math.cos(angle / 3)) ** 2
            found = suppressed(torch.tensor([x]), coefficient, "lp", 0.5)
            assert float(found) == pytest.approx(z, abs=2e-6)


@given(
    x=st.floats(0.01, 3),
    coefficient=st.floats(0.01, 1),
    kind=st.sampled_from(["l1", "lp", "tanh", "log"]),
    p=st.floats(0.2, 0.95),
)
def test_nothing_is_cheaper(x: float, coefficient: float, kind: Penalty, p: float) -> None:
    grid = torch.linspace(0, x, 4001, dtype=torch.double)
    paid = (x - grid).square() + coefficient * cost(kind, grid, p, 0.7)
    z = suppressed(torch.tensor([x], dtype=torch.double), coefficient, kind, p, 0.7)
    own = (x - z).square() + coefficient * cost(kind, z, p, 0.7)
    # The floor under lp makes its slope at zero finite, not infinite: what is cheaper there is worth no more than it.
    assert float(own) <= float(paid.min()) + 1e-4 * coefficient
    assert 0 <= float(z) <= x


@pytest.mark.parametrize("kind", ["l1", "lp", "tanh", "log"])
def test_slopes_are_derivatives(kind: Penalty) -> None:
    z = torch.linspace(0.01, 2, 50, dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(cost(kind, z, 0.6, 0.7).sum(), z)
    assert torch.allclose(gradient, slope(kind, z.detach(), 0.6, 0.7))
