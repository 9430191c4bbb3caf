"""Patching moves the model by what it reports: every kind of cell is made again by hand, on every family."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from microtome.core.edits import Function
from microtome.core.errors import InputError, SiteError
from microtome.core.result import Result as AnyResult
from microtome.core.shapes import Grid, Table
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.patching import activation_patching as method
from microtome.patching.stretches import stretches

EXACT = 1e-5
PARTS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "mlp_post")


def parts_of(model: Model) -> tuple[str, ...]:
    return tuple(part for part in PARTS if model.has(Site(part, 0)))


@pytest.fixture(scope="module")
def found(model: Model, pairs: Pairs) -> method.Result:
    config = method.Config(parts=parts_of(model), heads=(2,), units=(5,), by_position=True)  # type: ignore[arg-type]
    return method.run(model, pairs, config)


def by_hand(model: Model, pairs: Pairs, direction: str, site: Site) -> torch.Tensor:
    """The effect `[row]` of putting the other run's values at a site, by plain passes and a function edit."""
    metric = metrics.build(None, pairs)
    base, other = (pairs.corrupt, pairs.clean) if direction == "denoise" else (pairs.clean, pairs.corrupt)
    value = model.run(other, read=[site], mask=pairs.mask)[site]
    before = model.run(base, metric=metric, mask=pairs.mask).metric
    after = model.run(base, edit=[Function(site, function=lambda _: value)], metric=metric, mask=pairs.mask)
    assert before is not None
    assert after.metric is not None
    return after.metric - before


def test_reported_effects_are_what_intervening_does(model: Model, pairs: Pairs, found: method.Result) -> None:
    sample = random.Random(0)
    moved = []
    for part in parts_of(model):
        for direction in ("denoise", "noise"):
            layer, position = sample.randrange(3), sample.randrange(1, 7)
            place = {"direction": direction, "layer": layer, "position": position}
            site = Site(part, layer, positions=(position,))
            if part == "z":
                place["head"] = 2
                site = site.head(2)
            elif part == "mlp_post":
                place["unit"] = 5
                site = site.unit(5)
            effect = found.data[part].sel(place).values
            assert effect == pytest.approx(by_hand(model, pairs, direction, site).numpy(), abs=EXACT)
            moved.append(np.abs(effect).max() > 1e-4)
    # Some cells rightly do nothing: before the difference, beyond a sliding window.
    assert np.mean(moved) > 0.3, "cells that do nothing prove nothing"


def test_heads_over_whole_prompts(model: Model, pairs: Pairs) -> None:
    found = method.run(
        model, pairs, method.Config(parts=("z",), heads=(1, 3), layers=(1,), direction="noise")
    )
    for head in (1, 3):
        effect = found.data["z"].sel(layer=1, head=head, direction="noise").values
        expected = by_hand(model, pairs, "noise", Site("z", 1, heads=(head,)))
        assert effect == pytest.approx(expected.numpy(), abs=EXACT)
        assert np.abs(effect).max() > 1e-3


def test_slots_of_prompts_of_different_lengths(model: Model, uneven: Pairs) -> None:
    found = method.run(
        model,
        uneven,
        method.Config(parts=("attn_out", "z"), by_position=True, layers=(1,), heads=(2,), direction="noise"),
    )
    labels = found.data["token"].values.tolist()
    assert labels == [stretch.label for stretch in stretches(uneven)]
    for row in range(len(uneven)):
        start, stop = uneven.slots[row]["subject"]
        alone = uneven.rows([row])
        length = alone.lengths[0]
        alone = Pairs(
            **_fields(alone)
            | {"clean": alone.clean[:, :length], "corrupt": alone.corrupt[:, :length], "mask": None}
        )
        for site in (Site("attn_out", 1), Site("z", 1, heads=(2,))):
            place = {"direction": "noise", "layer": 1, "position": labels.index("{subject}"), "row": row}
            place |= {"head": 2} if site.heads else {}
            effect = float(found.data[site.part].sel(place))
            expected = float(by_hand(model, alone, "noise", site.at(*range(start, stop))))
            assert effect == pytest.approx(expected, abs=EXACT)


def test_the_last_stream_at_the_last_token_is_everything(found: method.Result) -> None:
    for direction in ("denoise", "noise"):
        last = found.data["resid_post"].sel(direction=direction, layer=2, position=6).values
        gap = (found.data["clean_metric"] - found.data["corrupt_metric"]).values
        assert last == pytest.approx(gap if direction == "denoise" else -gap, abs=EXACT)
        share = found.data["resid_post_normalised"].sel(direction=direction, layer=2, position=6)
        assert float(share) == pytest.approx(1, abs=1e-3)


def test_patching_the_whole_first_stream_reproduces_the_other_run(model: Model, pairs: Pairs) -> None:
    found = method.run(model, pairs, method.Config(parts=("resid_pre",), positions="all", layers=(0, 2)))
    gap = (found.data["clean_metric"] - found.data["corrupt_metric"]).values
    for layer in (0, 2):
        effect = found.data["resid_pre"].sel(layer=layer, position=0)
        assert effect.sel(direction="denoise").values == pytest.approx(gap, abs=EXACT)
        assert effect.sel(direction="noise").values == pytest.approx(-gap, abs=EXACT)


def test_cells_that_cannot_matter_do_nothing(found: method.Result) -> None:
    """Before the first token that differs all values are the same; behind the last layer only the last token counts."""
    for part in ("resid_pre", "attn_out", "mlp_out", "z"):
        assert np.abs(found.data[part].sel(position=0).values).max() <= EXACT
        assert not found.data[f"{part}_significant"].sel(position=0).values.any()
    assert np.abs(found.data["resid_post"].sel(layer=2, position=slice(0, 5)).values).max() <= EXACT


