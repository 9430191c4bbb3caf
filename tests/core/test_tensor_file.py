"""Mapped files: what any safetensors library writes and reads; a damaged one is an error, whatever the damage."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from microtome.core.errors import StoreError
from microtome.core.tensor_file import Appended, filled, mapped

ARRAYS = {
    "wide": np.arange(6, dtype=np.int64).reshape(2, 3),
    "half": np.array([0.5, -1.25], np.float16),
    "none": np.empty((0, 4), np.float32),
    "odd": np.arange(3, dtype=np.uint8),
    "one": np.array(7, np.uint32),
}
DTYPES = {"wide": "I64", "half": "F16", "none": "F32", "odd": "U8", "one": "U32"}


def test_it_is_read_by_others_and_reads_others(tmp_path: Path) -> None:
    with filled(
        tmp_path / "a.safetensors", {n: (DTYPES[n], a.shape) for n, a in ARRAYS.items()}, {"x": [1]}
    ) as made:
        for name, array in ARRAYS.items():
            made[name][...] = array
    theirs = load_file(tmp_path / "a.safetensors")
    ours, told = mapped(tmp_path / "a.safetensors")
    save_file(ARRAYS, tmp_path / "b.safetensors")
    foreign, told_by_nobody = mapped(tmp_path / "b.safetensors")
    for found in (theirs, ours, foreign):
        assert set(found) == set(ARRAYS)
        assert all(np.array_equal(found[n], a) and found[n].dtype == a.dtype for n, a in ARRAYS.items())
    assert told == {"x": [1]}
    assert told_by_nobody == {}
    with pytest.raises(ValueError, match="read-only"):
        ours["odd"][0] = 1


def test_appending_gives_one_list(tmp_path: Path) -> None:
    with Appended(tmp_path / "a.safetensors", "ids", "U16") as file:
        for at in range(0, 1000, 7):
            file.append(np.arange(at, at + 7))
        assert not (tmp_path / "a.safetensors").exists()
        file.metadata = {"n": file.length}
    arrays, told = mapped(tmp_path / "a.safetensors", {"ids": "U16"})
    assert (
        arrays["ids"].tolist()
        == list(range(told["n"]))
        == load_file(tmp_path / "a.safetensors")["ids"].tolist()
    )
    with safe_open(tmp_path / "a.safetensors", "np") as opened:
        assert list(opened.keys()) == ["ids"]
    with pytest.raises(StoreError, match="it holds no list 'ids' of U32"):
        mapped(tmp_path / "a.safetensors", {"ids": "U32"})


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with filled(path, {"x": ("U8", (1,))}) as made:
        made["x"][:] = 3
    with pytest.raises(KeyError), filled(path, {"x": ("U8", (1,))}) as made:
        raise KeyError
    with pytest.raises(TypeError), Appended(path, "x", "U8") as file:
        file.append(None)  # type: ignore[arg-type]
    assert mapped(path)[0]["x"].tolist() == [3]
    assert [one.name for one in tmp_path.iterdir()] == ["a.safetensors"]
    with pytest.raises(StoreError, match="cannot be written"), Appended(path / "below", "x", "U8"):
        pass
    with pytest.raises(StoreError, match="the metadata take"), Appended(path, "x", "U8") as file:
        file.metadata = {"x": "x" * (1 << 16)}


def test_room_is_taken_before_anything_is_written(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreError, match="cannot be written"),
        filled(tmp_path / "a", {"x": ("U8", (1 << 60,))}),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "a.safetensors"
    with filled(path, {"x": ("U16", (3,)), "y": ("F32", (2, 2))}, {"told": "once"}) as made:
        made["x"][:] = 1
        made["y"][:] = 2
    return path


@settings(max_examples=100)
@given(
    at=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.integers(0, 10**6), action=st.integers(0, 2)
)
def test_damage_is_told_or_harmless(whole: Path, at: int, byte: int, cut: int, action: int) -> None:
    """A byte of the header is changed, the file is cut, or something hangs behind it."""
    content = bytearray(whole.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    if action == 0:
        content[at % header] = byte
    elif action == 1:
        content = content[: cut % len(content)]
    else:
        content += bytes([byte])
    path = whole.with_name("damaged.safetensors")
    path.write_bytes(content)
    try:
        arrays, told = mapped(path)
    except StoreError:
        return
    assert action == 0
    assert isinstance(told, dict)
    assert sum(array.nbytes for array in arrays.values()) == len(content) - header


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        mapped(tmp_path / "absent.safetensors")
