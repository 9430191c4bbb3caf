"""Is a dictionary the function that it says, whatever is folded, chunked, kept sparse or kept on disk?"""

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from microtome.core.errors import InputError, NotFiniteError, StoreError
from microtome.core.provenance import Provenance
from microtome.core.site import Site
from microtome.dictionaries import dictionary as module
from microtome.dictionaries import files
from microtome.dictionaries.activations import Activation, Gated, JumpReLU, ReLU, TopK
from microtome.dictionaries.dictionary import Dictionary

UNITS, READ, WRITE = 12, 5, 7
KINDS = ("relu", "topk", "signed", "weighted", "jumprelu", "gated")


def activation(kind: str, source: torch.Generator) -> Activation:
    def draw() -> Tensor:
        return torch.rand(UNITS, generator=source) + 0.2

    made = {
        "relu": ReLU(),
        "topk": TopK(3),
        "signed": TopK(3, signed=True),
        "weighted": TopK(3, weight=draw()),
        "jumprelu": JumpReLU(draw()),
        "gated": Gated(draw(), draw() - 0.5),
    }
    return made[kind]


def made(kind: str = "relu", seed: int = 0) -> Dictionary:
    source = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source)

    return Dictionary(
        name="made",
        reads=(Site.parse("mlp_in.0"),),
        writes=(Site.parse("mlp_out.0"), Site.parse("mlp_out.1")),
        read_widths=(READ,),
        write_widths=(3, 4),
        activation=activation(kind, source),
        encoder=draw(UNITS, READ),
        encoder_bias=draw(UNITS),
        decoder=draw(UNITS, WRITE),
        decoder_bias=draw(WRITE),
        centre=draw(READ),
        read_scale=0.7,
        write_scale=1.9,
        skip=draw(WRITE, READ),
        provenance=Provenance("model", "hash", "data"),
        recipe={"k": 3},
    )


def rows(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, READ, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10_000))
def test_folding_and_unit_norms_change_nothing_that_is_rebuilt(kind: str, seed: int) -> None:
    one = made(kind, seed).mapped(Tensor.double)
    values = rows(6, seed + 1).double()
    whole = one.reconstruct(values)
    for other in (one.folded(), one.unit_norms(), one.folded().unit_norms()):
        assert torch.allclose(other.reconstruct(values), whole, atol=1e-10)
    assert torch.allclose(one.unit_norms().directions().norm(dim=-1), torch.ones(UNITS).double())
    folded = one.folded()
    assert folded.read_scale == folded.write_scale == 1
    assert not folded.centre.any()


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_the_same_dense_sparse_and_in_chunks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = made(kind)
    values = rows(9)
    dense = one.encode(values)
    assert bool(dense.any())
    monkeypatch.setattr(module, "_CHUNK", 2 * UNITS)
    sparse = one.encode_sparsely(values)
    assert torch.allclose(sparse.dense(), dense, atol=1e-6)
    expected = one.decode(dense) + values @ one.skip.mT if one.skip is not None else one.decode(dense)
    assert torch.allclose(one.reconstruct(values), expected, atol=1e-5)
    assert torch.allclose(one.reconstruct(values.view(3, 3, -1)), expected.view(3, 3, -1), atol=1e-5)


def test_the_formula_by_hand() -> None:
    one = made("jumprelu")
    value = rows(1)
    pre = one.encoder @ ((value[0] - one.centre) * 0.7) + one.encoder_bias
    threshold = one.activation.tensors()["threshold"]
    codes = torch.tensor([float(p) if p > t else 0.0 for p, t in zip(pre, threshold, strict=True)])
    assert torch.allclose(one.encode(value)[0], codes, atol=1e-6)
    back = sum(code * one.direction(unit) for unit, code in enumerate(codes)) + one.decoder_bias
    assert torch.allclose(one.decode(codes[None])[0], back, atol=1e-5)


