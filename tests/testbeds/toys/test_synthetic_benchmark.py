"""The benchmark's rows are what its steps say: rates, trees, exclusive siblings, correlations, scaled coefficients."""

from itertools import combinations

import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from microtome.core import plugins
from microtome.core.draws import generator
from microtome.core.errors import InputError
from microtome.testbeds.toys import synthetic_benchmark
from microtome.testbeds.toys.planted_dictionary import SITE
from microtome.testbeds.toys.synthetic_benchmark import FULL, SMALL, Setting, SyntheticBenchmark, pushed_apart

ROWS = 12_000
# Under the null the largest of n standard scores exceeds six with probability n · 2e-9.
LIMIT = 6.0
TREES = Setting(
    features=90, dimensions=24, roots=3, branching=3, depth=2, lowest=0.01, rank=4, correlation=0.3
)


def plainly(benchmark: SyntheticBenchmark, rows: int, seed: int) -> Tensor:
    """The same coefficients `[row, feature]` drawn without shortcuts: every place a normal number, trees by gates."""
    source = generator(seed, 7)
    setting = benchmark.setting
    shared = torch.randn(rows, setting.rank, generator=source) @ benchmark.shared.mT
    own = (1 - benchmark.shared.square().sum(-1)).sqrt()
    gauss = shared + own * torch.randn(rows, setting.features, generator=source)
    asks = gauss > -torch.special.ndtri(benchmark.asked.double()).float()
    drawn = benchmark.mean + benchmark.deviation * torch.randn(rows, setting.features, generator=source)
    value = drawn.relu() * asks
    for parent in range(setting.features):  # parents stand before their children
        children = (benchmark.parent == parent).nonzero().flatten()
        if not len(children):
            continue
        gated = value[:, children] * (value[:, parent] / benchmark.mean[parent])[:, None]
        lot = torch.rand(gated.shape, generator=source).masked_fill(gated <= 0, -1.0)
        value[:, children] = gated * (lot == lot.max(-1, keepdim=True).values)
    return value


@pytest.mark.parametrize("setting", [TREES, TREES.model_copy(update={"lowest": 1e-3, "roots": 1})])
def test_rates_and_coefficients_are_those_of_drawing_every_place(setting: Setting) -> None:
    benchmark = SyntheticBenchmark(setting, 3)
    fast = benchmark.chunk(0, ROWS).coefficients(setting.features)
    slow = plainly(benchmark, ROWS, 3)
    one, other = ((found > 0).double().mean(0) for found in (fast, slow))
    error = ((one * (1 - one) + other * (1 - other)) / ROWS).sqrt().clamp_min(1e-9)
    assert float(((one - other) / error).abs().max()) < LIMIT
    size = (fast.mean(0) - slow.mean(0)) / ((fast.var(0) + slow.var(0)) / ROWS).sqrt().clamp_min(1e-9)
    assert float(size.abs().max()) < LIMIT


def test_who_has_no_parent_is_on_with_its_probability() -> None:
    benchmark = SyntheticBenchmark(TREES.model_copy(update={"deviations": (0.1, 0.0), "lowest": 1e-3}), 1)
    on = (benchmark.chunk(2, ROWS).coefficients(TREES.features) > 0).double()
    alone = benchmark.parent < 0
    wanted = benchmark.probability[alone].double()
    score = (on[:, alone].mean(0) - wanted) / (wanted * (1 - wanted) / ROWS).sqrt()
    assert float(score.abs().max()) < LIMIT


def test_a_child_is_on_only_with_its_parent_and_never_with_a_sibling() -> None:
    benchmark = SyntheticBenchmark(TREES, 0)
    on = benchmark.chunk(0, ROWS).coefficients(TREES.features) > 0
    for parent in range(TREES.features):
        children = on[:, benchmark.parent == parent].sum(-1)
        assert int(children.max()) <= 1
        assert not (children > on[:, parent]).any()
    assert on[:, benchmark.parent >= 0].any()


