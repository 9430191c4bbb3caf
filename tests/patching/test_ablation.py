"""Ablation moves the model by what it reports, in all four ways; idle heads have no effect; the kinds are compared."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from microtome.core.edits import Function, Noise
from microtome.core.errors import InputError, SiteError
from microtome.core.shapes import Table
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.patching import ablation as method

EXACT = 1e-5
SAMPLE = ("z.0.h1", "z.1.h3", "mlp_out.1", "z.2.h0")


@pytest.fixture(scope="module")
def found(model: Model, pairs: Pairs) -> method.Result:
    return method.run(model, pairs, method.Config(components=SAMPLE))


def by_hand(
    model: Model, pairs: Pairs, changes: dict[str, Callable[[torch.Tensor], torch.Tensor]]
) -> torch.Tensor:
    """The effect `[row]` on the clean prompts of putting functions of the values in their place."""
    metric = metrics.build(None, pairs)
    edits = [Function(Site.parse(site), function=function) for site, function in changes.items()]
    before = model.run(pairs.clean, metric=metric, mask=pairs.mask).metric
    after = model.run(pairs.clean, edit=edits, metric=metric, mask=pairs.mask).metric
    assert before is not None
    assert after is not None
    return after - before


def effect(found: method.Result, kind: str, site: str) -> np.ndarray:
    return found.data["effect"].sel(kind=kind, component=site).values


@pytest.mark.parametrize("site", SAMPLE)
def test_zero_and_mean(model: Model, pairs: Pairs, found: method.Result, site: str) -> None:
    natural = model.run(pairs.corrupt, read=[site])[site]
    mean = natural.flatten(0, 1).mean(dim=0)
    for kind, function in (("zero", torch.zeros_like), ("mean", lambda value: mean.expand_as(value))):
        expected = by_hand(model, pairs, {site: function})
        assert effect(found, kind, site) == pytest.approx(expected.numpy(), abs=EXACT)
        assert expected.abs().max() > 1e-3


def test_mean_at_each_position(model: Model, pairs: Pairs) -> None:
    config = method.Config(components=SAMPLE[:2], kinds=("mean",), mean_over="prompts", reference="both")
    found = method.run(model, pairs, config)
    for site in SAMPLE[:2]:
        both = torch.cat([model.run(ids, read=[site])[site] for ids in (pairs.clean, pairs.corrupt)])
        mean = both.mean(dim=0, keepdim=True)
        expected = by_hand(model, pairs, {site: lambda value, mean=mean: mean.expand_as(value)})
        assert effect(found, "mean", site) == pytest.approx(expected.numpy(), abs=EXACT)


def test_a_mean_leaves_padding_out(model: Model, uneven: Pairs) -> None:
    site = "mlp_out.1"
    found = method.run(model, uneven, method.Config(components=(site,), kinds=("mean",)))
    natural = model.run(uneven.corrupt, read=[site], mask=uneven.mask)[site]
    assert uneven.mask is not None
    mean = natural[uneven.mask.bool()].mean(dim=0)
    expected = by_hand(model, uneven, {site: lambda value: mean.expand_as(value)})
    assert effect(found, "mean", site) == pytest.approx(expected.numpy(), abs=EXACT)


def test_resampling_takes_one_other_prompt_for_each_row(
    model: Model, pairs: Pairs, found: method.Result
) -> None:
    for site in SAMPLE[:3]:
        natural = model.run(pairs.corrupt, read=[site])[site]
        donors = [natural[donor] for donor in range(len(pairs))]
        every = np.stack([by_hand(model, pairs, {site: lambda v, d=d: d.expand_as(v)}) for d in donors])
        gaps = np.abs(every - effect(found, "resample", site)[None])
        assert gaps.min(axis=0) == pytest.approx(0, abs=EXACT)
    other = method.run(model, pairs, method.Config(components=SAMPLE, kinds=("resample",), seed=1))
    assert not np.allclose(effect(other, "resample", SAMPLE[1]), effect(found, "resample", SAMPLE[1]))


def test_resampling_never_takes_the_prompt_itself(models: Callable[[str], Model], pairs: Pairs) -> None:
    """With two clean prompts the donor of each can only be the other."""
    two = pairs.rows([0, 1])
    config = method.Config(components=("z.1.h3",), kinds=("resample",), reference="clean")
    found = method.run(models("llama"), two, config)
    natural = models("llama").run(two.clean, read=["z.1.h3"])["z.1.h3"]
    expected = by_hand(models("llama"), two, {"z.1.h3": lambda _: natural.flip(0)})
    assert effect(found, "resample", "z.1.h3") == pytest.approx(expected.numpy(), abs=EXACT)


def test_noise_has_the_spread_of_the_values(model: Model, pairs: Pairs, found: method.Result) -> None:
    site = "z.1.h3"
    values = model.run(pairs.clean, read=[site])[site].flatten(0, 1)
    scale = float(values.std(dim=0).pow(2).mean().sqrt())
    noise = Noise(Site.parse(site), scale=scale, seed=0)
    expected = by_hand(model, pairs, {site: noise.apply})
    assert effect(found, "noise", site) == pytest.approx(expected.numpy(), abs=EXACT)
    added = noise.apply(torch.zeros(6, 7, 1, 8)).std()
    assert float(added) == pytest.approx(scale, rel=0.15)  # 336 draws: a standard error of 4 %


def test_a_head_that_writes_nothing_has_no_effect(fresh: Callable[[str], Model], pairs: Pairs) -> None:
    for name in ("gpt2", "llama"):
        model = fresh(name)
        with torch.no_grad():
            model.weight("W_O.1")[2] = 0
        found = method.run(model, pairs)
        assert np.abs(found.data["effect"].sel(component="z.1.h2").values).max() <= EXACT
        assert not found.data["significant"].sel(component="z.1.h2").values.any()
        assert np.abs(found.data["effect"].sel(component="z.1.h1").values).max() > 1e-3


def test_everything_else(model: Model, pairs: Pairs) -> None:
    keep = ("z.0.h1", "mlp_out.2")
    config = method.Config(components=keep, kinds=("zero", "mean"), keep=keep)
    found = method.run(model, pairs, config)
    others = [
        site
        for layer in range(3)
        for site in (*(f"z.{layer}.h{head}" for head in range(4)), f"mlp_out.{layer}")
        if site not in keep
    ]
    gone = by_hand(model, pairs, dict.fromkeys(others, torch.zeros_like)).numpy()
    expected = gone + found.data["clean_metric"].values
    assert found.data["everything_else"].sel(kind="zero").values == pytest.approx(expected, abs=EXACT)
    assert "everything else ablated" in [shape.title for shape in found.shapes()]


def test_keeping_all_that_matters_changes_nothing(fresh: Callable[[str], Model], pairs: Pairs) -> None:
    """An explanation that keeps every head that writes is complete; one that leaves a writer out is not."""
    model = fresh("gpt2")
    with torch.no_grad():
        for layer in range(3):
            model.weight(f"W_O.{layer}")[[1, 2]] = 0
    keep = tuple(f"z.{layer}.h{head}" for layer in range(3) for head in (0, 3))
    keep += tuple(f"mlp_out.{layer}" for layer in range(3))
    for kept, same in ((keep, True), (keep[1:], False)):
        found = method.run(model, pairs, method.Config(components=keep[:1], keep=kept))
        gap = found.data["everything_else"] - found.data["clean_metric"]
        assert (float(np.abs(gap).max()) <= EXACT) is same


def test_how_the_kinds_agree(model: Model, pairs: Pairs) -> None:
    from scipy.stats import spearmanr

    found = method.run(model, pairs)
    means = found.data["effect"].mean("row").values
    agreement = found.data["agreement"].values
    assert np.diag(agreement) == pytest.approx(1)
    for i in range(4):
        for j in range(i):
            assert agreement[i, j] == pytest.approx(spearmanr(means[i], means[j]).statistic)
    error = found.data["effect"].std("row", ddof=1).values / np.sqrt(6)
    for i, j, c in np.argwhere(found.data["flips"].values):
        assert means[i, c] * means[j, c] < 0
        assert (np.abs(means[[i, j], c]) > 2 * error[[i, j], c]).all()


def test_sign_flips_are_found_and_chance_is_not() -> None:
    effects = np.random.default_rng(0).normal(size=(2, 3, 20)) * 0.1
    effects[0, 1] += 1
    effects[1, 1] -= 1
    flips = method._flips(effects)
    assert np.argwhere(flips).tolist() == [[0, 1, 1], [1, 0, 1]]


def test_zero_is_marked_where_values_are_far_from_it(fresh: Callable[[str], Model], pairs: Pairs) -> None:
    """Values with a large constant part are never near zero; values of other prompts are as far as any."""
    model = fresh("gpt2")
    with torch.no_grad():
        model.weight("b_V.1").add_(20)
    heads = tuple(f"z.1.h{head}" for head in range(4))
    found = method.run(model, pairs, method.Config(components=heads))
    far = found.data["percentile"].sel(where="site")
    assert (far.sel(kind="zero") == 100).all()
    for kind in ("resample", "mean"):
        assert (far.sel(kind=kind) < 90).all()
    status = dict(zip(found.data["rule"].values, found.data["status"].values, strict=True))
    assert status["off-distribution"] == status["baseline"] == "broken"


def test_resampled_values_are_as_natural_as_any(model: Model, pairs: Pairs) -> None:
    """They are judged by prompts other than their own: else the covariance, having seen them, would call them near."""
    far = method.run(model, pairs, method.Config(kinds=("resample",))).data["percentile"].sel(where="site")
    assert 35 < float(far.mean()) < 65


def test_what_it_tells(found: method.Result) -> None:
    shapes = {shape.title: shape for shape in found.shapes()}
    assert list(shapes)[:4] == ["ablation", "do the kinds agree?", "sign flips", "largest effects"]
    largest = shapes["largest effects"]
    assert isinstance(largest, Table)
    assert "16 of 16 effects, each over 6 prompts" in largest.caption
    assert all(row[-1] == "beyond" for row in largest.rows if row[5] > 99)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({"components": ("z.1.h9",)}, SiteError, r"z\.1\.h9 is not a component of .* heads 0 … 3"),
        ({"keep": ("resid_post.1",)}, SiteError, r"resid_post\.1 is not a component"),
        ({"components": ("z.7.h0",)}, SiteError, "layers 0 … 2"),
    ],
)
def test_refuses_what_is_no_component(
    models: Callable[[str], Model],
    pairs: Pairs,
    settings: dict[str, object],
    error: type[Exception],
    told: str,
) -> None:
    with pytest.raises(error, match=told):
        method.run(models("gpt2"), pairs, method.Config.read(settings))


def test_refuses_references_that_do_not_fit(models: Callable[[str], Model], uneven: Pairs) -> None:
    with pytest.raises(InputError, match=r"row 0 \(6 tokens\) has no other prompt of its length"):
        method.run(models("gpt2"), uneven, method.Config(kinds=("resample",), reference="clean"))
    with pytest.raises(InputError, match="a mean at each position needs prompts of one length"):
        method.run(models("gpt2"), uneven, method.Config(kinds=("mean",), mean_over="prompts"))
    with pytest.raises(InputError, match="kinds"):
        method.Config.read({"kinds": ["median"]})
