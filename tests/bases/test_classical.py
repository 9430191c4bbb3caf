"""Classical bases against other implementations, planted answers, and data that hold nothing."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.cluster import KMeans
from sklearn.decomposition import NMF, PCA
from tests.models import families
from torch import Tensor
from torch.nn import functional

from microtome.bases import (
    heads,
    independent_components,
    k_means,
    neurons,
    nonnegative_factors,
    principal_components,
    unit_edits,
)
from microtome.bases.linear import LinearBasis
from microtome.bases.splice import splice
from microtome.core import plugins
from microtome.core.edits import Set
from microtome.core.errors import InputError
from microtome.dictionaries import random_dictionary

SITE = "path:x"


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def streamed(values: Tensor) -> object:
    return lambda: iter(values.split(97))


def best(true: Tensor, found: Tensor) -> Tensor:
    """Of each true direction, the largest cosine with one that was found."""
    return (functional.normalize(true, dim=-1) @ functional.normalize(found, dim=-1).mT).abs().amax(-1)


def test_every_fit_is_offered_and_gives_a_basis_that_fits_its_site() -> None:
    values = torch.rand(300, 6, generator=draw())
    assert {"neurons", "heads", "k_means", "principal_components"} <= set(plugins.names("bases"))
    for name in (*plugins.names("bases"),):
        module = plugins.load("bases", name)
        config = module.Config(n_heads=2) if name == "heads" else module.Config()
        basis = module.fit(values, SITE, config)
        codes = basis.encode(values)
        assert codes.shape == (300, basis.n_units)
        assert basis.decode(codes).shape == values.shape
        assert basis.directions().shape == (basis.n_units, 6)
        torch.testing.assert_close(basis.direction(1), basis.directions()[1])
        more = codes.index_add(1, torch.tensor([1]), torch.ones(300, 1))
        added = basis.decode(more) - basis.decode(codes)
        torch.testing.assert_close(added, basis.direction(1).expand(300, 6), atol=1e-5, rtol=1e-4)
        sparse = basis.encode_sparsely(values)
        torch.testing.assert_close(sparse.dense(), codes)
        torch.testing.assert_close(basis.rebuilt_sparsely(values, sparse), basis.rebuilt(values, codes))
        deep = basis.reconstruct(values.view(10, 30, 6))
        torch.testing.assert_close(deep.flatten(0, 1), basis.reconstruct(values))
        assert basis.read_widths == (6,)
        with pytest.raises(InputError, match=f"units 0 … {basis.n_units - 1}"):
            basis.unit(basis.n_units)


# Principal components


def test_principal_components_are_sklearns_in_one_go_or_by_chunks() -> None:
    values = torch.randn(500, 8, generator=draw()) @ torch.randn(8, 8, generator=draw(1)) + 3
    other = PCA().fit(values.double().numpy())
    for rows in (values, streamed(values)):
        basis = principal_components.fit(rows, SITE)
        torch.testing.assert_close(
            (basis.directions().double() @ torch.from_numpy(other.components_).mT).abs(),
            torch.eye(8, dtype=torch.double), atol=1e-4, rtol=0,
        )  # fmt: skip
        torch.testing.assert_close(basis.decode(basis.encode(values)), values, atol=1e-5, rtol=1e-5)
        some = principal_components.fit(rows, SITE, principal_components.Config(units=3))
        left = (some.reconstruct(values) - values).square().sum() / (values - values.mean(0)).square().sum()
        assert float(1 - left) == pytest.approx(other.explained_variance_ratio_[:3].sum(), abs=1e-5)


def test_directions_without_variance_are_left_out() -> None:
    flat = torch.randn(100, 3, generator=draw()) @ torch.randn(3, 7, generator=draw(1)) + 100
    assert principal_components.fit(flat, SITE).n_units == 3
    with pytest.raises(InputError, match="vary along 3 directions; 4 were asked for"):
        principal_components.fit(flat, SITE, principal_components.Config(units=4))
    with pytest.raises(InputError, match="vary along 0 directions"):
        principal_components.fit(torch.ones(5, 3), SITE)


# Independent components


@pytest.mark.parametrize("kind", ["uniform", "sparse"])
def test_independent_parts_are_found_whatever_the_mixture(kind: str) -> None:
    parts = torch.rand(4000, 6, generator=draw()) - 0.5
    if kind == "sparse":
        parts = torch.where(torch.rand(4000, 6, generator=draw(2)) < 0.15, parts + 1, 0.0)
    mixture = torch.randn(6, 6, generator=draw(1))
    values = parts @ mixture + 1
    for rows in (values, streamed(values)):
        basis = independent_components.fit(rows, SITE)
        assert not basis.notes
        assert float(best(mixture, basis.directions()).min()) > 0.99
        torch.testing.assert_close(basis.decode(basis.encode(values)), values, atol=1e-4, rtol=1e-4)
        covariance = torch.cov(basis.encode(values).mT, correction=0)
        torch.testing.assert_close(covariance, torch.eye(6), atol=1e-3, rtol=0)


def test_normal_parts_have_no_directions_to_be_found() -> None:
    """Negative control: of Gaussian values every rotation is as good."""
    mixture = torch.randn(6, 6, generator=draw(1))
    values = torch.randn(4000, 6, generator=draw()) @ mixture
    basis = independent_components.fit(values, SITE, independent_components.Config(steps=50))
    whiten = torch.linalg.inv(torch.linalg.cholesky(torch.cov(values.mT)))
    assert float(best(mixture @ whiten.mT, basis.directions() @ whiten.mT).mean()) < 0.9


# Non-negative factors


def test_codes_are_non_negative_least_squares() -> None:
    directions = torch.randn(9, 6, generator=draw())
    values = torch.randn(20, 6, generator=draw(1))
    codes = nonnegative_factors.nonnegative_least_squares(values, directions, 2000)
    exact = np.stack([nnls(directions.mT.double().numpy(), row)[0] for row in values.double().numpy()])
    np.testing.assert_allclose((codes @ directions).numpy(), exact @ directions.numpy(), atol=1e-3)


def test_planted_parts_are_found() -> None:
    """Parts of which several dimensions and many rows have none."""
    parts = torch.rand(5, 12, generator=draw()) * (torch.rand(5, 12, generator=draw(3)) < 0.4)
    strength = torch.rand(1000, 5, generator=draw(1)) * (torch.rand(1000, 5, generator=draw(2)) < 0.3)
    values = strength @ parts
    config = nonnegative_factors.Config(units=5, tolerance=1e-7, rounds=300)
    for rows in (values, streamed(values)):
        basis = nonnegative_factors.fit(rows, SITE, config)
        assert float(best(parts, basis.directions()).min()) > 0.95
        assert bool((basis.directions() >= 0).all())


def test_signed_values_have_signed_directions_and_codes_of_one_sign() -> None:
    strength = torch.rand(1000, 5, generator=draw(1)) * (torch.rand(1000, 5, generator=draw(2)) < 0.3)
    values = strength @ torch.randn(5, 12, generator=draw())
    config = nonnegative_factors.Config(units=5, tolerance=1e-8, rounds=300)
    basis = nonnegative_factors.fit(values, SITE, config)
    assert bool((basis.encode(values) >= 0).all())
    assert bool((basis.directions() < 0).any())
    left = float((basis.reconstruct(values) - values).square().sum() / values.square().sum())
    four = principal_components.fit(values, SITE, principal_components.Config(units=4))
    best_of_four = float((four.reconstruct(values) - values).square().sum() / values.square().sum())
    assert left < 0.1 * best_of_four


def test_it_explains_as_much_as_another_implementation() -> None:
    values = torch.rand(300, 10, generator=draw()) ** 3
    other = NMF(4, init="nndsvda", max_iter=2000, random_state=0).fit(values.double().numpy())
    basis = nonnegative_factors.fit(
        values, SITE, nonnegative_factors.Config(units=4, tolerance=1e-7, rounds=500)
    )
    mine = float((basis.reconstruct(values) - values).norm())
    assert mine <= 1.02 * other.reconstruction_err_  # both stop in local minima
    with pytest.raises(InputError, match="need as many rows"):
        nonnegative_factors.fit(values[:3], SITE, nonnegative_factors.Config(units=4))


# Clusters


def blobs(count: int = 5, rows: int = 600, width: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    middles = 10 * torch.randn(count, width, generator=draw())
    which = torch.randint(count, (rows,), generator=draw(1))
    return middles, which, middles[which] + 0.1 * torch.randn(rows, width, generator=draw(2))


@pytest.mark.parametrize("batch", [None, 50])
def test_clusters_that_are_there_are_found(batch: int | None) -> None:
    middles, which, values = blobs()
    for rows in (values, streamed(values)):
        basis = k_means.fit(rows, SITE, k_means.Config(units=5, batch=batch, steps=20))
        codes = basis.encode(values)
        assert bool((codes.sum(-1) == 1).all())
        assert bool(((codes == 0) | (codes == 1)).all())
        torch.testing.assert_close(basis.decode(codes), middles[which], atol=0.15, rtol=0)


def test_the_error_is_that_of_another_implementation_and_an_exact_minimum() -> None:
    values = torch.randn(400, 3, generator=draw())
    basis = k_means.fit(values, SITE, k_means.Config(units=8, starts=10, steps=200))
    mine = float((basis.reconstruct(values) - values).square().sum())
    assert mine <= 1.05 * KMeans(8, n_init=10, random_state=0).fit(values.numpy()).inertia_
    chosen = basis.encode(values)
    means = chosen.mT @ values / chosen.sum(0)[:, None]
    torch.testing.assert_close(basis.directions() + basis.centre, means, atol=1e-5, rtol=1e-5)


def test_several_centroids_a_row() -> None:
    """Two causes, each of a few kinds: one centroid for each combination, or one for each kind of each cause."""
    one, two = (torch.randn(4, 6, generator=draw(seed)) for seed in (0, 1))
    kinds = torch.randint(4, (800, 2), generator=draw(2))
    values = torch.cat([one[kinds[:, 0]], two[kinds[:, 1]]], -1)
    product = k_means.fit(values, SITE, k_means.Config(units=8, kind="product", l0=2))
    assert bool((product.encode(values).sum(-1) == 2).all())
    torch.testing.assert_close(product.reconstruct(values), values, atol=1e-4, rtol=1e-4)
    assert bool((product.directions()[:4, 6:] == 0).all())
    single = k_means.fit(values, SITE, k_means.Config(units=8))
    residual = k_means.fit(values, SITE, k_means.Config(units=8, kind="residual", l0=2))
    errors = [float((basis.reconstruct(values) - values).square().sum()) for basis in (single, residual)]
    assert errors[1] < errors[0]
    first = k_means.fit(values, SITE, k_means.Config(units=4))
    torch.testing.assert_close(residual.directions()[:4], first.directions())


def test_clusters_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(InputError, match="at least as many rows"):
        k_means.fit(torch.randn(3, 2), SITE, k_means.Config(units=4))
    with pytest.raises(InputError, match="do not divide"):
        k_means.fit(torch.randn(30, 3), SITE, k_means.Config(units=4, kind="product", l0=2))
    with pytest.raises(InputError, match="one centroid a row"):
        k_means.fit(torch.randn(30, 3), SITE, k_means.Config(units=4, l0=2))
    same = k_means.fit(torch.ones(10, 3), SITE, k_means.Config(units=4))
    torch.testing.assert_close(same.reconstruct(torch.ones(2, 3)), torch.ones(2, 3))


# Heads, neurons, random directions


def test_a_heads_units_are_that_head() -> None:
    model, tokens = families.model("llama"), families.ids(rows=8)
    z = model.run(tokens, read=["z.1"])["z.1"]
    basis = heads.fit(z.flatten(2).flatten(0, 1), "z.1", heads.Config(n_heads=4))
    mean = z.mean((0, 1))
    ours = model.run(tokens, edit=splice(basis, change=unit_edits.zero(basis.units_of(2)))).logits
    by_hand = model.run(tokens, edit=[Set("z.1.h2", value=mean[2:3])]).logits
    assert ours is not None
    assert by_hand is not None
    torch.testing.assert_close(ours, by_hand, atol=2e-5, rtol=2e-5)
    assert basis.unit(9) == "heads.h1.u1"
    outside = basis.directions()[list(basis.units_of(1))].unflatten(-1, (4, 8))[:, [0, 2, 3]]
    assert not outside.any()
    with pytest.raises(InputError, match="do not divide into 5 heads"):
        heads.fit(torch.randn(9, 32), "z.1", heads.Config(n_heads=5))
    with pytest.raises(InputError, match="head 4 is out of range"):
        basis.units_of(4)


def test_neurons_say_nothing_new() -> None:
    values = torch.randn(7, 3, generator=draw())
    basis = neurons.fit(values, SITE)
    assert torch.equal(basis.encode(values), values)
    assert torch.equal(basis.reconstruct(values), values)
    assert basis.n_parameters == 0
    assert basis.encode(values).data_ptr() == values.data_ptr()  # nothing was computed, nothing copied
    assert basis.rows_of({basis.reads[0]: values}).data_ptr() == values.data_ptr()
    assert torch.equal(basis.direction(1), basis.directions()[1])
    readers, offsets = basis.drives(torch.tensor([2, 0]))
    assert torch.equal(values @ readers.mT + offsets, values[:, [2, 0]])
    with pytest.raises(InputError, match="rows of 4 numbers"):
        basis.encode(torch.ones(2, 4))
    with pytest.raises(InputError, match="units 0 … 2; got 3"):
        basis.direction(3)
    with pytest.raises(InputError, match="no neurons"):
        neurons.Neurons(SITE, 0)


def test_heads_are_multiplied_by_themselves_as_all_at_once() -> None:
    values = torch.randn(40, 12, generator=draw(), dtype=torch.double).cumsum(-1).float()
    basis = heads.fit(values, SITE, heads.Config(n_heads=3))
    whole = LinearBasis(SITE, basis.directions(), readers=basis.directions(), centre=basis.centre)
    for rows in (values, values[:6].reshape(2, 3, 12)):
        codes = basis.encode(rows)
        torch.testing.assert_close(codes, whole.encode(rows))
        torch.testing.assert_close(basis.decode(codes), whole.decode(codes))
        torch.testing.assert_close(basis.reconstruct(rows), rows)


def test_directions_that_do_not_fit_each_other_are_refused() -> None:
    directions = torch.randn(3, 5, generator=draw())
    for given, message in (
        ({"centre": torch.zeros(4)}, r"centre at path:x: the directions ask for shape \[5\], got \[4\]"),
        ({"readers": torch.zeros(5, 3)}, r"readers at path:x: the directions ask for shape \[3, 5\]"),
    ):
        with pytest.raises(InputError, match=message):
            LinearBasis(SITE, directions, **given)
    with pytest.raises(InputError, match="at least one direction"):
        LinearBasis(SITE, directions[:0])


def test_random_directions_follow_the_seed_and_not_the_values() -> None:
    values = torch.randn(50, 8, generator=draw())
    one = random_dictionary.fit(values, SITE, random_dictionary.Config(units=20, l0=3))
    two = random_dictionary.fit(values[:9] * 7, SITE, random_dictionary.Config(units=20, l0=3))
    assert torch.equal(one.directions(), two.directions())
    assert bool(((one.encode(values) != 0).sum(-1) <= 3).all())
    torch.testing.assert_close(one.directions().norm(dim=-1), torch.ones(20))
