"""Killed at any moment, a harvest goes on to the same bytes; a full disk loses nothing; memory does not grow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from microtome.bases.harvest_values import HarvestFolder
from microtome.store.unit_store import UnitStore

HERE = Path(__file__).parent
Played = tuple[Path, dict[str, dict[str, int]]]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """The folders that the script left, and what it told."""
    folder = tmp_path_factory.mktemp("harvests")
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(HERE / "interrupted_harvest.py"), str(folder)]
    done = subprocess.run(script, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def files(folder: Path) -> dict[str, bytes]:
    """All bytes but those that tell times, processes, and where shards were cut."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix == ".safetensors" or path.name == "harvest.json"
    }


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(played: Played) -> None:
    folder, told = played
    whole = files(folder / "whole")
    assert told["kills"]["struck"] >= 8
    assert len([name for name in whole if name.startswith("values/shard")]) >= 3
    for number in range(told["kills"]["struck"]):
        assert files(folder / f"killed-{number}") == whole
        for basis in ("random", "few"):
            UnitStore.open(folder / f"killed-{number}" / "units" / basis).check()


def test_a_full_disk_is_told_and_loses_nothing(played: Played) -> None:
    folder, told = played
    assert set(told["full"].values()) == {2}
    assert HarvestFolder.open(folder / "full" / "values").n_tokens == 300
    assert files(folder / "full") == files(folder / "whole")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_corpus(played: Played) -> None:
    """20 000 more tokens are 5 MB of values and gradients, and 800 000 entries that take 6 MB while they are sorted.

    What is mapped counts as far as it was looked at: the sorted files, the run of 8 bytes an entry that they are made
    from, and its shard of 10. Anything else that grew with the corpus would come on top.
    """
    folder, told = played
    mapped = sum(
        path.stat().st_size for path in (folder / "memory" / "22000" / "units").rglob("*.safetensors")
    )
    entries = 40 * 20_000
    assert told["memory"]["22000"] - told["memory"]["2000"] < (mapped + 18 * entries) / 1000
