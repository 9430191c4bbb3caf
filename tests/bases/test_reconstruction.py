"""Scores of bases whose scores are known: the identity, principal components, shrunken and partial ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microtome.bases.description_length import description_length
from microtome.bases.linear import LinearBasis
from microtome.bases.reconstruction import reconstruction
from microtome.core.errors import InputError, NotFiniteError
from microtome.core.site import Site
from microtome.dictionaries.activations import ReLU
from microtome.dictionaries.dictionary import Dictionary

SITE = "path:activation"


def values(rows: int = 500, d: int = 6, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(rows, d, generator=source) @ torch.randn(d, d, generator=source) + 3.0


def test_the_identity_explains_everything() -> None:
    found = reconstruction(LinearBasis(SITE, torch.eye(6)), values())
    assert found.explained_variance == pytest.approx(1.0, abs=1e-9)
    assert found.norm_ratio == pytest.approx(1.0, abs=1e-6)
    assert found.relative_bias == pytest.approx(1.0, abs=1e-6)
    assert (found.l0, found.dead, found.dense) == (6.0, 0.0, 1.0)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_principal_components_explain_their_share_of_the_eigenvalues(k: int) -> None:
    rows = values()
    mean = rows.mean(0)
    eigenvalues, vectors = torch.linalg.eigh((rows - mean).mT @ (rows - mean))
    top = vectors[:, -k:].mT.contiguous()
    found = reconstruction(LinearBasis(SITE, top, readers=top, centre=mean), rows)
    assert found.explained_variance == pytest.approx(
        float(eigenvalues[-k:].sum() / eigenvalues.sum()), abs=1e-5
    )
    centred = reconstruction(LinearBasis(SITE, top, readers=top), rows - mean)
    assert centred.relative_bias == pytest.approx(1.0, abs=1e-5)
    assert centred.norm_ratio < 1.0


@settings(max_examples=20, deadline=None)
@given(shrunk=st.floats(0.1, 2.0))
def test_what_is_all_too_small_by_a_factor_is_told(shrunk: float) -> None:
    found = reconstruction(LinearBasis(SITE, torch.eye(6), readers=shrunk * torch.eye(6)), values())
    assert found.norm_ratio == pytest.approx(shrunk, rel=1e-5)
    assert found.relative_bias == pytest.approx(shrunk, rel=1e-5)
    assert found.cosine == pytest.approx(1.0, abs=1e-6)


def test_the_mean_alone_explains_nothing() -> None:
    rows = values()
    never = LinearBasis(SITE, torch.ones(1, 6), readers=torch.zeros(1, 6), centre=rows.mean(0))
    found = reconstruction(never, rows)
    assert found.explained_variance == pytest.approx(0.0, abs=1e-6)
    assert (found.dead, found.l0) == (1.0, 0.0)


def test_units_are_counted_where_they_are_on() -> None:
    rows = torch.tensor([[1.0, -1.0, 2.0], [3.0, -1.0, -2.0], [1.0, -5.0, 2.0], [1.0, -1.0, 2.0]])
    site = (Site.parse(SITE),)
    eye = torch.eye(3)
    basis = Dictionary(
        "d", site, site, (3,), (3,), ReLU(), eye, torch.zeros(3), eye, torch.zeros(3), torch.zeros(3)
    )
    found = reconstruction(basis, rows, dense_from=0.8)
    assert found.counts.tolist() == [4, 0, 3]
    assert found.total.tolist() == [6.0, 0.0, 6.0]
    assert [found.l0, found.dead, found.dense] == pytest.approx([7 / 4, 1 / 3, 1 / 3])


class Counted(LinearBasis):
    """Says how many rows it has coded."""

    coded = 0

    def encode(self, values: Tensor) -> Tensor:
        self.coded += len(values)
        return super().encode(values)


def test_each_row_is_coded_once() -> None:
    """Of bases that solve for their codes, coding is all the work."""
    for measure in (reconstruction, description_length):
        basis = Counted(SITE, torch.eye(6)[:4])
        measure(basis, values())
        assert basis.coded == 500


def test_bad_rows_are_refused() -> None:
    basis = LinearBasis(SITE, torch.eye(6))
    with pytest.raises(InputError, match="at least one row"):
        reconstruction(basis, torch.zeros(0, 6))
    with pytest.raises(InputError, match="reads 6 numbers a row"):
        reconstruction(basis, torch.zeros(3, 5))
    with pytest.raises(InputError, match="got a target of"):
        reconstruction(basis, torch.zeros(3, 6), torch.zeros(2, 6))
    with pytest.raises(NotFiniteError, match="hold NaN"):
        reconstruction(basis, torch.full((3, 6), float("nan")))
