"""Total, direct and indirect effects are what their definitions do by hand; on a linear network they add up."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from microtome.core.edits import Edit, Function
from microtome.core.errors import SiteError
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.patching import activation_patching, path_patching
from microtome.patching import mediation as method

EXACT = 1e-5
CHOSEN = ("z.0.h1", "mlp_out.0", "z.1.h2", "mlp_out.2")
EVERY = [f"{part}.{layer}" for layer in range(3) for part in ("attn_out", "mlp_out")]


def held(site: str, value: torch.Tensor) -> Edit:
    return Function(Site.parse(site), function=lambda _: value)


def after(model: Model, name: str) -> list[str]:
    """The mediators of a component, spelt out."""
    site = Site.parse(name)
    assert site.layer is not None
    later = [f"{part}.{layer}" for layer in range(site.layer + 1, 3) for part in ("attn_out", "mlp_out")]
    below = site.part == "z" and model.anatomy.family.residual == "sequential"
    return [f"mlp_out.{site.layer}", *later] if below else later


@pytest.fixture(scope="module")
def whole(model: Model, pairs: Pairs) -> method.Result:
    """All components, noised."""
    return method.run(model, pairs)


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_effects_are_what_their_definitions_say(model: Model, pairs: Pairs, direction: str) -> None:
    found = method.run(model, pairs, method.Config(components=CHOSEN, direction=direction))  # type: ignore[arg-type]
    base, other = (pairs.clean, pairs.corrupt) if direction == "noise" else (pairs.corrupt, pairs.clean)
    metric = metrics.build(None, pairs)

    def effect(*edits: Edit) -> np.ndarray:
        before, moved = (model.run(base, edit=list(e), metric=metric).metric for e in ((), edits))
        assert before is not None
        assert moved is not None
        return (moved - before).numpy()

    still = model.run(base, read=EVERY)
    for name in CHOSEN:
        patch = held(name, model.run(other, read=[name])[name])
        moved = model.run(base, read=EVERY, edit=[patch])
        mediators = after(model, name)
        raw = found.data["raw"].sel(component=name)
        total = effect(patch)
        direct = effect(patch, *(held(site, still[site]) for site in mediators))
        indirect = effect(*(held(site, moved[site]) for site in mediators))
        assert raw.sel(effect="total").values == pytest.approx(total, abs=EXACT)
        assert raw.sel(effect="direct").values == pytest.approx(direct, abs=EXACT)
        assert raw.sel(effect="indirect").values == pytest.approx(indirect, abs=EXACT)
        assert raw.sel(effect="interaction").values == pytest.approx(total - direct - indirect, abs=3 * EXACT)
        # total − direct is itself an intervention: mediators moved while the component is patched.
        with_both = effect(patch, *(held(site, moved[site]) for site in mediators))
        assert with_both == pytest.approx(total, abs=EXACT)
        assert np.abs(total).max() > 1e-3


def test_the_parts_add_up(whole: method.Result) -> None:
    raw = whole.data["raw"]
    parts = raw.sel(effect=["direct", "indirect", "interaction"]).sum("effect")
    assert parts.values == pytest.approx(raw.sel(effect="total").values, abs=1e-12)


def test_no_interaction_on_a_linear_network(
    linear: Model, models: Callable[[str], Model], pairs: Pairs
) -> None:
    raw = method.run(linear, pairs).data["raw"]
    assert np.abs(raw.sel(effect="total").values).max() > 0.01
    assert np.abs(raw.sel(effect="interaction").values).max() <= EXACT
    bent = method.run(models("gpt2"), pairs).data["raw"]
    assert np.abs(bent.sel(effect="interaction").values).max() > 1e-3


def test_the_last_mlp_acts_directly_only(whole: method.Result) -> None:
    raw = whole.data["raw"].sel(component="mlp_out.2")
    assert raw.sel(effect="direct").values == pytest.approx(raw.sel(effect="total").values, abs=EXACT)
    assert np.abs(raw.sel(effect="indirect").values).max() <= EXACT


def test_agrees_with_patching_and_with_the_path_to_the_logits(
    model: Model, pairs: Pairs, whole: method.Result
) -> None:
    raw = whole.data["raw"]
    node = activation_patching.run(model, pairs, activation_patching.Config(parts=("z",), direction="noise"))
    edge = path_patching.run(model, pairs).data["effect"].sel(receiver="logits")
    for layer in range(3):
        for head in range(4):
            total = node.data["z"].sel(direction="noise", layer=layer, head=head).values
            assert raw.sel(effect="total", component=f"z.{layer}.h{head}").values == pytest.approx(
                total, abs=EXACT
            )
    assert raw.sel(effect="direct").values == pytest.approx(edge.values, abs=EXACT)


def test_a_head_that_writes_nothing_has_no_effects(fresh: Callable[[str], Model], pairs: Pairs) -> None:
    model = fresh("gpt2")
    with torch.no_grad():
        model.weight("W_O.1")[2] = 0
    found = method.run(model, pairs, method.Config(components=("z.1.h2",)))
    assert np.abs(found.data["raw"].values).max() <= EXACT
    assert not found.data["significant"].values.any()


def test_a_metric_that_reads_all_positions(models: Callable[[str], Model], pairs: Pairs) -> None:
    """Cross-entropy reads logits everywhere, so mediators are held everywhere."""
    found = method.run(
        models("gpt2"), pairs, method.Config(metric="cross-entropy", components=("mlp_out.2", "z.0.h1"))
    )
    raw = found.data["raw"]
    last = raw.sel(component="mlp_out.2")
    assert last.sel(effect="direct").values == pytest.approx(last.sel(effect="total").values, abs=EXACT)
    assert np.abs(raw.sel(component="z.0.h1", effect="indirect").values).max() > 1e-4


def test_what_it_tells(models: Callable[[str], Model], pairs: Pairs) -> None:
    found = method.run(models("gpt2"), pairs)
    titles = [shape.title for shape in found.shapes()]
    assert titles == ["mediation", "direct and indirect effects", "protocol", "mediation, off-distribution"]
    assert found.shapes()[0].panels == ("total", "direct", "indirect", "interaction")  # type: ignore[union-attr]


def test_without_the_guard_none_is_judged(models: Callable[[str], Model], pairs: Pairs) -> None:
    found = method.run(models("gpt2"), pairs, method.Config(components=("mlp_out.1",), guard=False))
    assert np.isnan(found.data["percentile"]).all()
    assert found.shapes()


def test_refuses_unknown_components(models: Callable[[str], Model], pairs: Pairs) -> None:
    with pytest.raises(SiteError, match=r"z\.0\.h4 is not a component"):
        method.run(models("gpt2"), pairs, method.Config(components=("z.0.h4",)))
