"""Training replays bit for bit; a network that learned too little is no truth; bad names and foreign files are told."""

from pathlib import Path

import pytest
import torch

from microtome.core.errors import InputError, StoreError, TruthError
from microtome.testbeds import kept
from microtome.testbeds.algorithmic import automata, induction, modular_addition, network, sorting, train
from microtome.testbeds.algorithmic.network import UNASKED, Examples


def test_the_same_seed_gives_the_same_training_bit_for_bit() -> None:
    task = sorting.task()
    (one, first), (other, second) = (network.fit(task, 3, steps=6, keep=(0, 2)) for _ in range(2))
    assert first.losses == second.losses
    assert list(first.checkpoints) == [0, 2, 6]
    for step in first.checkpoints:
        for name, weight in first.checkpoints[step].items():
            assert torch.equal(weight, second.checkpoints[step][name])
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    _, third = network.fit(task, 4, steps=6)
    assert third.losses != first.losses


def test_training_reads_and_moves_no_global_random_state() -> None:
    task = sorting.task()
    _, first = network.fit(task, 0, steps=2)
    torch.manual_seed(77)
    before = torch.get_rng_state()
    _, second = network.fit(task, 0, steps=2)
    assert torch.equal(before, torch.get_rng_state())
    assert first.losses == second.losses


@pytest.mark.parametrize("module", [sorting, induction, automata])
def test_a_batch_is_a_function_of_seed_and_step(module) -> None:
    task = module.task(module.cases()[0])
    assert torch.equal(task.batch(1, 5).tokens, task.batch(1, 5).tokens)
    assert not torch.equal(task.batch(1, 5).tokens, task.batch(1, 6).tokens)
    assert not torch.equal(task.batch(1, 5).tokens, task.batch(2, 5).tokens)


def test_the_short_forward_is_the_forward() -> None:
    task = modular_addition.task()
    module = network.new_module(task, 0)
    tokens = task.batch(0, 0).tokens[:50]
    short, whole = network.last_of_one_layer(module, tokens), network.whole(module, tokens)
    assert torch.allclose(short, whole[:, -1:], atol=1e-6)
    examples = Examples(tokens, task.batch(0, 0).targets[:50])
    with torch.no_grad():
        losses = [
            float(network.mean_loss(module, examples, way))
            for way in (network.whole, network.last_of_one_layer)
        ]
    assert losses[0] == pytest.approx(losses[1])


def test_a_row_is_right_only_if_all_of_it_is() -> None:
    class Says(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> object:
            logits = torch.nn.functional.one_hot(input_ids, 4).float()
            return type("Output", (), {"logits": logits})()

    tokens = torch.tensor([[0, 1], [2, 3], [1, 1]])
    targets = torch.tensor([[0, 1], [2, 2], [UNASKED, 1]])
    assert network.right(Says(), Examples(tokens, targets)).tolist() == [1, 0, 1]


def test_too_small_a_budget_is_no_truth_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TruthError, match=r"after 3 steps, wanted 0\.99"):
        train.write(sorting.task(), 0, tmp_path, steps=3)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_what_it_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    easy = sorting.task()
    object.__setattr__(easy, "accuracy", 0.0)
    monkeypatch.setattr(train, "task_of", lambda name, case: easy)
    train.main(["sorting", "--seed", "5", "--out", str(tmp_path), "--steps", "4", "--keep", "2"])
    file = network.path(easy, 5, tmp_path)
    weights, record = kept.read(file)
    assert (record["seed"], record["steps"], record["reached"]) == (5, 4, False)
    assert all(weight.dtype == torch.float16 for weight in weights.values())
    assert sorted(one.name for one in file.with_suffix("").iterdir()) == [
        "step-000002.safetensors",
        "step-000004.safetensors",
    ]
    model = network.network(easy, 5, tmp_path)
    module, _ = network.fit(easy, 5, steps=4)
    for mine, again in zip(model.module.parameters(), module.parameters(), strict=True):
        assert torch.equal(mine, again.half().float())


def test_a_file_with_other_settings_is_refused(tmp_path: Path) -> None:
    task = sorting.task()
    kept.keep(
        network.path(task, 0, tmp_path), network.new_module(task, 0).state_dict(), {"settings": {"rate": 1}}
    )
    with pytest.raises(StoreError, match="was trained with"):
        network.network(task, 0, tmp_path)
    network.path(task, 0, tmp_path).write_bytes(b"nothing of the kind")
    with pytest.raises(StoreError, match="cannot be read"):
        network.network(task, 0, tmp_path)


def test_unknown_names_are_told() -> None:
    with pytest.raises(InputError, match="no algorithmic testbed"):
        train.task_of("subtraction")
    for name in train.NAMES:
        with pytest.raises(InputError, match="'nothing'"):
            train.task_of(name, "nothing")


def test_a_pair_with_one_answer_is_no_pair() -> None:
    tokens = torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(InputError, match="one answer"):
        network.contrast(tokens, tokens, torch.tensor([1]), torch.tensor([1]))
