"""Processes that torchrun starts train what one process trains; one of them prints and writes."""

import subprocess
import sys
from pathlib import Path

import torch
from typer.testing import CliRunner

from microtome.cli.app import app
from microtome.dictionaries import files

WORDS = [
    *("--site", "resid_post.1", "--width", "32", "--k", "4", "--steps", "3", "--batch", "32"),
    *("--activation", "batch_topk", "--set", "nulls=false"),
]


def test_torchrun_trains_what_one_process_trains(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("One day a girl named Lily went to the park. She saw a big dog.\n\n" * 40)
    words = ["train", "fruitfly", str(text), *WORDS, "--out"]
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    # The machine's own name need not lead back to it.
    here = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *here, "-m", "microtome", *words, str(shared)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as started:
        result = CliRunner().invoke(app, [*words, str(alone)])
        told, _ = started.communicate(timeout=300)
    assert started.returncode == 0, told
    assert result.exit_code == 0, result.output
    assert told.count("The report: ") == told.count("Model(fruitfly") == 1
    assert {path.name for path in alone.iterdir()} == {path.name for path in shared.iterdir()}
    # Sums are taken in another order, which is all that may differ; see `test_parallel`.
    name = "dictionaries/batch_topk-w32-k4.safetensors"
    one, other = (files.load(out / name).tensors() for out in (alone, shared))
    for key, tensor in one.items():
        torch.testing.assert_close(other[key], tensor, atol=2e-5, rtol=1e-4)
