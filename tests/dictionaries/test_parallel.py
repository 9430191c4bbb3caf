"""Two processes that share rows, or units, train the dictionary that one process trains."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dictionaries import parallel_worker
from microtome.core.errors import InputError
from microtome.dictionaries import files
from microtome.dictionaries.learner import Learner
from microtome.dictionaries.parallel import DataParallel
from microtome.dictionaries.shared_rows import ShareOfRows

CASES = [
    (way, name)
    for way in ("rows", "units")
    for name in parallel_worker.CASES
    if (way, name) != ("units", "jumprelu")
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one process, and two together, have left what they trained."""
    out = tmp_path_factory.mktemp("trained")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, parallel_worker.__file__, str(out)],
            env=group | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    parallel_worker.run(out, shared=False)
    told = [one.communicate(timeout=300)[1] for one in started]
    assert [one.returncode for one in started] == [0, 0], "\n".join(told)
    return out


@pytest.mark.parametrize(("way", "name"), CASES)
def test_two_processes_are_one(trained: Path, way: str, name: str) -> None:
    # Sums are taken in another order, which is all that may differ: 2⁻²³ relative in each, and Adam's first steps
    # carry a relative error of a gradient over to a step of length 10⁻³, five times.
    alone, shared = (files.load(trained / f"{who}-{name}.safetensors") for who in ("alone", way))
    for key, tensor in alone.tensors().items():
        torch.testing.assert_close(shared.tensors()[key].float(), tensor.float(), atol=2e-5, rtol=1e-4)
    told = [json.loads((trained / f"{who}-{name}.json").read_text()) for who in ("alone", way)]
    assert told[1]["loss"] == pytest.approx(told[0]["loss"], rel=1e-4)
    assert told[1]["dead"] == told[0]["dead"]


def test_dead_units_were_there(trained: Path) -> None:
    assert max(json.loads((trained / "alone-auxk.json").read_text())["dead"]) > 0


def test_what_was_kept_by_two_is_what_one_keeps(trained: Path) -> None:
    for way in ("rows", "units"):
        (mine,) = (trained / f"{way}-gated-kept").glob("*.safetensors")
        (theirs,) = (trained / "alone-gated-kept").glob("*.safetensors")
        shared, alone = load_file(mine), load_file(theirs)
        assert shared.keys() == alone.keys()
        assert all(shared[name].shape == alone[name].shape for name in alone)


def test_without_a_group_it_says_so() -> None:
    with pytest.raises(InputError, match="torchrun"):
        DataParallel.first_rows(torch.zeros(2, 2))
    with pytest.raises(InputError, match="torchrun"):
        ShareOfRows(None)  # type: ignore[arg-type]
    assert Learner.keeps()
