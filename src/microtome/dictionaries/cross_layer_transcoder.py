"""How do the MLPs of all layers follow from one set of units? Each reads one layer, and writes it and all later ones.

    codes_l = activation(encoder_l · values_l + bias_l)          values_l: what the MLP of layer l reads
    back_m  = Σ_{l ≤ m} decoder_{l→m} · codes_l + decoder_bias_m     what the MLP of layer m adds

Encoders and decoders are kept in blocks, a layer's units together, where a `Dictionary` writes zeros for all that a
unit does not read or write: with 26 layers 26 times as much. Decoders, there 13 times larger than encoders, may stay on
disk: of them only the rows of units that are on are read.

Ameisen et al. (2025), Circuit tracing. Misleads as every transcoder does: its error may do the work.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor

from microtome.bases.basis import Basis, parted
from microtome.bases.codes import SparseCodes
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.dictionaries.activations import Activation, ReLU
from microtome.dictionaries.dictionary import Dictionary


class Rows(ABC):
    """What a layer's units write: for each unit, numbers at each of the sites from its own on. shape: unit, site, d."""

    shape: tuple[int, int, int]

    @abstractmethod
    def read(self, units: Int[Tensor, " some"]) -> Float[Tensor, "some site d"]:
        """The rows of these units."""


class HeldRows(Rows):
    """Rows in memory."""

    def __init__(self, rows: Float[Tensor, "unit site d"]) -> None:
        self.rows = rows
        unit, site, d = rows.shape
        self.shape = (unit, site, d)

    def read(self, units: Int[Tensor, " some"]) -> Float[Tensor, "some site d"]:
        return self.rows[units]


