"""The command trains what is asked for, goes on where it stopped, and tells bad input in one line."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from microtome.cli.app import app
from microtome.dictionaries import files

SMALL = [
    "--testbed",
    "planted_dictionary/orthogonal",
    "--width",
    "16,24",
    "--k",
    "2",
    "--steps",
    "10",
    "--batch",
    "64",
]


def told(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["train", *words], env={"COLUMNS": "200"})
    return result.exit_code, result.output


def test_dictionaries_are_trained_kept_and_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text = told(*SMALL, "--set", "initial=data", "--out", str(out))
    assert code == 0, text
    assert "topk-w24-k2" in text
    made = files.load(out / "dictionaries" / "topk-w16-k2.safetensors")
    assert (made.n_units, made.recipe["initial"]) == (16, "data")
    assert (out / "report.html").read_text("utf-8").startswith("<!doctype html>")
    before = (out / "training.safetensors").stat().st_mtime_ns
    code, text = told(*SMALL, "--set", "initial=data", "--out", str(out))
    assert code == 0, text
    assert (out / "training.safetensors").stat().st_mtime_ns == before  # nothing was trained again


def test_a_bundled_model_on_a_text(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("One day a girl named Lily went to the park. She saw a big dog.\n\n" * 40)
    words = [
        "fruitfly",
        str(text),
        "--site",
        "resid_post.1",
        "--width",
        "32",
        "--k",
        "4",
        "--steps",
        "3",
        "--batch",
    ]
    code, said = told(*words, "32", "--out", str(tmp_path / "out"))
    assert code == 0, said
    assert "recovered" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--width", "64"], "give a model and a corpus, or a --testbed"),
        (["fruitfly", "--testbed", "superposition/pentagon"], "not both"),
        (["fruitfly"], "there is nothing to read"),
        (["fruitfly", "nowhere.txt"], "cannot be found"),
        (["--testbed", "superposition/pentagon", "--width", "4", "--k", "8"], "units are to be on"),
        (["--testbed", "superposition/pentagon", "--width", "many"], "settings do not fit"),
        (["--config", "nowhere.toml"], "cannot be read"),
        (["--testbed", "superposition/none"], "has no case"),
    ],
)
def test_bad_input_is_told(tmp_path: Path, words: list[str], said: str) -> None:
    code, text = told(*words, "--out", str(tmp_path / "out"))
    assert code == 2
    assert said in text
    assert "Traceback" not in text
