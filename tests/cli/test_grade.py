"""`microtome grade`, as typed: the table, the file and the page, what fell, Ctrl-C, and words that make no sense."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from microtome.evaluation import grader
from microtome.evaluation.grades import Grades


@pytest.fixture
def graded(offer: Callable[..., None], command: Callable[..., Result]) -> Callable[..., Result]:
    offer("methods", package="one", edge_guesses="edge_guesses")
    offer("testbeds", package="two", strange_bed="strange_bed")
    return lambda *words: command("grade", "edge_guesses", "-t", "strange_bed", *words)


def test_a_table_a_file_and_a_page(graded: Callable[..., Result], tmp_path: Path) -> None:
    path, page = tmp_path / "grades.json", tmp_path / "grades.html"
    found = graded("--json", path, "--html", page)
    assert found.exit_code == 0, found.output
    assert "fails its control" in found.output
    assert "it broke in the middle" in found.output
    assert "this case is broken" in found.output
    assert len(json.loads(path.read_text())["grades"]) == 8
    assert "Methods against answer keys" in page.read_text()
    assert "average precision" in page.read_text()
    assert "Held out" in page.read_text()
    assert "average precision" not in found.output
    assert "average precision" in graded("--json", path, "--held-out").output


def test_what_a_file_has_is_not_run_again(
    graded: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "grades.json"
    graded("--json", path)
    before = path.read_bytes()
    monkeypatch.setattr(grader, "_run", None)  # would raise if anything were run
    assert graded("--json", path).exit_code == 0
    assert path.read_bytes() == before  # the broken case was tried again, and is broken still


def test_a_fall_ends_with_code_1(graded: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "grades.json"
    graded("--json", path)
    same = graded("--against", path)
    assert same.exit_code == 0, same.output
    assert "0 grades fell" in same.output
    told = json.loads(path.read_text())
    told["grades"][0]["value"] = 1.5
    path.write_text(json.dumps(told))
    fell = graded("--against", path)
    assert fell.exit_code == 1
    assert "fell: edge_guesses on strange_bed/one, seed 0" in fell.output


def test_fast_takes_what_was_quick(graded: Callable[..., Result], tmp_path: Path) -> None:
    path, again = tmp_path / "grades.json", tmp_path / "again.json"
    graded("--json", path, "--seeds", "2")
    assert graded("--against", path, "--fast", "--json", again).exit_code == 0
    assert {one.seed for one in Grades.load(again).grades} == {0}
    assert graded("--fast").exit_code == 2


def test_ctrl_c_keeps_what_is_done(
    graded: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "grades.json"
    real = grader.grade

    def stopped(runs: list[grader.Run], settings: dict[str, object]) -> object:
        if runs[0].case.endswith("two"):
            raise KeyboardInterrupt
        return real(runs, settings)

    monkeypatch.setattr(grader, "grade", stopped)
    found = graded("--json", path)
    assert found.exit_code == 130
    assert "Stopped" in found.output
    assert {one.case for one in Grades.load(path).grades} == {"strange_bed/one"}
    monkeypatch.setattr(grader, "grade", real)
    assert graded("--json", path).exit_code == 0
    assert {one.case for one in Grades.load(path).grades} == {"strange_bed/one", "strange_bed/two"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "no method is called"),
        (["progress_measures"], "names no claims"),
        (["ablation", "-t", "nowhere"], "no testbed or case"),
        (["ablation", "--against", "absent.json"], "holds no grades"),
        (["ablation", "-t", "programs/copy", "--set", "seed"], "name=value"),
    ],
)
def test_words_that_make_no_sense(words: list[str], said: str, command: Callable[..., Result]) -> None:
    found = command("grade", *words)
    assert found.exit_code == 2
    assert said in found.output