def test_pairs_meet_as_often_as_the_copula_says() -> None:
    setting = TREES.model_copy(update={"roots": 0, "features": 40, "correlation": 0.45, "lowest": 5e-3})
    benchmark = SyntheticBenchmark(setting.model_copy(update={"deviations": (0.1, 0.0)}), 5)
    on = (benchmark.chunk(0, 4 * ROWS).coefficients(40) > 0).double()
    cosine = benchmark.shared @ benchmark.shared.mT
    hurdle = torch.special.ndtri(benchmark.probability.double())
    compared = []
    for one, other in combinations(range(40), 2):
        correlation = float(cosine[one, other])
        alone = benchmark.probability[[one, other]].double()
        if abs(correlation) < 0.4 or float(alone.prod()) * len(on) < 10:
            continue
        normal = multivariate_normal([0, 0], [[1, correlation], [correlation, 1]])
        together = float(normal.cdf([float(hurdle[one]), float(hurdle[other])]))
        error = max(together, 1 / len(on)) / len(on)
        assert abs(float((on[:, one] * on[:, other]).mean()) - together) < LIMIT * error**0.5
        compared.append((together - float(alone.prod())) / (float(alone.prod()) / len(on)) ** 0.5)
    # Independence would be told apart, in both directions, and for features drawn by candidates.
    assert max(compared) > 2 * LIMIT
    assert min(compared) < -LIMIT
    assert int((benchmark.asked < synthetic_benchmark.FREQUENT).sum()) > 10


def test_a_child_is_scaled_by_its_parent() -> None:
    exact = TREES.model_copy(update={"deviations": (0.0, 0.0)})
    benchmark = SyntheticBenchmark(exact, 0)
    benchmark.deviation[:3] = 1.0  # only roots vary
    chunk = benchmark.chunk(0, 2000)
    found = chunk.coefficients(TREES.features)
    for child in (benchmark.parent >= 3).nonzero().flatten().tolist():
        on = found[:, child] > 0
        parent = int(benchmark.parent[child])
        root = int(benchmark.parent[parent])
        ratio = found[on, root] / benchmark.mean[root]
        torch.testing.assert_close(found[on, child], benchmark.mean[child] * ratio)
        torch.testing.assert_close(found[on, parent], benchmark.mean[parent] * ratio)


def test_a_chunk_depends_on_seed_and_number_alone() -> None:
    benchmark = SyntheticBenchmark(TREES, 1)
    first = benchmark.chunk(4, 64)
    benchmark.chunk(5, 64)
    state = torch.random.get_rng_state()
    again = SyntheticBenchmark(TREES, 1).chunk(4, 64)
    assert torch.equal(first.activations, again.activations)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(first.activations, benchmark.chunk(5, 64).activations)
    written = first.coefficients(TREES.features) @ benchmark.dictionary + benchmark.bias
    torch.testing.assert_close(written, first.activations, atol=1e-4, rtol=1e-5)


def test_the_small_setting_has_the_published_number_of_features_on() -> None:
    # Measured with the peer's generator at the same settings: 11.63, and 8.28 among the first 256 features.
    benchmark = SyntheticBenchmark(SMALL, 42)
    on = (benchmark.chunk(0, 10_000).coefficients(1024) > 0).double().sum(-1)
    assert float(on.mean()) == pytest.approx(11.63, abs=0.1)


def test_directions_are_pushed_apart_as_by_the_gradient_of_all_pairs() -> None:
    start = torch.nn.functional.normalize(torch.randn(40, 12, generator=generator(0)), dim=-1)
    free = start.clone().requires_grad_()
    (free @ free.mT - torch.eye(40)).square().sum().backward()
    adam = torch.optim.Adam([free], 3e-3)
    adam.step()
    wanted = torch.nn.functional.normalize(free.detach(), dim=-1)
    torch.testing.assert_close(pushed_apart(start, 1, 3e-3), wanted)
    apart = pushed_apart(start, 30, 3e-3)
    torch.testing.assert_close(apart.norm(dim=-1), torch.ones(40))
    assert float(_overlap(apart)) < float(_overlap(wanted)) < float(_overlap(start))


def _overlap(directions: Tensor) -> Tensor:
    return (directions @ directions.mT).fill_diagonal_(0).square().sum()


def test_it_serves_as_a_testbed() -> None:
    module = plugins.load("testbeds", "synthetic_benchmark")
    case = module.build("small", 1)
    values = case.model.run(case.tokens, read=[SITE])[SITE]
    assert values.shape == (synthetic_benchmark.ROWS, 128)
    assert case.truth.features[SITE].shape == (1024, 128)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="use fewer roots"):
        Setting.read({"features": 10})
    with pytest.raises(InputError, match="exchange them"):
        Setting.read({"lowest": 0.5})
    with pytest.raises(InputError, match="at least one row"):
        SyntheticBenchmark(TREES).chunk(0, 0)
    with pytest.raises(InputError, match="has no case"):
        synthetic_benchmark.build("full")
    assert FULL.features == 16384
