"""Loading: folders, modules and tokenizers; what is damaged or missing is refused, and memory is that of the file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.models import families
from torch import nn

from microtome.core.errors import InputError, NotFiniteError, StoreError
from microtome.models.load import load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    families.make("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "bert", "t5", "microtome_rotary"])
def test_a_saved_folder_loads_back_the_same_model(tmp_path: Path, name: str) -> None:
    module = families.make(name)
    module.save_pretrained(tmp_path / name)
    model = load(tmp_path / name)
    assert type(model.module) is type(module)
    assert not model.module.training
    assert model.name == name
    given = families.inputs(name)
    assert torch.equal(model.run(given).logits, families.untouched(module, given))


def test_the_dtype_is_the_files_own_or_the_one_asked_for(tmp_path: Path) -> None:
    families.make("llama").to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert load(tmp_path / "half").dtype == torch.bfloat16
    assert load(tmp_path / "half", dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    "damage", ["cut", "empty", "noise", "missing", "no config", "bad config", "unknown kind"]
)
def test_a_damaged_folder_is_refused(folder: Path, damage: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    whole = weights.read_bytes()
    match damage:
        case "cut":
            weights.write_bytes(whole[: len(whole) // 2])
        case "empty":
            weights.write_bytes(b"")
        case "noise":
            weights.write_bytes(b"\xff" * 1000)
        case "missing":
            weights.unlink()
        case "no config":
            config.unlink()
        case "bad config":
            config.write_text(config.read_text()[:-20])
        case "unknown kind":
            config.write_text(json.dumps({"model_type": "nobody knows"}))
    with pytest.raises(StoreError, match="could not be loaded"):
        load(folder)


def test_a_checkpoint_that_lacks_weights_is_refused_and_not_filled_with_random_ones(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    held = load_file(folder / "model.safetensors")
    del held["model.layers.1.mlp.up_proj.weight"]
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StoreError, match=r"lacks 1 of the weights .*layers\.1\.mlp\.up_proj"):
        load(folder)


def test_a_pickled_checkpoint_is_not_opened(folder: Path) -> None:
    module = families.make("llama")
    (folder / "model.safetensors").unlink()
    torch.save(module.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(StoreError):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    module = families.make("llama")
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight[3, 4] = value
    with pytest.raises(NotFiniteError, match=r"layers\.1\.mlp\.down_proj\.weight holds 1 NaN"):
        load(module)
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight[3, 4] = 0.0
    load(module)


def test_large_weights_whose_sum_overflows_are_numbers() -> None:
    module = nn.Linear(4, 4)
    with torch.no_grad():
        module.weight.fill_(3e38)
    load(module)


def test_names_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    for source in (str(tmp_path / "nothing"), "./nothing", "~/nothing"):
        with pytest.raises(StoreError, match="is not a folder"):
            load(source)
    with pytest.raises(StoreError, match="could not be loaded"):
        load("nobody/has-this-model")
    with pytest.raises(StoreError, match="no tokenizer"):
        load(families.make("gpt2"), tokenizer=str(tmp_path))


def test_a_module_in_memory_is_taken_and_not_copied() -> None:
    module = families.make("gpt2")
    model = load(module)
    assert model.module is module
    assert model.weight("W_E").data_ptr() == module.transformer.wte.weight.data_ptr()


# Memory held before, against the most that was ever held after; both of this process alone.
_MEASURE = """
import gc, sys
import torch
from microtome.models.load import load
torch.set_num_threads(1)
def held(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field))
    return 1024 * int(line.split()[1])
load(sys.argv[1])  # the libraries' own buffers come before the measurement
gc.collect()
before = held("VmRSS")
model = load(sys.argv[2])
parameters = sum(p.numel() * p.element_size() for p in model.module.parameters())
print(held("VmHWM") - before, parameters)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.slow
def test_loading_takes_the_memory_of_the_checkpoint_and_no_more(tmp_path: Path) -> None:
    families.make("llama").save_pretrained(tmp_path / "small")
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 4096, "num_hidden_layers": 3}
    large = families.make("llama", **sizes, num_attention_heads=16, num_key_value_heads=16)
    large.save_pretrained(tmp_path / "large")
    del large
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path / "small"), str(tmp_path / "large")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    taken, parameters = map(int, done.stdout.split())
    assert parameters > 150 * 2**20
    assert taken > 0.9 * parameters, "this measures nothing"
    assert taken <= 1.1 * parameters, f"{taken / parameters:.2f} times the checkpoint"


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_folder_without_a_tokenizer_gets_none_rather_than_an_empty_one(name: str, tmp_path: Path) -> None:
    families.make(name).save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.tokenizer is None
    with pytest.raises(InputError, match="has no tokenizer, so it cannot read text"):
        model.run("once upon a time")
