"""What did a method find, and with what right? A `Result` is the frozen record every method returns.

It holds labelled arrays, the settings and seed that made them, where they come from and what they cost; it saves,
and loads back equal. On disk a result is a folder of two files, readable without us:

    result.json                    everything but the arrays: names, dimensions, dtypes, settings, provenance, cost
    arrays-<digest>.safetensors    the numbers; `result.json` names this file and carries its SHA-256

Writing the arrays first and then replacing `result.json` in one step means that a folder holds the old result or the
new one at every moment, whenever the program is killed. Strings stand in `result.json`, since safetensors has none.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import safetensors.numpy
import xarray as xr
from numpy.typing import NDArray
from safetensors import SafetensorError

from microtome.core import plugins
from microtome.core.answers import Answer
from microtome.core.card import Card
from microtome.core.config import Config
from microtome.core.cost import Cost
from microtome.core.errors import InputError, PluginError, StoreError
from microtome.core.provenance import Provenance
from microtome.core.shapes import Shape
from microtome.core.whole_file import replace_file

_FORMAT: Final = "microtome.result"
_VERSION: Final = 1
_ARRAYS: Final = re.compile(r"arrays-[0-9a-f]{16}\.safetensors")
_KINDS: Final = "biuf"  # bool, signed, unsigned, float: what safetensors and numpy both have


@dataclass(frozen=True, eq=False)
class Result(ABC):
    """What a method returns. A method subclasses it to tell `shapes`, and adds no field.

    method: the card's name. data: named arrays over named dimensions (`layer head position unit …`); bool, integer,
    float or string. config: the settings, a `Config` or a dict; held as a dict of plain values. scope: the card's
    `scope`. notes: caveats, printed wherever the result is.

    Equal are results with the same method, settings, arrays (dtypes included; NaN equals NaN), origin and counts;
    the date and what a clock or a memory meter said are not compared.

    Raises `InputError` for settings or arrays that could not be saved.
    """

    method: str
    data: xr.Dataset
    config: Any
    seed: int
    provenance: Provenance
    cost: Cost = field(default_factory=Cost)
    notes: tuple[str, ...] = ()
    scope: str = ""

    def __post_init__(self) -> None:
        config = self.config.model_dump(mode="json") if isinstance(self.config, Config) else self.config
        object.__setattr__(self, "config", _plain(config, "the settings"))
        object.__setattr__(self, "data", _normal(self.data))
        object.__setattr__(self, "notes", tuple(self.notes))

    @classmethod
    def of(
        cls,
        card: Card,
        data: xr.Dataset,
        config: Config,
        provenance: Provenance,
        cost: Cost,
        notes: Iterable[str] = (),
    ) -> Self:
        """What the method of this card found: its scope, its caveat and the seed among its settings come along.

        notes: what else is to be known of this one result.
        """
        seed = getattr(config, "seed", 0)
        return cls(card.name, data, config, seed, provenance, cost, (*notes, card.misleads), card.scope)

    @abstractmethod
    def shapes(self) -> tuple[Shape, ...]:
        """The result as drawable shapes, most telling first."""

    def answers(self) -> tuple[Answer, ...]:
        """What this result claims, in the forms that an answer key can check; nothing unless a method says so."""
        return ()

    def describe(self) -> str:
        """One paragraph: the method and what its answer covers, sizes, origin, cost and every caveat."""
        sizes = " × ".join(f"{size} {name}" for name, size in self.data.sizes.items()) or "single numbers"
        source = self.provenance
        model = (
            f"Model {source.model or 'unnamed'} ({source.model_hash[:12]})"
            if source.model_hash
            else "No model"
        )
        data = f"data {source.data_hash[:12]}" if source.data_hash else "no data"
        sentences = [
            f"{self.method}{f' ({self.scope})' if self.scope else ''} over {sizes}; seed {self.seed}",
            f"{model}, {data}",
            self.cost.sentence(),
            *self.cost.notes,
            *self.notes,
        ]
        return " ".join(f"{sentence.rstrip('.')}." for sentence in sentences)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Result):
            return NotImplemented
        same = all(
            getattr(self, f.name) == getattr(other, f.name)
            for f in fields(Result)
            if f.name not in ("data", "config")
        )
        # As text, because a NaN among the settings equals nothing, itself included.
        same = same and type(self) is type(other) and _text(self.config) == _text(other.config)
        return same and _same_arrays(self.data, other.data)

    __hash__ = None  # type: ignore[assignment]

    def save(self, folder: str | Path) -> Path:
        """Write into `folder` (made where absent) and return it.

        An earlier result of the same method there is replaced; until the last step it stands untouched. Raises
        `StoreError` where another method's result, or something unreadable, is in the way.
        """
        folder = Path(folder)
        check_vacant(folder, self.method)
        folder.mkdir(parents=True, exist_ok=True)

        numbers = {
            name: _contiguous(v.values) for name, v in self.data.variables.items() if v.dtype.kind != "U"
        }
        content = safetensors.numpy.save({str(name): array for name, array in numbers.items()})
        digest = hashlib.sha256(content).hexdigest()
        arrays = f"arrays-{digest[:16]}.safetensors"
        replace_file(folder / arrays, content)
        text = json.dumps(self._record() | {"arrays": arrays, "sha256": digest}, indent=1)
        replace_file(folder / "result.json", text.encode())
        for stale in folder.iterdir():
            if stale.name != arrays and (_ARRAYS.fullmatch(stale.name) or stale.name.endswith(".partial")):
                stale.unlink(missing_ok=True)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read back what `save` wrote, as the class of the method that made it.

        The method is looked up by name among those installed; nothing named in the file is imported. Raises
        `StoreError` where the folder is absent, foreign, corrupt, or made by a method that is not installed.
        """
        folder = Path(folder)
        record = _read_record(folder)
        try:
            kind = plugins.method(record["method"]).Result
        except PluginError as error:
            raise StoreError(
                f"{folder} was made by the method {record['method']!r}, which cannot be used here: {error}"
            ) from error
        if not issubclass(kind, cls):
            raise StoreError(f"{folder} holds a {kind.__module__}.{kind.__name__}, not a {cls.__name__}")
        arrays = _read_arrays(folder, record)
        try:
            return kind(
                method=record["method"],
                data=_dataset(record["data"], arrays),
                config=record["config"],
                seed=record["seed"],
                provenance=Provenance(**record["provenance"]),
                cost=Cost(**record["cost"] | {"notes": tuple(record["cost"]["notes"])}),
                notes=tuple(record["notes"]),
                scope=record["scope"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{folder}/result.json is damaged ({type(error).__name__}: {error}); {_AGAIN}"
            ) from error

    def _record(self) -> dict[str, Any]:
        def variable(v: xr.Variable) -> dict[str, Any]:
            told = {"dims": list(v.dims), "dtype": v.dtype.str, "attrs": dict(v.attrs)}
            return told | (
                {"shape": list(v.shape), "strings": v.values.ravel().tolist()} if v.dtype.kind == "U" else {}
            )

        return {
            "format": _FORMAT,
            "version": _VERSION,
            "method": self.method,
            "scope": self.scope,
            "seed": self.seed,
            "config": self.config,
            "notes": list(self.notes),
            "provenance": asdict(self.provenance),
            "cost": asdict(self.cost),
            "data": {
                "attrs": dict(self.data.attrs),
                "coords": [str(name) for name in self.data.coords],
                "variables": {str(name): variable(v) for name, v in self.data.variables.items()},
            },
        }


def check_vacant(folder: Path, method: str) -> None:
    """Raise `StoreError` where a result of this method could not be saved, so that nothing is computed in vain."""
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file; give a folder to save into")
    if (folder / "result.json").exists() and (there := _read_record(folder)["method"]) != method:
        raise StoreError(f"{folder} holds a result of {there}; save this {method} into another folder")


_AGAIN: Final = "run the method again into a new folder, or restore this one from a copy"


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _plain(value: Any, what: str) -> Any:
    """A copy made of JSON's own types, so that what is saved is what is held."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what} must be plain numbers, strings, lists and dicts to be saved: {error}"
        ) from error


def _normal(data: xr.Dataset) -> xr.Dataset:
    """The same arrays, in this machine's byte order, read-only, strings as numpy's; refuses what cannot be saved."""

    def variable(name: object, v: xr.Variable) -> xr.Variable:
        values = np.asarray(v.values)
        if values.dtype.kind in "OT" and all(isinstance(x, str) for x in values.ravel()):
            values = values.astype(str)
        if values.dtype.kind not in _KINDS + "U" or (values.dtype.kind == "f" and values.dtype.itemsize > 8):
            raise InputError(
                f"{name} is {values.dtype}; a result holds bool, integer, float (≤ 64 bits) and string"
            )
        values = values.astype(values.dtype.newbyteorder("="), copy=False).view()
        values.flags.writeable = False
        return xr.Variable(v.dims, values, _plain(dict(v.attrs), f"the attributes of {name}"))

    made = {name: variable(name, v) for name, v in data.variables.items()}
    if any(not isinstance(name, str) for name in (*made, *data.dims)):
        raise InputError("names of arrays and dimensions must be strings")
    coords = {name: made[name] for name in data.coords}
    arrays = {name: made[name] for name in data.data_vars}
    return xr.Dataset(arrays, coords, _plain(dict(data.attrs), "the attributes of the data"))


def _same_arrays(one: xr.Dataset, other: xr.Dataset) -> bool:
    def same(name: Any) -> bool:
        a, b = one.variables[name], other.variables[name]
        if (a.dims, a.dtype, _text(a.attrs)) != (b.dims, b.dtype, _text(b.attrs)):
            return False
        return np.array_equal(a.values, b.values, equal_nan=a.dtype.kind == "f")

    return (
        set(one.variables) == set(other.variables)
        and set(one.coords) == set(other.coords)
        and _text(one.attrs) == _text(other.attrs)
        and all(map(same, one.variables))
    )


def _contiguous(values: NDArray[Any]) -> NDArray[Any]:
    # Not `ascontiguousarray`, which gives a single number a dimension.
    return np.asarray(values, order="C")


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / "result.json"
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"{folder} holds no result (no result.json); give a folder that Result.save wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}); {_AGAIN}") from error
    if (
        not isinstance(record, dict)
        or record.get("format") != _FORMAT
        or not isinstance(record.get("method"), str)
    ):
        raise StoreError(f"{path} was not written by microtome; give a folder that Result.save wrote")
    if record.get("version") != _VERSION:
        raise StoreError(
            f"{path} has format version {record.get('version')}, this microtome reads {_VERSION}; update microtome"
        )
    return record


def _read_arrays(folder: Path, record: dict[str, Any]) -> dict[str, NDArray[Any]]:
    name = record.get("arrays")
    if not isinstance(name, str) or not _ARRAYS.fullmatch(name):
        raise StoreError(f"{folder}/result.json names no arrays file; {_AGAIN}")
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise StoreError(f"{folder / name} cannot be read ({error.strerror}); {_AGAIN}") from error
    if hashlib.sha256(content).hexdigest() != record.get("sha256"):
        raise StoreError(f"{folder / name} is not what was saved (its SHA-256 differs); {_AGAIN}")
    try:
        arrays: dict[str, NDArray[Any]] = safetensors.numpy.load(content)
    except SafetensorError as error:
        raise StoreError(f"{folder / name} is no safetensors file ({error}); {_AGAIN}") from error
    return arrays


def _dataset(told: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> xr.Dataset:
    def variable(name: str, v: dict[str, Any]) -> xr.Variable:
        dtype = np.dtype(v["dtype"])
        if dtype.kind == "U":
            values = np.array(v["strings"], dtype).reshape(v["shape"])
        elif arrays[name].dtype == dtype:
            values = arrays[name]
        else:
            raise ValueError(f"{name} is {arrays[name].dtype}, not {dtype}")
        return xr.Variable(tuple(v["dims"]), values, v["attrs"])

    made = {name: variable(name, v) for name, v in told["variables"].items()}
    coords = {name: made.pop(name) for name in told["coords"]}
    return xr.Dataset(made, coords, told["attrs"])
