"""`microtome convert` as it is typed."""

from collections.abc import Callable
from pathlib import Path

import torch
from typer.testing import Result

from microtome.core.site import Site
from microtome.dictionaries import files
from microtome.dictionaries.activations import JumpReLU
from microtome.dictionaries.dictionary import Dictionary


def test_there_and_back(command: Callable[..., Result], tmp_path: Path) -> None:
    site, drawn = (Site("mlp_in", 1),), torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))
    ours = Dictionary(
        "ours", site, site, (4,), (4,), JumpReLU(drawn[2, :, 0].abs()), drawn[0], drawn[2, :, 1], drawn[1],
        drawn[2, 0], drawn[2, 1],
    )  # fmt: skip
    files.save(ours, tmp_path / "ours.safetensors")
    to = (
        "convert",
        tmp_path / "ours.safetensors",
        tmp_path / "scope",
        "--from",
        "microtome",
        "--to",
        "gemma_scope",
    )
    done = command(*to)
    assert done.exit_code == 0, done.output
    back = ("convert", tmp_path / "scope", tmp_path / "back.safetensors", "--from", "gemma_scope")
    lost = command(*back)
    assert lost.exit_code == 2
    assert "give reads=[SITE]" in lost.output
    done = command(*back, "--reads", "mlp_in.1")
    assert done.exit_code == 0, done.output
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    found = files.load(tmp_path / "back.safetensors")
    assert found.reads == ours.reads
    torch.testing.assert_close(found.reconstruct(x), ours.reconstruct(x), atol=1e-5, rtol=1e-5)
    again = command(*to)
    assert again.exit_code == 2
    assert "is there already" in again.output
    unknown = command("convert", tmp_path / "scope", tmp_path / "new", "--from", "saelens")
    assert unknown.exit_code == 2
    assert "no format 'saelens'" in unknown.output
