"""A prediction is registered before its test and never altered; the ledger shows any change and survives any kill."""

import json
import math
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microtome.core.claim import Claim, Evidence, Ledger, Prediction
from microtome.core.errors import InputError, NotFiniteError, StoreError

CLAIM = Claim("Head 1 of layer 3 copies the name it attends to.", ("z.3.h1",), "indirect-object prompts")


def predicted(**changes: Any) -> Prediction:
    fields: dict[str, Any] = {
        "claim": CLAIM.key,
        "quantity": "faithfulness",
        "data_hash": "held-out",
        "low": 0.8,
        "against": "above",
        "control": "random circuits of the same size",
    }
    return Prediction(**fields | changes)


def measured(value: float = 0.9, **changes: Any) -> Evidence:
    fields: dict[str, Any] = {
        "n": 64,
        "level": "interventional",
        "data_hash": "held-out",
        "control_value": 0.1,
    }
    return Evidence(value, **fields | changes)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path)
    made.add(CLAIM)
    return made


def contents(ledger: Ledger) -> tuple[Any, ...]:
    return ledger.claims, ledger.registered, ledger.registered_at, ledger.tested, ledger.found, ledger.head


@pytest.mark.parametrize(
    ("bounds", "value", "control", "hit"),
    [
        ({"low": 0.8}, 0.8, None, True),
        ({"low": 0.8}, 0.79, None, False),
        ({"high": 0.2}, 0.2, None, True),
        ({"high": 0.2}, 0.21, None, False),
        ({"low": -1.0, "high": 1.0}, 0.0, None, True),
        ({"low": -1.0, "high": 1.0}, 1.5, None, False),
        ({"against": "above", "control": "x"}, 0.3, 0.2, True),
        ({"against": "above", "control": "x"}, 0.2, 0.2, False),
        ({"against": "below", "control": "x"}, 0.1, 0.2, True),
        ({"against": "below", "control": "x"}, 0.2, 0.2, False),
        ({"low": 0.8, "against": "above", "control": "x"}, 0.7, 0.1, False),
        ({"low": 0.8, "against": "above", "control": "x"}, 0.9, 0.95, False),
        ({"low": 0.8, "against": "above", "control": "x"}, 0.9, 0.1, True),
    ],
)
def test_hit_or_miss(bounds: dict[str, Any], value: float, control: float | None, hit: bool) -> None:
    assert Prediction("c", "q", "d", **bounds).hit(value, control) is hit


