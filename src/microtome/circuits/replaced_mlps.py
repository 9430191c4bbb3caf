"""Which units stand for the MLPs on one prompt, what does each write, and what is left over?

1. Each MLP is replaced by a basis that reads MLP inputs and writes MLP outputs (a transcoder; one basis for many layers
   if it is a cross-layer transcoder), or, where none is given, by its own neurons: those of a position that write most.
2. Every unit that is on at a position is a part of its own: its value times its direction.
3. What all of them, the constant and the skip leave of the MLP's output is the error: one part a layer and position.
   Nothing is lost, so the account stays exact however poor the basis.
4. A unit is driven by a direction of its MLP's input. A gated neuron is, with its gate as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.bases.basis import Basis, parted
from microtome.circuits.frozen_stream import Directions, FrozenStream, Written
from microtome.core.errors import InputError, SiteError
from microtome.core.site import Site
from microtome.models.stream_parts import behind


@dataclass(frozen=True, eq=False)
class Group:
    """The units of one basis that are on, or of the neurons of a layer (basis None); sorted by position.

    layers: whose input they read. gate `[part]`: by what a neuron's reader is multiplied.
    """

    basis: Basis | None
    layers: tuple[int, ...]
    position: Int[Tensor, " part"]
    unit: Int[Tensor, " part"]
    value: Float[Tensor, " part"]
    column: int
    gate: Float[Tensor, " part"] | None = None

    @property
    def columns(self) -> range:
        return range(self.column, self.column + len(self.unit))

    def name(self, index: int) -> str:
        """Such as `transcoder.3.u17@5`, `mlp_post.0.u3@2`."""
        unit, position = int(self.unit[index]), int(self.position[index])
        if self.basis is None:
            return str(Site("mlp_post", self.layers[0], units=(unit,), positions=(position,)))
        return f"{self.basis.unit(unit)}@{position}"


@dataclass(frozen=True, eq=False)
class ReplacedMlps:
    """All parts behind the MLPs of one prompt. Columns are units, group by group, then errors `[layer, position]`."""

    stream: FrozenStream
    groups: tuple[Group, ...]
    written: tuple[tuple[Written, ...], ...]
    constants: tuple[Float[Tensor, "position d_model"], ...]
    skips: tuple[Float[Tensor, "d_model d_model"] | None, ...]
    n_units: int
    errors: Float[Tensor, "layer position d_model"] = field(repr=False)

    @property
    def columns(self) -> int:
        return self.n_units + self.errors.shape[0] * self.errors.shape[1]

    def contributions(self, directions: Directions) -> Float[Tensor, "direction column"]:
        """What each part, each embedding and the biases give to each direction; see `FrozenStream.walk`."""
        return self.stream.walk(directions, self.written, self.constants, self.skips, self.columns)

    def driven(
        self, columns: Int[Tensor, " some"]
    ) -> tuple[Directions, Float[Tensor, " some"], Float[Tensor, " some"]]:
        """The directions that drive some units; how far each is driven by the stream, beside its own offset; and that
        offset, in which what the norm's bias adds is counted."""
        position = torch.zeros_like(columns)
        driven, offset = torch.zeros(len(columns)), torch.zeros(len(columns))
        reads: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for group in self.groups:
            inside = ((columns >= group.columns.start) & (columns < group.columns.stop)).nonzero()[:, 0]
            if not len(inside):
                continue
            index = columns[inside] - group.column
            position[inside] = group.position[index]
            readers, own = self._readers(group, index)
            offset[inside] = own
            width = readers.shape[-1] // len(group.layers)
            for layer, vectors in zip(
                group.layers, parted(readers, (width,) * len(group.layers)), strict=True
            ):
                some = vectors.any(-1).nonzero()[:, 0]
                if not len(some):
                    continue
                here = vectors[some]
                bias = here @ self.stream.blocks[layer].mlp_norm.bias
                seen = self.stream.at("mlp_in", layer)[group.position[index[some]]]
                driven[inside[some]] += (here * seen).sum(-1) - bias
                offset[inside[some]] += bias
                reads.setdefault(layer, []).append((inside[some], here))
        joined = {
            layer: (torch.cat([one for one, _ in found]), torch.cat([one for _, one in found]))
            for layer, found in reads.items()
        }
        return Directions(position, joined), driven, offset

    def _readers(
        self, group: Group, index: Int[Tensor, " some"]
    ) -> tuple[Float[Tensor, "some d_read"], Float[Tensor, " some"]]:
        if group.basis is not None:
            readers, offset = group.basis.drives(group.unit[index])
            return readers.detach().float(), offset.detach().float()
        model, layer = self.stream.model, group.layers[0]
        readers = model.weight(f"W_in.{layer}").detach().float().T[group.unit[index]]
        bias = _bias(self.stream, f"b_in.{layer}", readers.shape[0], group.unit[index])
        if group.gate is None:
            return readers, bias
        return readers * group.gate[index, None], bias * group.gate[index]


