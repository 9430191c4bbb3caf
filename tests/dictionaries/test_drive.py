"""Do entries give the gradients that the whole matrix gives? Against autograd on plain dense code, to 1e-6."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microtome.dictionaries.drive import DenseDrive, Drive, Entries, SparseDrive
from microtome.dictionaries.selection import above, batch_top_k, top_k

ROWS, READ, UNITS = 24, 7, 48


def draw(seed: int, bias: float = 0.0) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    sizes = {
        "x": (ROWS, READ),
        "centre": (READ,),
        "encoder": (UNITS, READ),
        "bias": (UNITS,),
        "decoder": (UNITS, 5),
    }
    found = {name: torch.randn(size, generator=source, dtype=torch.double) for name, size in sizes.items()}
    found["bias"] += bias
    return {name: tensor if name == "x" else tensor.requires_grad_() for name, tensor in found.items()}


def dense_pre(p: dict[str, Tensor]) -> Tensor:
    return (p["x"] - p["centre"]) @ p["encoder"].mT + p["bias"]


def gradients(loss: Tensor, p: dict[str, Tensor]) -> dict[str, Tensor]:
    wanted = {name: tensor for name, tensor in p.items() if tensor.requires_grad}
    return dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values()), allow_unused=True), strict=True))


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-6 * gradient.norm() + 1e-12, name


def chosen(kind: str, p: dict[str, Tensor]) -> tuple[SparseDrive, Tensor]:
    """A sparse drive, and the dense mask of its entries."""
    product = ((p["x"] - p["centre"]).detach(), p["encoder"].detach(), p["bias"].detach())
    if kind == "top_k":
        selection = top_k(*product, 4)
    elif kind == "batch":
        selection = batch_top_k(*product, 4 * ROWS)
    else:
        selection = above(*product, torch.linspace(-0.5, 1.0, UNITS, dtype=torch.double))
    drive = SparseDrive(selection.entries, selection.pre, p["x"], p["centre"], p["encoder"], p["bias"])
    mask = torch.zeros(ROWS, UNITS, dtype=torch.double)
    mask[selection.entries.row, selection.entries.unit] = 1.0
    return drive, mask


@pytest.mark.parametrize("kind", ["top_k", "batch", "above"])
@pytest.mark.parametrize(
    "bias", [0.0, -3.0]
)  # with the second, most rows have fewer than k that are positive
@pytest.mark.parametrize("prefixes", [(), (5, 20, UNITS)])
@settings(max_examples=10)
@given(seed=st.integers(0, 10_000))
def test_sparse_gradients_are_those_of_autograd(
    kind: str, bias: float, prefixes: tuple[int, ...], seed: int
) -> None:
    p = draw(seed, bias)
    drive, mask = chosen(kind, p)
    weight = torch.linspace(0.5, 2.0, UNITS, dtype=torch.double)

    def loss(pre: Tensor, written: Tensor, scaled: Tensor) -> Tensor:
        return (written - 1).square().sum() + 0.3 * scaled.pow(2).sum()

    codes = drive.pre.relu()
    found = loss(drive.pre, drive.written(codes, p["decoder"], prefixes), codes * drive.each(weight))
    whole = dense_pre(p).relu() * mask
    ends = prefixes or (UNITS,)
    written = torch.stack([whole[:, :end] @ p["decoder"][:end] for end in ends])
    expected = loss(whole, written, whole * weight)
    assert torch.allclose(found, expected)
    assert_equal(gradients(found, p), gradients(expected, p))
    assert torch.equal(drive.firing(codes), (whole != 0).sum(0).double())


@pytest.mark.parametrize("prefixes", [(), (5, 20, UNITS)])
def test_dense_gradients_are_those_of_autograd(prefixes: tuple[int, ...]) -> None:
    p = draw(3)
    drive = DenseDrive(p["x"], p["centre"], p["encoder"], p["bias"])
    found = (drive.written(drive.pre.relu(), p["decoder"], prefixes) - 1).square().sum()
    whole = dense_pre(p).relu()
    written = torch.stack([whole[:, :end] @ p["decoder"][:end] for end in prefixes or (UNITS,)])
    expected = (written - 1).square().sum()
    assert torch.allclose(found, expected)
    assert_equal(gradients(found, p), gradients(expected, p))


def test_single_precision_is_as_exact_as_it_can_be() -> None:
    """The relative error allowed is the 1e-6 that is promised, in the precision that training uses."""
    p = {name: tensor.detach().float() for name, tensor in draw(5).items()}
    p = {name: tensor if name == "x" else tensor.requires_grad_() for name, tensor in p.items()}
    drive, mask = chosen("top_k", p)
    found = (drive.written(drive.pre.relu(), p["decoder"]) - 1).square().mean()
    expected = (((dense_pre(p).relu() * mask.float()) @ p["decoder"]) - 1).square().mean()
    assert_equal(gradients(found, p), gradients(expected, p))


def test_units_and_rows_without_entries_have_no_gradient() -> None:
    p = draw(0)
    entries = Entries(torch.tensor([1, 1, 7]), torch.tensor([0, 3, 3]), ROWS, UNITS)
    pre = dense_pre(p)[entries.row, entries.unit].detach()
    drive: Drive = SparseDrive(entries, pre, p["x"], p["centre"], p["encoder"], p["bias"])
    written = drive.written(drive.pre, p["decoder"])
    assert written[[0, 2, 8, 23]].abs().sum() == 0
    found = gradients(written.sum(), p)
    touched = {
        name: found[name].abs().reshape(UNITS, -1).sum(-1) != 0 for name in ("encoder", "bias", "decoder")
    }
    assert all(mask.nonzero()[:, 0].tolist() == [0, 3] for mask in touched.values())


def test_products_in_half_precision_are_near() -> None:
    p = {name: tensor.detach().float() for name, tensor in draw(4).items()}
    p = {name: tensor if name == "x" else tensor.requires_grad_() for name, tensor in p.items()}
    found: list[dict[str, Tensor]] = []
    for half in (False, True):
        drive = DenseDrive(p["x"], p["centre"], p["encoder"], p["bias"], half)
        loss = (drive.written(drive.pre.relu(), p["decoder"], (5, UNITS)) - 1).square().sum()
        found.append(gradients(loss, p))
    for name, gradient in found[0].items():
        apart = (found[1][name] - gradient).norm() / gradient.norm()
        assert 0 < float(apart) < 0.05, name
        assert found[1][name].dtype == torch.float32
