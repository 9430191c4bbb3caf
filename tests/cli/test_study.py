"""`microtome study` as it is typed: interrupted, it leaves what is done, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from microtome.studies import study as studies

TASK = ("--task", "indirect-object", "-n", "4", "--held-out", "4")


def stages(folder: Path) -> list[str]:
    return sorted(json.loads((folder / "manifest.json").read_text())["stages"])


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that got Ctrl-C once it had kept its first stage."""
    folder = tmp_path_factory.mktemp("study") / "one"
    words = ["study", *TASK, "--out", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    process = subprocess.Popen(
        [sys.executable, "-c", "from microtome.cli import main; main()", *words],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        # A shell's background job ignores Ctrl-C, and what it starts inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            with_stages = folder / "manifest.json"
            if with_stages.exists() and json.loads(with_stages.read_text() or "{}").get("stages"):
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "goes on from there" in said
    return folder


def test_ctrl_c_leaves_what_is_done_and_the_same_command_goes_on(
    interrupted: Path, command: Callable[..., Result]
) -> None:
    done = stages(interrupted)
    assert done
    assert not (interrupted / "report.html").exists()
    kept = {path: path.stat().st_mtime_ns for path in interrupted.rglob("*.safetensors")}
    found = command("study", *TASK, "--out", interrupted)
    assert found.exit_code == 0, found.output
    assert set(done) < set(stages(interrupted))
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items()), "something was made again"
    assert "<html" in (interrupted / "report.html").read_text()
    assert str(interrupted / "report.html") in found.output.replace("\n", "")


def test_another_study_in_the_folder_is_refused_and_fresh_sets_it_aside(
    interrupted: Path, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    refused = command("study", *TASK, "--seed", "1", "--out", interrupted)
    assert refused.exit_code == 2
    assert "--fresh" in refused.output or "fresh" in refused.output
    before = stages(interrupted)
    monkeypatch.setattr(studies, "study", interrupt)
    again = command("study", *TASK, "--seed", "1", "--out", interrupted, "--fresh")
    assert again.exit_code == 130, again.output
    assert not stages(interrupted)
    aside = [path for path in interrupted.parent.iterdir() if path != interrupted and path.is_dir()]
    assert any(stages(path) == before for path in aside)


def test_a_foreign_folder_is_left_alone(tmp_path: Path, command: Callable[..., Result]) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    found = command("study", *TASK, "--out", tmp_path)
    assert found.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_tasks_that_are_not_there_or_named_twice(tmp_path: Path, command: Callable[..., Result]) -> None:
    assert "No task" in (said := command("study", "--task", "juggling").output) or "juggling" in said
    twice = command("study", *TASK, *TASK, "--out", tmp_path / "x")
    assert twice.exit_code == 2
    assert "once" in twice.output
    assert not (tmp_path / "x").exists()
