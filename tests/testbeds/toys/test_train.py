"""One command trains any of the toy networks; what ships was trained with the settings that are asked for."""

from pathlib import Path

import pytest

from microtome.core.errors import InputError, StoreError, TruthError
from microtome.testbeds import kept
from microtome.testbeds.toys import superposition, train
from microtome.testbeds.toys.network import SHIPPED, network, path
from microtome.testbeds.toys.superposition import Setting, recipe

FILES = sorted(SHIPPED.glob("*/*.safetensors"))


def test_the_command_writes_what_network_reads(tmp_path: Path) -> None:
    asked = recipe("pentagon")
    options = ["--case", "pentagon", "--seed", "7", "--steps", "20", "--out", str(tmp_path)]
    train.main(["superposition", *options])
    file = path(asked, 7, tmp_path)
    weights, record = kept.read(file)
    assert record["steps"] == 20
    assert record["settings"]["densities"] == [0.05]
    found = network(asked, 7, tmp_path)
    assert all((found.module.state_dict()[name] == value).all() for name, value in weights.items())
    train.main(["superposition", *options])
    again, _ = kept.read(file)
    assert all((again[name] == value).all() for name, value in weights.items())


def test_a_network_trained_otherwise_is_refused(tmp_path: Path) -> None:
    train.train_case("superposition", "pentagon", 0, tmp_path, steps=5)
    other = recipe("pentagon", Setting(densities=(0.06,)))
    with pytest.raises(StoreError, match="trained with"):
        network(other, 0, tmp_path)
    path(other, 0, tmp_path).write_bytes(b"no network")
    with pytest.raises(StoreError, match="cannot be read"):
        network(other, 0, tmp_path)


def test_too_small_a_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TruthError, match="answers"):
        train.train_case("head_superposition", "two_heads", 0, tmp_path, steps=3)
    assert not list(tmp_path.rglob("*.safetensors"))
    with pytest.raises(InputError, match="trains no toy network"):
        train.train_case("planted_dictionary", "sparse")


def test_where_nothing_ships_it_is_trained(tmp_path: Path) -> None:
    small = recipe("small", Setting(starts=1, rows=8), steps=5)
    assert network(small, 3, tmp_path).name == "superposition/small (seed 3)"


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_what_ships_says_how_it_was_trained(file: Path) -> None:
    _, record = kept.read(file)
    assert record["settings"]["testbed"] == file.parent.name
    assert file.stem == f"{record['settings']['case']}-seed{record['seed']}"
    assert record["cpu_seconds"] > 0
    assert record["losses"][str(0)] > min(record["losses"].values())


def test_every_trained_case_ships_with_two_seeds() -> None:
    assert len(FILES) >= 2 * len(superposition.cases())
    names = {file.stem.rpartition("-")[0] for file in FILES}
    assert len(FILES) == 2 * len(names)
    assert sum(file.stat().st_size for file in FILES) < 1.5e6
