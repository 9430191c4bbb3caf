"""What is asserted, what did it predict, and did that come true? Claims, predictions, evidence and their ledger.

A `Claim` says something of sites or units. A `Prediction` says, before the test, which number the claim foretells and
what would refute it. `Evidence` is the number that came out. The `Ledger` keeps all three in a file to which lines are
only ever added:

1. A claim is made; a prediction is registered under it, before the test.
2. The test is run and its evidence recorded; hit or miss is worked out here, from the prediction as registered.
3. What is noticed without having been predicted is kept apart, as found afterwards: it proves nothing yet.

Each line carries the hash of the line before it, so that a changed, removed or reordered line is detected. Lines cut
off at the end leave an intact chain: publish `Ledger.head` with a report to make that visible too. A line that a kill
left incomplete was never acknowledged and is ignored.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, get_args

from microtome.core.errors import InputError, NotFiniteError, StoreError

Level = Literal["correlational", "interventional", "replaced"]
Control = Literal["", "above", "below"]


@dataclass(frozen=True)
class Claim:
    """Something asserted of parts of a model.

    statement: a sentence. about: sites or units, as strings. scope: on what it is meant to hold.
    """

    statement: str
    about: tuple[str, ...]
    scope: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "about", tuple(map(str, self.about)))

    @property
    def key(self) -> str:
        """A short name made from the contents; the same claim has the same key everywhere."""
        return _digest([self.statement, self.about, self.scope])[:16]


@dataclass(frozen=True)
class Prediction:
    """What a claim foretells of one quantity on one data set, and what would refute it.

    claim: the key of its claim. quantity: what will be measured, in its unit. data_hash: on which data.
    low, high: the value lies within (inclusive; `None` = no bound). against: the value lies `above` or `below` that of
    the `control`, a sentence saying what the control is.

    Raises `InputError` for a prediction that no outcome could refute.
    """

    claim: str
    quantity: str
    data_hash: str
    low: float | None = None
    high: float | None = None
    against: Control = ""
    control: str = ""

    def __post_init__(self) -> None:
        if self.against not in get_args(Control):
            raise InputError(f"against={self.against!r}; it is 'above', 'below' or '' (no control)")
        if bool(self.against) != bool(self.control):
            raise InputError(
                f"against={self.against!r} with the control {self.control!r}; give both or neither"
            )
        for name in ("low", "high"):
            bound = getattr(self, name)
            object.__setattr__(self, name, None if bound is None else float(bound))
        if not all(math.isfinite(bound) for bound in (self.low, self.high) if bound is not None):
            raise InputError(f"bounds [{self.low}, {self.high}] must be finite; leave a bound out with None")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise InputError(f"no value lies within [{self.low}, {self.high}]; swap the bounds")
        if self.low is None and self.high is None and not self.against:
            raise InputError(
                f"nothing could refute this prediction of {self.quantity!r}; give a bound or a control"
            )

    @property
    def key(self) -> str:
        """Which number this is about: the claim, the quantity and the data. One prediction for each."""
        return _digest([self.claim, self.quantity, self.data_hash])[:16]

    def hit(self, value: float, control_value: float | None) -> bool:
        """Whether the outcome is as foretold. Raises `InputError` where the control was not measured."""
        if self.against and control_value is None:
            raise InputError(
                f"the prediction of {self.quantity!r} is against {self.control!r}; measure that too"
            )
        within = (self.low is None or value >= self.low) and (self.high is None or value <= self.high)
        if not self.against or control_value is None:
            return within
        return within and (value > control_value if self.against == "above" else value < control_value)

    def sentence(self) -> str:
        """In words: `faithfulness ≥ 0.8 and above that of random circuits`."""
        bounds = []
        if self.low is not None and self.high is not None:
            bounds.append(f"within [{self.low:g}, {self.high:g}]")
        elif self.low is not None:
            bounds.append(f"≥ {self.low:g}")
        elif self.high is not None:
            bounds.append(f"≤ {self.high:g}")
        if self.against:
            bounds.append(f"{self.against} that of {self.control}")
        return f"{self.quantity} {' and '.join(bounds)}"


@dataclass(frozen=True)
class Evidence:
    """What a test gave.

    value: the quantity, on `n` examples of the data with `data_hash`. interval: its confidence interval.
    control_value: the same quantity of the control. level: whether the parts were watched, intervened on, or replaced
    by their description. outcome: anything a reader should know in words.

    Raises `NotFiniteError` for a value that is no number, `InputError` for an unknown level or `n` below 1.
    """

    value: float
    n: int
    level: Level
    data_hash: str
    interval: tuple[float, float] | None = None
    control_value: float | None = None
    outcome: str = ""

    def __post_init__(self) -> None:
        control = [] if self.control_value is None else [self.control_value]
        numbers = [self.value, *(self.interval or ()), *control]
        if not all(map(math.isfinite, numbers)):
            raise NotFiniteError(
                f"evidence must be finite, got {numbers}; a test that gave no number is no evidence"
            )
        if self.level not in get_args(Level):
            raise InputError(f"level {self.level!r}; it is one of {', '.join(get_args(Level))}")
        if self.n < 1:
            raise InputError(f"evidence from {self.n} examples; at least one is needed")
        # Numbers often come from numpy, whose scalars JSON does not know.
        object.__setattr__(self, "value", float(self.value))
        object.__setattr__(self, "n", int(self.n))
        if self.control_value is not None:
            object.__setattr__(self, "control_value", float(self.control_value))
        if self.interval is not None:
            object.__setattr__(self, "interval", (float(self.interval[0]), float(self.interval[1])))


@dataclass(frozen=True)
class Tested:
    """A prediction with its outcome."""

    prediction: Prediction
    evidence: Evidence
    hit: bool


@dataclass(frozen=True)
class Found:
    """Something noticed without having been predicted: a reason for a prediction, not a test of one."""

    claim: str
    quantity: str
    evidence: Evidence


class Ledger:
    """The book of claims in `folder/ledger.jsonl`; made when first written, verified when opened.

    claims: by key. registered: predictions by key. registered_at: when, in UTC. tested: outcomes by the prediction's
    key. found: what was found without being predicted.

    Raises `StoreError` naming the first line that was altered. Several readers and one writer may have it open.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "ledger.jsonl"
        self.claims: dict[str, Claim] = {}
        self.registered: dict[str, Prediction] = {}
        self.registered_at: dict[str, str] = {}
        self.tested: dict[str, Tested] = {}
        self.found: list[Found] = []
        self._head, self._size = _START, 0
        self._read()

    @property
    def head(self) -> str:
        """The hash of the last line: it stands for everything written so far."""
        return self._head

    @property
    def untested(self) -> tuple[Prediction, ...]:
        """Predictions whose test has not been recorded."""
        return tuple(p for key, p in self.registered.items() if key not in self.tested)

    @property
    def hits(self) -> tuple[Tested, ...]:
        return tuple(tested for tested in self.tested.values() if tested.hit)

    @property
    def misses(self) -> tuple[Tested, ...]:
        return tuple(tested for tested in self.tested.values() if not tested.hit)

    def add(self, claim: Claim) -> str:
        """Write a claim down and return its key. Adding it again changes nothing."""
        if claim.key not in self.claims:
            self._append("claim", claim)
        return claim.key

    def register(self, prediction: Prediction) -> str:
        """Register a prediction, before its test, and return its key. Registering it again changes nothing.

        Raises `InputError` for an unknown claim, for another prediction of the same quantity on the same data, and
        where that number has already been found.
        """
        key = prediction.key
        if prediction.claim not in self.claims:
            raise InputError(f"no claim has the key {prediction.claim!r}; add the claim first")
        earlier = self.registered.get(key)
        if earlier is not None and earlier != prediction:
            raise InputError(
                f"already registered: {earlier.sentence()}. A prediction is not altered afterwards; "
                f"predict {prediction.quantity!r} on other data"
            )
        found = ((f.claim, f.quantity, f.evidence.data_hash) for f in self.found)
        if (prediction.claim, prediction.quantity, prediction.data_hash) in found:
            raise InputError(
                f"{prediction.quantity!r} on this data is known already; predict it on other data"
            )
        if earlier is None:
            self._append("prediction", prediction)
        return key

    def record(self, prediction: str | Prediction, evidence: Evidence) -> Tested:
        """Write down the outcome of a registered prediction's test and say whether it hit.

        Raises `InputError` for a prediction never registered, for other data than it spoke of, and for a second
        outcome (the same one again changes nothing).
        """
        key = prediction if isinstance(prediction, str) else prediction.key
        registered = self.registered.get(key)
        if registered is None or (isinstance(prediction, Prediction) and prediction != registered):
            raise InputError(
                "this prediction was never registered; register it before its test, or use `find`"
            )
        if evidence.data_hash != registered.data_hash:
            raise InputError(
                f"predicted on the data {registered.data_hash[:12]!r}, tested on {evidence.data_hash[:12]!r}; "
                "test on the data the prediction spoke of"
            )
        tested = Tested(registered, evidence, registered.hit(evidence.value, evidence.control_value))
        if key not in self.tested:
            self._append("evidence", evidence, prediction=key, hit=tested.hit)
        elif self.tested[key] != tested:
            raise InputError(
                f"{registered.quantity!r} was tested already and gave {self.tested[key].evidence.value:g}; "
                "register a new prediction on fresh data to test again"
            )
        return tested

    def find(self, claim: str, quantity: str, evidence: Evidence) -> None:
        """Keep a number nobody predicted, apart from those that were. Raises `InputError` for an unknown claim."""
        if claim not in self.claims:
            raise InputError(f"no claim has the key {claim!r}; add the claim first")
        if Found(claim, quantity, evidence) not in self.found:
            self._append("found", evidence, claim=claim, quantity=quantity)

    def _append(self, kind: str, body: Claim | Prediction | Evidence, **about: Any) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = {"kind": kind, "time": time, **about, "body": asdict(body), "previous": self._head}
        line = json.dumps(entry | {"hash": _digest(entry)}).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            file.seek(min(self._size, file.seek(0, os.SEEK_END)))
            if file.tell() < self._size or b"\n" in file.read():
                raise StoreError(
                    f"{self.path} was changed by another program meanwhile; open the ledger again"
                )
            file.truncate(self._size)  # drops a line that a kill left incomplete
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._take(json.loads(line))
        self._size += len(line)

    def _read(self) -> None:
        content = self.path.read_bytes() if self.path.exists() else b""
        for number, line in enumerate(content.splitlines(keepends=True), start=1):
            if not line.endswith(b"\n"):
                break
            try:
                self._take(json.loads(line))
            except (LookupError, TypeError, ValueError) as error:
                raise StoreError(
                    f"{self.path}, line {number} is not as it was written ({error}); restore the file from a copy"
                ) from error
            self._size += len(line)

    def _take(self, entry: Mapping[str, Any]) -> None:
        """Enter one line into the indices, or raise."""
        unsigned = {name: value for name, value in entry.items() if name != "hash"}
        if entry["previous"] != self._head or entry["hash"] != _digest(unsigned):
            raise ValueError("its hash does not follow from the lines before it")
        body = entry["body"]
        if entry["kind"] == "claim":
            claim = Claim(body["statement"], tuple(body["about"]), body["scope"])
            self.claims[claim.key] = claim
        elif entry["kind"] == "prediction":
            prediction = Prediction(**body)
            self.registered[prediction.key] = prediction
            self.registered_at[prediction.key] = entry["time"]
        else:
            interval = body["interval"]
            evidence = Evidence(**body | {"interval": None if interval is None else tuple(interval)})
            if entry["kind"] == "evidence":
                tested = Tested(self.registered[entry["prediction"]], evidence, entry["hit"])
                self.tested[entry["prediction"]] = tested
            else:
                self.found.append(Found(entry["claim"], entry["quantity"], evidence))
        self._head = entry["hash"]


_START: Final = "0" * 64


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
