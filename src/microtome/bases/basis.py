"""How can a value be written as parts? A `Basis`: units that read values at some sites and write values at some sites.

    codes = basis.encode(values)        [row, d_read] → [row, unit]
    back = basis.decode(codes)          [row, unit] → [row, d_write]
    basis.direction(i)                  what one more of unit i adds to what is written

Neurons, heads, principal components, clusters, probes, dictionaries: whoever uses a basis need not know which it is.
It reads and writes the same site if it takes a value apart (an autoencoder), different ones if it stands for what lies
between (a transcoder), several if it explains them together (a crosscoder).

Values are rows of numbers: of `[batch, position, head, d_head]`, batch and position are rows, and heads lie side by
side. So do several sites, in the order of `reads` or `writes`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.bases.codes import SparseCodes
from microtome.core.errors import InputError
from microtome.core.site import Site


class Basis(ABC):
    """Any way to write values as parts.

    name: one word, from which units take their names. reads, writes: whole sites, with the numbers each holds a row.
    n_units: how many parts. n_parameters: how many numbers describe the basis itself.
    skip `[d_write, d_read]`: what is written linearly of what is read, past the units; None for most.
    notes: what a reader should know of how it was made.
    """

    name: str
    reads: tuple[Site, ...]
    writes: tuple[Site, ...]
    read_widths: tuple[int, ...]
    write_widths: tuple[int, ...]
    n_units: int
    n_parameters: int
    skip: Tensor | None = None
    notes: tuple[str, ...] = ()

    @abstractmethod
    def encode(self, values: Float[Tensor, "*rows d_read"]) -> Float[Tensor, "*rows unit"]:
        """How much of each unit there is. Differentiable where the basis is."""

    @abstractmethod
    def decode(self, codes: Float[Tensor, "*rows unit"]) -> Float[Tensor, "*rows d_write"]:
        """The values that these parts make."""

    @abstractmethod
    def direction(self, unit: int) -> Float[Tensor, " d_write"]:
        """What one more of a unit adds to what is written; for a basis that is not linear, where it is on alone."""

    def drives(
        self, units: Int[Tensor, " some"]
    ) -> tuple[Float[Tensor, "some d_read"], Float[Tensor, " some"]]:
        """Readers and offsets: `values · reader + offset` is what the activation of a unit is applied to.

        Raises `InputError` for a basis whose units are not driven by one direction each.
        """
        raise InputError(f"the units of {self.name} are not each driven by one direction of what it reads")

    def rebuilt(
        self, values: Float[Tensor, "*rows d_read"], codes: Float[Tensor, "*rows unit"]
    ) -> Float[Tensor, "*rows d_write"]:
        """What is written for these values when the codes are these: `decode`, and whatever passes the units by."""
        return self.decode(codes)

    def needed(self, written: Site) -> tuple[Site, ...]:
        """Which of the sites read make a difference to what is written at this one; by default all of them."""
        return self.reads

    def encode_sparsely(self, values: Float[Tensor, "row d_read"]) -> SparseCodes:
        """The same codes, zeros left out; a basis that never writes the zeros does it faster."""
        return SparseCodes.of(self.encode(values))

    def rebuilt_sparsely(
        self, values: Float[Tensor, "row d_read"], codes: SparseCodes
    ) -> Float[Tensor, "row d_write"]:
        """What `rebuilt` gives for the same codes written out."""
        return self.rebuilt(values, codes.dense())

    def reconstruct(self, values: Float[Tensor, "*rows d_read"]) -> Float[Tensor, "*rows d_write"]:
        """What is written for what is read."""
        return self.rebuilt(values, self.encode(values))

    def directions(self) -> Float[Tensor, "unit d_write"]:
        """All of them."""
        return torch.stack([self.direction(unit) for unit in range(self.n_units)])

    def unit(self, index: int) -> str:
        """The name of a unit, as in circuits and tables: `NAME.u7`."""
        if not 0 <= index < self.n_units:
            raise InputError(f"{self.name} has units 0 … {self.n_units - 1}; got {index}")
        return f"{self.name}.u{index}"

    def rows_of(self, values: Mapping[Site, Tensor]) -> Float[Tensor, "*rows d_read"]:
        """What it reads, of values by site (a `Run`'s), as `encode` takes it: in the precision of its directions, and
        at least single."""
        parts = [
            as_rows(values[site], width, site)
            for site, width in zip(self.reads, self.read_widths, strict=True)
        ]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return joined.to(torch.promote_types(self.direction(0).dtype, torch.float32))

    @property
    def in_place(self) -> bool:
        """Whether it writes what it reads."""
        return self.reads == self.writes


def as_rows(value: Float[Tensor, "..."], width: int, site: Site) -> Float[Tensor, "*rows {width}"]:
    """A value as rows of so many numbers: heads, or whatever axes come last, side by side.

    Raises `InputError` where the last axes do not hold as many.
    """
    for axes in range(1, value.dim() + 1):
        if math.prod(value.shape[-axes:]) == width:
            return value.flatten(-axes)
    raise InputError(
        f"{site} holds values of shape {list(value.shape)}, whose last axes are not {width} numbers a row; "
        "this basis was made for another site or model"
    )


def parted(rows: Float[Tensor, "*rows d"], widths: Sequence[int]) -> tuple[Float[Tensor, "*rows _"], ...]:
    """The way back: what belongs to each site."""
    if rows.shape[-1] != sum(widths):
        raise InputError(
            f"expected {sum(widths)} numbers a row ({' + '.join(map(str, widths))}); got {rows.shape[-1]}"
        )
    return rows.split(list(widths), -1)
