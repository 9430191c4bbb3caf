"""Where do the two ends of an edge stand in a model? What its sources write, and through what its receivers read.

Receivers read the stream through a norm and, in attention, through the projection of their own head. Their values
stand at `q_proj`, `k_proj`, `v_proj`, `mlp_in` and the last stream.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from microtome.circuits.edge_graph import EdgeGraph, Kind, Reader
from microtome.core.errors import SiteError
from microtome.core.site import Site
from microtome.models.linear_norm import LinearNorm, read_norm
from microtome.models.model import Model
from microtome.models.run import Run
from microtome.models.stream_parts import behind, head_writes

Writes = Float[Tensor, "source row position d_model"]


@dataclass(frozen=True, eq=False)
class EdgeEnds:
    """The ends of the edges of `graph` in `model`."""

    model: Model
    graph: EdgeGraph

    @cached_property
    def origins(self) -> list[Site]:
        """Where what the sources write is read off."""
        found = [Site("resid_pre", 0), *([Site("pos_embed")] if self.graph.splits_positions else [])]
        for layer in range(self.model.n_layers):
            found.append(Site("z", layer))
            if self.model.has(mlp := Site("mlp_out", layer)):
                found.append(mlp)
        return found

    @cached_property
    def arrivals(self) -> list[Site]:
        """Where the receivers' values stand."""
        return [self.site(reader) for reader in self.graph.readers]

    @cached_property
    def streams(self) -> list[Site]:
        """The streams that they read."""
        return list(dict.fromkeys(self.stream(reader) for reader in self.graph.readers))

    def writes(self, run: Run) -> Writes:
        """What each source writes in a run that read `origins`, in float32."""
        found: list[Tensor] = []
        entering = run[Site("resid_pre", 0)].float()
        if self.graph.splits_positions:
            positions = run[Site("pos_embed")].float().expand_as(entering)
            found += [(entering - positions)[None], positions[None]]
        else:
            found.append(entering[None])
        for layer in range(self.model.n_layers):
            found.append(self.heads(layer, run[Site("z", layer)]))
            if self.model.has(mlp := Site("mlp_out", layer)):
                found.append(run[mlp].float()[None])
        return torch.cat(found)

    def heads(
        self, layer: int, z: Float[Tensor, "row position head d_head"]
    ) -> Float[Tensor, "head row position d_model"]:
        """What each head of a layer writes."""
        written, _ = head_writes(self.model, layer, z, self._behind[layer])
        return written.permute(2, 0, 1, 3)

    @cached_property
    def _behind(self) -> list[LinearNorm | None]:
        return [behind(self.model.anatomy, layer, "attn") for layer in range(self.model.n_layers)]

    def site(self, reader: Reader) -> Site:
        """Where the receivers' values stand."""
        if reader.kind == "logits":
            return Site("resid_post", self.model.n_layers - 1)
        return Site("mlp_in" if reader.kind == "mlp" else f"{reader.kind}_proj", reader.layer)

    def stream(self, reader: Reader) -> Site:
        """The stream that they read, before its norm."""
        if reader.kind == "logits":
            return Site("resid_post", self.model.n_layers - 1)
        between = reader.kind == "mlp" and self.model.anatomy.family.residual != "parallel"
        return Site("resid_mid" if between else "resid_pre", reader.layer)

    def norm(self, reader: Reader) -> nn.Module | None:
        """The norm through which they read; none for the logits, whose norm comes after the last stream."""
        if reader.kind == "logits":
            return None
        anatomy = self.model.anatomy
        attention = anatomy.role("attn_norm", reader.layer)
        if reader.kind != "mlp":
            return attention
        shared = attention if anatomy.family.residual == "parallel" else None
        return anatomy.role("mlp_norm", reader.layer) or shared

    def normed(self, reader: Reader, stream: Tensor) -> Tensor:
        """A stream as the receivers see it."""
        norm = self.norm(reader)
        if norm is None:
            return stream
        made: Tensor = norm(stream.to(self.model.dtype))
        return made

    def projected(
        self, reader: Reader, inputs: Float[Tensor, "some row position d_model"], heads: Int[Tensor, " some"]
    ) -> Float[Tensor, "row position some d_head"]:
        """What some heads' projections make of what each of them reads behind the norm."""
        assert reader.layer is not None
        weight, bias = self._weights(reader.kind, reader.layer)
        made = torch.einsum("hrpd,hde->rphe", inputs.to(weight.dtype), weight[heads])
        return made if bias is None else made + bias[heads]

    def pulled(
        self,
        reader: Reader,
        gradient: Tensor,
        stream: Float[Tensor, "#receiver row position d_model"],
        *,
        frozen: bool = False,
    ) -> Float[Tensor, "receiver row position d_model"]:
        """The gradient by the stream that each receiver reads, from the gradient where its value stands.

        frozen: with the norm's divisor held fixed.
        """
        if reader.kind in ("logits", "mlp"):
            behind_norm = gradient[None]
        else:
            assert reader.layer is not None
            weight, _ = self._weights(reader.kind, reader.layer)
            behind_norm = torch.einsum("rphe,hde->hrpd", gradient, weight.detach())
        return self._norms[reader.kind, reader.layer].back(behind_norm.float(), stream, frozen=frozen)

    @cached_property
    def _norms(self) -> dict[tuple[Kind, int | None], LinearNorm]:
        model = self.model
        return {
            (reader.kind, reader.layer): read_norm(self.norm(reader), model.sizes["d_model"], model.device)
            for reader in self.graph.readers
        }

    def _weights(self, kind: Kind, layer: int) -> tuple[Float[Tensor, "head d_model d_head"], Tensor | None]:
        try:
            bias = self.model.weight(f"b_{kind.upper()}.{layer}")
        except SiteError:
            bias = None
        return self.model.weight(f"W_{kind.upper()}.{layer}"), bias
