"""The geometry of superposition: exact figures by hand, laws, and trained instances that form them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from microtome.core import plugins
from microtome.core.draws import generator
from microtome.core.errors import InputError, TruthError
from microtome.core.shapes import Points
from microtome.testbeds.toys import superposition
from microtome.testbeds.toys.network import fit, model_of
from microtome.testbeds.toys.superposition import (
    SITE,
    Instances,
    Setting,
    TiedAutoencoder,
    dimensionality,
    dimensions_per_feature,
    figure,
    gaps,
    recipe,
    sweep,
)


def ring(corners: int) -> Tensor:
    angle = torch.arange(corners) * (2 * math.pi / corners)
    return torch.stack([angle.cos(), angle.sin()], -1)


def antiprism() -> Tensor:
    """Eight corners, two squares turned against each other, as high as makes them spread evenly."""
    angle = torch.arange(4) * (math.pi / 2)
    low = torch.stack([angle.cos(), angle.sin(), torch.full((4,), -(2**-0.5))], -1)
    angle = angle + math.pi / 4
    return torch.cat([low, torch.stack([angle.cos(), angle.sin(), torch.full((4,), 2**-0.5)], -1)])


TETRAHEDRON = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])


@pytest.mark.parametrize(
    ("corners", "expected"),
    [
        (torch.eye(3), 1.0),
        (torch.tensor([[1.0], [-1.0]]), 1 / 2),
        (ring(3), 2 / 3),
        (ring(4), 1 / 2),
        (TETRAHEDRON, 3 / 4),
        (ring(5), 2 / 5),
        (antiprism(), 3 / 8),
    ],
    ids=["dedicated", "digon", "triangle", "square", "tetrahedron", "pentagon", "square antiprism"],
)
@pytest.mark.parametrize("size", [0.3, 1.0, 2.0])
def test_the_corners_of_a_figure_have_its_dimensionality(
    corners: Tensor, expected: float, size: float
) -> None:
    found = dimensionality(size * corners.double())
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=0, atol=1e-6)


def test_figures_in_separate_spaces_do_not_share() -> None:
    together = torch.block_diag(ring(5), ring(3), torch.ones(1, 1))
    expected = torch.tensor([2 / 5] * 5 + [2 / 3] * 3 + [1.0])
    torch.testing.assert_close(dimensionality(together), expected)
    torch.testing.assert_close(dimensions_per_feature(ring(5)), torch.tensor(2 / 5))
    assert dimensionality(torch.zeros(2, 3)).tolist() == [0, 0]


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 6))
def test_dimensionalities_add_up_to_no_more_than_there_are_dimensions(seed: int, count: int, d: int) -> None:
    # D_i is at most the i-th diagonal entry of the projection onto the span of W's rows, by Cauchy and Schwarz.
    directions = torch.randn(count, d, generator=generator(seed), dtype=torch.float64)
    found = dimensionality(directions)
    assert bool((found >= 0).all())
    assert float(found.max()) <= 1 + 1e-9
    assert float(found.sum()) <= min(count, d) + 1e-9


def test_gaps_go_once_around() -> None:
    assert gaps(ring(5).flip(0)).tolist() == pytest.approx([72] * 5, abs=1e-3)
    assert float(gaps(torch.randn(6, 2)).sum()) == pytest.approx(360, abs=1e-3)
    with pytest.raises(InputError, match="3 dimensions"):
        gaps(torch.randn(6, 3))


def test_an_instance_alone_is_what_it_was_among_others() -> None:
    setting = Setting(densities=(1.0, 0.1), starts=2, rows=16)
    instances = setting.instances()
    torch.nn.init.normal_(instances.bias)
    x = setting.draw(generator(3), setting.rows)
    for number in range(4):
        torch.testing.assert_close(instances.one(number)(x[number]), instances(x)[number])


def test_data_are_as_dense_as_asked() -> None:
    setting = Setting(densities=(1.0, 0.1), starts=1)
    x = setting.draw(generator(0), 20_000)
    share = (x > 0).float().mean((1, 2))
    # 100,000 draws: five standard errors of a share of .1
    assert share.tolist() == pytest.approx([1.0, 0.1], abs=5 * math.sqrt(0.09 / 1e5))
    assert float(x.max()) < 1


def test_sparse_features_become_a_pentagon() -> None:
    (sparse,), losses = sweep(Setting(densities=(0.05,), starts=3, rows=128), steps=700)
    assert dimensionality(sparse).tolist() == pytest.approx([0.4] * 5, abs=0.03)
    assert gaps(sparse).tolist() == pytest.approx([72] * 5, abs=5)
    # Without superposition, at best the three least important features are dropped: that is worse.
    dropped = 0.05 / 3 - 0.05**2 / 4
    assert float(losses[0]) < (0.9**2 + 0.9**3 + 0.9**4) * dropped


@pytest.mark.training
def test_five_features_in_two_dimensions_at_ten_densities() -> None:
    densities = tuple(20 ** (-step / 9) for step in range(10))
    directions, _ = sweep(Setting(densities=densities, starts=4))
    for density, found in zip(densities, directions, strict=True):
        there = found[found.norm(dim=-1) > superposition.REPRESENTED]
        if density <= 0.1:
            assert dimensionality(there).tolist() == pytest.approx([2 / 5] * 5, abs=0.02)
            assert gaps(there).tolist() == pytest.approx([72] * 5, abs=3)
        elif 0.15 < density < 0.4:
            assert gaps(there).tolist() == pytest.approx([90] * 4, abs=3)
        elif density == 1:
            assert dimensionality(there).tolist() == pytest.approx([1] * 2, abs=0.02)


@pytest.mark.training
@pytest.mark.parametrize("name", superposition.cases())
def test_what_ships_is_what_training_gives(name: str) -> None:
    retrained, _ = fit(recipe(name), 0)
    shipped = superposition.build(name).model.module
    for key, value in shipped.state_dict().items():
        # Another machine may add in another order; what was learned is the same figure.
        torch.testing.assert_close(retrained.state_dict()[key], value, rtol=0, atol=1e-2)


def test_training_replays() -> None:
    one, first = fit(recipe("pentagon"), 3, steps=30)
    two, second = fit(recipe("pentagon"), 3, steps=30)
    assert first.losses == second.losses
    assert all(torch.equal(two.state_dict()[name], value) for name, value in one.state_dict().items())
    other, _ = fit(recipe("pentagon"), 4, steps=30)
    assert not torch.equal(other.state_dict()["hidden.weight"], one.state_dict()["hidden.weight"])


@pytest.mark.parametrize("name", superposition.cases())
@pytest.mark.parametrize("seed", [0, 1])
def test_a_case_holds_and_its_features_are_what_the_network_holds(name: str, seed: int) -> None:
    case = superposition.build(name, seed)
    assert case.name == f"superposition/{name}"
    assert set(case.truth.kinds) == set(superposition.card.kinds)
    features = case.truth.features[SITE]
    found = case.model.run(case.tokens, read=[SITE])[SITE]
    numbers = [int(label.split()[1]) for label in case.truth.labels]
    module = case.model.module
    assert isinstance(module, TiedAutoencoder)
    x = case.tokens["x"]
    rest = [number for number in range(x.shape[1]) if number not in numbers]
    coefficients = torch.stack(list(case.truth.labels.values()), -1)
    torch.testing.assert_close(
        found, coefficients @ features + x[:, rest] @ module.hidden.weight.detach()[:, rest].mT
    )
    assert case.truth.quantities["features represented"] == len(features) == len(numbers)


def test_the_control_has_no_pentagon() -> None:
    control = superposition.build("pentagon").control.module
    assert isinstance(control, TiedAutoencoder)
    found = superposition.evidence(
        control.hidden.weight.detach().mT.contiguous(), superposition.CASES["pentagon"][1]
    )
    assert not all(one.holds for one in found)


def test_one_trained_too_little_is_no_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = fit(recipe("pentagon"), 0, steps=5)
    monkeypatch.setattr(superposition, "network", lambda *_: model_of(module, "too little"))
    with pytest.raises(TruthError, match="dimensionality"):
        superposition.build("pentagon")


def test_a_figure_is_drawn_in_the_plane() -> None:
    shape = figure(torch.stack([ring(5), 2 * ring(5)]), ["1", "0.05"], "pentagons")
    assert isinstance(shape, Points)
    assert shape.values.shape == (2, 1, 5, 2)
    with pytest.raises(InputError, match="shows two"):
        figure(torch.zeros(1, 5, 3), ["1"], "none")


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, math.nan])
def test_a_density_is_a_probability(density: float) -> None:
    with pytest.raises(InputError, match="densities are probabilities"):
        Setting(densities=(density,))


def test_unknown_cases_and_empty_settings_are_refused() -> None:
    with pytest.raises(InputError, match="no case 'hexagon'"):
        superposition.build("hexagon")
    with pytest.raises(InputError, match="at least one"):
        Setting(starts=0)
    assert plugins.load("testbeds", "superposition") is superposition
    assert isinstance(Setting().instances(), Instances)
