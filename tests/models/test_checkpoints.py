"""Each step's weights are in the copy and not in the model; the bundled model's are found; bad folders are told."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import microtome
from microtome.core.errors import InputError, StoreError
from microtome.models.checkpoints import at_steps, checkpoint_files, folder_of
from models import families


def write(folder: Path, model: microtome.Model, steps: tuple[int, ...]) -> None:
    for step in steps:
        weights = {name: (p * step).half() for name, p in model.module.named_parameters()}
        save_file(
            {name: w.contiguous() for name, w in weights.items()}, folder / f"step-{step:06d}.safetensors"
        )


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_each_step_in_order_and_the_model_untouched(name: str, tmp_path: Path) -> None:
    model = families.model(name)
    before = {name: p.clone() for name, p in model.module.named_parameters()}
    write(tmp_path, model, (20, 3, 1))
    (tmp_path / "step-notes.txt").write_text("no checkpoint")
    seen = []
    for step, then in at_steps(model, tmp_path):
        seen.append(step)
        for name, parameter in then.module.named_parameters():
            assert torch.equal(parameter, (before[name] * step).half().to(parameter.dtype))
    assert seen == [1, 3, 20]
    assert [step for step, _ in at_steps(model, tmp_path, (3,))] == [3]
    assert all(torch.equal(p, before[name]) for name, p in model.module.named_parameters())


def test_bad_folders_are_told(tmp_path: Path) -> None:
    model = families.model("gpt2")
    with pytest.raises(StoreError, match="no checkpoints"):
        checkpoint_files(tmp_path)
    write(tmp_path, families.model("llama"), (1,))
    with pytest.raises(StoreError, match="of another model"):
        list(at_steps(model, tmp_path))
    with pytest.raises(InputError, match="no checkpoint at step 7"):
        list(at_steps(model, tmp_path, (7,)))
    (tmp_path / "step-000001.safetensors").write_bytes(b"broken")
    with pytest.raises(StoreError, match="cannot be read"):
        list(at_steps(model, tmp_path))


def test_a_bundled_model_brings_its_own() -> None:
    model = microtome.load("fruitfly", check=False)
    assert len(checkpoint_files(folder_of(model))) == 12
    assert folder_of(model, "elsewhere") == Path("elsewhere")
    with pytest.raises(InputError, match="name their folder"):
        folder_of(families.model("gpt2"))
