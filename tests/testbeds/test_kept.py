from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from microtome.core.errors import StoreError
from microtome.testbeds.kept import keep, read, restore
from microtome.testbeds.training import seeded

SETTINGS = {"seed": 0, "width": 3, "sizes": (1, 2)}


def kept(folder: Path) -> tuple[Path, nn.Linear]:
    with seeded(0):
        module = nn.Linear(3, 2)
    path = folder / "new" / "network.safetensors"
    keep(path, module.state_dict(), {"settings": SETTINGS, "losses": [1.0, 0.5]})
    return path, module


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    path, module = kept(tmp_path)
    other = nn.Linear(3, 2).train()
    record = restore(path, other, SETTINGS)
    assert record["losses"] == [1.0, 0.5]
    assert torch.equal(other.weight, module.weight)
    assert not other.training


def test_a_network_trained_with_other_settings_is_refused(tmp_path: Path) -> None:
    path, _ = kept(tmp_path)
    other = nn.Linear(3, 2)
    before = other.weight.clone()
    with pytest.raises(StoreError, match="trained with"):
        restore(path, other, SETTINGS | {"seed": 1})
    with pytest.raises(StoreError, match="does not fit Linear"):
        restore(path, nn.Linear(4, 2), SETTINGS)
    assert torch.equal(other.weight, before)


def test_foreign_and_corrupt_files_are_refused(tmp_path: Path) -> None:
    path, _ = kept(tmp_path)
    whole = path.read_bytes()
    with pytest.raises(StoreError, match="cannot be read"):
        read(tmp_path / "absent.safetensors")
    for cut in (0, 4, 40, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(StoreError, match="cannot be read"):
            read(path)
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(StoreError, match="no network of a testbed"):
        read(tmp_path / "foreign.safetensors")
