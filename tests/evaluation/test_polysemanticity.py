"""Each cause is told from the others where it was planted, and none is found in noise."""

from pathlib import Path

import pytest
import torch
from tests.models import families
from torch import Tensor

from microtome.core.errors import InputError
from microtome.core.result import Result
from microtome.evaluation import cases, polysemanticity
from microtome.evaluation.polysemanticity import Config, examine, kurtosis, participation

ROWS, FEATURES, UNITS = 1200, 8, 16


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sparse(features: int, seed: int, rate: float = 0.1) -> Tensor:
    there = torch.rand(ROWS, features, generator=draw(seed)) < rate
    return there * torch.rand(ROWS, features, generator=draw(seed + 1))


def planted(kind: str, seed: int) -> Tensor:
    """Values of units that hold sparse features in a known way, with a little noise in each unit."""
    noise = 0.03 * torch.randn(ROWS, UNITS, generator=draw(seed + 2))
    features = sparse(FEATURES, seed)
    if kind == "monosemantic":
        return sparse(UNITS, seed) + noise
    if kind == "redundant":  # two copies of each, as dropout leads to
        return torch.cat([features, features], 1) + noise
    if kind == "rotated":
        turned = torch.linalg.qr(torch.randn(UNITS, UNITS, generator=draw(seed + 3))).Q
        return features @ turned[:FEATURES] + noise
    if kind == "superposed":
        directions = torch.randn(2 * UNITS, UNITS, generator=draw(seed + 3)) / UNITS**0.5
        return sparse(2 * UNITS, seed, 0.05) @ directions + noise / 3
    mixed = torch.randn(UNITS, UNITS, generator=draw(seed + 3))
    return torch.randn(ROWS, UNITS, generator=draw(seed)) @ mixed


@pytest.mark.parametrize("kind", ["monosemantic", "redundant", "rotated", "superposed", "no structure"])
def test_the_cause_that_was_planted_is_found(kind: str) -> None:
    found = examine(planted(kind, 0), Config(rotations=20, controls=2))
    assert found.attrs["cause"] == kind
    held, units = float(found["features_of_unit"].mean()), found["units_of_feature"].values
    if kind == "monosemantic":
        assert held < 1.1
    if kind == "redundant":
        assert held < 1.1
        assert len(units) == FEATURES
        assert abs(units - 2).max() < 0.2
    if kind == "rotated":
        assert held > 3
        assert len(units) == FEATURES
    if kind == "superposed":
        assert held > 5
    # The test of a privileged basis: only where units hold features are they unlike rotated units.
    rotated = found["rotated_kurtosis"].values
    apart = (float(found["kurtosis"].mean()) - rotated.mean()) / rotated.std()
    assert (apart > 6) == (kind in ("monosemantic", "redundant"))


def test_planted_dictionaries_and_toy_models() -> None:
    """The testbeds' own: as many features as dimensions, and five in a plane."""
    for name, cause in (
        ("planted_dictionary/orthogonal", "rotated"),
        ("superposition/pentagon", "superposed"),
    ):
        case = cases.case(name)
        site = next(iter(case.truth.features))
        found = polysemanticity.run(case.model, case.tokens, Config(site=site, rotations=3, controls=1))
        assert found.cause == cause


def test_participation_counts_parts() -> None:
    rows = torch.tensor([[3.0, 0, 0, 0], [2, -2, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    assert participation(rows).tolist() == [1, 2, 4, 0]


def test_kurtosis_is_that_of_known_laws() -> None:
    uniform = torch.rand(200_000, 1, generator=draw(0))
    laplace = uniform.log() * torch.where(torch.rand(200_000, 1, generator=draw(1)) < 0.5, -1.0, 1.0)
    # Standard errors of about 0.005 and 0.1 at this many rows; five of each.
    assert float(kurtosis(uniform)) == pytest.approx(-1.2, abs=0.03)
    assert float(kurtosis(laplace)) == pytest.approx(3.0, abs=0.5)
    assert float(kurtosis(torch.ones(9, 1))) == 0


def test_it_runs_in_a_transformer_and_comes_back_equal(tmp_path: Path) -> None:
    config = Config(rotations=3, controls=1, site="mlp_post.1")
    found = polysemanticity.run(families.model("gpt2"), families.ids(rows=40), config)
    assert found.data.sizes["unit"] == 48
    assert Result.load(found.save(tmp_path / "r")) == found
    assert "verdict" in str(found.shapes()[0])


def test_too_few_values_are_refused() -> None:
    with pytest.raises(InputError, match="at least 64"):
        polysemanticity.run(families.model("gpt2"), families.ids(rows=2))
