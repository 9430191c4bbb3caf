"""Tracing moves the model by what it reports: all of it for the last stream, nothing where noise changed nothing."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from microtome.core.edits import Edit, Function, Noise
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.patching import causal_tracing as method

EXACT = 1e-5
DRAWS = 2


@pytest.fixture(scope="module")
def found(model: Model, pairs: Pairs) -> method.Result:
    return method.run(model, pairs, method.Config(subject="subject", draws=DRAWS, window=2))


def noises(model: Model, pairs: Pairs) -> list[Noise]:
    """The noise of each draw, made from what the method says of it: three deviations, its seeds."""
    embed = model.run(pairs.clean, read=["embed"])["embed"]
    scale = 3 * float(embed.std())
    return [Noise(Site.parse("embed@1,2"), scale=scale, seed=draw * 1009) for draw in range(DRAWS)]


def metric_of(model: Model, pairs: Pairs, edits: list[Edit]) -> torch.Tensor:
    metric = model.run(pairs.clean, edit=edits, metric=metrics.build(None, pairs)).metric
    assert metric is not None
    return metric


def test_reported_effects_are_what_restoring_does(model: Model, pairs: Pairs, found: method.Result) -> None:
    cells = {
        "resid_post": [("resid_post.1", 2)],
        "attn_out": [("attn_out.1", 4), ("attn_out.2", 4)],  # a window of two layers from layer 1
        "mlp_out": [("mlp_out.1", 4), ("mlp_out.2", 4)],
    }
    moved = []
    for part, window in cells.items():
        effects = []
        for noise in noises(model, pairs):
            restored = []
            for site, position in window:
                value = model.run(pairs.clean, read=[site])[site][:, position : position + 1]
                restored.append(
                    Function(Site.parse(site).at(position), function=lambda _, value=value: value)
                )
            effects.append(metric_of(model, pairs, [noise, *restored]) - metric_of(model, pairs, [noise]))
        expected = torch.stack(effects).mean(dim=0)
        place = {"direction": "restore", "layer": 1, "position": window[0][1]}
        assert found.data[part].sel(place).values == pytest.approx(expected.numpy(), abs=EXACT)
        moved.append(float(expected.abs().max()) > 1e-3)
    assert sum(moved) >= 2, "cells that do nothing prove nothing"


def test_the_corrupted_run_is_the_clean_one_under_noise(
    model: Model, pairs: Pairs, found: method.Result
) -> None:
    for draw, noise in enumerate(noises(model, pairs)):
        expected = metric_of(model, pairs, [noise])
        assert found.data["corrupted_metric"].sel(draw=draw).values == pytest.approx(
            expected.numpy(), abs=EXACT
        )
    first, second = found.data["corrupted_metric"].values
    assert np.abs(first - second).min() > 1e-4, "each draw has noise of its own"


def test_restoring_the_last_stream_is_the_clean_run(found: method.Result) -> None:
    last = found.data["resid_post"].sel(direction="restore", layer=2, position=6)
    gap = found.data["clean_metric"] - found.data["corrupted_metric"].mean("draw")
    assert last.values == pytest.approx(gap.values, abs=EXACT)
    assert found.data["resid_post_normalised"].sel(layer=2, position=6).values == pytest.approx(1, abs=1e-4)


def test_what_noise_left_alone_restores_nothing(found: method.Result) -> None:
    """Before the subject nothing is changed; behind the last layer only the last token is read."""
    for part in ("resid_post", "attn_out", "mlp_out"):
        assert np.abs(found.data[part].sel(position=0).values).max() <= EXACT
    assert np.abs(found.data["resid_post"].sel(layer=2, position=slice(0, 5)).values).max() <= EXACT


def test_restoring_the_whole_prompt_in_the_first_layer(model: Model, pairs: Pairs) -> None:
    found = method.run(model, pairs, method.Config(draws=1, positions="all", layers=(0,), window=1))
    gap = (found.data["clean_metric"] - found.data["corrupted_metric"].mean("draw")).values
    assert found.data["resid_post"].sel(layer=0).values.ravel() == pytest.approx(gap, abs=EXACT)


def test_the_subject_is_where_the_prompts_differ(model: Model, pairs: Pairs, found: method.Result) -> None:
    assert method.run(model, pairs, method.Config(draws=DRAWS, window=2)).data.equals(found.data)


def test_prompts_of_different_lengths(model: Model, uneven: Pairs) -> None:
    found = method.run(model, uneven, method.Config(draws=1, window=1))
    last = found.data["token"].values.tolist().index("last token")
    gap = (found.data["clean_metric"] - found.data["corrupted_metric"].mean("draw")).values
    assert found.data["resid_post"].sel(layer=2, position=last).values.ravel() == pytest.approx(
        gap, abs=EXACT
    )


def test_what_it_tells(found: method.Result) -> None:
    assert any("3 times that of the embeddings), 2 draws" in note for note in found.notes)
    assert any("windows of 2 layers" in note for note in found.notes)
    status = dict(zip(found.data["rule"].values, found.data["status"].values, strict=True))
    assert status["baseline"] == status["direction"] == "broken"
    assert found.shapes()[0].title == "causal tracing: resid_post"


def test_the_default_window_is_a_fifth(models: Callable[[str], Model], pairs: Pairs) -> None:
    found = method.run(models("gpt2"), pairs, method.Config(draws=1))
    assert any("windows of 1 layers" in note for note in found.notes)


def test_refuses_an_unknown_subject(models: Callable[[str], Model], pairs: Pairs) -> None:
    with pytest.raises(InputError, match="row 0 has no slot 'name'; it has subject, place"):
        method.run(models("gpt2"), pairs, method.Config(subject="name"))
    names = "clean mask answers wrong slots texts corrupt_texts token_strings task seed".split()
    same = Pairs(corrupt=pairs.clean, **{name: getattr(pairs, name) for name in names})
    with pytest.raises(InputError, match="row 0 are the same, so the subject is unknown"):
        method.run(models("gpt2"), same)
