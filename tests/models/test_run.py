"""What a pass returned: found by site, saved, and loaded back equal."""

from pathlib import Path

import pytest
import torch
from tests.models import families

from microtome.core.errors import SiteError, StoreError
from microtome.models.run import Run


def test_a_run_is_saved_and_loaded_back_equal(tmp_path: Path) -> None:
    model = families.model("llama")
    run = model.run(families.ids(), read=["resid_post.0@-1", "pattern.1.h2", "path:lm_head:in"], logits=True)
    run.save(tmp_path / "run.safetensors")
    again = Run.load(tmp_path / "run.safetensors")
    assert set(again.values) == set(run.values)
    assert all(torch.equal(again[site], run[site]) for site in run.values)
    assert torch.equal(again.logits, run.logits)
    assert again.metric is None


def test_what_was_not_read_is_named_with_what_was() -> None:
    run = families.model("gpt2").run(families.ids(), read=["z.0"])
    assert "z.0" in run
    assert "z.1" not in run
    assert run.logits is None
    with pytest.raises(SiteError, match=r"z\.1 was not read in this run; it holds z\.0"):
        run["z.1"]


def test_values_do_not_keep_large_tensors_alive() -> None:
    run = families.model("gpt2").run(families.ids(), read=["resid_post.1.u0@-1"])
    assert run["resid_post.1.u0@-1"].untyped_storage().nbytes() <= 4 * 2 * 4


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign"])
def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "run.safetensors"
    if damage != "missing":
        save_file({"a": torch.ones(3)}, path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StoreError):
        Run.load(path)
