"""A hash changes with every name, shape, dtype and number, and with nothing else."""

import platform

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from microtome.core import provenance
from microtome.core.provenance import Provenance, hash_tensors, model_hash, versions

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool]


def tensors() -> dict[str, Tensor]:
    return {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.0), "c": torch.zeros(0, 4)}


CHANGED = {
    "a value": {"a": torch.arange(6.0).reshape(2, 3) + torch.eye(2, 3) * 1e-6},
    "a sign of zero": {"a": torch.tensor([[-0.0, 1, 2], [3, 4, 5]])},
    "a shape": {"a": torch.arange(6.0).reshape(3, 2)},
    "a dtype": {"a": torch.arange(6, dtype=torch.int32).reshape(2, 3)},
    "an empty shape": {"c": torch.zeros(4, 0)},
    "a new name": {"d": torch.zeros(0)},
}


@pytest.mark.parametrize("change", CHANGED)
def test_every_change_shows(change: str) -> None:
    assert hash_tensors(tensors() | CHANGED[change]) != hash_tensors(tensors())


def test_a_renamed_tensor_shows() -> None:
    renamed = tensors()
    renamed["z"] = renamed.pop("a")
    assert hash_tensors(renamed) != hash_tensors(tensors())


def test_order_and_strides_do_not_show() -> None:
    backwards = dict(reversed(tensors().items()))
    backwards["a"] = torch.arange(6.0).reshape(2, 3).t().contiguous().t()
    assert not backwards["a"].is_contiguous()
    assert hash_tensors(backwards) == hash_tensors(tensors())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_hashed(dtype: torch.dtype) -> None:
    one = {"a": torch.tensor([0, 1, 1]).to(dtype)}
    assert hash_tensors(one) == hash_tensors({"a": torch.tensor([0, 1, 1]).to(dtype)})
    assert hash_tensors(one) != hash_tensors({"a": torch.tensor([1, 1, 1]).to(dtype)})


@given(st.integers(1, 7))
def test_pieces_do_not_show(size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        whole = hash_tensors(tensors())
        patch.setattr(provenance, "_CHUNK", size)
        assert hash_tensors(tensors()) == whole


def test_a_known_hash() -> None:
    # sha256(b"a\0float32\0(2,)\0" + the eight bytes of 0.0 and 1.0), so that files written today can be checked later.
    assert hash_tensors({"a": torch.tensor([0.0, 1.0])}) == (
        "a8c23d35de4cfc07062b8415e843f3d23f1155ce65e2d2c4dab5ef9f5a86858d"
    )


def test_a_model_is_hashed_by_its_tensors() -> None:
    model = nn.Linear(3, 2)
    before = model_hash(model.state_dict())
    assert model_hash(model.state_dict() | {"_extra_state": {"not": "a tensor"}}) == before
    with torch.no_grad():
        model.bias[0] += 1e-6
    assert model_hash(model.state_dict()) != before


def test_versions_of_what_runs() -> None:
    assert versions()["python"] == platform.python_version()
    assert versions()["torch"] == torch.__version__
    assert set(versions()) == {"python", "microtome", "torch", "transformers"}


def test_the_date_is_not_compared() -> None:
    assert Provenance("m", "h", date="1999-12-31") == Provenance("m", "h")
    assert Provenance("m", "h") != Provenance("m", "other")
