"""Inside a polytope the network is one affine map; its boundaries are where they are computed to be."""

from pathlib import Path

import pytest
import torch
from tests.models import families
from torch import Tensor, nn

import microtome
from microtome.bases import polytope_lens, polytopes
from microtome.bases.polytope_lens import Lens, region_map
from microtome.bases.polytopes import bits_to_name
from microtome.core.errors import InputError
from microtome.core.result import Result
from microtome.core.site import Site
from microtome.evaluation import cases
from microtome.models.model import Model


def network(seed: int = 0) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(
            nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(inplace=True), nn.Linear(7, 3)
        )
    return microtome.load(module.double())


X = Site.module("0", "in")
NEURONS = (Site.module("0"), Site.module("2"))


def lens(model: Model, neurons: tuple[Site, ...] = NEURONS) -> Lens:
    return Lens(model, X, neurons, torch.zeros(1, 5, dtype=torch.double))


def points(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def test_inside_a_polytope_everything_is_one_affine_map() -> None:
    model = network()
    looked = lens(model)
    x = points(1)[0]
    matrix, offset = region_map(looked, x, "path:4")
    near = x + 0.02 * points(200, 2)
    same = (looked.codes(near) == looked.codes(x[None])).all(-1)
    assert 20 < int(same.sum()) < 200
    made = model.module(near).detach()
    gap = (made - (near @ matrix.mT + offset)).norm(dim=-1)
    assert float(gap[same].max()) < 1e-12
    assert float(gap[~same].min()) > 1e-9


def test_boundaries_of_one_layer_are_where_its_neurons_switch() -> None:
    model = network()
    start, end = points(2)
    first = model.module[0]
    one, two = first(start), first(end)
    roots = (one / (one - two))[(one > 0) != (two > 0)].sort().values
    found = lens(model, NEURONS[:1]).boundaries(start, end, points=5, halvings=14)
    # Half of the shortest stretch: 1/4 halved fourteen times.
    torch.testing.assert_close(found.double(), roots.detach(), atol=0.25 / 2**14, rtol=0)
    assert len(found) > 2


def test_halving_finds_what_a_fine_grid_finds() -> None:
    looked = lens(network())
    for seed in range(4):
        start, end = points(2, seed)
        fine = looked.codes(torch.lerp(start, end, torch.linspace(0, 1, 4000, dtype=torch.double)[:, None]))
        count = int((fine[1:] != fine[:-1]).sum())
        assert len(looked.boundaries(start, end, points=33, halvings=8)) == count
        assert looked.density(start, end, 33, 8) == pytest.approx(count / float((end - start).norm()))


def test_bits_are_entropies() -> None:
    # Two neurons that always switch together, one that never does: one bit, not two.
    on = torch.tensor([[True, True, False]] * 4 + [[False, False, False]] * 4)
    assert bits_to_name(on) == {"polytope": 1.0, "neurons": 2.0, "seen": 2.0, "rows": 8.0}
    independent = torch.cartesian_prod(*[torch.tensor([False, True])] * 3)
    told = bits_to_name(independent)
    assert told["polytope"] == pytest.approx(told["neurons"])
    with pytest.raises(InputError, match="no rows"):
        bits_to_name(on[:0])


def test_groups_of_polytopes_as_units() -> None:
    """Two groups of neurons that each switch as one: four polytopes, or two groups that add up."""
    draw = torch.Generator().manual_seed(0)
    which = torch.randint(2, (400, 2), generator=draw)
    sizes = torch.rand(400, 10, generator=draw) * 0.1 + 1
    rows = sizes * (2 * which - 1).repeat_interleave(5, -1)
    exact = polytopes.fit(rows, "mlp_pre.0", polytopes.Config(kind="exact"))
    clusters = polytopes.fit(rows, "mlp_pre.0", polytopes.Config(units=4))
    groups = polytopes.fit(rows, "mlp_pre.0", polytopes.Config(kind="compositional", units=2))
    assert exact.n_units == 4
    for basis in (exact, clusters, groups):
        left = (basis.reconstruct(rows) - rows).square().sum() / (rows - rows.mean(0)).square().sum()
        assert float(left) < 0.01
        codes = basis.encode(rows)
        assert len((codes > 0.5).unique(dim=0)) == 4
    assert bool((exact.encode(rows).sum(-1) == 1).all())
    assert int((groups.encode(rows) > 0.5).sum(-1).max()) == 2
    assert bool((exact.encode(3 * rows) == exact.encode(rows)).all())  # the sign alone counts


def test_lines_between_digits_of_different_kinds_cross_more_boundaries() -> None:
    """Of a trained network, per unit of length, with images of one kind as the control."""
    case = cases.case("images/digits")
    looked_at = case.tokens
    name, images = next(iter(looked_at.items()))
    label = case.truth.labels["digit"]
    relus = [n for n, m in case.model.module.named_modules() if isinstance(m, nn.ReLU)]
    before = tuple(Site.module(n, "in") for n in relus)
    first = next(n for n, m in case.model.module.named_modules() if n and not list(m.children()))
    looked = Lens(case.model, Site.module(first, "in"), before, {name: images[:1]})
    found: dict[bool, list[float]] = {True: [], False: []}
    for one in range(16):
        for same in (True, False):
            others = ((label == label[one]) == same).nonzero().flatten()
            other = int(others[others != one][one % 5])
            found[same].append(looked.density(images[one], images[other], 9, 3))
    mean = {same: sum(some) / len(some) for same, some in found.items()}
    assert mean[False] > 1.05 * mean[True]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_lens_on_transformers(name: str, tmp_path: Path) -> None:
    config = polytope_lens.Config(pairs=2, samples=2, points=5, halvings=2)
    found = polytope_lens.run(families.model(name), families.ids(rows=4), config)
    assert found.data.attrs["neurons"] == 3 * 9 * 48
    assert found.data.attrs["seen"] == 4
    assert float(found.data["between"].min()) > 0
    assert Result.load(found.save(tmp_path / "r")) == found
    assert len(found.shapes()) == 2


def test_what_the_lens_cannot_look_at() -> None:
    with pytest.raises(InputError, match="name site and neurons"):
        polytope_lens.run(network(), {"x": torch.zeros(3, 5)})
    with pytest.raises(InputError, match="at least two rows"):
        polytope_lens.run(families.model("gpt2"), families.ids(rows=1))
    with pytest.raises(InputError, match="token ids"):
        polytope_lens.run(families.model("gpt2"), "a text")
