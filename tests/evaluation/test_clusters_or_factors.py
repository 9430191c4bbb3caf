"""Animals made of lengths are told from animals that are kinds, though both are seen in the same six combinations."""

from pathlib import Path

import pytest
import torch
from tests.models import families

from microtome.bases import principal_components
from microtome.core.errors import InputError
from microtome.core.result import Result
from microtome.dictionaries.coders import k_svd
from microtome.evaluation import cases, clusters_or_factors
from microtome.evaluation.clusters_or_factors import Config, examine, exceeds, explained, frontier

QUICK = Config(site="path:hidden", units=8, l0=(1, 3), controls=4, sample=200, autoencoder=0)


@pytest.mark.parametrize(("name", "verdict"), [("few", "factors"), ("clusters", "clusters")])
def test_animals(name: str, verdict: str) -> None:
    case = cases.case(f"animals/{name}")
    found = clusters_or_factors.run(case.model, case.tokens, QUICK)
    assert found.verdict == verdict
    transfer, control = found.data["transfer"].values, found.data["control_transfer"].mean("group").values
    if verdict == "factors":  # every combination left out follows from the others
        assert transfer.min() > 0.9
        assert control.max() < 0.7
    else:
        assert transfer.max() < 0.5
    # On what was seen, both are good accounts of both, which is why they are compared on what was not.
    plot = found.data["explained"]
    for basis in ("k-means", "dictionary"):
        assert bool((plot.sel(basis=basis) > plot.sel(basis="random directions") + 0.2).all())


def test_what_exceeds_controls_is_rare_among_them() -> None:
    """One in a hundred by construction; of 2000 at most 2 % (4.5 standard deviations)."""
    draws = torch.randn(2000, 6, generator=torch.Generator().manual_seed(0)).tolist()
    assert sum(exceeds(one[0], one[1:]) for one in draws) <= 40
    assert exceeds(10.0, [0.0, 1.0, 0.5])


def test_normal_values_are_neither() -> None:
    mixed = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    turned = mixed @ torch.randn(16, 16, generator=torch.Generator().manual_seed(9))
    found = examine(turned, QUICK.model_copy(update={"groups": 3}))
    assert found.attrs["verdict"] == "neither"


def test_any_basis_has_its_place_on_the_plot() -> None:
    values = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    all_of_it = principal_components.fit(values, "path:x")
    few = k_svd.fit(values, "path:x", k_svd.Config(width=12, k=2))
    (full, one), (sparse, two) = (
        (l0, share) for _, l0, share in frontier([all_of_it, few], values[:100], values[100:])
    )
    assert full == 6
    assert one == pytest.approx(1.0, abs=1e-5)
    assert sparse <= 2
    assert two == explained(few, values[:100], values[100:]) < 1


def test_it_runs_in_a_transformer_and_comes_back_equal(tmp_path: Path) -> None:
    config = QUICK.model_copy(update={"site": "", "controls": 2, "groups": 3, "autoencoder": 20})
    found = clusters_or_factors.run(families.model("llama"), families.ids(rows=30), config)
    assert found.data.attrs["site"] == "resid_post.1"
    assert "autoencoder" in found.data["basis"].values
    assert Result.load(found.save(tmp_path / "r")) == found
    assert "resid_post.1" in found.shapes()[0].caption  # type: ignore[union-attr]


def test_what_cannot_be_grouped_is_refused() -> None:
    with pytest.raises(InputError, match="at least 64"):
        clusters_or_factors.run(families.model("gpt2"), families.ids(rows=2))
    alike = torch.cat([torch.zeros(99, 3), torch.eye(3)])
    with pytest.raises(InputError, match="ask for fewer groups"):
        examine(alike, QUICK.model_copy(update={"groups": 6, "units": 4}))
