"""Prefix matching is attention to all places to copy from; one layer does it with smeared keys and not without."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import microtome
from microtome.core.errors import InputError
from microtome.core.result import Result
from microtome.heads import induction_formation
from microtome.heads.induction_formation import Config, half_way, prefix_matching
from microtome.heads.repeated_tokens import repeated_tokens
from microtome.models.load import load
from microtome.testbeds.algorithmic import induction, network, smeared_keys
from models import families


def test_a_trained_pair_of_heads_is_told_apart() -> None:
    model = network.network(induction.task(), 0)
    scores = prefix_matching(model, repeated_tokens(model, 16, 48, (8, 20), 0))
    assert scores[1, 0] > 0.9
    assert scores[0, 0] < 0.3


def test_it_follows_checkpoints_and_finds_when_both_changed(tmp_path: Path) -> None:
    model = network.network(induction.task(), 0)
    last = {name: p.detach() for name, p in model.module.named_parameters()}
    for step, share in ((1, 0.0), (2, 0.1), (3, 1.0)):  # nothing, next to nothing, all of it
        weights = {name: (p * share).contiguous() for name, p in last.items()}
        save_file(weights, tmp_path / f"step-{step:06d}.safetensors")
    rows = induction.task().held_out(0).tokens[:64]
    found = induction_formation.run(model, rows, Config(checkpoints=str(tmp_path)))
    assert found.data["half_way"].values.tolist() == [3, 3]
    assert found.data["late"].values[0] == pytest.approx(np.log(64), rel=1e-5)  # says nothing: guesses
    assert found.data["late"].values[-1] < 0.05
    assert found.data["score"].values[-1] < -2
    assert found.data["prefix"].values[0].max() < 0.1
    found.save(tmp_path / "kept")
    assert Result.load(tmp_path / "kept") == found
    assert len(found.shapes()) == 4


def test_the_bundled_model_is_followed_without_naming_a_folder() -> None:
    model = microtome.load("fruitfly", check=False)
    ids = torch.randint(0, model.sizes["d_vocab"], (2, 24), generator=torch.Generator().manual_seed(0))
    found = induction_formation.run(model, ids, Config(late=20, rows=2, length=24, longest=10))
    assert found.data.sizes["step"] == 12


def test_smeared_keys_are_a_mixture_with_the_key_before() -> None:
    task = smeared_keys.task()
    module, plain = smeared_keys.smeared(task, 0), network.new_module(task, 0)
    stream = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    keys = plain.blocks[0].attn.k(stream)
    mixed = module.blocks[0].attn.k(stream)
    assert torch.allclose(mixed[:, 1:], (keys[:, 1:] + keys[:, :-1]) / 2, atol=1e-6)
    assert torch.allclose(mixed[:, 0], keys[:, 0] / 2, atol=1e-6)


@pytest.mark.training
@pytest.mark.parametrize("seed", [0, 1])
def test_one_layer_does_induction_with_smeared_keys_and_not_without(seed: int) -> None:
    task = smeared_keys.task()
    unseen = task.held_out(seed)
    found = {}
    for make in (smeared_keys.smeared, network.new_module):
        module, _ = network.fit(task, seed, steps=400, make=make)
        model = load(module.eval(), check=False)
        with torch.no_grad():
            loss = float(network.mean_loss(module, unseen))
        found[make] = (
            loss,
            float(prefix_matching(model, repeated_tokens(model, 16, 48, (8, 20), seed)).max()),
        )
    loss, prefix = found[smeared_keys.smeared]
    assert loss < 0.1
    assert prefix > 0.8
    loss, prefix = found[network.new_module]
    assert loss > np.log(
        10
    )  # a plain layer knows which tokens occur, at least ten of them, and not which is next
    assert prefix < 0.2


@pytest.mark.parametrize(
    ("curve", "place"),
    [([0.0, 0.4, 0.6, 1.0], 2), ([4.0, 3.9, 1.0, 0.0], 2), ([1.0, 1.0], 0), ([0.0, 0.5, 1.0], 1)],
)
def test_half_way(curve: list[float], place: int) -> None:
    assert half_way(np.array(curve)) == place


def test_rows_that_cannot_be_compared_are_refused() -> None:
    model = families.model("gpt2")
    ids = torch.zeros(2, 20, dtype=torch.long)
    with pytest.raises(InputError, match="before the late one"):
        induction_formation.run(model, ids, Config(checkpoints="x", early=9, late=9))
    with pytest.raises(InputError, match="at least 52 tokens"):
        induction_formation.run(model, ids, Config(checkpoints="x"))
    with pytest.raises(InputError, match="name their folder"):
        induction_formation.run(model, ids)
