"""Edits are data: what each does to a value, and that it is saved, loaded, moved and compared as a value."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from microtome.core import edits
from microtome.core.edits import Add, Edit, Function, Noise, Project, Scale, Set, Swap, Zero
from microtome.core.errors import EditError, StoreError
from microtome.core.site import Site

SITES = (
    "resid_post.3",
    "z.5.h1,7@-1",
    "mlp_post.0.u12@0,4",
    "path:features.3:in",
    "pattern.2",
    "encoder/v.1",
)
FINITE = st.floats(-4, 4, allow_nan=False)


@st.composite
def any_edit(draw: st.DrawFn) -> Edit:
    site = Site.parse(draw(st.sampled_from(SITES)))
    rows = draw(st.none() | st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True).map(tuple))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    dtype = draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float64)))
    vector = torch.randn(6, generator=generator).to(dtype)
    frame = torch.randn(2, 6, generator=generator)
    made: list[Edit] = [
        Set(site, rows, value=vector, origin=draw(st.sampled_from(("set", "patch", "mean", "resample")))),
        Zero(site, rows),
        Noise(site, rows, scale=draw(FINITE), seed=draw(st.integers(0, 9))),
        Add(site, rows, vector=vector, coefficient=draw(FINITE)),
        Scale(site, rows, factor=draw(FINITE)),
        Project(site, rows, directions=frame, keep=draw(st.booleans())),
        Swap(site, rows, directions=frame, value=vector),
    ]
    return draw(st.sampled_from(made))


@given(st.lists(any_edit(), max_size=5))
def test_edits_are_saved_and_loaded_back_equal(
    tmp_path_factory: pytest.TempPathFactory, made: list[Edit]
) -> None:
    path = tmp_path_factory.mktemp("edits") / "edits.safetensors"
    edits.save(made, path)
    assert edits.load(path) == made


def test_the_same_tensor_may_stand_in_several_edits(tmp_path: Path) -> None:
    vector = torch.randn(4, 6)
    made = [Add("embed", vector=vector), Set("z.0", value=vector), Set("z.1", value=vector[1])]
    edits.save(made, tmp_path / "e.safetensors")
    assert edits.load(tmp_path / "e.safetensors") == made


def test_a_bare_function_works_and_cannot_be_saved(tmp_path: Path) -> None:
    edit = Function("z.0", function=torch.neg)
    assert torch.equal(edit.apply(torch.ones(2)), -torch.ones(2))
    with pytest.raises(EditError, match="code, not data"):
        edits.save([edit], tmp_path / "e.safetensors")
    assert not (tmp_path / "e.safetensors").exists()


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text", "foreign", "altered"])
def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "e.safetensors"
    edits.save([Set("z.0", value=torch.ones(3, 4))], path)
    whole = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(whole[:-8])
        case "text":
            path.write_text("not a file of tensors")
        case "foreign":
            from safetensors.torch import save_file

            save_file({"a": torch.ones(1)}, path)
        case "altered":
            path.write_bytes(whole.replace(b"z.0", b"zz0"))
    with pytest.raises(StoreError):
        edits.load(path)


@given(any_edit(), any_edit())
def test_equality_is_that_of_the_data(one: Edit, two: Edit) -> None:
    assert one == one.on_rows(one.rows) if one.rows is not None else one == one.__class__(**vars(one))
    assert (one == two) == (repr(one) == repr(two) and vars_equal(one, two))


def vars_equal(one: Edit, two: Edit) -> bool:
    if type(one) is not type(two):
        return False
    pairs = [(vars(one)[k], vars(two)[k]) for k in vars(one)]
    return all(
        a.dtype == b.dtype and torch.equal(a, b)
        if isinstance(a, Tensor) and isinstance(b, Tensor)
        else a == b
        for a, b in pairs
    )


def test_what_each_edit_does() -> None:
    value = torch.randn(2, 3, 6)
    vector = torch.randn(6)
    assert torch.equal(Set("embed", value=vector).apply(value), vector.expand(2, 3, 6))
    assert not Zero("embed").apply(value).any()
    assert torch.equal(Add("embed", vector=vector, coefficient=2.0).apply(value), value + 2 * vector)
    assert torch.equal(Scale("embed", factor=-0.5).apply(value), -0.5 * value)
    noisy = Noise("embed", scale=2.0).apply(torch.zeros(400, 3, 6))
    assert float(noisy.std()) == pytest.approx(2.0, rel=0.05)
    assert torch.equal(Noise("embed", scale=2.0).apply(torch.zeros(9, 3, 6)), noisy[:9])


def test_projections_remove_keep_and_swap_a_span() -> None:
    value, other = torch.randn(2, 3, 6), torch.randn(6)
    frame = torch.linalg.qr(torch.randn(6, 2))[0].T
    mixture = torch.tensor([[1.0, 2.0], [3.0, -1.0], [4.0, 1.0]]) @ frame  # three vectors, two dimensions
    for directions in (frame, mixture, frame * 100):
        removed = Project("embed", directions=directions).apply(value)
        kept = Project("embed", directions=directions, keep=True).apply(value)
        assert torch.allclose(removed @ frame.T, torch.zeros(2, 3, 2), atol=1e-5)
        assert torch.allclose(removed + kept, value, atol=1e-5)
        swapped = Swap("embed", directions=directions, value=other).apply(value)
        assert torch.allclose(swapped @ frame.T, (other @ frame.T).expand(2, 3, 2), atol=1e-5)
        assert torch.allclose(Project("embed", directions=directions).apply(swapped), removed, atol=1e-5)
    nothing = Project("embed", directions=torch.zeros(0, 6)).apply(value)
    assert torch.equal(nothing, value)
    assert torch.equal(Project("embed", directions=torch.zeros(2, 6)).apply(value), value)


def test_a_trained_subspace_has_a_finite_gradient_even_if_orthonormal() -> None:
    """Equal singular values, as of a rotation's rows, break the gradient of an SVD."""
    directions = torch.eye(6)[:3].clone().requires_grad_()
    value, other = torch.randn(4, 6, dtype=torch.float32), torch.randn(6)
    Swap("embed", directions=directions, value=other).apply(value).pow(2).sum().backward()
    assert directions.grad is not None
    assert torch.isfinite(directions.grad).all()
    assert directions.grad.abs().max() > 0


