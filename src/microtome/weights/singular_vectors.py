"""What does each head and each MLP read and write, strongest first, and in which tokens? Singular vectors of weights.

    OV    from what a head reads to what it writes       left: tokens read     right: tokens written
    QK    from who asks to who is attended               left: tokens asking   right: tokens attended
    W_in  from what an MLP reads to its neurons          left: tokens read     right: neurons driven
    W_out from neurons to what the MLP writes            left: neurons         right: tokens written

1. Take each matrix as two thin factors, the norms' gain and centring multiplied in (a view), and its singular vectors.
2. Tokens read are those whose embedding lies furthest along a vector, tokens written those whose logit it moves most.
   Vectors have no sign, so both ends are listed: the left plus end goes with the right plus end, minus with minus.
3. The control: singular values of a twin with shuffled weights. Values above its largest are no accident of size.

Millidge and Black (2022), The Singular Value Decompositions of Transformer Weight Matrices are Highly Interpretable.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.core import config as base
from microtome.core import result
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.errors import InputError, SiteError
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Curve, Shape, Table
from microtome.data.tokens import token_text
from microtome.models.head_circuits import QK_LEAVES_OUT, ov, qk, token_embeddings
from microtome.models.linear_norm import read_norm
from microtome.models.low_rank import LowRank
from microtome.models.model import Model
from microtome.models.random_twin import random_twin
from microtome.models.readout import readout
from microtome.models.stream_parts import behind

Side = Literal["embedded", "unembedded", "neurons"]
_SIDES: Final[dict[str, tuple[Side, Side]]] = {
    "OV": ("embedded", "unembedded"),
    "QK": ("embedded", "embedded"),
    "W_in": ("embedded", "neurons"),
    "W_out": ("neurons", "unembedded"),
}
_SHOWN: Final = 12

card = Card(
    name="singular_vectors",
    title="Singular vectors of weights",
    question="What does each head and each MLP read and write, strongest first, and in which tokens?",
    steps=(
        "Take the singular vectors of OV, QK, W_in and W_out, norms multiplied in as a view.",
        "Read each vector in tokens: by embeddings where it is read, by logits where it is written.",
        "Compare singular values with those of a twin with shuffled weights.",
    ),
    reference="Millidge and Black (2022), The Singular Value Decompositions of Transformer Weight Matrices",
    misleads=(
        "Vectors of nearly equal values are mixed at will. Tokens are taken as their embeddings; what earlier layers "
        "write may be read along the same vector, and there the tokens listed mean nothing."
    ),
    needs="weights",
    causal="observation",
    locality="global",
    comprehensiveness="partial",
)


class Config(base.Config):
    """Settings of singular vectors."""

    kinds: tuple[Literal["OV", "QK", "W_in", "W_out"], ...] = Field(
        ("OV", "QK", "W_in", "W_out"), description="Which matrices."
    )
    layers: tuple[int, ...] | None = Field(None, description="Which layers; by default all.")
    vectors: int = Field(4, ge=1, description="Vectors of each matrix.")
    tokens: int = Field(6, ge=1, description="Tokens or neurons listed at each end of a vector.")
    control: bool = Field(True, description="Whether to take the singular values of a twin too.")
    seed: base.Seed = Field(0, description="Of the twin.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`value [matrix, vector]`; `left`, `right [matrix, vector, end, place]` as text, ends `+` and `-`; `twin_value`.

    NaN and nothing where a matrix has fewer vectors."""

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        value = data["value"].values
        names = tuple(map(str, data["matrix"].values))
        curves = [value[:, :]]
        title = "singular values"
        twin = f"; of the twin with shuffled weights at most {float(data['twin_value'].max()):.3g}" if (
            "twin_value" in data
        ) else ""  # fmt: skip
        places = [(i, j) for i, j in np.ndindex(value.shape) if np.isfinite(value[i, j])]
        places.sort(key=lambda place: -float(value[place]))
        rows = tuple(
            (
                names[i],
                j,
                float(value[i, j]),
                *(
                    " ".join(repr(str(one)) for one in data[side].values[i, j, end])
                    for end in (0, 1)
                    for side in ("left", "right")
                ),
            )
            for i, j in places[:_SHOWN]
        )
        table = Table(
            "strongest vectors",
            ("matrix", "vector", "value", "left +", "right +", "left −", "right −"),
            rows,
            f"{len(rows)} of {len(places)} vectors, chosen by size{twin}",
            self.notes,
        )
        curve = Curve(
            title, np.arange(value.shape[1], dtype=float), curves[0], names, "vector", "value", caption=twin
        )
        return (table, curve)


