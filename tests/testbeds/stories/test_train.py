"""Anybody can train the model again: it learns, and a run that was stopped ends as one that was not."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from microtome.core.errors import StoreError
from microtome.testbeds.stories import family
from microtome.testbeds.stories import train as training
from microtome.testbeds.stories.corpus import documents
from microtome.testbeds.stories.train import Settings, checkpoint_steps, record_twin, train

SMALL = Settings(hidden=32, layers=2, heads=2, steps=120, batch=8, warmup=20)
BRIEF = SMALL.model_copy(update={"steps": 24})


@pytest.fixture(scope="module", autouse=True)
def _short_evaluation() -> object:
    patch = pytest.MonkeyPatch()
    patch.setattr(training, "HELD_OUT_DOCUMENTS", 60)
    yield patch
    patch.undo()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    train(folder, SMALL)
    return folder


def unigram_entropy() -> float:
    tokens = documents(0, 0, 500).tokens[:, 1:]
    shares = np.bincount(tokens.ravel().astype(np.int64)) / tokens.size
    return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())


def test_a_small_model_learns_more_than_how_frequent_words_are(finished: Path) -> None:
    log = json.loads((finished / "training.json").read_text())
    assert log["held_out"]["loss"] < unigram_entropy() - 0.2


def test_the_folder_is_an_ordinary_model(finished: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished)
    tokenizer = AutoTokenizer.from_pretrained(finished)
    ids = torch.tensor([tokenizer("Mary and John went to the park.").input_ids])
    assert model(ids).logits.shape == (1, ids.shape[1], len(tokenizer))
    assert not (finished / "resume.safetensors").exists()


def test_a_stopped_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(whole, BRIEF)
    train(stopped, BRIEF, save_every=5, stop_after=17)
    assert not (stopped / "training.json").exists()
    train(stopped, BRIEF, save_every=5)
    expected, resumed = (load_file(folder / "model.safetensors") for folder in (whole, stopped))
    assert expected.keys() == resumed.keys()
    for name, weight in expected.items():
        assert torch.equal(weight, resumed[name]), name
    logs = [json.loads((folder / "training.json").read_text()) for folder in (whole, stopped)]
    assert logs[0]["held_out"] == logs[1]["held_out"]


def test_the_last_checkpoint_is_the_model_in_half_precision(finished: Path) -> None:
    files = sorted((finished / "checkpoints").iterdir())
    assert [int(file.stem.removeprefix("step-")) for file in files] == checkpoint_steps(SMALL.steps)
    weights = load_file(finished / "model.safetensors")
    last = load_file(files[-1])
    assert all(torch.equal(last[name], weights[name].half()) for name in last)
    assert not torch.equal(load_file(files[0])["transformer.wte.weight"], last["transformer.wte.weight"])


def test_a_finished_run_is_left_as_it_is(finished: Path) -> None:
    before = (finished / "training.json").read_bytes()
    train(finished, SMALL)
    assert (finished / "training.json").read_bytes() == before


def test_the_card_tells_what_the_log_holds(finished: Path) -> None:
    log = json.loads((finished / "training.json").read_text())
    card = (finished / "README.md").read_text()
    assert f"{log['held_out']['loss']:.4f}" in card
    assert f"{log['parameters']:,} parameters" in card
    for name, score in log["held_out"]["behaviours"].items():
        row = next(line for line in card.splitlines() if line.startswith(f"| {name.replace('_', ' ')} |"))
        assert f"{score['score']:.4f}" in row
        assert str(score["count"]) in row


def test_other_settings_are_refused(finished: Path, tmp_path: Path) -> None:
    other = SMALL.model_copy(update={"seed": 1})
    with pytest.raises(StoreError, match="seed 0 instead of 1"):
        train(finished, other)
    train(tmp_path, SMALL, save_every=5, stop_after=5)
    with pytest.raises(StoreError, match="seed 0 instead of 1"):
        train(tmp_path, other)


def test_a_corrupt_state_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "resume.safetensors").write_bytes(b"not tensors")
    with pytest.raises(StoreError, match="cannot be read"):
        train(tmp_path, SMALL)
    assert (tmp_path / "resume.safetensors").read_bytes() == b"not tensors"


def test_a_twin_is_recorded_beside_the_model(tmp_path: Path) -> None:
    model, twin, deep = (tmp_path / name for name in ("model", "twin", "deep"))
    train(model, BRIEF)
    with pytest.raises(StoreError, match=r"no training\.json"):
        record_twin(model, twin)
    train(twin, BRIEF.model_copy(update={"width": 2.0}))
    record_twin(model, twin)
    log, wide = (json.loads((folder / "training.json").read_text()) for folder in (model, twin))
    assert log["twin"]["width"] == 2
    assert log["twin"]["difference"] == log["held_out"]["loss"] - wide["held_out"]["loss"]
    assert wide["parameters"] > 2 * log["parameters"]
    train(deep, BRIEF.model_copy(update={"layers": 1}))
    with pytest.raises(StoreError, match="layers 1 instead of 2"):
        record_twin(model, deep)


def test_the_command_trains_a_member_as_told_and_ships_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(family.MEMBERS, "brief", BRIEF.model_copy(update={"hidden": 16, "mlp": False}))
    monkeypatch.setattr(family, "WEIGHTS", tmp_path / "weights")
    told = "--member brief --seed 2 --checkpoints 3 --ship 15".split()
    monkeypatch.setattr("sys.argv", ["train", "--out", str(tmp_path / "run"), *told])
    training.main()
    log = json.loads((tmp_path / "run" / "training.json").read_text())
    assert log["settings"] == family.settings("brief", 2).model_dump()
    assert list(family.checkpoints("brief", 2, tmp_path / "run")) == [10, 15, 24]
    assert list(family.checkpoints("brief", 2)) == [15]
    card = (tmp_path / "run" / "README.md").read_text()
    assert "--no-mlp" in card
    assert "Transformer` with" in card
    assert 'microtome.load("DIR")' in card


def test_the_command_takes_single_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = "--hidden 16 --layers 1 --heads 2 --steps 3 --batch 2 --no-mlp --rate 0.001".split()
    monkeypatch.setattr("sys.argv", ["train", "--out", str(tmp_path), *told])
    training.main()
    found = Settings.read(json.loads((tmp_path / "training.json").read_text())["settings"])
    assert found == Settings(hidden=16, layers=1, heads=2, steps=3, batch=2, mlp=False, rate=0.001)


@pytest.mark.parametrize("steps", [1, 10, 11, 500, 5000])
def test_checkpoints_are_spaced_by_a_factor(steps: int) -> None:
    kept = checkpoint_steps(steps)
    assert kept[-1] == steps
    assert kept[0] >= 1
    assert len(kept) <= 12
    if steps >= 500:
        ratios = [later / earlier for earlier, later in pairwise(kept)]
        assert max(ratios) / min(ratios) < 1.2
