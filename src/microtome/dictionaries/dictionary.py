"""How is a value written as a few of many directions? A trained dictionary: what is left when training is over.

    pre   = encoder · (values − centre) · read_scale + encoder_bias
    codes = activation(pre)
    back  = decoder · codes / write_scale + decoder_bias  (+ skip · values, in `reconstruct`)

One object for all that is trained: an autoencoder reads and writes one site; a transcoder reads one and writes
another; a crosscoder reads and writes several. Units that read or write only some of the sites have zeros in their
rows for the others, and `reads_of`, `writes_of` say so.

Codes are in the units that the decoder expects, whatever the scales. `folded` moves centre and scales into encoder and
decoder, `unit_norms` the decoder's norms into the encoder; neither changes what is rebuilt.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.bases.basis import Basis
from microtome.bases.codes import SparseCodes
from microtome.core.errors import InputError, NotFiniteError
from microtome.core.provenance import Provenance
from microtome.core.site import Site
from microtome.dictionaries.activations import Activation, MatchingPursuit, TopK

_CHUNK: Final = 1 << 23  # pre-activations that are written at once


@dataclass(eq=False)
class Dictionary(Basis):
    """Units, each with a direction that it reads and a direction that it writes. Not to be changed; see `replace`.

    reads, writes; read_widths, write_widths: sites, and the numbers each holds a row.
    encoder `[unit, d_read]`, encoder_bias `[unit]`; decoder `[unit, d_write]`, decoder_bias `[d_write]`.
    centre `[d_read]` is subtracted and read_scale multiplied before encoding; write_scale is divided by after decoding.
    skip `[d_write, d_read]`: what is written linearly of what is read, past the units.
    reads_of `[unit, read site]`, writes_of `[unit, write site]`: which sites a unit reads, writes; None: all.
    provenance: the model and data it was trained on. recipe: how, as plain values.

    Raises `InputError` for shapes that do not fit each other, `NotFiniteError` for NaN and infinity.
    """

    name: str
    reads: tuple[Site, ...]
    writes: tuple[Site, ...]
    read_widths: tuple[int, ...]
    write_widths: tuple[int, ...]
    activation: Activation
    # Shapes stand in the docstring and are checked below, so that the error speaks the user's words.
    encoder: Tensor
    encoder_bias: Tensor
    decoder: Tensor
    decoder_bias: Tensor
    centre: Tensor
    read_scale: float = 1.0
    write_scale: float = 1.0
    skip: Tensor | None = None
    reads_of: Tensor | None = None
    writes_of: Tensor | None = None
    provenance: Provenance = field(default_factory=Provenance)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    n_units: int = field(init=False)
    n_parameters: int = field(init=False)

    def __post_init__(self) -> None:
        self.n_units = len(self.encoder)
        if self.n_units < 1:
            raise InputError("a dictionary has at least one unit; got an encoder without rows")
        for sites, widths, what in (
            (self.reads, self.read_widths, "read"),
            (self.writes, self.write_widths, "written"),
        ):
            if len(sites) != len(widths) or not sites or not all(site.is_whole for site in sites):
                raise InputError(
                    f"expected whole sites {what}, with a width for each; got {', '.join(map(str, sites)) or 'none'} "
                    f"and widths {widths}"
                )
        expected = self._expected()
        for name, tensor in self.tensors().items():
            if tuple(tensor.shape) != expected[name]:
                raise InputError(f"{name} has shape {tuple(tensor.shape)}, expected {expected[name]}")
            if not tensor.isfinite().all():
                raise NotFiniteError(f"{name} of {self.name} holds NaN or infinity")
        if not all(math.isfinite(scale) and scale > 0 for scale in (self.read_scale, self.write_scale)):
            raise InputError(f"scales are positive numbers; got {self.read_scale} and {self.write_scale}")
        if isinstance(self.activation, TopK | MatchingPursuit) and self.activation.k > self.n_units:
            raise InputError(f"k = {self.activation.k} units are to be on; there are {self.n_units}")
        self.activation = self.activation.of(
            self.encoder * (self.read_scale / self.write_scale), self.decoder
        )
        self.n_parameters = self._free_numbers()

    def _expected(self) -> dict[str, tuple[int, ...]]:
        n, read, write = self.n_units, sum(self.read_widths), sum(self.write_widths)
        return {
            "encoder": (n, read),
            "encoder_bias": (n,),
            "decoder": (n, write),
            "decoder_bias": (write,),
            "centre": (read,),
            "skip": (write, read),
            "reads_of": (n, len(self.reads)),
            "writes_of": (n, len(self.writes)),
            **{f"activation.{name}": (n,) for name in self.activation.tensors()},
        }

    def tensors(self) -> dict[str, Tensor]:
        """All its tensors by name, those of the activation as `activation.…`."""
        own = (
            "encoder",
            "encoder_bias",
            "decoder",
            "decoder_bias",
            "centre",
            "skip",
            "reads_of",
            "writes_of",
        )
        held = {name: getattr(self, name) for name in own if getattr(self, name) is not None}
        return held | {f"activation.{name}": tensor for name, tensor in self.activation.tensors().items()}

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Dictionary":
        """The same with every tensor changed, as by `lambda t: t.to(device)`."""
        held: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors().items()}
        inner = {name: held.pop(f"activation.{name}") for name in self.activation.tensors()}
        return replace(self, activation=self.activation.mapped(inner), **held)

    def pre_activations(self, values: Float[Tensor, "*rows d_read"]) -> Float[Tensor, "*rows unit"]:
        """How far each unit is driven, before the activation decides."""
        if values.shape[-1] != sum(self.read_widths):
            raise InputError(
                f"{self.name} reads {sum(self.read_widths)} numbers a row "
                f"({', '.join(map(str, self.reads))}); got {values.shape[-1]}"
            )
        return torch.nn.functional.linear(
            (values - self.centre) * self.read_scale, self.encoder, self.encoder_bias
        )

    def drives(
        self, units: Int[Tensor, " some"]
    ) -> tuple[Float[Tensor, "some d_read"], Float[Tensor, " some"]]:
        if isinstance(self.activation, MatchingPursuit):
            return super().drives(units)
        readers = self.encoder[units] * self.read_scale
        return readers, self.encoder_bias[units] - readers @ self.centre

    def encode(self, values: Float[Tensor, "*rows d_read"]) -> Float[Tensor, "*rows unit"]:
        return self.activation(self.pre_activations(values))

    def encode_sparsely(self, values: Float[Tensor, "row d_read"]) -> SparseCodes:
        chunks = values.split(max(1, _CHUNK // self.n_units))
        parts = [self.activation.sparsely(self.pre_activations(chunk)) for chunk in chunks]
        starts = [0]
        for chunk in chunks:
            starts.append(starts[-1] + len(chunk))
        return SparseCodes(
            torch.cat([part.row + start for part, start in zip(parts, starts, strict=False)]),
            torch.cat([part.unit for part in parts]),
            torch.cat([part.value for part in parts]),
            len(values),
            self.n_units,
        )

    def decode(self, codes: Float[Tensor, "*rows unit"]) -> Float[Tensor, "*rows d_write"]:
        return codes @ self.decoder / self.write_scale + self.decoder_bias

    def decode_sparsely(self, codes: SparseCodes) -> Float[Tensor, "row d_write"]:
        """What `decode` gives for the same codes written out."""
        return codes.times(self.decoder) / self.write_scale + self.decoder_bias

    def rebuilt_sparsely(
        self, values: Float[Tensor, "row d_read"], codes: SparseCodes
    ) -> Float[Tensor, "row d_write"]:
        written = self.decode_sparsely(codes)
        return written if self.skip is None else written + values @ self.skip.mT

    def reconstruct(self, values: Float[Tensor, "*rows d_read"]) -> Float[Tensor, "*rows d_write"]:
        """What is written for what is read, skip included; codes are kept sparse on the way."""
        rows = values.reshape(-1, values.shape[-1])
        written = self.rebuilt_sparsely(rows, self.encode_sparsely(rows))
        return written.reshape(*values.shape[:-1], -1)

    def rebuilt(
        self, values: Float[Tensor, "*rows d_read"], codes: Float[Tensor, "*rows unit"]
    ) -> Float[Tensor, "*rows d_write"]:
        written = self.decode(codes)
        return written if self.skip is None else written + values @ self.skip.mT

    def needed(self, written: Site) -> tuple[Site, ...]:
        """Of a cross-layer transcoder, what its units that write there read; all where units compete or a skip is."""
        if self.reads_of is None or self.writes_of is None or self.skip is not None:
            return self.reads
        if self.activation.competes:
            return self.reads
        writers = self.writes_of[:, self.writes.index(written)].bool()
        seen = self.reads_of[writers].bool().any(0)
        return tuple(site for site, one in zip(self.reads, seen.tolist(), strict=True) if one)

    def direction(self, unit: int) -> Float[Tensor, " d_write"]:
        self.unit(unit)
        return self.decoder[unit] / self.write_scale

    def directions(self) -> Float[Tensor, "unit d_write"]:
        return self.decoder / self.write_scale

    def folded(self) -> "Dictionary":
        """The same function without centre and scales: they have gone into encoder and decoder."""
        encoder = self.encoder * self.read_scale
        return replace(
            self,
            encoder=encoder,
            encoder_bias=self.encoder_bias - encoder @ self.centre,
            decoder=self.decoder / self.write_scale,
            centre=torch.zeros_like(self.centre),
            read_scale=1.0,
            write_scale=1.0,
        )

    def unit_norms(self) -> "Dictionary":
        """The same function with directions of norm 1, and codes that say how much of a value they make.

        A unit whose direction is zero stays as it is.
        """
        norms = self.directions().norm(dim=-1)
        factor = torch.where(norms > 0, norms, 1.0)
        return replace(
            self,
            encoder=self.encoder * factor[:, None],
            encoder_bias=self.encoder_bias * factor,
            decoder=self.decoder / factor[:, None],
            activation=self.activation.rescaled(factor),
        )

    def _free_numbers(self) -> int:
        """Numbers in all its tensors, zeros for sites that a unit does not read or write left out."""
        masks = {
            "encoder": (self.reads_of, self.read_widths),
            "decoder": (self.writes_of, self.write_widths),
        }
        total = 0
        for name, tensor in self.tensors().items():
            mask, widths = masks.get(name, (None, ()))
            if name in ("reads_of", "writes_of"):
                continue
            if mask is None:
                total += tensor.numel()
            else:
                total += int((mask.long() * torch.tensor(widths, device=mask.device)).sum())
        return total
