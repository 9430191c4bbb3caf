"""`run` calls a method and keeps what it says; `show` says it again; wrong words are refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.testing
import weight_norms

from microtome.core.result import Result


def test_a_result_is_told_kept_and_shown_again(
    command: Callable[..., typer.testing.Result], model_folder: Path, tmp_path: Path
) -> None:
    kept, page = tmp_path / "kept", tmp_path / "deep" / "page.html"
    done = command(
        "run", "weight-norms", "-m", model_folder, "--set", "power=2", "--out", kept, "--html", page
    )
    assert done.exit_code == 0, done.output
    for told in ("transformer.wte.weight", "tiny-model", "global", "0 passes", "A large parameter may act"):
        assert told in " ".join(done.output.split())
    result = Result.load(kept)
    assert result.config == {"power": 2.0, "seed": 0}
    assert "transformer.wte.weight" in page.read_text()
    assert "A large parameter may act on a direction" in page.read_text()

    again = tmp_path / "again.html"
    shown = command("show", kept, "--html", again)
    assert shown.exit_code == 0
    assert shown.stdout.replace(str(again), "") == done.stdout.replace(str(page), "")
    assert again.read_bytes() == page.read_bytes()


def test_the_seed_reaches_the_method(
    command: Callable[..., typer.testing.Result], model_folder: Path, tmp_path: Path
) -> None:
    assert command("run", "weight_norms", "-m", model_folder, "-s", "7", "-o", tmp_path / "a").exit_code == 0
    assert Result.load(tmp_path / "a").seed == 7
    command("run", "weight_norms", "-m", model_folder, "-s", "7", "--set", "seed=8", "-o", tmp_path / "b")
    assert Result.load(tmp_path / "b").seed == 8


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["weight_nroms"], "Did you mean weight_norms?"),
        (["weight_norms", "--set", "power"], "write --set name=value"),
        (["weight_norms", "--set", "=2"], "write --set name=value"),
        (["weight_norms", "--set", "power=1", "--set", "power=2"], "twice"),
        (["weight_norms", "--set", "force=2"], "The fields are: power, seed"),
        (["weight_norms", "--set", "power=strong"], "power"),
        (["weight_norms", "--task", "induction"], "weights alone"),
        (["weight_norms", "--task", "induction", "--text", "x.txt"], "two kinds of data"),
        (["weight_norms", "--testbed", "programs/sort"], "brings its own network"),
        (["interchange_interventions"], "give --testbed"),
    ],
)
def test_words_that_do_not_fit(
    command: Callable[..., typer.testing.Result], model_folder: Path, words: list[str], told: str
) -> None:
    refused = command("run", *words, "--model", model_folder)
    assert refused.exit_code == 2
    assert told in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("error: ")


def test_a_method_runs_on_a_network_with_an_answer_key(
    command: Callable[..., typer.testing.Result], tmp_path: Path
) -> None:
    told = command(
        "run",
        "interchange_interventions",
        "--testbed",
        "programs/sort",
        "--set",
        "pairs=4",
        "-o",
        tmp_path / "a",
    )
    assert told.exit_code == 0, told.stderr
    assert Result.load(tmp_path / "a").provenance.model == "programs/sort"


def test_a_model_that_is_not_there(command: Callable[..., typer.testing.Result], tmp_path: Path) -> None:
    refused = command("run", "weight_norms", "--model", tmp_path / "nowhere")
    assert refused.exit_code == 2
    assert "nowhere" in refused.stderr


def test_a_model_without_a_tokenizer(
    command: Callable[..., typer.testing.Result],
    model_folder: Path,
    tmp_path: Path,
    offer: Callable[..., None],
) -> None:
    offer("methods", package="another", source=LENGTHS, lengths="lengths")
    bare = tmp_path / "bare"
    shutil.copytree(model_folder, bare, ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    refused = command("run", "lengths", "-m", bare)
    assert refused.exit_code == 2
    assert "tokenizer" in refused.stderr


def test_nothing_is_computed_in_vain(
    command: Callable[..., typer.testing.Result],
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the method ran although its result could not be saved")

    monkeypatch.setattr(weight_norms, "run", never)
    (tmp_path / "a file").write_text("")
    refused = command("run", "weight_norms", "-m", model_folder, "-o", tmp_path / "a file")
    assert "is a file" in refused.stderr


def test_a_result_in_the_way_is_not_lost(
    command: Callable[..., typer.testing.Result], model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "result.json").write_text('{"not": "ours"}')
    refused = command("run", "weight_norms", "-m", model_folder, "-o", tmp_path)
    assert refused.exit_code == 2
    assert json.loads((tmp_path / "result.json").read_text()) == {"not": "ours"}


def test_a_page_that_cannot_be_written(
    command: Callable[..., typer.testing.Result], model_folder: Path, tmp_path: Path
) -> None:
    refused = command("run", "weight_norms", "-m", model_folder, "--html", tmp_path)
    assert refused.exit_code == 2
    assert "cannot be written" in refused.stderr


LENGTHS = (
    Path(weight_norms.__file__)
    .read_text()
    .replace('name="weight_norms"', 'name="lengths"')
    .replace('needs="weights"', 'needs="tokens"')
    .replace("list(parameters)}", 'list(parameters), "text": ("row", list(data.texts))}')
)


@pytest.fixture
def lengths(offer: Callable[..., None]) -> None:
    offer("methods", package="another", source=LENGTHS, lengths="lengths")


@pytest.mark.usefixtures("lengths")
def test_prompts_come_from_a_file_or_a_task(
    command: Callable[..., typer.testing.Result], model_folder: Path, tmp_path: Path
) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text("the dog sat\n\nthe cat ran on\nthe mat\n")
    done = command("run", "lengths", "-m", model_folder, "--text", text, "-n", "2", "-o", tmp_path / "a")
    assert done.exit_code == 0, done.output
    assert Result.load(tmp_path / "a").data["text"].values.tolist() == ["the dog sat", "the cat ran on"]
    done = command(
        "run", "lengths", "-m", model_folder, "--task", "induction", "-n", "3", "-o", tmp_path / "b"
    )
    assert done.exit_code == 0, done.output
    assert Result.load(tmp_path / "b").data.sizes["row"] == 3


@pytest.mark.usefixtures("lengths")
@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "something in each"), (b"\xff\xfe\xff", "as text"), (b"the zebra sat", "does not know")],
)
def test_a_file_without_prompts(
    command: Callable[..., typer.testing.Result],
    model_folder: Path,
    tmp_path: Path,
    content: bytes,
    told: str,
) -> None:
    text = tmp_path / "prompts.txt"
    text.write_bytes(content)
    refused = command("run", "lengths", "-m", model_folder, "--text", text)
    assert refused.exit_code == 2
    assert told in refused.stderr


def test_pairs_do_not_come_from_a_text(
    command: Callable[..., typer.testing.Result],
    offer: Callable[..., None],
    model_folder: Path,
    tmp_path: Path,
) -> None:
    source = LENGTHS.replace('needs="tokens"', 'needs="pairs"')
    offer("methods", package="another", source=source, lengths="lengths")
    (tmp_path / "prompts.txt").write_text("the dog sat")
    refused = command("run", "lengths", "-m", model_folder, "--text", tmp_path / "prompts.txt")
    assert refused.exit_code == 2
    assert "give --task" in refused.stderr