@pytest.mark.parametrize(
    "bounds",
    [
        {},
        {"low": 1.0, "high": 0.0},
        {"low": math.nan},
        {"high": math.inf},
        {"against": "above"},
        {"control": "a sentence", "low": 0.0},
    ],
    ids=str,
)
def test_a_prediction_that_nothing_could_refute_is_refused(bounds: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Prediction("c", "q", "d", **bounds)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_evidence(value: float) -> None:
    for bad in ({"value": value}, {"control_value": value}, {"interval": (0.0, value)}):
        with pytest.raises(NotFiniteError):
            measured(**{"value": 0.5} | bad)
    with pytest.raises(InputError, match="at least one"):
        measured(n=0)


def test_predicted_then_tested(ledger: Ledger) -> None:
    key = ledger.register(predicted())
    assert ledger.untested == (predicted(),)
    tested = ledger.record(key, measured())
    assert tested.hit
    assert ledger.untested == ()
    assert ledger.hits == (tested,)
    assert ledger.misses == ()
    assert predicted().sentence() == "faithfulness ≥ 0.8 and above that of random circuits of the same size"


def test_a_miss_is_kept(ledger: Ledger) -> None:
    ledger.register(predicted())
    tested = ledger.record(predicted(), measured(0.3))
    assert not tested.hit
    assert Ledger(ledger.path.parent).misses == (tested,)


def test_the_book_reads_back_as_written(ledger: Ledger) -> None:
    ledger.register(predicted())
    ledger.register(predicted(quantity="completeness", low=0, high=1))
    ledger.record(
        predicted(), measured(np.float64(0.9), interval=(np.float64(0.8), 0.95), outcome="as «foretold»\r\n")
    )
    ledger.find(CLAIM.key, "entropy", measured(1.5, control_value=None, level="correlational"))
    assert contents(Ledger(ledger.path.parent)) == contents(ledger)


def test_predicted_and_found_after_are_kept_apart(ledger: Ledger) -> None:
    ledger.register(predicted())
    ledger.record(predicted(), measured())
    ledger.find(CLAIM.key, "entropy", measured(1.5))
    assert [t.prediction.quantity for t in ledger.tested.values()] == ["faithfulness"]
    assert [f.quantity for f in ledger.found] == ["entropy"]
    with pytest.raises(InputError, match="known already"):
        ledger.register(predicted(quantity="entropy"))
    ledger.register(predicted(quantity="entropy", data_hash="fresh"))


def test_evidence_without_a_prediction_is_refused(ledger: Ledger) -> None:
    before = ledger.path.read_bytes()
    for never in (predicted(), predicted().key):
        with pytest.raises(InputError, match="never registered"):
            ledger.record(never, measured())
    assert ledger.path.read_bytes() == before


def test_a_prediction_is_not_altered(ledger: Ledger) -> None:
    ledger.register(predicted())
    before = ledger.path.read_bytes()
    with pytest.raises(InputError, match=r"≥ 0\.8"):
        ledger.register(predicted(low=0.2))
    with pytest.raises(InputError, match="never registered"):
        ledger.record(predicted(low=0.2), measured(0.3))
    assert ledger.path.read_bytes() == before


def test_one_prediction_has_one_outcome(ledger: Ledger) -> None:
    ledger.register(predicted())
    ledger.record(predicted(), measured(0.3))
    with pytest.raises(InputError, match="fresh data"):
        ledger.record(predicted(), measured(0.9))
    assert len(ledger.misses) == 1


def test_other_data_and_a_missing_control_are_refused(ledger: Ledger) -> None:
    ledger.register(predicted())
    with pytest.raises(InputError, match="test on the data"):
        ledger.record(predicted(), measured(data_hash="train"))
    with pytest.raises(InputError, match="measure that too"):
        ledger.record(predicted(), measured(control_value=None))


def test_unknown_claims_are_refused(ledger: Ledger) -> None:
    with pytest.raises(InputError, match="add the claim first"):
        ledger.register(predicted(claim="nobody"))
    with pytest.raises(InputError, match="add the claim first"):
        ledger.find("nobody", "entropy", measured())


def test_doing_it_again_changes_nothing(ledger: Ledger) -> None:
    def all_of_it() -> None:
        ledger.add(CLAIM)
        ledger.register(predicted())
        ledger.record(predicted(), measured())
        ledger.find(CLAIM.key, "entropy", measured(1.5))

    all_of_it()
    before = ledger.path.read_bytes()
    all_of_it()
    assert ledger.path.read_bytes() == before


def full(folder: str) -> Ledger:
    ledger = Ledger(folder)
    ledger.add(CLAIM)
    ledger.register(predicted())
    ledger.record(predicted(), measured(0.3, outcome="schlecht"))
    ledger.find(CLAIM.key, "entropy", measured(1.5))
    return ledger


@given(cut=st.floats(0, 1))
def test_a_kill_at_any_byte_loses_only_the_unfinished_line(cut: float) -> None:
    with TemporaryDirectory() as folder:
        path = full(folder).path
        whole = path.read_bytes()
        kept = whole[: round(cut * len(whole))]
        path.write_bytes(kept)
        reopened = Ledger(folder)
        assert (kept.count(b"\n") >= 1) == (CLAIM.key in reopened.claims)
        assert (kept.count(b"\n") >= 3) == bool(reopened.misses)
        full(folder)  # resume: what was lost is done again
        assert [json.loads(line)["kind"] for line in path.read_text().splitlines()] == [
            "claim",
            "prediction",
            "evidence",
            "found",
        ]
        assert len(Ledger(folder).misses) == 1


@given(data=st.data())
def test_any_changed_byte_is_detected(data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        ledger = full(folder)
        content = bytearray(ledger.path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 2))] ^= data.draw(st.integers(1, 255))
        ledger.path.write_bytes(content)
        reopened = None
        with suppress(StoreError):
            reopened = Ledger(folder)
        # A space of the JSON may become another: then nothing that was said has changed.
        assert reopened is None or contents(reopened) == contents(ledger)


def lines(ledger: Ledger) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ledger.path.read_text().splitlines()]


@pytest.mark.parametrize("attack", ["drop", "swap", "rehash", "repeat"])
def test_removed_reordered_or_rehashed_lines_are_detected(tmp_path: Path, attack: str) -> None:
    ledger = full(str(tmp_path))
    book = lines(ledger)
    if attack == "drop":
        del book[1]
    elif attack == "swap":
        book[1], book[2] = book[2], book[1]
    elif attack == "repeat":
        book.append(book[-1])
    else:
        book[2]["body"]["value"] = 0.95
        book[2]["hash"] = "0" * 64
    ledger.path.write_text("".join(json.dumps(entry) + "\n" for entry in book))
    with pytest.raises(StoreError, match=r"line [2345]"):
        Ledger(tmp_path)


def test_cutting_off_the_end_changes_the_head(tmp_path: Path) -> None:
    ledger = full(str(tmp_path))
    head = ledger.head
    ledger.path.write_text("".join(json.dumps(entry) + "\n" for entry in lines(ledger)[:2]))
    assert Ledger(tmp_path).head != head


def test_two_writers_are_refused(tmp_path: Path) -> None:
    one, other = full(str(tmp_path)), Ledger(tmp_path)
    one.add(Claim("Another.", (), "everywhere"))
    with pytest.raises(StoreError, match="another program"):
        other.add(Claim("A third.", (), "everywhere"))
    assert len(Ledger(tmp_path).claims) == 2
    one.path.write_bytes(b"")
    with pytest.raises(StoreError, match="another program"):
        one.add(Claim("A fourth.", (), "everywhere"))