def _bias(
    stream: FrozenStream, address: str, count: int, units: Int[Tensor, " some"] | None = None
) -> Float[Tensor, " some"]:
    try:
        bias = stream.model.weight(address).detach().float()
    except SiteError:
        return torch.zeros(count)
    return bias if units is None else bias[units]


@torch.no_grad()
def replaced_mlps(stream: FrozenStream, bases: Sequence[Basis] = (), neurons: int = 32) -> ReplacedMlps:
    """Replace the MLPs of a prompt. neurons: how many of a position stand for an MLP that no basis writes.

    Raises `InputError` for a basis that reads or writes anything but MLP inputs and outputs, that two write one layer,
    or whose widths are not the model's.
    """
    layers = range(stream.model.n_layers)
    writer = _writers(stream, bases)
    groups: list[Group] = []
    written: list[list[Written]] = [[] for _ in layers]
    errors = torch.stack([stream.at("mlp_out", layer) for layer in layers])
    constants = [torch.zeros_like(errors[0]) for _ in layers]
    skips: list[Tensor | None] = [None for _ in layers]
    column = 0
    for basis in bases:
        group = _units(stream, basis, column)
        column += len(group.unit)
        groups.append(group)
        out = [_layer(site) for site in basis.writes]
        parts = parted(basis.directions().detach().float()[group.unit], basis.write_widths)
        fixed = parted(basis.decode(torch.zeros(1, basis.n_units)).detach().float(), basis.write_widths)
        for layer, vectors, constant in zip(out, parts, fixed, strict=True):
            _write(written[layer], group, group.value[:, None] * vectors, stream.n_positions)
            constants[layer] = constant.expand_as(errors[layer])
        if basis.skip is not None:
            _skip(basis, out, skips)
    for layer in layers:
        if layer not in writer:
            group, vectors, constants[layer] = _neurons(stream, layer, column, neurons)
            column += len(group.unit)
            groups.append(group)
            _write(written[layer], group, vectors, stream.n_positions)
    for layer in layers:
        for one in written[layer]:
            counts = torch.tensor(one.start).diff()
            at = torch.arange(stream.n_positions).repeat_interleave(counts)
            errors[layer].index_add_(0, at, one.vectors, alpha=-1.0)
        errors[layer] -= constants[layer]
        skip = skips[layer]
        if skip is not None:
            errors[layer] -= stream.at("mlp_in", layer) @ skip.T
        start = tuple(range(stream.n_positions + 1))
        written[layer].append(Written(errors[layer], start, column + layer * stream.n_positions))
    return ReplacedMlps(
        stream, tuple(groups), tuple(map(tuple, written)), tuple(constants), tuple(skips), column, errors
    )


def _layer(site: Site) -> int:
    assert site.layer is not None
    return site.layer


