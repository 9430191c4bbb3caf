"""Exact where the network is linear; elsewhere the error against patching is told as it is."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from microtome.core.edits import Function
from microtome.core.errors import InputError, SiteError
from microtome.core.shapes import Table
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.patching import activation_patching
from microtome.patching import attribution_patching as method

EXACT = 1e-5


def test_exact_on_a_linear_network(linear: Model, pairs: Pairs) -> None:
    found = method.run(
        linear, pairs, method.Config(parts=("resid_pre", "attn_out", "mlp_out", "z"), checked=0)
    )
    truth = activation_patching.run(linear, pairs)
    for part in found.data.attrs["parts"]:
        exact = truth.data[part].values
        assert np.abs(exact).max() > 0.01
        assert found.data[part].values == pytest.approx(exact, abs=EXACT * max(1, np.abs(exact).max()))


def test_not_exact_elsewhere(model: Model, pairs: Pairs) -> None:
    """The negative control of the test above: on curved networks the approximation errs, and the table says so."""
    found = method.run(model, pairs, method.Config(direction="noise"))
    errors = {row[0]: row for row in found.errors().rows}
    assert max(float(row[5]) for row in errors.values()) > 1e-3  # type: ignore[arg-type]


def test_the_gradient_is_that_of_a_small_step(model: Model, pairs: Pairs) -> None:
    """Moving each cell a thousandth of the way to the other run, by hand, moves the metric by a thousandth of it."""
    found = method.run(model, pairs, method.Config(direction="denoise", checked=0, by_position=True))
    metric = metrics.build(None, pairs)
    model.module.double()
    try:
        before = model.run(pairs.corrupt, metric=metric).metric
        for text in ("resid_pre.1@2", "attn_out.1@6", "mlp_out.0@2", "z.2.h1@6"):
            site = Site.parse(text)
            assert site.positions is not None
            other = model.run(pairs.clean, read=[site])[site]
            step = Function(site, function=lambda value, other=other: torch.lerp(value, other, 1e-3))
            after = model.run(pairs.corrupt, edit=[step], metric=metric).metric
            assert before is not None
            assert after is not None
            place = {"direction": "denoise", "layer": site.layer, "position": site.positions[0]}
            place |= {"head": site.heads[0]} if site.heads else {}
            told = found.data[site.part].sel(place).values
            assert told == pytest.approx(1e3 * (after - before).numpy(), rel=0.02, abs=2e-3)
            assert np.abs(told).max() > 5e-3
    finally:
        model.module.float()


def test_the_error_is_that_against_the_exact_sweep(model: Model, pairs: Pairs) -> None:
    found = method.run(model, pairs, method.Config(parts=("resid_pre", "z"), checked=8))
    truth = activation_patching.run(model, pairs, activation_patching.Config(parts=("resid_pre", "z")))
    rows = {(row[0], row[1]): row for row in found.errors().rows}
    for part in ("resid_pre", "z"):
        names = found.data[f"{part}_sample"].values.tolist()
        assert len(names) == 8
        for direction in ("denoise", "noise"):
            exact = found.data[f"{part}_sample_exact"].sel(direction=direction).values
            guess = found.data[f"{part}_sample_attributed"].sel(direction=direction).values
            all_exact = truth.data[part].sel(direction=direction).mean("row").values.ravel()
            all_guess = found.data[part].sel(direction=direction).mean("row").values.ravel()
            cells = np.abs(all_guess[:, None] - guess).argmin(axis=0)
            if part == "z":  # heads are named by their site alone
                cells = np.array([4 * Site.parse(n).layer + Site.parse(n).heads[0] for n in names])  # type: ignore[operator,index]
            assert guess == pytest.approx(all_guess[cells], abs=EXACT)
            if part == "z":
                assert exact == pytest.approx(all_exact[cells], abs=EXACT)
            told = rows[part, direction]
            assert told[2] == f"8 of {len(all_exact)}"
            assert told[4] == pytest.approx(np.abs(guess - exact).mean())
            assert told[5] == pytest.approx(np.abs(guess - exact).max())
            assert told[3] == pytest.approx(np.corrcoef(guess, exact)[0, 1])


def test_integrated_gradients_are_complete(model: Model, pairs: Pairs) -> None:
    """Attributions of the first stream sum to the whole gap as the number of steps grows; one gradient does not."""
    gaps = {}
    for steps in (1, 4, 24):
        config = method.Config(parts=("resid_pre",), layers=(0,), steps=steps, checked=0)
        data = method.run(model, pairs, config).data
        total = data["resid_pre"].sum(("layer", "position"))
        whole = (data["clean_metric"] - data["corrupt_metric"]).values
        signed = np.stack([whole, -whole])
        gaps[steps] = np.abs(total.values - signed).max()
    # The midpoint rule errs with the square of the step, so 24 steps leave far less than 4, once they follow the curve.
    assert gaps[24] < gaps[4] < gaps[1]
    assert gaps[24] < 0.1 * gaps[1]


def test_integrated_gradients_on_a_linear_network_are_plain_ones(linear: Model, pairs: Pairs) -> None:
    plain, integrated = (
        method.run(linear, pairs, method.Config(parts=("z",), steps=steps, checked=0)).data["z"].values
        for steps in (1, 3)
    )
    assert integrated == pytest.approx(plain, abs=EXACT)


def test_slots_and_padding(model: Model, uneven: Pairs) -> None:
    """Slots cover each prompt once, so they sum to the whole prompt."""
    slots = method.run(model, uneven, method.Config(parts=("attn_out",), checked=0)).data["attn_out"]
    whole = method.run(model, uneven, method.Config(parts=("attn_out",), positions="all", checked=0)).data[
        "attn_out"
    ]
    assert slots.sum("position").values == pytest.approx(whole.sum("position").values, abs=EXACT)


def test_neurons(models: Callable[[str], Model], pairs: Pairs) -> None:
    config = method.Config(parts=("mlp_post",), units=(3, 9), direction="noise")
    errors = method.run(models("gpt2"), pairs, config).errors().rows[0]
    assert errors[2] == "6 of 6"
    assert float(errors[3]) > 0.9  # type: ignore[arg-type]  # single neurons are nearly linear


def test_what_it_tells(models: Callable[[str], Model], pairs: Pairs) -> None:
    found = method.run(models("llama"), pairs, method.Config(checked=3))
    titles = [shape.title for shape in found.shapes()]
    assert titles[4:] == ["error against exact patching", "largest effects", "protocol"]
    largest = found.shapes()[5]
    assert isinstance(largest, Table)
    final = found.data["z_percentile"].sel(where="final stream", direction="noise").values
    assert np.isfinite(final).sum() == 3
    assert np.isfinite(found.data["z_percentile"].sel(where="site").values).all()


def test_refuses(models: Callable[[str], Model], pairs: Pairs) -> None:
    with pytest.raises(InputError, match="rank is a count and has no gradient"):
        method.run(models("gpt2"), pairs, method.Config(metric="rank"))
    with pytest.raises(SiteError, match="has no resid_mid"):
        method.run(models("gpt_neox"), pairs, method.Config(parts=("resid_mid",)))
    with pytest.raises(SiteError, match="head 4 is out of range"):
        method.run(models("gpt2"), pairs, method.Config(parts=("z",), heads=(4,)))
