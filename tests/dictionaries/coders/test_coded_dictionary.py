"""Coded dictionaries are bases; K-SVD and online learning find planted directions, and their objectives fall."""

from typing import Any

import pytest
import torch
from torch import Tensor

from microtome.core import plugins
from microtome.core.errors import InputError
from microtome.dictionaries.coders import k_svd, online_dictionary_learning
from microtome.dictionaries.coders.coded_dictionary import CodedDictionary
from microtome.dictionaries.coders.lasso import Lasso
from microtome.dictionaries.coders.pursuit import OrthogonalMatchingPursuit
from microtome.evaluation.marks import marks
from microtome.testbeds.toys import planted_dictionary
from microtome.testbeds.toys.planted_dictionary import SITE


def planted(seed: int, rows: int, units: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    """Directions, and rows that are sums of k of them with positive strengths."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.nn.functional.normalize(torch.randn(units, d, generator=generator), dim=-1)
    chosen = torch.rand(rows, units, generator=generator).topk(k, -1).indices
    codes = torch.zeros(rows, units).scatter(-1, chosen, 0.5 + torch.rand(rows, k, generator=generator))
    return true, codes @ true


def recovered(true: Tensor, found: Tensor) -> float:
    """Mean over true directions of the largest cosine with one found."""
    return float((true @ torch.nn.functional.normalize(found, dim=-1).T).amax(-1).mean())


def test_k_svd_finds_planted_directions() -> None:
    true, rows = planted(0, 1500, 24, 16, 2)
    config = k_svd.Config(width=24, k=2, rounds=25, centre=False)
    basis = k_svd.fit(rows, "resid_post.0", config)
    assert recovered(true, basis.decoder) > 0.95
    # What luck gives: as many random directions.
    chance = torch.randn(24, 16, generator=torch.Generator().manual_seed(5))
    assert recovered(true, chance) < 0.75
    assert torch.equal(k_svd.fit(rows, "resid_post.0", config).decoder, basis.decoder)


def test_renewing_never_makes_the_rows_worse() -> None:
    for nonnegative in (False, True):
        _, rows = planted(1, 300, 20, 10, 3)
        decoder = k_svd.drawn(rows, 12, 0)
        coder = OrthogonalMatchingPursuit(3, nonnegative)
        for _ in range(2):
            codes = coder.codes(rows, decoder)
            used = codes.any(0)
            before = (rows - codes @ decoder).square().sum()
            on = codes != 0
            k_svd.renew(rows, decoder, codes, nonnegative)
            assert float((rows - codes @ decoder).square().sum()) <= float(before) * (1 + 1e-5)
            assert not bool((codes[:, used] != 0)[~on[:, used]].any())
            torch.testing.assert_close(decoder.norm(dim=-1), torch.ones(12))


def test_online_learning_finds_planted_directions() -> None:
    true, rows = planted(2, 3000, 24, 16, 2)
    config = online_dictionary_learning.Config(width=32, penalty=0.1, passes=1, batch=150, centre=False)
    basis = online_dictionary_learning.fit(rows, "resid_post.0", config)
    assert recovered(true, basis.decoder) > 0.95
    assert float(basis.decoder.norm(dim=-1).max()) <= 1 + 1e-5
    start = k_svd.drawn(rows, 32, 0)
    lasso = Lasso(0.1, nonnegative=True)
    assert (
        lasso.objective(rows, basis.decoder, basis.encode(rows)).mean()
        < 0.7 * lasso.objective(rows, start, lasso.codes(rows, start)).mean()
    )
    assert torch.equal(online_dictionary_learning.fit(rows, "resid_post.0", config).decoder, basis.decoder)


def test_it_is_a_basis() -> None:
    true, rows = planted(3, 60, 24, 16, 2)
    centre = torch.arange(16.0)
    basis = CodedDictionary(["z.0", "resid_mid.0"], [4, 12], true, OrthogonalMatchingPursuit(2), centre)
    codes = basis.encode((rows + centre).view(6, 10, 16))
    assert codes.shape == (6, 10, 24)
    assert basis.in_place
    assert basis.n_parameters == 24 * 16 + 16
    torch.testing.assert_close(basis.decode(codes).view(60, 16), basis.decode(codes.view(60, 24)))
    one = torch.zeros(24)
    one[3] = 1.0
    torch.testing.assert_close(basis.decode(one) - basis.decode(one * 0), basis.direction(3))
    assert torch.equal(basis.encode_sparsely(rows + centre).dense(), basis.encode(rows + centre))
    other = CodedDictionary.of(basis, Lasso(0.1))
    assert torch.equal(other.decoder, true)
    assert torch.equal(other.centre, centre)


def test_bad_input() -> None:
    true, rows = planted(4, 20, 24, 16, 2)
    with pytest.raises(InputError, match="at least as many rows"):
        k_svd.fit(rows, "resid_post.0", k_svd.Config(width=24))
    with pytest.raises(InputError, match="16 numbers"):
        CodedDictionary(["resid_post.0"], [15], true, Lasso(1.0))
    with pytest.raises(InputError, match="kept from batch to batch"):
        online_dictionary_learning.learn([rows], true, Lasso(1.0), forget=0.0)


@pytest.mark.parametrize(
    ("method", "config"),
    [
        (k_svd, k_svd.Config(site=SITE, width=40, k=3, rounds=8)),
        (
            online_dictionary_learning,
            online_dictionary_learning.Config(site=SITE, width=40, passes=1, control=False),
        ),
    ],
)
def test_as_methods_they_find_planted_features(method: Any, config: Any) -> None:
    case = planted_dictionary.build("orthogonal")
    result = method.run(case.model, case.tokens, config)
    found = {mark.score: mark for mark in marks(result.answers(), case.truth, case.model)}
    # Nearer to all of them than to what luck gives.
    score = found["features, cosine"]
    assert score.value > (1 + score.luck.max()) / 2
    if config.control:
        assert result.data.attrs["explained"] > result.data.attrs["explained_shuffled"] + 0.1
    assert plugins.method(method.card.name) is method