def _writers(stream: FrozenStream, bases: Sequence[Basis]) -> dict[int, Basis]:
    """Which basis writes each layer."""
    found: dict[int, Basis] = {}
    for basis in bases:
        strange = [site for site in basis.reads if site.part != "mlp_in"]
        strange += [site for site in basis.writes if site.part != "mlp_out"]
        if strange:
            raise InputError(
                f"{basis.name} stands at {strange[0]}; an attribution graph needs bases that read mlp_in and write "
                "mlp_out (transcoders)"
            )
        for site in basis.writes:
            if _layer(site) in found:
                raise InputError(
                    f"{found[_layer(site)].name} and {basis.name} both write {site}; give one basis for each layer"
                )
            if not stream.model.has(site):
                raise InputError(f"{basis.name} writes {site}, which {stream.model.name} does not have")
            found[_layer(site)] = basis
    return found


def _units(stream: FrozenStream, basis: Basis, column: int) -> Group:
    width = stream.embedding.shape[1]
    if {*basis.read_widths, *basis.write_widths} != {width}:
        raise InputError(
            f"{basis.name} reads and writes {basis.read_widths} and {basis.write_widths} numbers; the stream of "
            f"{stream.model.name} has {width}"
        )
    codes = basis.encode_sparsely(basis.rows_of(stream.run.values)[0])
    layers = tuple(_layer(site) for site in basis.reads)
    return Group(basis, layers, codes.row, codes.unit, codes.value.detach().float(), column)


def _write(written: list[Written], group: Group, vectors: Tensor, n_positions: int) -> None:
    start = torch.searchsorted(group.position, torch.arange(n_positions + 1))
    written.append(Written(vectors, tuple(start.tolist()), group.column))


def _skip(basis: Basis, out: Sequence[int], skips: list[Tensor | None]) -> None:
    if len(out) > 1 or [_layer(site) for site in basis.reads] != list(out):
        raise InputError(
            f"{basis.name} skips from {', '.join(map(str, basis.reads))} to {', '.join(map(str, basis.writes))}; in "
            "an attribution graph a skip may only pass one MLP"
        )
    assert basis.skip is not None
    skips[out[0]] = basis.skip.detach().float()


def _neurons(
    stream: FrozenStream, layer: int, column: int, count: int
) -> tuple[Group, Float[Tensor, "part d_model"], Float[Tensor, "position d_model"]]:
    """The neurons of each position that write most; what they write; and what the biases write."""
    model = stream.model
    if not model.has(Site("mlp_post", layer)):
        raise InputError(
            f"the MLP of block {layer} of {model.name} shows no neurons; give a transcoder that replaces it"
        )
    post = stream.at("mlp_post", layer)
    out = model.weight(f"W_out.{layer}").detach().float()
    size = post.abs() * out.norm(dim=-1)
    count = min(count, post.shape[1])
    top = size.topk(count, dim=-1).indices.sort(-1).values
    kept = size.gather(-1, top) > 0
    position = torch.arange(len(post))[:, None].expand_as(top)[kept]
    unit = top[kept]
    value = post[position, unit]
    gate = None
    if model.anatomy.role("mlp_gate", layer) is not None or model.anatomy.family.gate_up:
        up = stream.at("mlp_in", layer) @ model.weight(f"W_in.{layer}").detach().float()
        up = (up + _bias(stream, f"b_in.{layer}", up.shape[1]))[position, unit]
        gate = torch.where(up == 0, 0.0, value / torch.where(up == 0, 1.0, up))
    vectors = value[:, None] * out[unit]
    constant = _bias(stream, f"b_out.{layer}", out.shape[1]).expand(len(post), -1)
    after = behind(model.anatomy, layer, "mlp")
    if after is not None:
        scale = after.scale(post @ out + constant)
        vectors = after.push(vectors, scale[position])
        constant = after.push(constant, scale) + after.bias
    return Group(None, (layer,), position, unit, value, column, gate), vectors, constant