def test_moving_rows_takes_what_belongs_to_them() -> None:
    value = torch.randn(3, 2, 6)
    edit = Set("embed", (4, 0, 7), value=value)
    moved = edit.moved([7, 4], [1, 0])
    assert moved.rows == (1, 0)
    assert torch.equal(moved.value, value[[2, 0]])
    shared = Set("embed", (4, 0), value=value[0, 0])
    assert torch.equal(shared.moved([0], [3]).value, value[0, 0])
    noise = Noise("embed", (4, 0, 7), seed=1)
    whole = noise.apply(torch.zeros(3, 2, 6))
    assert torch.equal(noise.moved([7], [0]).apply(torch.zeros(1, 2, 6)), whole[2:])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Zero("grad:z.0"),
        lambda: Zero("z.0", rows=(1, 1)),
        lambda: Zero("z.0", rows=(-1,)),
        lambda: Set("embed", value=torch.zeros(5)).apply(torch.zeros(2, 3, 6)),
        lambda: Add("embed", vector=torch.zeros(4, 3, 6)).apply(torch.zeros(2, 3, 6)),
        lambda: Project("embed", directions=torch.zeros(1, 5)).apply(torch.zeros(2, 3, 6)),
        lambda: Function("embed", function=lambda v: torch.zeros(7)).apply(torch.zeros(2, 3, 6)),
    ],
)
def test_what_does_not_fit_is_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(EditError):
        make()


def test_values_take_the_dtype_of_what_they_replace() -> None:
    value = torch.zeros(2, 3, 6, dtype=torch.bfloat16)
    for edit in (
        Set("embed", value=torch.ones(6)),
        Set("embed", value=torch.ones(6, dtype=torch.int64)),
        Add("embed", vector=torch.ones(6, dtype=torch.float64)),
        Project("embed", directions=torch.eye(6)[:2]),
        Noise("embed"),
    ):
        assert edit.apply(value).dtype == torch.bfloat16
