"""The command line as a whole: help, version, how errors are told."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

import microtome
from microtome import cli
from microtome.cli.app import COMMANDS


def test_help_names_every_command(command: Callable[..., Result]) -> None:
    shown = command("--help")
    assert shown.exit_code == 0
    assert all(name in shown.output for name in COMMANDS)
    for name in COMMANDS:
        assert command(name, "--help").exit_code == 0


def test_every_command_file_is_registered() -> None:
    files = {path.stem for path in Path(microtome.__file__).parent.glob("cli/*.py")}
    assert files - {"__init__", "app", "display"} == set(COMMANDS)


def test_version(command: Callable[..., Result]) -> None:
    assert command("--version").output == f"microtome {microtome.__version__}\n"


def test_an_error_is_one_line_and_code_2(command: Callable[..., Result], tmp_path: Path) -> None:
    refused = command("show", tmp_path)
    assert refused.exit_code == 2
    assert refused.stdout == ""
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("error: ")
    assert "holds no result" in refused.stderr


def test_debug_shows_where(command: Callable[..., Result], tmp_path: Path) -> None:
    refused = command("--debug", "show", tmp_path)
    assert isinstance(refused.exception, ValueError)
    assert "holds no result" in str(refused.exception)


def test_words_that_fit_no_command(command: Callable[..., Result]) -> None:
    assert command("shwo").exit_code == 2
    assert command("run").exit_code == 2
    assert command("run", "weight_norms", "-n", "0").exit_code == 2


def test_installed_as_a_command() -> None:
    program = Path(sys.executable).parent / "microtome"
    done = subprocess.run([program, "run", "no_such_method"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no_such_method" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("told", "spins"), [({}, "30000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)])
def test_waiting_threads_sleep_soon_unless_told_otherwise(
    told: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, told.get(name, ""))
        if name not in told:
            monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "argv", ["microtome", "--version"])
    with pytest.raises(SystemExit):
        cli.main()
    assert os.environ.get("GOMP_SPINCOUNT") == spins
