"""Results save and load back equal, whatever they hold; nothing half-written, nothing foreign is ever read."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import weight_norms
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from microtome.core import plugins
from microtome.core.cost import Cost
from microtome.core.errors import InputError, StoreError
from microtome.core.provenance import Provenance
from microtome.core.result import Result
from microtome.core.shapes import Shape

ORIGIN = Provenance("toy", "ab" * 32, "cd" * 32)


def make(data: xr.Dataset | None = None, **changes: Any) -> weight_norms.Result:
    if data is None:
        values = np.array([[1.5, np.nan], [-0.0, 3.0]], np.float32)
        data = xr.Dataset(
            {"effect": (("layer", "head"), values), "kept": ("head", [True, False])},
            {"layer": np.arange(2, dtype=np.int16), "head": ["h0", "a long name"], "threshold": 0.5},
            {"unit": "logits"},
        )
    fields: dict[str, Any] = {
        "method": "weight_norms",
        "data": data,
        "config": {"power": 1.0, "names": ("a", "b")},
        "seed": 3,
        "provenance": ORIGIN,
        "cost": Cost(12, 3_000, 1.25, 1 << 20, ("fell back to plain passes",)),
        "notes": ("a caveat",),
        "scope": weight_norms.card.scope,
    }
    return weight_norms.Result(**fields | changes)


@pytest.fixture(autouse=True)
def _installed(offer: Callable[..., None]) -> None:
    offer("methods", weight_norms="weight_norms")


DTYPES = st.sampled_from([np.dtype(d) for d in "? i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 >f4 >i2".split()])


@st.composite
def datasets(draw: st.DrawFn) -> xr.Dataset:
    sizes = draw(
        st.dictionaries(st.sampled_from(["layer", "head", "position"]), st.integers(0, 3), max_size=3)
    )
    names = st.sampled_from(["effect", "norm", "täglich", "a/b", "…", "layer of"])
    data = xr.Dataset()
    for name in draw(st.lists(names, unique=True, max_size=3)):
        dims = draw(st.permutations(list(sizes)))[: draw(st.integers(0, len(sizes)))]
        shape = tuple(sizes[d] for d in dims)
        if draw(st.booleans()):
            values = draw(hnp.arrays(draw(DTYPES), shape))
        else:
            count = int(np.prod(shape, dtype=int))
            texts = draw(st.lists(st.text(), min_size=count, max_size=count))
            values = np.array(texts, dtype=str).reshape(shape)
        data[name] = (dims, values)
        if draw(st.booleans()):
            data = data.set_coords(name)
    for name, size in sizes.items():
        if draw(st.booleans()) and name in data.sizes:
            labels = draw(st.lists(st.text(), min_size=size, max_size=size, unique=True))
            data = data.assign_coords({name: np.array(labels, dtype=str)})
    data.attrs["unit"] = draw(st.text())
    return data


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    data=datasets(),
    config=st.dictionaries(st.text(), PLAIN, max_size=3),
    notes=st.lists(st.text(), max_size=2),
)
def test_loads_back_equal(data: xr.Dataset, config: dict[str, Any], notes: list[str]) -> None:
    kept = make(data, config=config, notes=tuple(notes))
    with TemporaryDirectory() as folder:
        read = Result.load(kept.save(folder))
    assert read == kept
    assert type(read) is weight_norms.Result
    for name, array in data.variables.items():
        loaded = read.data[name]
        assert loaded.dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(loaded.values, array.values)
        assert (name in read.data.coords) == (name in data.coords)


CHANGES: list[dict[str, Any]] = [
    {"data": make().data.assign(effect=make().data["effect"] + 1)},
    {"data": make().data.assign(effect=make().data["effect"].astype("f8"))},
    {"data": make().data.assign(effect=make().data["effect"].fillna(0))},
    {"data": make().data.assign(effect=make().data["effect"].transpose())},
    {"data": make().data.reset_coords("threshold")},
    {"data": make().data.assign_attrs(unit="nats")},
    {"data": make().data.drop_vars("kept")},
    {"config": {"power": 2.0, "names": ["a", "b"]}},
    {"seed": 4},
    {"notes": ()},
    {"scope": ""},
    {"method": "other"},
    {"provenance": replace(ORIGIN, model_hash="00")},
    {"cost": Cost(13, 3_000, notes=("fell back to plain passes",))},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_any_difference_is_seen(change: dict[str, Any]) -> None:
    assert make() == make()
    assert make(**change) != make()


def test_clock_and_date_are_not_compared_and_are_kept(tmp_path: Path) -> None:
    slow = make(
        cost=replace(make().cost, seconds=99.0, peak_bytes=7), provenance=replace(ORIGIN, date="2020-01-01")
    )
    assert slow == make()
    read = Result.load(slow.save(tmp_path))
    assert (read.cost.seconds, read.cost.peak_bytes, read.provenance.date) == (99.0, 7, "2020-01-01")


def test_a_config_is_accepted_and_becomes_plain() -> None:
    assert make(config=weight_norms.Config(power=2)).config == {"power": 2.0, "seed": 0}


def test_what_a_method_found_carries_its_cards_caveat_and_scope() -> None:
    card, settings = weight_norms.card, weight_norms.Config(seed=7)
    made = weight_norms.Result.of(card, make().data, settings, ORIGIN, Cost(1), ["of this one"])
    assert (made.method, made.seed, made.scope) == (card.name, 7, card.scope)
    assert made.notes == ("of this one", card.misleads)
    assert made.config == settings.model_dump()


def test_arrays_are_read_only_and_the_callers_are_not() -> None:
    values = np.zeros(3)
    found = make(xr.Dataset({"effect": ("layer", values)}))
    with pytest.raises(ValueError, match="read-only"):
        found.data["effect"].values[0] = 1
    values[0] = 1


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(2, complex),
        np.zeros(2, "datetime64[s]"),
        np.array([object()]),
        np.zeros(2, "S3"),
        np.zeros(2, "V4"),
    ],
    ids=lambda values: str(values.dtype),
)
def test_what_cannot_be_saved_cannot_be_a_result(values: np.ndarray) -> None:
    with pytest.raises(InputError, match="bool, integer, float"):
        make(xr.Dataset({"effect": ("layer", values)}))


def test_settings_that_cannot_be_saved_cannot_be_in_a_result() -> None:
    with pytest.raises(InputError, match="the settings must be plain"):
        make(config={"model": object()})


def test_a_result_tells_its_shapes() -> None:
    with pytest.raises(TypeError, match="shapes"):
        Result("m", xr.Dataset(), {}, 0, ORIGIN)  # type: ignore[abstract]


def test_describe_leaves_nothing_out() -> None:
    told = make().describe()
    for part in (
        "weight_norms",
        "global",
        "2 layer",
        "seed 3",
        "12 passes",
        "fell back",
        "a caveat",
        "abababababab",
    ):
        assert part in told


def test_the_same_method_replaces_its_result(tmp_path: Path) -> None:
    make().save(tmp_path)
    (tmp_path / "note.txt").write_text("mine")
    make(seed=5, data=xr.Dataset({"x": ((), 1.0)})).save(tmp_path)
    assert Result.load(tmp_path).seed == 5
    assert len(list(tmp_path.glob("arrays-*"))) == 1
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_another_methods_result_is_not_overwritten(tmp_path: Path) -> None:
    make().save(tmp_path)
    with pytest.raises(StoreError, match="holds a result of weight_norms"):
        make(method="other").save(tmp_path)
    assert Result.load(tmp_path) == make()


@pytest.mark.parametrize("step", range(2))
def test_killed_while_saving_the_old_result_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    make().save(tmp_path)
    calls = iter(range(9))
    real = os.replace

    def dies(*paths: Any) -> None:
        if next(calls) == step:
            raise KeyboardInterrupt
        real(*paths)

    monkeypatch.setattr(os, "replace", dies)
    newer = make(seed=9, data=xr.Dataset({"effect": ("layer", np.ones(4))}))
    with pytest.raises(KeyboardInterrupt):
        newer.save(tmp_path)
    monkeypatch.undo()
    assert json.loads((tmp_path / "result.json").read_text())["seed"] == 3


def test_leftovers_of_a_killed_save_are_swept_up(tmp_path: Path) -> None:
    (tmp_path / "result.json.abc.partial").write_text("{")
    (tmp_path / f"arrays-{'0' * 16}.safetensors").write_text("")
    make().save(tmp_path)
    assert len(list(tmp_path.glob("*.partial"))) == 0
    assert len(list(tmp_path.glob("arrays-*"))) == 1


@given(where=st.floats(0, 1, exclude_max=True), which=st.sampled_from(["result.json", "arrays"]))
def test_a_truncated_file_is_refused(where: float, which: str) -> None:
    with TemporaryDirectory() as name:
        folder = make().save(name)
        path = next(folder.glob(f"{which}*"))
        content = path.read_bytes()
        path.write_bytes(content[: int(where * len(content))])
        with pytest.raises(StoreError, match="run the method again"):
            Result.load(folder)


@given(data=st.data())
def test_a_changed_byte_of_the_arrays_is_refused(data: st.DataObject) -> None:
    with TemporaryDirectory() as name:
        folder = make().save(name)
        path = next(folder.glob("arrays*"))
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        with pytest.raises(StoreError, match="SHA-256"):
            Result.load(folder)


def edited(folder: Path, **changes: Any) -> Path:
    record = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(record | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": "something else"}, "not written by microtome"),
        ({"version": 2}, "update microtome"),
        ({"method": "never_heard_of"}, "never_heard_of"),
        ({"method": "os"}, "'os'"),
        ({"method": ["weight_norms"]}, "not written by microtome"),
        ({"arrays": "../secret.safetensors"}, "names no arrays file"),
        ({"arrays": None}, "names no arrays file"),
        ({"arrays": f"arrays-{'0' * 16}.safetensors"}, "cannot be read"),
        ({"cost": {"passes": 1}}, "damaged"),
        ({"provenance": {"nobody": 1}}, "damaged"),
        ({"data": {"variables": {}, "coords": ["gone"], "attrs": {}}}, "damaged"),
        ({"data": None}, "damaged"),
    ],
    ids=str,
)
def test_a_foreign_or_altered_record_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    folder = edited(make().save(tmp_path / "kept"), **changes)
    with pytest.raises(StoreError, match=told):
        Result.load(folder)


def test_a_folder_without_a_result_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere", Path(__file__)):
        with pytest.raises(StoreError, match="holds no result"):
            Result.load(place)
    with pytest.raises(StoreError, match="is a file"):
        make().save(Path(__file__))


def test_asking_for_another_methods_class_is_refused(tmp_path: Path) -> None:
    class Other(Result):
        def shapes(self) -> tuple[Shape, ...]:
            return ()

    with pytest.raises(StoreError, match="not a Other"):
        Other.load(make().save(tmp_path))
    assert weight_norms.Result.load(tmp_path) == make()


def test_the_class_comes_from_the_registry_alone() -> None:
    assert plugins.method("weight-norms").Result is weight_norms.Result
