"""`microtome harvest` and `microtome units` as they are typed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import Result

from microtome.bases.harvest_values import HarvestFolder
from microtome.core.site import Site
from microtome.data.corpus import Corpus
from microtome.dictionaries import files
from microtome.dictionaries.activations import ReLU
from microtome.dictionaries.dictionary import Dictionary
from microtome.store.unit_store import UnitStore

TEXT = "the cat sat on a mat\nthe dog ran\n\na dog sat\n\nthe cat ran on the mat\n"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_values_and_units_are_kept_and_looked_at(
    command: Callable[..., Result], model_folder: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = (
        "harvest",
        model_folder,
        text,
        "--site",
        "resid_post.1",
        "--neurons",
        "mlp_post.0",
        "--columns",
        "5",
    )
    done = command(*words, "--gradients", "--together", "2", "--out", out)
    assert done.exit_code == 0, done.output
    assert "18 tokens in 3 documents, 4 rows" in done.output
    assert "unknown to the tokenizer" not in done.output
    assert HarvestFolder.open(out).n_tokens == 18
    store = UnitStore.open(out / "mlp_post.0")
    assert store.by_unit["gradient"].any()
    shown = command("units", out, "-n", "3")
    assert shown.exit_code == 0, shown.output
    assert "3 of 64 units by density" in shown.output
    shown = command("units", out / "mlp_post.0", "7", "-n", "2")
    best = store.contexts(7, store.top(7, 1).token)
    words_around = [store.strings[token] if token >= 0 else "" for token in best.ids[0]]
    words_around[16] = f"»{words_around[16]}«"
    assert "".join(words_around).strip() in shown.output
    shown = command("units", out / "mlp_post.0", "7", "--partners", "-n", "2")
    assert "mlp_post.0.u7: what goes with it" in shown.output
    assert "of one unit; name it" in command("units", out, "--partners").output
    shown = command("units", out / "mlp_post.0", "7", "--label", "animals [that] sit", "--author", "Ada")
    assert shown.exit_code == 0, shown.output
    assert ": animals [that] sit" in command("units", out, "7").output
    assert "a label is of one unit" in command("units", out, "--label", "animals").output
    again = command(*words, "--gradients", "--together", "2", "--out", out)
    assert again.exit_code == 0, again.output


def test_a_dictionary_and_json_lines(
    command: Callable[..., Result], model_folder: Path, tmp_path: Path
) -> None:
    lines = tmp_path / "text.jsonl"
    lines.write_text("".join(json.dumps({"body": line}) + "\n" for line in TEXT.splitlines() if line))
    site, zeros = (Site("resid_post", 0),), torch.zeros(16)
    encoder, decoder = torch.randn(2, 9, 16)
    dictionary = Dictionary(
        "tiny", site, site, (16,), (16,), ReLU(), encoder.clone(), torch.zeros(9), decoder.clone(), zeros, zeros.clone()
    )  # fmt: skip
    files.save(dictionary, tmp_path / "tiny.safetensors")
    words = ("harvest", model_folder, lines, "--field", "body", "--layout", "documents", "--tokens", "12")
    done = command(*words, "--dictionary", tmp_path / "tiny.safetensors", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    store = UnitStore.open(tmp_path / "out" / "tiny")
    assert store.manifest.seen == 12
    assert 0 < store.counts.sum() < 9 * 12


def test_tokens_that_are_tokens_already(
    command: Callable[..., Result], model_folder: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "ids.npy", np.arange(12).reshape(3, 4))
    out = tmp_path / "out"
    done = command(
        "harvest", model_folder, tmp_path / "ids.npy", "--site", "embed", "--dtype", "float16", "--out", out
    )
    assert done.exit_code == 0, done.output
    assert Corpus.load(out / "corpus").tokens.tolist() == list(range(12))
    assert {value.dtype for value in HarvestFolder.open(out).values("embed")} == {torch.float16}


def test_what_cannot_be_is_told_in_one_line(
    command: Callable[..., Result], model_folder: Path, text: Path, tmp_path: Path
) -> None:
    for number, (words, message) in enumerate(
        (
            ((text,), "there is nothing to keep"),
            ((text, "--site", "embed", "--dtype", "int8"), "values are kept in float32, float16 or bfloat16"),
            ((text, "--site", "embed", "--layout", "loose"), "--layout is packed or documents, not loose"),
            ((text.with_name("absent.txt"), "--site", "embed"), "absent.txt cannot be found"),
            ((text, "--site", "embed", "--tokens", "19"), "the corpus has 18 tokens where 19 were asked for"),
            ((text, "--site", "resid_post.7"), "resid_post.7"),
        )
    ):
        done = command("harvest", model_folder, *words, "--out", tmp_path / str(number))
        assert done.exit_code == 2, done.output
        assert message in done.output.replace("\n", " ")
    out = ("--out", tmp_path / "out")
    assert command("harvest", model_folder, text, "--site", "embed", *out).exit_code == 0
    done = command("harvest", model_folder, text, "--site", "pos_embed", *out)
    assert "holds another harvest" in done.output.replace("\n", " ")
    text.write_text(TEXT * 2)
    done = command("harvest", model_folder, text, "--site", "embed", *out)
    assert "holds another corpus: files is" in done.output.replace("\n", " ")
    done = command("units", tmp_path / "out")
    assert done.exit_code == 2
    assert "holds no units" in done.output


def test_a_text_the_tokenizer_does_not_know_is_told(
    command: Callable[..., Result], model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("a strange text\n")
    done = command(
        "harvest", model_folder, tmp_path / "text.txt", "--site", "embed", "--out", tmp_path / "out"
    )
    assert "67% of the tokens are unknown to the tokenizer" in done.output


def test_units_of_several_bases_are_asked_by_name(
    command: Callable[..., Result], model_folder: Path, text: Path, tmp_path: Path
) -> None:
    words = ("--neurons", "embed", "--neurons", "resid_post.0", "--out", tmp_path)
    assert command("harvest", model_folder, text, *words).exit_code == 0
    done = command("units", tmp_path)
    assert "name one: embed, resid_post.0" in done.output
    assert "units 0 … 15; got 99" in command("units", tmp_path / "embed", "99").output
    assert "units are ordered by" in command("units", tmp_path / "embed", "--order", "beauty").output
