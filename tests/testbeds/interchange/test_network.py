"""Training replays bit for bit; what is written is what was trained; a network that learned too little is no truth."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from microtome.core.errors import InputError, StoreError, TruthError
from microtome.testbeds import kept
from microtome.testbeds.interchange import train
from microtome.testbeds.interchange.network import fit, measured, network, path, write
from microtome.testbeds.interchange.task import Task, Weights


def test_the_same_seed_gives_the_same_training_bit_for_bit(small: Task) -> None:
    (one, first), (other, second) = (fit(small, 3, steps=8) for _ in range(2))
    assert first.losses == second.losses
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert fit(small, 4, steps=8)[1].losses != first.losses


def test_training_reads_and_moves_no_global_random_state(small: Task) -> None:
    _, first = fit(small, 0, steps=2)
    torch.manual_seed(77)
    before = torch.get_rng_state()
    _, second = fit(small, 0, steps=2)
    assert torch.equal(before, torch.get_rng_state())
    assert first.losses == second.losses


def test_too_small_a_budget_is_no_truth_and_leaves_nothing(small: Task, tmp_path: Path) -> None:
    with pytest.raises(
        TruthError, match="first_again of seed 0 does not work as its causal model says after 3 steps"
    ):
        write(small, 0, tmp_path, steps=3)
    assert not list(tmp_path.iterdir())


def test_the_command_trains_every_task_and_writes_what_was_trained(
    small: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "TASKS", (small,))
    threads = torch.get_num_threads()
    train.main(["--seed", "2", "--out", str(tmp_path)])
    torch.set_num_threads(threads)
    file = path(small, 2, tmp_path)
    assert list(tmp_path.iterdir()) == [file]
    weights, record = kept.read(file)
    assert all(weight.dtype == torch.float16 for weight in weights.values())
    assert record["reached"]
    trained, training = fit(small, 2)
    assert training.steps == record["steps"]
    again = network(small, 2, tmp_path)
    for mine, same in zip(again.parameters(), trained.parameters(), strict=True):
        assert torch.equal(mine, same.half().float())
    told = {one.what: one.value for one in measured(small, again, 2).evidence()}
    assert told == record["evidence"]


def test_the_command_tells_an_unknown_task(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    with pytest.raises(InputError, match="no interchange task 'sums'"):
        train.main(["--task", "sums", "--out", str(tmp_path)])
    torch.set_num_threads(threads)


def test_a_file_with_other_settings_is_refused(small: Task, tmp_path: Path) -> None:
    weights = small.new_module(0).state_dict()
    loose = replace(small, weights=Weights(strict=0.0))
    kept.keep(path(small, 0, tmp_path), weights, {"settings": loose.settings})
    with pytest.raises(StoreError, match="was trained with"):
        network(small, 0, tmp_path)
    path(small, 0, tmp_path).write_bytes(b"nothing of the kind")
    with pytest.raises(StoreError, match="cannot be read"):
        network(small, 0, tmp_path)
