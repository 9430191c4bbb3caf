"""What to do to the value at a site. Edits are data: listed, saved, loaded, compared, undone by leaving them out.

Each edit names a site (with its heads, units and positions) and the rows of the batch it applies to; the model
takes the selected values in the layout of the part (`[row, position, …]`; scores and patterns `[row, head, query,
key]`), calls `apply`, and puts the answer back. Several edits at one site apply in the order given. A read at an
edited site sees the edited value.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from microtome.core.errors import EditError, StoreError
from microtome.core.site import Site, as_site


@dataclass(frozen=True, eq=False)
class Edit:
    """Base of all edits.

    site: a `Site` or its string; held as a `Site`. rows: rows of the batch it applies to, `None` = all.
    """

    site: Any
    rows: tuple[int, ...] | None = None
    kind: ClassVar[str] = ""
    unsaved: ClassVar[str] = "files of edits do not know its kind"

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", as_site(self.site))
        if self.site.gradient:
            raise EditError(f"{self.site} is a gradient: it can be read, not edited; edit {self.site.whole}")
        if self.rows is not None and (len(set(self.rows)) != len(self.rows) or min(self.rows, default=0) < 0):
            raise EditError(f"rows {list(self.rows)} at {self.site}: name each row once, counting from 0")

    @property
    def sources(self) -> tuple[Site, ...]:
        """Other whole sites whose values of the same pass it needs; the pass must have been there before."""
        return ()

    @property
    def trains(self) -> bool:
        """Whether it holds something whose gradient is asked for."""
        return any(isinstance(value, Tensor) and value.requires_grad for value in vars(self).values())

    def apply(self, value: Tensor) -> Tensor:
        """Selected values `[row, position, …]` in, values of the same shape out."""
        raise NotImplementedError

    def apply_beside(self, value: Tensor, sources: Sequence[Tensor]) -> Tensor:
        """The same, with the values at `sources`: of the same rows and positions, all heads and units."""
        return self.apply(value)

    def on_rows(self, rows: Sequence[int]) -> Self:
        """The same edit, on these rows."""
        return replace(self, rows=tuple(rows))

    def moved(self, rows: Sequence[int], targets: Sequence[int]) -> Self:
        """The part of this edit that concerns `rows`, as an edit of rows `targets` of another batch."""
        index = list(rows) if self.rows is None else [self.rows.index(row) for row in rows]
        changes: dict[str, Any] = {"rows": tuple(targets)}
        for name in self._per_row():
            tensor = getattr(self, name)
            if tensor.shape[0] > 1 and index != list(range(tensor.shape[0])):
                changes[name] = tensor[index]
        return replace(self, **changes, **self._drawn(index))

    def _drawn(self, index: Sequence[int]) -> dict[str, Any]:
        """Fields that keep what is drawn for a row the same in another batch."""
        return {}

    def _per_row(self) -> tuple[str, ...]:
        """Fields whose first axis is the row."""
        return ()

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        rest = ", ".join(f"{f.name}={_brief(getattr(self, f.name))}" for f in fields(self)[2:])
        rows = f", rows={list(self.rows)}" if self.rows is not None else ""
        return f"{type(self).__name__}({self.site}{', ' + rest if rest else ''}{rows})"


@dataclass(frozen=True, eq=False, repr=False)
class Set(Edit):
    """Replace by `value`, broadcast over the selection `[row, position, …]`.

    origin: what the value is, kept for reports: "set", "patch" (from another run), "mean", "resample".
    """

    value: Tensor = field(kw_only=True)
    origin: str = "set"
    kind: ClassVar[str] = "set"

    def apply(self, value: Tensor) -> Tensor:
        return _fit(self.value, value, self).expand_as(value)

    def _per_row(self) -> tuple[str, ...]:
        return ("value",) if self.value.dim() == _rank(self.site) else ()


@dataclass(frozen=True, eq=False, repr=False)
class Zero(Edit):
    """Replace by zero."""

    kind: ClassVar[str] = "zero"

    def apply(self, value: Tensor) -> Tensor:
        return torch.zeros_like(value)


@dataclass(frozen=True, eq=False, repr=False)
class Noise(Edit):
    """Add Gaussian noise of the given standard deviation.

    The seed and the row's number among those edited fix it (`draws`, if given, says other numbers).
    """

    scale: float = 1.0
    seed: int = 0
    draws: tuple[int, ...] | None = None
    kind: ClassVar[str] = "noise"

    def apply(self, value: Tensor) -> Tensor:
        drawn = []
        for number in self.draws or range(value.shape[0]):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            drawn.append(torch.randn(value.shape[1:], generator=generator))
        return value + self.scale * torch.stack(drawn).to(value)

    def _drawn(self, index: Sequence[int]) -> dict[str, Any]:
        return {"draws": tuple(index if self.draws is None else (self.draws[i] for i in index))}


@dataclass(frozen=True, eq=False, repr=False)
class Add(Edit):
    """Add `coefficient * vector`, broadcast over the selection."""

    vector: Tensor = field(kw_only=True)
    coefficient: float = 1.0
    kind: ClassVar[str] = "add"

    def apply(self, value: Tensor) -> Tensor:
        return value + self.coefficient * _fit(self.vector, value, self)

    def _per_row(self) -> tuple[str, ...]:
        return ("vector",) if self.vector.dim() == _rank(self.site) else ()


@dataclass(frozen=True, eq=False, repr=False)
class Scale(Edit):
    """Multiply by a factor."""

    factor: float = 1.0
    kind: ClassVar[str] = "scale"

    def apply(self, value: Tensor) -> Tensor:
        return value * self.factor


@dataclass(frozen=True, eq=False, repr=False)
class Project(Edit):
    """Remove (or, with `keep`, keep only) the span of `directions` `[direction, unit]`; any spanning set will do."""

    directions: Tensor = field(kw_only=True)
    keep: bool = False
    kind: ClassVar[str] = "project"

    def apply(self, value: Tensor) -> Tensor:
        inside = _inside(self.directions, value, self)
        return inside if self.keep else value - inside


@dataclass(frozen=True, eq=False, repr=False)
class Swap(Edit):
    """Inside the span of `directions` `[direction, unit]` take `value`, outside leave everything as it is."""

    directions: Tensor = field(kw_only=True)
    value: Tensor = field(kw_only=True)
    kind: ClassVar[str] = "swap"

    def apply(self, value: Tensor) -> Tensor:
        return value + _inside(self.directions, _fit(self.value, value, self) - value, self)

    def _per_row(self) -> tuple[str, ...]:
        return ("value",) if self.value.dim() == _rank(self.site) else ()


@dataclass(frozen=True, eq=False, repr=False)
class Function(Edit):
    """Any function of the selected values `[row, position, …]`. It works, and it cannot be saved."""

    function: Callable[[Tensor], Tensor] = field(kw_only=True)
    kind: ClassVar[str] = "function"
    unsaved: ClassVar[str] = "a function is code, not data; write it as another edit"

    def apply(self, value: Tensor) -> Tensor:
        return _fit(self.function(value), value, self).expand_as(value)


KINDS: dict[str, type[Edit]] = {cls.kind: cls for cls in (Set, Zero, Noise, Add, Scale, Project, Swap)}


def check(edits: object) -> None:
    """Raise `EditError` for what is no list of edits: one edit alone, lists in a list, changes of units."""
    if not isinstance(edits, Sequence) or not all(isinstance(one, Edit) for one in edits):
        raise EditError(
            f"{edits!r} is no list of edits. Lists are joined as [*splice(basis), *others]; what is to be done to "
            "units goes into splice(basis, change=…)"
        )


def save(edits: Sequence[Edit], path: str | Path) -> None:
    """Write edits to one safetensors file. Raises `EditError` for a bare function, which is code and not data."""
    tensors: dict[str, Tensor] = {}
    records = []
    for index, edit in enumerate(edits):
        if KINDS.get(edit.kind) is not type(edit):
            raise EditError(f"{edit!r} cannot be saved: {edit.unsaved}")
        record: dict[str, Any] = {"kind": edit.kind, "site": str(edit.site), "rows": edit.rows}
        for each in fields(edit)[2:]:
            item = getattr(edit, each.name)
            if isinstance(item, Tensor):
                tensors[f"{index}.{each.name}"] = item.detach().contiguous().clone()
            else:
                record[each.name] = item
        records.append(record)
    save_file(tensors or {"empty": torch.zeros(1)}, str(path), metadata={"edits": json.dumps(records)})


def load(path: str | Path) -> list[Edit]:
    """Read edits written by `save`. Raises `StoreError` for a corrupt or foreign file."""
    try:
        with safe_open(str(path), framework="pt") as file:
            records = json.loads((file.metadata() or {})["edits"])
            edits: list[Edit] = []
            for index, record in enumerate(records):
                cls = KINDS[record.pop("kind")]
                site = Site.parse(record.pop("site"))
                rows = record.pop("rows")
                prefix = f"{index}."
                held = {k[len(prefix) :]: file.get_tensor(k) for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118
                edits.append(cls(site, None if rows is None else tuple(rows), **record, **held))
            return edits
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path} is not a file of edits ({error}); write one with microtome.edits.save"
        ) from error


def _rank(site: Site) -> int:
    return len(site.axes) if site.part != "path" else -1


def _fit(given: Tensor, value: Tensor, edit: Edit) -> Tensor:
    try:
        # Shapes that are equal need no asking, which takes as long as a small edit.
        fits = given.shape == value.shape or torch.broadcast_shapes(given.shape, value.shape) == value.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise EditError(
            f"{type(edit).__name__} at {edit.site}: a value of shape {list(given.shape)} does not fit the selection "
            f"{list(value.shape)} ({', '.join(edit.site.axes)}); give that shape or one that broadcasts to it"
        )
    return given.to(device=value.device, dtype=value.dtype)


def _inside(directions: Tensor, value: Tensor, edit: Edit) -> Tensor:
    """The part of `value` inside the span of any set of directions, dependent ones included.

    By the pseudo-inverse, whose gradient exists for orthonormal directions too (that of an SVD's frame does not).
    """
    precise = torch.promote_types(value.dtype, torch.float32)
    rows = torch.atleast_2d(directions).to(device=value.device, dtype=precise)
    if rows.shape[-1] != value.shape[-1]:
        raise EditError(
            f"{type(edit).__name__} at {edit.site}: directions have {rows.shape[-1]} units, the values "
            f"{value.shape[-1]}; give directions of shape [direction, {value.shape[-1]}]"
        )
    coordinates = value.to(precise) @ torch.linalg.pinv(rows, rtol=1e-6)
    return (coordinates @ rows).to(value.dtype)


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.shape == two.shape and one.dtype == two.dtype and torch.equal(one.cpu(), two.cpu())
    return bool(one == two)


def _brief(item: Any) -> str:
    return f"{list(item.shape)}" if isinstance(item, Tensor) else getattr(item, "__name__", repr(item))
