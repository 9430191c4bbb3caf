"""Fitted bases as methods: what they measure is right, and answer keys tell who finds what."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models import families
from torch import nn

import microtome
from microtome.bases import fitted, independent_components, principal_components
from microtome.core import plugins
from microtome.core.answers import Directions, UnitValues
from microtome.core.errors import InputError, SiteError
from microtome.core.result import Result
from microtome.core.site import Site
from microtome.data.prompts import Prompts
from microtome.dictionaries import random_dictionary
from microtome.evaluation.cases import case as case_of
from microtome.evaluation.grader import Run, grade, sites
from microtome.evaluation.grades import Grades
from microtome.evaluation.marks import marks
from microtome.testbeds.case import Truth, Variable

METHODS = (
    "principal_components",
    "independent_components",
    "nonnegative_factors",
    "k_means",
    "random_dictionary",
)


def test_what_is_measured_is_measured_on_rows_put_aside() -> None:
    model, ids = families.model("gpt2"), families.ids(rows=20)
    config = principal_components.Config(site="z.1", units=5, seed=3, rows=7)
    found = principal_components.run(model, ids, config)
    values = model.run(ids, read=["z.1"])["z.1"].flatten(2)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    fit_rows, others = values[order[4:]].flatten(0, 1), values[order[:4]].flatten(0, 1)
    basis = principal_components.fit(fit_rows, "z.1", config)
    left = (basis.reconstruct(others) - others).square().sum()
    explained = 1 - left / (others - fit_rows.mean(0)).square().sum()
    assert found.data.attrs["explained"] == pytest.approx(float(explained), abs=1e-5)
    assert (found.data.attrs["n_fitted"], found.data.attrs["n_measured"]) == (144, 36)
    assert found.data.attrs["explained_shuffled"] < found.data.attrs["explained"]
    (said,) = found.answers()
    assert isinstance(said, Directions)
    assert said.site == Site("z", 1)
    np.testing.assert_allclose(np.abs(said.directions @ basis.directions().numpy().T), np.eye(5), atol=1e-3)
    again = principal_components.run(model, ids, config)
    assert again == found
    assert "36 others" in found.shapes()[0].caption  # type: ignore[union-attr]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_in_the_middle_of_a_transformer_and_comes_back_equal(
    name: str, tmp_path: Path
) -> None:
    module = plugins.method(name)
    found = module.run(families.model("llama"), families.ids(rows=10), module.Config(units=8))
    assert found.data.attrs["site"] == "resid_post.1"
    assert found.data.sizes["unit"] == 8
    assert Result.load(found.save(tmp_path / name)) == found


def test_padding_is_no_value() -> None:
    model, ids = families.model("gpt2"), families.ids(rows=6)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    prompts = Prompts(ids, mask, tuple("abcdef"), {})
    values, _ = fitted.values_at(model, prompts, Site("resid_post", 1), rows=4)
    seen = values[~values.isnan().any(-1)]
    assert len(seen) == 6 * 9 - 4
    plain = model.run(ids, read=["resid_post.1"], mask=mask)["resid_post.1"]
    torch.testing.assert_close(seen, plain[mask.bool()], atol=1e-5, rtol=1e-5)


def test_a_case_says_where_and_not_what() -> None:
    directions = torch.eye(3)
    truth = Truth(
        features={"path:a": directions},
        variables=(
            Variable("x", Site.parse("path:b"), directions),
            Variable("y", Site.parse("path:a"), directions),
            Variable("none", Site.parse("path:c"), directions[:0]),
        ),
    )
    assert sites(truth) == ("path:a", "path:b")


@pytest.mark.truth
def test_answer_keys_tell_who_finds_planted_directions() -> None:
    """As many as dimensions: independent components, not principal ones. More than dimensions: nobody all of them."""
    cases = ["planted_dictionary/orthogonal", "planted_dictionary/sparse"]
    quick = ("independent_components", "k_means", "random_dictionary")
    found = Grades().with_more(grade([Run(cases[0], 0, METHODS[:2]), Run(cases[1], 0, quick)]))
    assert not found.troubles
    value = {(one.method, one.case): one for one in found.grades if one.score == "features, cosine"}
    assert value["independent_components", cases[0]].value > 0.98
    assert value["principal_components", cases[0]].value < 0.8
    for name in quick:
        one = value[name, cases[1]]
        assert one.value < 0.9
        assert one.control is not None
        assert one.control <= one.limit
        assert (one.value > one.limit) == (name != "random_dictionary")


def test_variables_are_asked_at_their_own_sites() -> None:
    found = Grades().with_more(grade([Run("animals/every", 0, ("independent_components",))]))
    (one,) = [one for one in found.grades if one.score == "variables, cosine"]
    assert one.value > 0.98
    assert one.control is not None
    assert one.control < one.limit


def test_codes_of_every_row_are_kept_where_they_are_asked_for() -> None:
    """Of rows that were fitted and others, NaN where a row has ended; a latent written along a direction is told."""
    model, ids = families.model("gpt2"), families.ids(rows=6)
    mask = torch.ones_like(ids)
    mask[2, -2:] = 0
    config = principal_components.Config(site="z.1", units=3, codes=True, control=False)
    prompts = Prompts(ids, mask, tuple("abcdef"), {})
    found = principal_components.run(model, prompts, config)
    directions, units = found.answers()
    assert isinstance(directions, Directions)
    assert isinstance(units, UnitValues)
    assert np.array_equal(np.isnan(units.values).all(-1), mask.numpy() == 0)
    values, _ = fitted.values_at(model, prompts, Site.parse("z.1"), 64)
    aside = torch.randperm(6, generator=torch.Generator().manual_seed(0))[1:]
    fit_rows = values[aside][mask[aside] == 1]
    codes = principal_components.fit(fit_rows, "z.1", config).encode(values[0])
    np.testing.assert_allclose(units.values[0], codes.numpy(), atol=1e-5)
    assert "code" not in principal_components.run(model, ids, config.model_copy(update={"codes": False})).data


@pytest.mark.truth
def test_latents_are_told_by_components_and_not_by_random_directions() -> None:
    """Ten dimensions hold 21 features that are seldom on together; who finds their directions tells when they are."""
    case = case_of("superposition/digons", 0)
    given = {"site": "path:hidden", "control": False, "codes": True}
    found = []
    for method in (independent_components, random_dictionary):
        answers = method.run(case.model, case.tokens, method.Config.read(given)).answers()
        found.append(marks(answers, Truth(labels=case.truth.labels), case.model)[0])
    one, guess = found
    assert one.score == "latents, F1 of the best unit"
    assert one.value > one.limit + 0.2
    assert guess.value < guess.limit + 0.05


def test_what_cannot_be_fitted_is_refused() -> None:
    paths = microtome.load(families.make("gpt2"), family=None)
    with pytest.raises(InputError, match="name a site"):
        independent_components.run(paths, families.ids())
    with pytest.raises(SiteError):
        principal_components.run(
            families.model("gpt2"), families.ids(), principal_components.Config(site="resid_post.9")
        )
    with pytest.raises(InputError, match="1 rows are too few"):
        principal_components.run(families.model("gpt2"), families.ids(1, 1))


def test_of_images_it_is_not_guessed_what_is_a_row() -> None:
    """Channels would be taken for positions, and points for what is measured there."""
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    data = {"input": torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
    config = principal_components.Config(control=False)
    with pytest.raises(
        InputError, match=r"values of shape \[9, 4, 6, 6\], in which it is not known what is a row"
    ):
        principal_components.run(microtome.load(module), data, config.model_copy(update={"site": "path:0"}))
    pooled = principal_components.run(
        microtome.load(module), data, config.model_copy(update={"site": "path:2"})
    )
    assert pooled.data["direction"].shape == (4, 4)
