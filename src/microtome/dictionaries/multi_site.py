"""Which sites does each kind of dictionary read and write? The field's kinds, as layouts for the trainer.

    transcoder(3)                  what the MLP of block 3 reads → what it adds
    attention_output(3)            the heads of block 3 side by side, before the output projection
    crosscoder("resid_post", …)    the same part of several layers → the same, one code for all
    cross_layer(12)                each unit reads one MLP's input → what that MLP and all later ones add
    Pooled(stream)                 one dictionary for rows of all layers alike

A penalty weighs a unit by the norm of all that it writes together, where Lindsey et al. add up its norms at each site,
which favours units of few sites.

Dunefsky et al. (2024), transcoders; Kissane et al. (2024), attention-output autoencoders; Lindsey et al. (2024),
crosscoders; Ameisen et al. (2025), cross-layer transcoders; Yun et al. (2021), one dictionary over all layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.bases.basis import Basis, parted
from microtome.bases.streams import Stream
from microtome.core.errors import InputError
from microtome.core.site import Site, as_site
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.layout import Layout


def transcoder(layer: int, skip: bool = False) -> Layout:
    """From what an MLP reads to what it adds; with a skip, units need not carry what is linear."""
    return Layout((Site("mlp_in", layer),), (Site("mlp_out", layer),), skip)


def attention_output(layer: int) -> Layout:
    """All heads of a layer side by side, so that a unit may lie in several of them."""
    return Layout.autoencoder(Site("z", layer))


def crosscoder(part: str, layers: Sequence[int]) -> Layout:
    """One part at several layers, read together and written together."""
    return Layout.autoencoder(*(Site(part, layer) for layer in layers))


def cross_layer(layers: int | Sequence[int]) -> Layout:
    """As many units for each layer, which read its MLP's input and write that MLP's output and all later ones'."""
    chosen = range(layers) if isinstance(layers, int) else sorted(layers)
    return staggered(
        [Site("mlp_in", layer) for layer in chosen], [Site("mlp_out", layer) for layer in chosen]
    )


def staggered(reads: Sequence[Site], writes: Sequence[Site]) -> Layout:
    """As many units for each site read, which write the site at the same place of the other list and all behind it.

    Raises `InputError` for lists of different lengths.
    """
    if len(reads) != len(writes):
        raise InputError(f"{len(reads)} sites are read and {len(writes)} written; give as many of both")
    places = range(len(reads))
    return Layout(
        tuple(reads),
        tuple(writes),
        reads_of=tuple(tuple(at == mine for at in places) for mine in places),
        writes_of=tuple(tuple(at >= mine for at in places) for mine in places),
    )


def site_norms(basis: Basis) -> Float[Tensor, "unit site"]:
    """How long each unit's direction is at each site that it writes: shared where several are long."""
    parts = parted(basis.directions(), basis.write_widths)
    return torch.stack([part.norm(dim=-1) for part in parts], -1)


class Pooled:
    """A stream whose rows are those of another stream's sites, one under the other: one dictionary for all of them.

    Its site is the first of them; `placed` puts what was trained at any. Raises `InputError` for sites of different
    widths.
    """

    def __init__(self, stream: Stream) -> None:
        if len(set(stream.widths)) != 1:
            raise InputError(
                f"sites of widths {stream.widths} cannot share a dictionary; take sites of one width"
            )
        self._stream = stream
        self.sites, self.widths = stream.sites[:1], stream.widths[:1]
        self.batch_rows, self.n_steps = stream.batch_rows * len(stream.widths), stream.n_steps
        self.step = stream.step

    @property
    def identity(self) -> dict[str, Any]:
        return {"pooled": self._stream.identity}

    def __iter__(self) -> Iterator[Float[Tensor, "row d"]]:
        return self

    def __next__(self) -> Float[Tensor, "row d"]:
        rows = next(iter(self._stream))
        self.step = self._stream.step
        return rows.view(len(rows) * len(self._stream.widths), -1)

    def seek(self, step: int) -> None:
        self._stream.seek(step)
        self.step = step


def placed(dictionary: Dictionary, site: Site | str) -> Dictionary:
    """The same dictionary, reading and writing at another site. Raises `InputError` for one of several sites."""
    if len(dictionary.reads) != 1 or not dictionary.in_place:
        raise InputError(
            f"{dictionary.name} reads or writes several sites; a dictionary of one site can be moved"
        )
    there = (as_site(site),)
    return replace(dictionary, reads=there, writes=there)