def test_a_pair_that_does_not_differ_has_no_effect(models: Callable[[str], Model], pairs: Pairs) -> None:
    same = Pairs(**_fields(pairs) | {"corrupt": pairs.clean})
    found = method.run(models("llama"), same)
    for part in found.data.attrs["parts"]:
        assert np.abs(found.data[part].values).max() <= EXACT
        assert not found.data[f"{part}_significant"].values.any()
    status = dict(zip(found.data["rule"].values, found.data["status"].values, strict=True))
    assert status["pair choice"] == "broken"


@pytest.mark.parametrize("metric", ["log-probability", "kl", "rank", "probability", "cross-entropy"])
def test_other_metrics(models: Callable[[str], Model], pairs: Pairs, metric: str) -> None:
    found = method.run(
        models("gpt2"), pairs, method.Config(parts=("resid_post",), metric=metric, layers=(2,))
    )
    gap = (found.data["clean_metric"] - found.data["corrupt_metric"]).values
    everything = found.data["resid_post"].sel(direction="denoise", layer=2)
    at = everything.sum("position") if metric == "cross-entropy" else everything.sel(position=6)
    # Cross-entropy is a mean over positions, and behind the last layer positions do not see each other.
    assert at.values == pytest.approx(gap, abs=EXACT)


def test_what_it_tells(found: method.Result, pairs: Pairs) -> None:
    grids = [shape for shape in found.shapes() if isinstance(shape, Grid)]
    tables = {shape.title: shape for shape in found.shapes() if isinstance(shape, Table)}
    parts = found.data.attrs["parts"]
    assert len(grids) == 2 * len(parts)
    assert set(tables) == {"largest effects", "protocol"}
    assert grids[0].column_labels[1] == "1 {subject}"
    assert grids[0].panels == ("denoise", "noise")
    assert "mean over 6 prompts" in grids[0].caption
    cells = sum(found.data[f"{part}_normalised"].size for part in parts)
    assert f"the 20 largest of {cells} cells, each over 6 prompts" in tables["largest effects"].caption
    top = tables["largest effects"].rows[0]
    assert abs(top[2]) == pytest.approx(
        max(float(np.abs(found.data[f"{p}_normalised"]).max()) for p in parts)
    )  # type: ignore[arg-type]
    assert found.provenance.data_hash == pairs.hash
    assert found.cost.passes > 2
    heads = grids[parts.index("z")]
    assert heads.values.shape == (2, 3 * 7, 1)


def test_an_unnatural_patch_is_marked(models: Callable[[str], Model], pairs: Pairs) -> None:
    """Every value here is natural, so hardly a cell is marked (the negative control of the marks in test_ablation)."""
    found = method.run(models("llama"), pairs)
    percentiles = np.concatenate(
        [found.data[f"{p}_percentile"].values.ravel() for p in found.data.attrs["parts"]]
    )
    judged = percentiles[np.isfinite(percentiles)]
    assert (judged > 99).mean() < 0.02
    assert np.median(judged) < 75


def test_saves_and_loads(found: method.Result, tmp_path: Path) -> None:
    assert AnyResult.load(found.save(tmp_path / "result")) == found


def test_same_call_same_result(models: Callable[[str], Model], pairs: Pairs) -> None:
    config = method.Config(parts=("z",), layers=(0,))
    assert method.run(models("gpt2"), pairs, config) == method.run(models("gpt2"), pairs, config)


def test_without_the_guard_effects_are_the_same_and_none_is_judged(
    models: Callable[[str], Model], pairs: Pairs
) -> None:
    judged, bare = (
        method.run(models("gpt2"), pairs, method.Config(parts=("z",), layers=(0,), guard=guard))
        for guard in (True, False)
    )
    assert np.array_equal(judged.data["z"], bare.data["z"])
    assert np.isfinite(judged.data["z_percentile"]).any()
    assert np.isnan(bare.data["z_percentile"]).all()
    off = bare.data.sel(rule="off-distribution")
    assert str(off["status"].values) == "does not apply"
    assert bare.shapes()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"parts": ("resid_mid",)}, r"has no resid_mid\.0; its parts are embed"),
        ({"parts": ("z",), "heads": (0, 4)}, r"head 4 is out of range; there are 4 \(0 … 3\)"),
        ({"layers": (3,)}, r"layer 3 is out of range; there are 3"),
        ({"layers": (1, 1)}, "one or more different layers"),
        ({"parts": ("mlp_post",), "units": (64,)}, "unit 64 is out of range; there are 64"),
    ],
)
def test_refuses_what_the_model_lacks(
    models: Callable[[str], Model], pairs: Pairs, settings: dict[str, object], told: str
) -> None:
    with pytest.raises(SiteError, match=told):
        method.run(models("gpt_neox"), pairs, method.Config.read(settings))


def test_refuses_unfit_data(models: Callable[[str], Model], pairs: Pairs, uneven: Pairs) -> None:
    with pytest.raises(InputError, match="neurons are patched on request: give the units"):
        method.run(models("gpt2"), pairs, method.Config(parts=("mlp_post",)))
    with pytest.raises(InputError, match="6 to 8 tokens"):
        method.run(models("gpt2"), uneven, method.Config(positions="tokens"))
    with pytest.raises(InputError, match="must align"):
        Pairs(**_fields(pairs) | {"corrupt": pairs.corrupt[:, :-1]})
    with pytest.raises(InputError, match="no metric is called"):
        method.run(models("gpt2"), pairs, method.Config(metric="accuracy"))


def _fields(pairs: Pairs) -> dict[str, object]:
    names = "clean corrupt mask answers wrong slots texts corrupt_texts token_strings task seed".split()
    return {name: getattr(pairs, name) for name in names}
