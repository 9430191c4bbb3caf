"""What does a dictionary read and write, of all that a stream brings? Sites, and which units go with which of them.

Layout.autoencoder(site)                   reads and writes one site
Layout(reads=(a,), writes=(b,))            a transcoder
Layout(reads=sites, writes=sites)          a crosscoder
Layout(reads, writes, reads_of=((True, False), (False, True)), writes_of=((True, True), (False, True)))
                                           two kinds of units, half each: cross-layer
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from microtome.core.errors import InputError
from microtome.core.site import Site, as_site


@dataclass(frozen=True)
class Layout:
    """reads, writes: sites. skip: whether what is read is also written linearly, past the units.

    reads_of, writes_of: for each kind of units, whether it reads, writes each site; all kinds have as many units, and
    stand in order. Empty: all units read and write all.
    """

    reads: tuple[Site, ...]
    writes: tuple[Site, ...]
    skip: bool = False
    reads_of: tuple[tuple[bool, ...], ...] = ()
    writes_of: tuple[tuple[bool, ...], ...] = ()

    def __post_init__(self) -> None:
        for kinds, sites, what in (
            (self.reads_of, self.reads, "reads"),
            (self.writes_of, self.writes, "writes"),
        ):
            if any(len(kind) != len(sites) or not any(kind) for kind in kinds):
                raise InputError(
                    f"each kind of units says of {len(sites)} sites which it {what}, one at least"
                )
        if self.reads_of and self.writes_of and len(self.reads_of) != len(self.writes_of):
            raise InputError(
                f"{len(self.reads_of)} kinds of units read and {len(self.writes_of)} write; say as many of both"
            )

    @classmethod
    def autoencoder(cls, *sites: Site | str) -> "Layout":
        """Reads and writes these."""
        found = tuple(map(as_site, sites))
        return cls(found, found)

    def told(self) -> dict[str, Any]:
        """In plain JSON."""
        sites = {
            "reads": list(map(str, self.reads)),
            "writes": list(map(str, self.writes)),
            "skip": self.skip,
        }
        return sites | {"reads_of": self.reads_of, "writes_of": self.writes_of}

    @property
    def in_place(self) -> bool:
        """Whether what is read is written."""
        return self.reads == self.writes

    def mask(self, kinds: tuple[tuple[bool, ...], ...], units: int) -> Bool[Tensor, "unit site"] | None:
        """Which units go with which sites. Raises `InputError` where units cannot be dealt out evenly."""
        if not kinds:
            return None
        if units % len(kinds):
            raise InputError(
                f"{units} units cannot be dealt out to {len(kinds)} kinds evenly; change the width"
            )
        return torch.tensor(kinds).repeat_interleave(units // len(kinds), 0)


def columns(
    rows: Float[Tensor, "row d"], sites: Sequence[Site], widths: Sequence[int], wanted: Sequence[Site]
) -> Float[Tensor, "row wanted"]:
    """Of rows in which these sites lie side by side, those that are wanted; a view where nothing has to move.

    Raises `InputError` for a site that is not there.
    """
    if tuple(wanted) == tuple(sites):
        return rows
    parts = dict(zip(sites, rows.split(list(widths), -1), strict=True))
    for site in wanted:
        if site not in parts:
            raise InputError(
                f"the stream brings {', '.join(map(str, sites))}, not {site}; harvest it, or lay out otherwise"
            )
    return parts[wanted[0]] if len(wanted) == 1 else torch.cat([parts[site] for site in wanted], -1)
