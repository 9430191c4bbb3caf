"""What would the model do if its values were written in this basis? The basis, put into the running model.

1. Where the basis writes, its codes are computed from what it reads in the same pass, earlier edits included.
2. The codes are changed as asked: not at all, unit by unit (`microtome.bases.unit_edits`), or by any function.
3. What is written there is the model's own value plus the difference that the change makes: so what the basis cannot
   say (its error) is kept, and a splice that changes nothing changes no bit.

    model.run(tokens, edit=splice(basis))                             # the same logits
    model.run(tokens, edit=splice(basis, error="drop"))               # what the basis alone supports
    model.run(tokens, edit=splice(basis, change=[zero(3)]))           # without unit 3

The answer is edits like any others: for runs, sweeps and generation. Misleads where the error is large: a unit may
seem to do nothing because the error does its work (Marks et al. 2024, Sparse Feature Circuits).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from microtome.bases.basis import Basis, as_rows, parted
from microtome.bases.unit_edits import UnitEdit, fits
from microtome.core.edits import Edit
from microtome.core.errors import EditError, InputError
from microtome.core.site import Site

Error = Literal["keep", "freeze", "drop"]
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Splice(Edit):
    """The part of a splice at one of the sites that the basis writes. Made by `splice`; applied like any edit.

    error: `keep`, `freeze`, `drop`, or values `[row, position, …]` put in its place. changes: in their order.
    """

    basis: Basis = field(kw_only=True)
    error: Error | Tensor = "keep"
    changes: tuple[Change, ...] = ()
    kind: ClassVar[str] = "splice"
    unsaved: ClassVar[str] = "it holds a basis; save the basis, and splice it again"

    @property
    def sources(self) -> tuple[Site, ...]:
        return tuple(site for site in self.basis.needed(self.site.whole) if site != self.site.whole)

    @property
    def trains(self) -> bool:
        held = self.basis.parameters() if isinstance(self.basis, nn.Module) else vars(self.basis).values()
        values = (change.value for change in self.changes if isinstance(change, UnitEdit))
        return any(isinstance(one, Tensor) and one.requires_grad for one in (*held, *values, self.error))

    def apply(self, value: Tensor) -> Tensor:
        if self.sources:
            raise EditError(
                f"{self!r} needs the values at {', '.join(map(str, self.sources))} of the same pass"
            )
        return self.apply_beside(value, ())

    def apply_beside(self, value: Tensor, sources: Sequence[Tensor]) -> Tensor:
        basis, place = self.basis, self.basis.writes.index(self.site.whole)
        own = as_rows(value, basis.write_widths[place], self.site)
        # What makes no difference here may come later in the pass, and is left out.
        there = {
            site: own.new_zeros(*own.shape[:-1], width)
            for site, width in zip(basis.reads, basis.read_widths, strict=True)
        }
        there |= dict(zip(self.sources, sources, strict=True)) | {self.site.whole: value}
        rows = basis.rows_of(there)
        codes = basis.encode(rows)
        changed = codes
        for change in self.changes:
            # A function may write into what it is given; the codes, which may be the model's own values, stay.
            changed = change(changed if isinstance(change, UnitEdit) else changed.clone())
            if changed.shape != codes.shape:
                raise EditError(
                    f"{self!r}: the change returned codes of shape {list(changed.shape)}, given {list(codes.shape)}; "
                    "a change must keep the shape"
                )
        new = self._written(rows, changed, place)
        if isinstance(self.error, Tensor):
            new = new + self._given(self.error, own)
        elif self.error != "drop":
            plain = new if changed is codes else self._written(rows, codes, place)
            # Differences first: one that is zero then changes no bit of the value.
            new = own + (new - plain) if self.error == "keep" else new + (own - plain).detach()
        return new.reshape(value.shape).to(value.dtype)

    def _given(self, error: Tensor, own: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """The error to put in, one for each row and position."""
        rows = as_rows(error, own.shape[-1], self.site)
        if not fits(rows.shape, own.shape, axis_for_axis=True):
            raise EditError(
                f"{self!r}: the error has shape {list(error.shape)}, the values {list(own.shape)}; give one of the "
                "same rows and positions"
            )
        return rows.to(own)

    def _written(
        self, rows: Float[Tensor, "*rows d_read"], codes: Float[Tensor, "*rows unit"], place: int
    ) -> Float[Tensor, "*rows d"]:
        return parted(self.basis.rebuilt(rows, codes), self.basis.write_widths)[place]

    def moved(self, rows: Sequence[int], targets: Sequence[int]) -> Self:
        index = list(rows) if self.rows is None else [self.rows.index(row) for row in rows]
        error = self.error
        if isinstance(error, Tensor) and error.shape[0] > 1:
            error = error[index]
        changes = tuple(
            change.moved(index) if isinstance(change, UnitEdit) else change for change in self.changes
        )
        return replace(self, rows=tuple(targets), error=error, changes=changes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Splice):
            return NotImplemented
        plain = all(
            getattr(self, one.name) == getattr(other, one.name) for one in fields(self) if one.name != "error"
        )
        mine, yours = self.error, other.error
        if isinstance(mine, Tensor) and isinstance(yours, Tensor):
            return plain and mine.shape == yours.shape and torch.equal(mine, yours)
        return plain and isinstance(mine, str) and isinstance(yours, str) and mine == yours

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        error = self.error if isinstance(self.error, str) else "given"
        told = [repr(one) if isinstance(one, UnitEdit) else "a function" for one in self.changes]
        rows = [f"rows={list(self.rows)}"] if self.rows is not None else []
        said = ", ".join([str(self.site), self.basis.name, f"error={error}", *told, *rows])
        return f"Splice({said})"


def splice(
    basis: Basis,
    error: str | Tensor | Sequence[Tensor] = "keep",
    change: Change | Sequence[Change] = (),
    *,
    rows: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> list[Edit]:
    """Edits that write the model's values in a basis: one for each site that it writes.

    error: what to do with what the basis leaves out.
        `keep`: it stays, as a function of the values: gradients are those of the model itself.
        `freeze`: it stays, as a constant: gradients flow through codes alone.
        `drop`: it goes. A tensor `[row, position, …]`, or one for each site written: this instead, such as the error
        of another run.
    change: `UnitEdit`s, or any function of codes `[row, position, unit]`.
    rows, positions: where; by default all. In generation all are also those to come: what is patched there from the
        codes of a prompt needs the prompt's positions.

    Raises `InputError` for units that are not there and for a basis that cannot be computed in one pass, because it
    reads later than it writes.
    """
    changes: tuple[Change, ...] = (change,) if callable(change) else tuple(change)
    for one in changes:
        if isinstance(one, UnitEdit):
            one.check(basis.n_units)
    _check_order(basis)
    if isinstance(error, str) and error not in get_args(Error):
        raise InputError(f"error={error!r}; it is one of {', '.join(get_args(Error))}, or values")
    errors: Sequence[Any] = [error] * len(basis.writes) if isinstance(error, str | Tensor) else error
    if len(errors) != len(basis.writes):
        raise InputError(
            f"{basis.name} writes {len(basis.writes)} sites; got {len(errors)} errors, give one each"
        )
    return [
        Splice(
            site if positions is None else site.at(*positions),
            None if rows is None else tuple(rows),
            basis=basis,
            error=its_error,
            changes=changes,
        )
        for site, its_error in zip(basis.writes, errors, strict=True)
    ]


def _check_order(basis: Basis) -> None:
    """Paths stand in no order that is known beforehand: there the pass itself refuses."""
    for site in (*basis.reads, *basis.writes):
        if not site.is_whole or site.gradient or site.part in ("scores", "pattern"):
            raise InputError(
                f"{basis.name} stands at {site}; a basis is spliced at whole sites with rows of numbers"
            )
    for written in basis.writes:
        for read in basis.needed(written):
            if read.stack != written.stack:
                raise InputError(
                    f"{basis.name} reads {read} and writes {written}, whose positions are not the same"
                )
            if "path" not in (read.part, written.part) and read.depth > written.depth:
                raise InputError(
                    f"{basis.name} cannot be spliced in one pass: it writes {written} before it reads {read}. Read its "
                    "codes in a plain pass (read_codes), and put what they make in with Set or Add"
                )
