"""Theory's losses against integrals, phases of hand-built weights, and trained networks against the theory."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microtome.core.draws import generator
from microtome.core.errors import InputError
from microtome.testbeds.toys.phase_diagram import PHASES, PhaseDiagram, closed_forms, diagram, phase
from microtome.testbeds.toys.superposition import TiedAutoencoder

S = 2**-0.5
# (weight [d, feature], bias, phase); the bias of a dropped feature is its mean, p/2.
SOLUTIONS = [
    (((1.0, 0.0),), (0, 1), "dropped"),
    (((0.0, 1.0),), (1, 0), "dedicated"),
    (((1.0, -1.0),), (0, 0), "superposed"),
    (((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), (0, 0, 1), "dropped"),
    (((1.0, -1.0, 0.0), (0.0, 0.0, 1.0)), (0, 0, 0), "dedicated"),
    (((S, 0.0, S), (S, 0.0, -S)), (0, 1, 0), "dedicated"),
    (((1.0, 0.0, 0.0), (0.0, 1.0, -1.0)), (0, 0, 0), "superposed"),
]


@pytest.mark.parametrize(("weight", "means", "expected"), SOLUTIONS)
def test_phases_of_weights_by_hand(
    weight: tuple[tuple[float, ...], ...], means: tuple[int, ...], expected: str
) -> None:
    assert PHASES[int(phase(torch.tensor(weight)))] == expected
    assert PHASES[int(phase(-torch.tensor(weight)))] == expected


@pytest.mark.parametrize(("density", "importance"), [(0.05, 3.0), (0.4, 0.2), (1.0, 1.5)])
@pytest.mark.parametrize("features", [2, 3])
def test_closed_forms_are_the_losses_of_the_solutions(
    features: int, density: float, importance: float
) -> None:
    source = generator(7)
    rows = 200_000
    x = torch.rand(rows, features, generator=source) * (
        torch.rand(rows, features, generator=source) < density
    )
    weigh = torch.ones(features)
    weigh[-1] = importance
    best: dict[str, tuple[float, float]] = {}
    for weight, means, name in SOLUTIONS:
        if len(weight[0]) != features:
            continue
        module = TiedAutoencoder(features, features - 1)
        module.load_state_dict(
            {"hidden.weight": torch.tensor(weight), "bias": torch.tensor(means) * density / 2}
        )
        losses = (weigh * (x - module(x).detach()) ** 2).sum(-1)
        found = (float(losses.mean()), float(losses.std()) / math.sqrt(rows))
        best[name] = min(found, best.get(name, (math.inf, 0.0)))
    theory = closed_forms(features, torch.tensor(density), torch.tensor(importance)).tolist()
    for name, value in zip(PHASES, theory, strict=True):
        mean, error = best[name]
        assert value == pytest.approx(mean, abs=5 * error), name


@given(st.floats(0.001, 1), st.floats(0.01, 100), st.sampled_from([2, 3]))
def test_the_dropped_grow_with_importance_and_the_sparse_are_superposed(
    density: float, importance: float, features: int
) -> None:
    forms = closed_forms(features, torch.tensor(density), torch.tensor(importance))
    more = closed_forms(features, torch.tensor(density), torch.tensor(importance * 2))
    assert bool((more >= forms).all())
    assert float(more[1]) == float(forms[1]), "a dedicated feature costs what the others lose"
    sparser = closed_forms(features, torch.tensor(1e-4), torch.tensor(min(importance, 0.9)))
    assert int(sparser.argmin()) == 2


def test_trained_networks_agree_with_the_theory() -> None:
    importances, densities = (0.15, 0.5, 2.0, 7.0), (0.02, 0.1, 0.35, 0.95)
    found = diagram(2, importances, densities, starts=6, steps=300)
    share, points = found.agreement(margin=0.1)
    assert points >= 14
    assert share == 1.0
    assert set(found.found.flatten().tolist()) == {0, 1, 2}, "all three phases occur"
    # A network is free in its sizes and biases, so it does no worse than the theory's three; but on a grid of eight
    # nodes the integral of min(x_1, x_2)², which has a kink, is not quite 1/6.
    nodes, weights = np.polynomial.legendre.leggauss(8)
    kink = 6 * float((np.minimum.outer(nodes + 1, nodes + 1) ** 2 * np.outer(weights, weights)).sum()) / 16
    assert 1.01 < kink < 1.012
    assert float((found.loss / found.theory.min(0).values).max()) < kink + 1e-3
    (grid,) = found.shapes()
    assert grid.values.shape == (2, 4, 4)
    assert grid.panels == ("theory", "trained")
    # The dimensionality of the phase each network is in: 0, 1, ½.
    clear = (found.margin >= 0.1).numpy()
    assert abs(grid.values[0] - grid.values[1])[clear].max() < 10


def test_three_features_in_two_dimensions() -> None:
    found = diagram(3, (0.3, 4.0), (0.05, 0.95), starts=6, steps=300)
    assert [PHASES[number] for number in found.expected.flatten().tolist()] == [
        "superposed",
        "dropped",
        "dedicated",
        "dedicated",
    ]
    assert torch.equal(found.found, found.expected)


def test_untrained_networks_do_not_agree() -> None:
    found = diagram(2, (0.15, 0.5, 2.0, 7.0), (0.02, 0.1, 0.35, 0.95), starts=1, steps=1)
    assert found.agreement()[0] < 0.9
    assert float((found.loss / found.theory.min(0).values).median()) > 1.1


def test_the_same_seed_gives_the_same_diagram() -> None:
    def one(seed: int) -> PhaseDiagram:
        return diagram(2, (0.5,), (0.1,), seed, starts=2, steps=20)

    assert torch.equal(one(1).loss, one(1).loss)
    assert not torch.equal(one(1).loss, one(2).loss)


@pytest.mark.parametrize(
    ("features", "importances", "densities"),
    [
        (4, (1.0,), (0.1,)),
        (2, (0.0,), (0.1,)),
        (2, (1.0,), (1.5,)),
        (2, (), (0.1,)),
        (2, (1.0,), (math.nan,)),
    ],
)
def test_settings_without_a_diagram_are_refused(
    features: int, importances: tuple[float, ...], densities: tuple[float, ...]
) -> None:
    with pytest.raises(InputError):
        diagram(features, importances, densities)