def test_activations_keep_what_they_say() -> None:
    pre = torch.tensor([[3.0, -4.0, 1.0, -0.5], [-1.0, -2.0, -3.0, 0.5]])
    assert TopK(2)(pre).tolist() == [[3, 0, 1, 0], [0, 0, 0, 0.5]]  # the second has one positive only
    assert TopK(2, signed=True)(pre).tolist() == [[3, -4, 0, 0], [0, -2, -3, 0]]
    assert TopK(1, weight=torch.tensor([1.0, 1.0, 5.0, 1.0]))(pre).tolist() == [[0, 0, 1, 0], [0, 0, 0, 0.5]]
    assert JumpReLU(torch.tensor([3.0, 0.0, 0.9, -1.0]))(pre).tolist() == [[0, 0, 1, 0], [0, 0, 0, 0.5]]
    gated = Gated(torch.full((4,), 2.0), torch.full((4,), -1.5))
    assert gated(pre).tolist() == [[4.5, 0, 0.5, 0], [0, 0, 0, 0]]


def test_numbers_are_counted_and_zeros_that_stand_for_no_site_are_not() -> None:
    one = made()
    all_sites = UNITS * (READ + WRITE + 1) + WRITE + READ + WRITE * READ
    assert one.n_parameters == all_sites
    first = torch.tensor([[True, False]]).expand(UNITS, 2)
    assert replace(one, writes_of=first).n_parameters == all_sites - UNITS * 4


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_loaded_is_what_was_saved(kind: str, tmp_path: Path) -> None:
    one = made(kind)
    path = tmp_path / "made.safetensors"
    files.save(one, path)
    back = files.load(path)
    assert back.tensors().keys() == one.tensors().keys()
    assert all(torch.equal(back.tensors()[name], tensor) for name, tensor in one.tensors().items())
    for name in ("name", "reads", "writes", "read_widths", "write_widths", "read_scale", "write_scale"):
        assert getattr(back, name) == getattr(one, name)
    assert (back.provenance, back.recipe, back.activation.word) == (
        one.provenance,
        one.recipe,
        one.activation.word,
    )
    assert torch.equal(back.encode(rows(4)), one.encode(rows(4)))


def test_a_damaged_foreign_or_absent_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "made.safetensors"
    for absent in (path, tmp_path):
        with pytest.raises(StoreError, match="there is no file"):
            files.load(absent)
    files.save(made(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="restore it"):
        files.load(path)
    path.write_bytes(b"not a dictionary")
    with pytest.raises(StoreError, match="restore it"):
        files.load(path)
    safetensors.torch.save_file({"W_enc": torch.zeros(2, 2)}, path)
    with pytest.raises(StoreError, match="was not written by microtome"):
        files.load(path)
    # Same length, so the file is whole, but the header says what cannot be.
    path.write_bytes(whole.replace(b'"relu', b'"what'))
    with pytest.raises(StoreError, match=r"damaged|was not written"):
        files.load(path)
    path.write_bytes(whole.replace(b'"version\\": 1', b'"version\\": 7'))
    with pytest.raises(StoreError, match="format version 7"):
        files.load(path)


def test_what_does_not_fit_is_refused() -> None:
    one = made()
    with pytest.raises(InputError, match="reads 5 numbers a row"):
        one.encode(torch.zeros(2, 6))
    with pytest.raises(InputError, match=r"decoder has shape \(11, 7\)"):
        replace(one, decoder=torch.zeros(11, WRITE))
    with pytest.raises(InputError, match="widths"):
        replace(one, read_widths=(2, 3))
    with pytest.raises(NotFiniteError, match="encoder_bias"):
        replace(one, encoder_bias=torch.full((UNITS,), torch.nan))
    with pytest.raises(InputError, match="k = 13"):
        replace(one, activation=TopK(13))
    with pytest.raises(InputError, match="positive"):
        replace(one, read_scale=0.0)
    with pytest.raises(InputError, match="units 0 … 11"):
        one.direction(12)
