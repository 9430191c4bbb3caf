"""Members are what their names say, come back as they were trained, and a wrong or damaged one is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from microtome.core.errors import InputError, StoreError
from microtome.models import bundled
from microtome.testbeds.stories import family, testbed
from microtome.testbeds.stories import train as training
from microtome.testbeds.stories.corpus import documents
from microtome.testbeds.stories.network import Settings
from microtome.testbeds.stories.train import train

TINY = Settings(hidden=16, layers=1, heads=2, steps=12, batch=2, warmup=4, mlp=False)


@pytest.fixture(scope="module", autouse=True)
def _small_members() -> object:
    patch = pytest.MonkeyPatch()
    patch.setattr(training, "HELD_OUT_DOCUMENTS", 60)
    patch.setitem(family.MEMBERS, "small", TINY)
    yield patch
    patch.undo()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("member")
    train(out, family.settings("small", 3), checkpoints=4)
    return out


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_trained_member_is_the_network_that_was_trained(folder: Path) -> None:
    found = family.model("small", 3, folder)
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(p, saved[name]) for name, p in found.module.named_parameters())
    assert found.name == "small-3"
    assert found.tokenizer.tokenize("Mary went home.") == ["Mary", "went", "home", "."]
    assert family.log("small", 3, folder)["settings"]["seed"] == 3


def test_checkpoints_come_in_order_and_end_with_the_member(folder: Path) -> None:
    found = family.checkpoints("small", 3, folder)
    assert list(found) == sorted(found)
    assert len(found) == 3  # of four log-spaced steps from 10 to 12, two fall together
    last = dict(family.model("small", 3, folder).module.named_parameters())
    assert all(torch.equal(p, last[n].half().float()) for n, p in found[12].module.named_parameters())
    first = dict(found[10].module.named_parameters())
    assert any(not torch.equal(first[name], p) for name, p in found[12].module.named_parameters())


def test_a_training_can_be_replayed_from_its_batches(folder: Path) -> None:
    trained = family.settings("small", 3)
    replayed = family.batch(trained, 7)
    assert np.array_equal(replayed.tokens, documents(3, 14, 2).tokens)
    assert not np.array_equal(replayed.tokens, family.batch(trained, 6).tokens)
    for step in (-1, 12):
        with pytest.raises(InputError, match="0 to 11"):
            family.batch(trained, step)


def test_the_same_training_gives_the_same_member(folder: Path, tmp_path: Path) -> None:
    train(tmp_path, family.settings("small", 3), checkpoints=4)
    for file in ("model.safetensors", "checkpoints/step-000010.safetensors"):
        one, two = load_file(folder / file), load_file(tmp_path / file)
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_shipped_member_is_the_trained_one_in_half_precision(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreError, match=r"--member small --seed 3 --out DIR"):
        family.model("small", 3)
    family.ship(folder, "small", 3, steps=[11], into=tmp_path)
    monkeypatch.setattr(family, "WEIGHTS", tmp_path)
    assert family.shipped() == (("fruitfly", 0), ("small", 3))
    whole = dict(family.model("small", 3, folder).module.named_parameters())
    found = family.model("small", 3)
    assert all(torch.equal(p, whole[name].half().float()) for name, p in found.module.named_parameters())
    assert list(family.checkpoints("small", 3)) == [11]
    assert family.log("small", 3) == family.log("small", 3, folder)
    with pytest.raises(StoreError, match="step-000005"):
        family.ship(folder, "small", 3, steps=[5], into=tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_fruit_fly_is_a_member(root: Path) -> None:
    found = family.checkpoints("fruitfly")
    assert list(found) == list(bundled.checkpoints())
    saved = load_file(bundled.path() / "model.safetensors")
    assert all(torch.equal(p, saved[name]) for name, p in family.model("fruitfly").module.named_parameters())


def test_every_shipped_member_is_there_whole() -> None:
    for name, seed in family.shipped():
        log = family.log(name, seed)
        assert log["settings"]["seed"] == seed
        assert family.model(name, seed).sizes["n_layers"] == family.settings(name).layers


def test_sizes_depths_seeds_and_kinds() -> None:
    members = {name: family.settings(name) for name in family.MEMBERS}
    assert len({round(s.hidden * s.width) for s in members.values() if s.layers == 4}) == 3
    for layers in (1, 2):
        assert {s.mlp for s in members.values() if s.layers == layers} == {True, False}
    assert [family.settings("mlp-1-layer", seed).seed for seed in range(3)] == [0, 1, 2]


def test_an_unknown_member_is_refused() -> None:
    for ask in (family.settings, family.log, family.model, family.checkpoints):
        with pytest.raises(InputError, match="attention-2-layers"):
            ask("attention-9-layers")


@pytest.mark.parametrize("content", [b"", b"not tensors", b"\xff" * 64])
def test_a_damaged_checkpoint_is_refused(copy: Path, content: bytes) -> None:
    (copy / "checkpoints" / "step-000011.safetensors").write_bytes(content)
    with pytest.raises(StoreError, match=r"step-000011.*cannot be read"):
        family.checkpoints("small", 3, copy)


def test_weights_of_another_network_are_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    save_file(weights | {"stranger": torch.zeros(1)}, copy / "model.safetensors")
    with pytest.raises(StoreError, match="stranger do not fit"):
        family.model("small", 3, copy)
    save_file(weights | {"embed.weight": torch.zeros(2, 2)}, copy / "model.safetensors")
    with pytest.raises(StoreError, match=r"embed\.weight do not fit"):
        family.model("small", 3, copy)


def test_another_training_is_refused(copy: Path) -> None:
    with pytest.raises(StoreError, match="seed 3 instead of 0"):
        family.model("small", 0, copy)
    with pytest.raises(StoreError, match="seed 3 instead of 0"):
        train(copy, family.settings("small", 0))


def test_an_unfinished_training_is_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no finished training"):
        family.model("small", 3, tmp_path / "nowhere")
    (copy / "training.json").write_text(json.dumps({"loss": 1}))
    with pytest.raises(StoreError, match="no finished training"):
        family.log("small", 3, copy)
    (copy / "training.json").write_text("{")
    with pytest.raises(StoreError, match="no finished training"):
        family.checkpoints("small", 3, copy)


def test_a_member_without_checkpoints_says_how_to_get_them(copy: Path) -> None:
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(StoreError, match=r"without checkpoints.*--out DIR"):
        family.checkpoints("small", 3, copy)


@pytest.mark.training
@pytest.mark.parametrize(
    "name", [name for name, seed in family.shipped() if seed == 0 and name != family.BUNDLED]
)
def test_a_shipped_member_can_be_trained_again(tmp_path: Path, name: str) -> None:
    # Another processor rounds otherwise, and a training amplifies that: the same behaviour is asked for, not the bits.
    train(tmp_path, family.settings(name))
    again, shipped = family.log(name, 0, tmp_path), family.log(name)
    assert again["held_out"]["loss"] == pytest.approx(shipped["held_out"]["loss"], abs=0.1)
    testbed.member(name, 0, tmp_path)
