"""A study survives kills with the results of an uninterrupted one, refuses what is not its own, and loses nothing."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import weight_norms
from hypothesis import given
from hypothesis import strategies as st

from microtome.core.claim import Claim
from microtome.core.cost import Cost
from microtome.core.errors import InputError, StoreError
from microtome.store import manifest as manifests
from microtome.store.study_folder import StudyFolder
from store.interrupted_study import IDENTITY, norms, study


@pytest.fixture(autouse=True)
def _installed(offer: Callable[..., None]) -> None:
    offer("methods", weight_norms="weight_norms")


def never() -> Any:
    raise AssertionError("this stage is done; it is not to be made again")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, byte for byte, but for when it was made, how long that took, and hashes over those."""

    def timeless(path: Path) -> bytes:
        text = path.read_text()
        if path.name == "manifest.json":
            told = json.loads(text)
            del told["created"]
            for done in told["stages"].values():
                hashed = done.pop("sha256") if done["file"].endswith("result.json") else None
                assert hashed is None or len(hashed) == 64
                assert done.pop("seconds") >= 0
                del done["date"], done["cost"]["seconds"], done["cost"]["peak_bytes"]
            return json.dumps(told).encode()
        if path.name == "result.json":
            told = json.loads(text)
            del told["provenance"]["date"]
            return json.dumps(told).encode()
        if path.name == "ledger.jsonl":
            lines = [json.loads(line) for line in text.splitlines()]
            for line in lines:
                del line["time"], line["hash"], line["previous"]
            return json.dumps(lines).encode()
        return text.encode()

    return {
        str(path.relative_to(folder)): path.read_bytes() if path.suffix == ".safetensors" else timeless(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "study.lock"
    }


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_kill_at_any_touch_of_a_file_resumes_to_the_same_study(tmp_path: Path) -> None:
    chance = random.Random(0)
    random_kills = ",".join(str(chance.randint(1, 40)) for _ in range(12))
    done = subprocess.run(
        [sys.executable, f"{Path(__file__).parent}/interrupted_study.py"]
        + [f"{tmp_path}/{words}" for words in ("whole=", "each=each", f"random={random_kills}")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr
    struck = {Path(path).name: count for path, count in json.loads(done.stdout).items()}
    assert struck["whole"] == 0
    assert struck["random"] >= 3
    assert struck["each"] > 40, "too few kills to have met every write"
    whole = contents(tmp_path / "whole")
    assert {"manifest.json", "ledger.jsonl", "report.html", "count/weight_norms/result.json"} < set(whole)
    for other in ["random", *(f"each-{k + 1}" for k in range(struck["each"]))]:
        assert contents(tmp_path / other) == whole, other


def test_a_half_written_file_is_neither_read_nor_kept(tmp_path: Path) -> None:
    study(tmp_path / "whole")
    study(tmp_path / "cut")
    for torn in ("manifest.json.abcd0_12.partial", "count/total.json.zzzzzzzz.partial"):
        (tmp_path / "cut" / torn).write_text('{"half')
    (tmp_path / "cut" / "notes.partial").write_text("mine")
    study(tmp_path / "cut")
    left = contents(tmp_path / "cut")
    assert left.pop("notes.partial") == b"mine"
    assert left == contents(tmp_path / "whole")


def test_what_is_done_is_not_made_again(tmp_path: Path) -> None:
    study(tmp_path)
    with StudyFolder.open(tmp_path, IDENTITY) as folder:
        assert folder.stage("count/total", never) == {"total": pytest.approx(1990.0), "of": [1, 2]}
        assert folder.result("count/weight_norms", never) == norms(
            folder.stage("count/total", never)["total"]
        )
        assert folder.has("count/total")
        assert folder.has("report.html")
        assert not folder.has("count/later")
        assert len(folder.ledger.hits) == 1


def test_a_first_and_a_later_call_give_the_same(tmp_path: Path) -> None:
    with StudyFolder.open(tmp_path, {}) as folder:
        first = folder.stage("a", lambda: {1: (2.5, float("inf"), None), "ä": [True]})
        assert first == folder.stage("a", never) == {"1": [2.5, float("inf"), None], "ä": [True]}
        made = folder.result("b", lambda: norms(2.0))
        assert made == folder.result("b", never)
        assert type(made) is weight_norms.Result


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(one=st.dictionaries(st.text(), PLAIN, max_size=3), other=st.dictionaries(st.text(), PLAIN, max_size=3))
def test_identities_are_told_apart_exactly(one: dict[str, Any], other: dict[str, Any]) -> None:
    def text(identity: dict[str, Any]) -> str:
        return json.dumps(identity, sort_keys=True)

    manifests.refuse_other(Path("here"), one, json.loads(text(one)))
    if text(one) == text(other):
        manifests.refuse_other(Path("here"), one, other)
    else:
        with pytest.raises(StoreError, match="another study"):
            manifests.refuse_other(Path("here"), one, other)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"model": {"name": "toy", "hash": "cd" * 32}},
            f'model.hash is "{"ab" * 32}" there and "{"cd" * 32}"',
        ),
        ({"config": {"seed": 4}}, "config.seed is 3 there and 4 here"),
        ({"config": {"seed": 3, "n": 8}}, "config.n is absent there and 8 here"),
        ({"config": {}}, "config.seed is 3 there and absent here"),
        ({"tasks": ["count", "sort"]}, 'tasks is ["count"] there and ["count", "sort"] here'),
        ({"config": None}, 'config is {"seed": 3} there and null here'),
    ],
)
def test_another_identity_is_refused_by_what_differs(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    study(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(StoreError) as refused:
        StudyFolder.open(tmp_path, IDENTITY | change)
    assert told in str(refused.value)
    assert "--out" in str(refused.value)
    assert "--fresh" in str(refused.value)
    assert str(refused.value).count(" there and ") == 1
    after = snapshot(tmp_path)
    assert after.pop("study.lock")
    assert after == {name: content for name, content in before.items() if name != "study.lock"}
    study(tmp_path)


@pytest.mark.parametrize("name", ["thesis.tex", "ledger.jsonl", ".git", "manifest.json"])
def test_a_foreign_folder_is_refused_untouched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"name": "a web page"}')
    before = snapshot(tmp_path)
    for fresh in (False, True):
        with pytest.raises(StoreError, match=re.escape(name)):
            StudyFolder.open(tmp_path, {}, fresh=fresh)
    assert snapshot(tmp_path) == before
    assert [p.name for p in tmp_path.parent.glob(f"{tmp_path.name}*")] == [tmp_path.name]


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study").write_text("mine")
    with pytest.raises(StoreError, match="is a file"):
        StudyFolder.open(tmp_path / "study", {})
    with pytest.raises(StoreError, match="cannot be made"):
        StudyFolder.open(tmp_path / "study" / "inner", {})
    assert (tmp_path / "study").read_text() == "mine"


def corruptions() -> dict[str, Callable[[str], str]]:
    def edited(edit: Callable[[dict[str, Any]], Any]) -> Callable[[str], str]:
        def apply(text: str) -> str:
            told = json.loads(text)
            edit(told)
            return json.dumps(told)

        return apply

    return {
        "cut off": lambda text: text[: len(text) // 2],
        "empty": lambda text: "",
        "zeros": lambda text: "\0" * len(text),
        "no identity": edited(lambda told: told.pop("identity")),
        "stages a list": edited(lambda told: told.update(stages=[])),
        "a stage without a file": edited(lambda told: told["stages"]["count/total"].pop("file")),
        "a stage's cost cut": edited(lambda told: told["stages"]["count/total"].update(cost={})),
        "a cost of something": edited(lambda told: told["stages"]["count/total"]["cost"].update(euros=1)),
    }


@pytest.mark.parametrize("damage", corruptions())
def test_a_damaged_manifest_is_named_and_nothing_is_lost(tmp_path: Path, damage: str) -> None:
    study(tmp_path / "out")
    file = tmp_path / "out" / "manifest.json"
    good = file.read_text()
    file.write_text(corruptions()[damage](good))
    before = snapshot(tmp_path / "out")
    with pytest.raises(StoreError, match=r"manifest\.json is damaged.*nothing in it was changed or deleted"):
        StudyFolder.open(tmp_path / "out", IDENTITY)
    after = snapshot(tmp_path / "out")
    assert after | {"study.lock": b""} == before | {"study.lock": b""}
    StudyFolder.open(tmp_path / "out", IDENTITY, fresh=True).close()
    assert snapshot(tmp_path / "out-before-1") | {"study.lock": b""} == before | {"study.lock": b""}
    file = tmp_path / "out-before-1" / "manifest.json"
    file.write_text(good)
    study(tmp_path / "out-before-1")


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    study(tmp_path)
    told = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(told | {"version": 2}))
    with pytest.raises(StoreError, match=r"format version 2.*Update microtome"):
        StudyFolder.open(tmp_path, IDENTITY)


def test_a_stage_altered_on_disk_is_refused_and_made_again_once_moved_away(tmp_path: Path) -> None:
    study(tmp_path)
    for name, file in (
        ("count/total", "count/total.json"),
        ("count/weight_norms", "count/weight_norms/result.json"),
    ):
        path = tmp_path / file
        altered = path.read_text().replace("1", "2", 1)
        path.write_text(altered)
        with StudyFolder.open(tmp_path, IDENTITY) as folder:
            ask = folder.result if file.endswith("result.json") else folder.stage
            with pytest.raises(StoreError, match=f"{re.escape(file)} is not what the study wrote"):
                ask(name, never)
            assert path.read_text() == altered
            path.unlink()
            assert not folder.has(name)
            with pytest.raises(AssertionError, match="made again"):
                ask(name, never)
    study(tmp_path)
    study(tmp_path.with_name("whole"))
    assert contents(tmp_path) == contents(tmp_path.with_name("whole"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("NaN in layer 3")])
def test_what_make_raises_passes_and_leaves_the_folder_as_it_was(tmp_path: Path, error: Any) -> None:
    def stopped() -> Any:
        raise error

    with StudyFolder.open(tmp_path, {}) as folder:
        folder.stage("first", lambda: 1)
        before = snapshot(tmp_path)
        for ask in (folder.stage, folder.result):
            with pytest.raises(error if isinstance(error, type) else type(error)):
                ask("second", stopped)
            assert snapshot(tmp_path) == before
            assert not folder.has("second")
        assert folder.stage("second", lambda: 2) == 2


def test_what_cannot_be_kept_is_refused_and_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    with StudyFolder.open(tmp_path, {}) as folder:
        before = snapshot(tmp_path)
        with pytest.raises(InputError, match="'a' gave must be plain"):
            folder.stage("a", lambda: {"x": object()})
        with pytest.raises(InputError, match="gave a dict; use `stage`"):
            folder.result("a", dict)  # type: ignore[arg-type, return-value]
        assert snapshot(tmp_path) == before
    with pytest.raises(InputError, match="identity"):
        StudyFolder.open(tmp_path / "new", {"model": object()})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "name", ["../out", "/etc/x", "a//b", "", "a/", ".hidden", "a b", "a\\b", "ä", "a/../b"]
)
def test_names_stay_within_the_folder(tmp_path: Path, name: str) -> None:
    with StudyFolder.open(tmp_path / "study", {}) as folder:
        for ask in (folder.stage, folder.result):
            with pytest.raises(InputError, match="names no place"):
                ask(name, never)
        with pytest.raises(InputError, match="names no place"):
            folder.write_text(name, "x")


