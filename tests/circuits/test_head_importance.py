"""Head importance: a formula checked by hand, layers of one size, an error told, and what is refused."""

import numpy as np
import pytest
import torch
from tests.circuits.planted import pairs_of, planted, random_pairs
from tests.models import families

from microtome.circuits import head_importance as method
from microtome.core.answers import NodeScores
from microtome.core.errors import InputError
from microtome.core.result import Result
from microtome.core.site import Site
from microtome.data.metrics import LogitDifference
from microtome.models.random_twin import random_twin


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj", "gemma2"])
@pytest.mark.parametrize("kind", ["resample", "zero"])
def test_it_is_the_mean_size_of_gradient_times_difference_of_each_pair(name: str, kind: str) -> None:
    model, pairs = families.model(name), random_pairs(3)
    site = Site("z", 1)
    metric = LogitDifference(pairs.answers, pairs.wrong)
    here = model.run(pairs.clean, [site, site.grad], metric=metric)
    there = model.run(pairs.corrupt, [site])[site] if kind == "resample" else torch.zeros_like(here[site])
    expected = ((there - here[site]) * here[site.grad]).sum(dim=(1, 3)).abs().mean(dim=0)
    found = method.run(model, pairs, method.Config(kind=kind, checked=0, rows=2)).data["raw"]
    np.testing.assert_allclose(
        [float(found.sel(component=f"z.1.h{head}")) for head in range(4)], expected.numpy(), rtol=1e-4
    )


def test_every_layer_has_the_size_one_and_a_batch_more_or_less_changes_nothing(tmp_path: object) -> None:
    model, pairs = families.model("gpt2"), random_pairs(5)
    one, two = (method.run(model, pairs, method.Config(rows=rows, checked=5)) for rows in (2, 5))
    np.testing.assert_allclose(one.data["importance"], two.data["importance"], rtol=1e-4)
    np.testing.assert_allclose(one.data["sample_exact"], two.data["sample_exact"], atol=1e-5)
    layers = np.array([Site.parse(str(name)).layer for name in one.data["component"].values])
    for layer in range(model.n_layers):
        assert (one.data["importance"].values[layers == layer] ** 2).sum() == pytest.approx(1)
    assert Result.load(one.save(str(tmp_path) + "/r")) == one
    assert one.shapes()[1].rows[0][0] == "5 of 15"


def test_planted_heads_lead_their_layers_and_no_random_ones_do() -> None:
    model, pairs = planted()

    def leaders(found: method.Result) -> tuple[str, str]:
        (answer,) = found.answers()
        assert isinstance(answer, NodeScores)
        first, second = (
            max((n for n in answer.scores if n.startswith(f"z.{layer}.")), key=lambda n: answer.scores[n])
            for layer in (0, 1)
        )
        return first, second

    assert leaders(method.run(model, pairs, method.Config(checked=0))) == ("z.0.h1", "z.1.h2")
    assert leaders(method.run(random_twin(model), pairs, method.Config(checked=0))) != ("z.0.h1", "z.1.h2")


def test_two_sides_that_do_the_same_are_refused() -> None:
    pairs = random_pairs()
    same = pairs_of(pairs.clean, pairs.clean, [3] * 4, [5] * 4)
    with pytest.raises(InputError, match="nothing to attribute"):
        method.run(families.model("gpt2"), same)