class FileRows(Rows):
    """Rows in a safetensors file, read when they are asked for, in single precision at least."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        with safe_open(path, "pt") as file:
            unit, site, d = file.get_slice(name).get_shape()
        self.shape = (unit, site, d)

    def read(self, units: Int[Tensor, " some"]) -> Float[Tensor, "some site d"]:
        with safe_open(self.path, "pt") as file:
            found: Tensor = file.get_slice(self.name)[units.tolist()]
        return found.to(torch.promote_types(found.dtype, torch.float32))


class CrossLayerTranscoder(Basis):
    """Units in blocks, a block for each layer, in order. Every argument but the name has an entry for each layer.

    encoders `[unit, d]`, encoder_biases `[unit]`; decoders: rows of as many units, for the sites from their own on;
    decoder_biases `[d]`. Activations look at each unit alone.

    Raises `InputError` for parts that do not fit each other.
    """

    def __init__(
        self,
        reads: Sequence[Site],
        writes: Sequence[Site],
        encoders: Sequence[Tensor],
        encoder_biases: Sequence[Tensor],
        activations: Sequence[Activation],
        decoders: Sequence[Rows],
        decoder_biases: Sequence[Tensor],
        name: str = "cross_layer",
    ) -> None:
        counts = {len(part) for part in (reads, writes, encoders, encoder_biases, activations, decoders)}
        if counts != {len(decoder_biases)} or not reads:
            raise InputError(
                "each layer needs a site read and written, an encoder, an activation and a decoder"
            )
        if any(activation.competes for activation in activations):
            raise InputError("units of a cross-layer transcoder are on by themselves, not as the k largest")
        d = len(decoder_biases[0])
        for layer, (encoder, bias, rows) in enumerate(zip(encoders, encoder_biases, decoders, strict=True)):
            expected = (len(encoder), len(reads) - layer, d)
            if rows.shape != expected or bias.shape != (len(encoder),):
                raise InputError(
                    f"layer {layer}: decoders have shape {rows.shape}, expected {expected} (unit, sites from its own "
                    f"on, d); and as many biases as units, got {list(bias.shape)}"
                )
        self.name, self.reads, self.writes = name, tuple(reads), tuple(writes)
        self.encoders, self.encoder_biases, self.activations = (
            tuple(encoders),
            tuple(encoder_biases),
            tuple(activations),
        )
        self.decoders, self.decoder_biases = tuple(decoders), tuple(decoder_biases)
        self.read_widths = tuple(encoder.shape[1] for encoder in encoders)
        self.write_widths = (d,) * len(writes)
        self.units = tuple(len(encoder) for encoder in encoders)
        self.n_units = sum(self.units)
        self.n_parameters = self._numbers()

    def _numbers(self) -> int:
        held = [*self.encoders, *self.encoder_biases, *self.decoder_biases]
        held += [tensor for activation in self.activations for tensor in activation.tensors().values()]
        return sum(tensor.numel() for tensor in held) + sum(
            unit * site * d for unit, site, d in (rows.shape for rows in self.decoders)
        )

    @classmethod
    def of(cls, dictionary: Dictionary) -> Self:
        """The same function as a dictionary's whose units read one site each, in order; `InputError` for others."""
        found = dictionary.folded()
        sites = len(found.reads)
        if found.reads_of is None or len(found.writes) != sites or found.skip is not None:
            raise InputError(
                f"{found.name} is not cross-layer: its units read every site, or some pass it by"
            )
        layer_of = found.reads_of.int().argmax(-1)
        later = torch.arange(sites) >= layer_of[:, None].cpu()
        written = later if found.writes_of is None else found.writes_of.cpu()
        alone = bool((found.reads_of.sum(-1) == 1).all()) and bool((layer_of.diff() >= 0).all())
        if not alone or bool((written & ~later).any()) or len(set(found.write_widths)) > 1:
            raise InputError(
                f"{found.name} is not cross-layer: units read one site each, and write none before it"
            )
        blocks = [(layer_of == layer).nonzero()[:, 0] for layer in range(sites)]
        readers = parted(found.encoder, found.read_widths)
        rows = found.decoder.unflatten(1, (sites, -1))
        inner = found.activation.tensors()
        return cls(
            found.reads,
            found.writes,
            [readers[layer][units] for layer, units in enumerate(blocks)],
            [found.encoder_bias[units] for units in blocks],
            [found.activation.mapped({name: t[units] for name, t in inner.items()}) for units in blocks],
            [HeldRows(rows[units, layer:]) for layer, units in enumerate(blocks)],
            parted(found.decoder_bias, found.write_widths),
            found.name,
        )

    def encode(self, values: Float[Tensor, "*rows d_read"]) -> Float[Tensor, "*rows unit"]:
        parts = parted(values, self.read_widths)
        return torch.cat([self._codes(layer, part) for layer, part in enumerate(parts)], -1)

    def _codes(self, layer: int, values: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows unit"]:
        pre = torch.nn.functional.linear(values, self.encoders[layer], self.encoder_biases[layer])
        return self.activations[layer](pre)

    def encode_sparsely(self, values: Float[Tensor, "row d_read"]) -> SparseCodes:
        parts = parted(values, self.read_widths)
        found = [SparseCodes.of(self._codes(layer, part)) for layer, part in enumerate(parts)]
        first = [sum(self.units[:layer]) for layer in range(len(self.units))]
        row = torch.cat([codes.row for codes in found])
        unit = torch.cat([codes.unit + start for codes, start in zip(found, first, strict=True)])
        order = (row * self.n_units + unit).argsort()
        value = torch.cat([codes.value for codes in found])
        return SparseCodes(row[order], unit[order], value[order], len(values), self.n_units)

    def decode(self, codes: Float[Tensor, "*rows unit"]) -> Float[Tensor, "*rows d_write"]:
        """Only rows of units that are on are read; of all, where a gradient is wanted of those that are not."""
        made = [bias.expand(*codes.shape[:-1], -1) for bias in self.decoder_biases]
        for layer, part in enumerate(parted(codes, self.units)):
            on = (
                part.flatten(0, -2).any(0)
                if not part.requires_grad
                else torch.ones(part.shape[-1], dtype=torch.bool)
            )
            units = on.nonzero()[:, 0]
            if len(units):
                rows = self.decoders[layer].read(units).to(codes.device)
                written = (part[..., units] @ rows.flatten(1)).split(rows.shape[-1], -1)
                made[layer:] = [old + new for old, new in zip(made[layer:], written, strict=True)]
        return torch.cat(made, -1)

    def place(self, unit: int) -> tuple[int, int]:
        """The layer of a unit, and its number there. Raises `InputError` for a unit that is not there."""
        self.unit(unit)
        for layer, count in enumerate(self.units):
            if unit < count:
                return layer, unit
            unit -= count
        raise AssertionError

    def direction(self, unit: int) -> Float[Tensor, " d_write"]:
        layer, number = self.place(unit)
        rows = self.decoders[layer].read(torch.tensor([number]))[0]
        return torch.cat([rows.new_zeros(layer * rows.shape[-1]), rows.flatten()])

    def drives(
        self, units: Int[Tensor, " some"]
    ) -> tuple[Float[Tensor, "some d_read"], Float[Tensor, " some"]]:
        readers = self.encoders[0].new_zeros(len(units), sum(self.read_widths))
        offsets = self.encoders[0].new_zeros(len(units))
        for row, unit in enumerate(units.tolist()):
            layer, number = self.place(unit)
            first = sum(self.read_widths[:layer])
            readers[row, first : first + self.read_widths[layer]] = self.encoders[layer][number]
            offsets[row] = self.encoder_biases[layer][number]
        return readers, offsets

    def needed(self, written: Site) -> tuple[Site, ...]:
        """What is read up to that layer."""
        return self.reads[: self.writes.index(written) + 1]

    def dictionary(self) -> Dictionary:
        """The same function with its zeros written out; for a few layers. Raises `InputError` for mixed activations."""
        kinds = {type(activation) for activation in self.activations}
        if len(kinds) > 1:
            raise InputError(f"{self.name} has layers with different activations; a dictionary has one")
        layers = torch.arange(len(self.reads))
        layer_of = layers.repeat_interleave(torch.tensor(self.units))
        inner: Mapping[str, Tensor] = {
            name: torch.cat([activation.tensors()[name] for activation in self.activations])
            for name in self.activations[0].tensors()
        }
        readers, biases = self.drives(torch.arange(self.n_units))
        return Dictionary(
            self.name,
            self.reads,
            self.writes,
            self.read_widths,
            self.write_widths,
            ReLU() if kinds == {ReLU} else self.activations[0].mapped(inner),
            readers,
            biases,
            self.directions(),
            torch.cat(self.decoder_biases),
            readers.new_zeros(sum(self.read_widths)),
            reads_of=layer_of[:, None] == layers,
            writes_of=layer_of[:, None] <= layers,
        )