def test_one_name_one_thing(tmp_path: Path) -> None:
    with StudyFolder.open(tmp_path, {}) as folder:
        folder.stage("a", lambda: 1)
        folder.result("r", lambda: norms(1.0))
        for name in ("a.json", "A.json", "r/result.json", "manifest.json", "ledger.jsonl", "Study.lock"):
            with pytest.raises(InputError, match="choose another name"):
                folder.write_text(name, "x")
        for again in (lambda: folder.result("a", never), lambda: folder.stage("r", never)):
            with pytest.raises(InputError, match="choose another name"):
                again()
        for taken in ("manifest", "r/result", "A"):
            with pytest.raises(InputError, match="choose another name"):
                folder.stage(taken, never)


def test_a_text_is_rewritten_whole(tmp_path: Path) -> None:
    with StudyFolder.open(tmp_path, {}) as folder:
        folder.write_text("pages/report.html", "täglich\nold" * 99)
        path = folder.write_text("pages/report.html", "new")
    assert path.read_bytes() == b"new"


def test_two_writers_are_refused_also_within_one_process(tmp_path: Path) -> None:
    with StudyFolder.open(tmp_path, {}) as folder:
        with pytest.raises(StoreError, match=f"being written by process {os.getpid()} on"):
            StudyFolder.open(tmp_path, {})
        with pytest.raises(StoreError, match="being written"):
            StudyFolder.open(tmp_path, {}, fresh=True)
        folder.stage("a", lambda: 1)
    with pytest.raises(StoreError, match="was closed"):
        folder.stage("b", lambda: 1)
    StudyFolder.open(tmp_path, {}).close()


