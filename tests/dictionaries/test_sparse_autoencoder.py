"""A sparse autoencoder finds planted features, and explains of shuffled values much less than of the values."""

import pytest
import torch

from microtome.core import plugins
from microtome.core.answers import Directions
from microtome.core.errors import InputError, NotFiniteError
from microtome.core.result import Result
from microtome.dictionaries import sparse_autoencoder
from microtome.dictionaries.sparse_autoencoder import Config, fit, shortest
from microtome.evaluation.marks import marks
from microtome.testbeds.toys import planted_dictionary
from microtome.testbeds.toys.planted_dictionary import SITE

CASE = planted_dictionary.build("orthogonal")
SHORT = Config(site=SITE, width=64, k=3, steps=300, batch=128)


def test_planted_features_are_found_and_shuffled_values_are_not_explained() -> None:
    result = sparse_autoencoder.run(CASE.model, CASE.tokens, SHORT)
    found = {mark.score: mark for mark in marks(result.answers(), CASE.truth, CASE.model)}
    assert found["features, cosine"].value > 0.95
    assert found["features, recovered"].value > 0.9
    assert result.data.attrs["explained"] > result.data.attrs["explained_shuffled"] + 0.1
    assert result.data.attrs["l0"] <= 3.0


@pytest.mark.training
def test_the_control_network_does_not_have_them() -> None:
    result = sparse_autoencoder.run(CASE.control, CASE.tokens, SHORT.model_copy(update={"control": False}))
    (answer,) = result.answers()
    assert isinstance(answer, Directions)
    best = {mark.score: mark for mark in marks([answer], CASE.truth, CASE.model)}["features, cosine"]
    assert best.value < best.limit + 0.1


@pytest.mark.parametrize("on", [2, 4])
def test_so_many_units_are_on_as_let_rows_be_said_shortly(on: int) -> None:
    """Of 16 orthogonal directions so many are in each row: fewer units leave some unsaid, more cost for nothing."""
    draw = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(16, 16, generator=draw)).Q
    which = torch.rand(400, 16, generator=draw).argsort(-1) < on
    values = (which * (1 + torch.rand(400, 16, generator=draw))) @ directions
    assert shortest(values, SITE, Config(width=24, steps=200, batch=64, rate=0.04)) == on


def test_defaults_follow_the_width_of_the_site() -> None:
    values = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    made = fit(values, SITE, Config(steps=5))
    assert made.n_units == 64
    assert made.recipe["l0"] in (2, 4)
    assert fit(values[:, :2], SITE, Config(steps=5)).recipe["l0"] == 1
    assert fit(values, SITE, Config(width=3, steps=5)).recipe["l0"] == 2
    assert fit(values[:3], SITE, Config(steps=5)).n_units == 64


def test_the_same_seed_gives_the_same_result_and_it_is_registered(tmp_path: object) -> None:
    short = SHORT.model_copy(update={"steps": 20, "control": False})
    state = torch.random.get_rng_state()
    one, other = (sparse_autoencoder.run(CASE.model, CASE.tokens, short) for _ in range(2))
    assert one == other
    assert torch.equal(state, torch.random.get_rng_state())
    assert plugins.method("sparse_autoencoder") is sparse_autoencoder
    one.save(str(tmp_path))
    assert Result.load(str(tmp_path)) == one


def test_bad_input_is_refused() -> None:
    values = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="units are to be on"):
        fit(values, SITE, Config(width=4, k=8))
    with pytest.raises(InputError, match="settings do not fit"):
        Config.read({"activation": "softmax"})
    with pytest.raises(NotFiniteError):
        fit(values.log(), SITE, Config(steps=5))