@torch.no_grad()
def run(model: Model, data: None = None, config: Config | None = None) -> Result:
    """Raises `InputError` for a layer that is not there, `SiteError` or `FamilyError` where there is no linear head."""
    config = config or Config()
    layers = range(model.n_layers) if config.layers is None else config.layers
    if strange := [layer for layer in layers if not 0 <= layer < model.n_layers]:
        raise InputError(f"layer {strange[0]} is out of range; there are 0 … {model.n_layers - 1}")
    with measure() as recorder:
        ends = _Ends(model, config.tokens)
        recorder.add(passes=-(-model.sizes["d_vocab"] // 4096))
        names, values, left, right = [], [], [], []
        for kind, name, matrix in _matrices(model, config, layers):
            one, strength, two = matrix.svd()
            count = min(config.vectors, len(strength))
            names.append(name)
            values.append(_filled(strength[:count], config.vectors))
            left.append(ends.of(_SIDES[kind][0], one.mT[:count], config.vectors))
            right.append(ends.of(_SIDES[kind][1], two[:count], config.vectors))
        if not names:
            raise InputError(f"{model.name} has none of {', '.join(config.kinds)} in these layers")
        arrays = {
            "value": (("matrix", "vector"), np.stack(values)),
            "left": (("matrix", "vector", "end", "place"), np.stack(left)),
            "right": (("matrix", "vector", "end", "place"), np.stack(right)),
        }
        if config.control:
            twin = random_twin(model, config.seed)
            found = [
                _filled(matrix.singular_values()[: config.vectors], config.vectors)
                for _, _, matrix in _matrices(twin, config, layers)
            ]
            arrays["twin_value"] = (("matrix", "vector"), np.stack(found))
    return Result.of(
        card,
        xr.Dataset(arrays, {"matrix": names, "end": ["+", "-"]}),
        config,
        Provenance(model.name, model_hash(model.module.state_dict())),
        recorder.cost(),
        ([QK_LEAVES_OUT] if "QK" in config.kinds else []),
    )


def _matrices(
    model: Model, config: Config, layers: range | tuple[int, ...]
) -> Iterator[tuple[str, str, LowRank]]:
    """Kind, name and matrix, rows being what is read; none for what a model lacks."""
    for layer in layers:
        for kind, circuit in (("OV", ov), ("QK", qk)):
            if kind in config.kinds:
                heads = circuit(model, layer)
                for head in range(model.n_heads):
                    yield kind, f"{kind}.{layer}.h{head}", heads[head]
        for kind in ("W_in", "W_out"):
            if kind in config.kinds:
                try:
                    weight = model.weight(f"{kind}.{layer}").detach().float()
                except SiteError:
                    continue
                yield kind, f"{kind}.{layer}", _of_mlp(model, kind, layer, weight)


def _of_mlp(model: Model, kind: str, layer: int, weight: Float[Tensor, "row column"]) -> LowRank:
    """With the norm before the MLP on what is read, and the one behind it, if any, on what is written."""
    if kind == "W_in":
        norm = read_norm(model.anatomy.role("mlp_norm", layer), model.sizes["d_model"], model.device)
        weight = norm.pull(weight.mT).mT
    elif (after := behind(model.anatomy, layer, "mlp")) is not None:
        weight = after.push(weight, torch.ones_like(weight[:, :1]))
    return LowRank(weight, torch.eye(weight.shape[1], device=weight.device))


class _Ends:
    """What lies furthest along a vector, either way, as text."""

    def __init__(self, model: Model, count: int) -> None:
        self._model, self._count = model, count
        self._embeddings = token_embeddings(model)
        self._head = readout(model)

    def of(self, side: Side, vectors: Float[Tensor, "vector d"], width: int) -> np.ndarray:
        """`[vector, end, place]`; empty past the vectors and past what there is."""
        texts = np.full((width, 2, self._count), "", dtype=object)
        for number, scores in enumerate(self._scores(side, vectors)):
            for end, sign in enumerate((1, -1)):
                best = (sign * scores).topk(min(self._count, len(scores))).indices.tolist()
                texts[number, end, : len(best)] = [self._text(side, one) for one in best]
        return texts.astype(str)

    def _scores(self, side: Side, vectors: Float[Tensor, "vector d"]) -> Float[Tensor, "vector entry"]:
        if side == "neurons":
            return vectors
        if side == "embedded":
            return vectors @ self._embeddings.mT
        ids = torch.arange(self._head.n_tokens, device=vectors.device)
        return torch.cat([vectors @ self._head.directions(part).mT for part in ids.split(4096)], -1)

    def _text(self, side: Side, index: int) -> str:
        if side == "neurons":
            return f"u{index}"
        tokenizer = self._model.tokenizer
        known = tokenizer is not None and index < len(tokenizer)
        return token_text(tokenizer, index) if known else str(index)


def _filled(values: Float[Tensor, " some"], width: int) -> np.ndarray:
    row = np.full(width, np.nan, dtype=np.float32)
    row[: len(values)] = values.cpu().numpy()
    return row