def test_a_living_writer_is_named_and_a_dead_one_is_succeeded(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from microtome.store.lock import lock\n"
        "held = lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"process {other.pid} on"):
            StudyFolder.open(tmp_path, {})
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert (tmp_path / "study.lock").read_text().startswith(str(other.pid))
        with StudyFolder.open(tmp_path, {}) as folder:
            assert folder.stage("a", lambda: 1) == 1
    finally:
        other.kill()
        other.wait()
        other.stdout.close()  # type: ignore[union-attr]


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StudyFolder.open(tmp_path, {}) as folder:
        folder.stage("a", lambda: 1)
        folder.write_text("report.html", "old")
        before = snapshot(tmp_path)

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        for fails in (
            lambda: folder.stage("b", lambda: 2),
            lambda: folder.result("c", lambda: norms(1.0)),
            lambda: folder.write_text("report.html", "new"),
        ):
            with pytest.raises(StoreError, match="No space left"):
                fails()
            assert snapshot(tmp_path) == before
        monkeypatch.undo()
        assert folder.stage("b", lambda: 2) == 2


def test_fresh_sets_the_old_study_aside_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in (1, 2):
        with StudyFolder.open(out, {"seed": number}, fresh=True) as folder:
            folder.stage("a", lambda number=number: number)
    with StudyFolder.open(out, {"seed": 3}, fresh=True) as folder:
        assert not folder.has("a")
    for number in (1, 2):
        with StudyFolder.open(tmp_path / f"out-before-{number}", {"seed": number}) as folder:
            assert folder.stage("a", never) == number


def test_costs_and_versions_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StudyFolder.open(tmp_path, {"seed": 0}) as folder:
        folder.stage("a", lambda: 1)
        found = folder.result("b", lambda: norms(1.0))
        assert list(folder.costs) == ["a", "b"]
        assert folder.costs["a"].seconds > 0
        assert folder.costs["b"] == found.cost
        assert isinstance(folder.costs["b"], Cost)
        told = folder.manifest
        told["identity"]["seed"] = 9
        assert folder.manifest["identity"] == {"seed": 0}
        assert len(folder.manifest["versions"]) == 1
    monkeypatch.setattr("microtome.core.provenance.versions", lambda: {"torch": "9.9"})
    with StudyFolder.open(tmp_path, {"seed": 0}) as folder:
        assert [used["torch"] for used in folder.manifest["versions"]][1:] == ["9.9"]
        assert folder.stage("a", never) == 1
    assert json.loads((tmp_path / "manifest.json").read_text()) == folder.manifest


def test_the_ledger_lies_in_the_folder(tmp_path: Path) -> None:
    with StudyFolder.open(tmp_path, {}) as folder:
        key = folder.ledger.add(Claim("it counts", ("h0",), "here"))
        assert folder.ledger is folder.ledger
    with StudyFolder.open(tmp_path, {}) as folder:
        assert key in folder.ledger.claims


def test_importing_the_store_is_light() -> None:
    code = "import sys, microtome.store.study_folder; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "xarray", "scipy"} & set(loaded.stdout.split())
