"""What does each head look for, and what does it write when it finds it? QK and OV read from the weights, by token.

1. QK and OV of each head are kept as two thin factors, the norms' gain and centring multiplied in (a view; the model's
   weights stay as they are). Nothing of the size vocabulary × vocabulary is made beyond a block of rows.
2. In the vocabulary: OV from the token attended to the logits, QK from the token that asks to the token attended.
3. Copying: the eigenvalues of OV in the vocabulary, their sum over the sum of their sizes. 1 writes back what it reads,
   -1 writes it back negated.
4. The same share counted: how often the token whose logit rises most is the one attended, on a sample of tokens.
5. The strongest pairs of tokens of each circuit.
6. The control: the same for a twin whose weights are shuffled.

Elhage et al. (2021), A Mathematical Framework for Transformer Circuits; Dar et al. (2023), Analyzing Transformers in
Embedding Space.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from pydantic import Field
from torch import Tensor

from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, NodeScores
from microtome.core.card import Card
from microtome.core.cost import Recorder, measure
from microtome.core.errors import InputError
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Grid, Shape, Table
from microtome.data.tokens import token_text
from microtome.models.head_circuits import QK_LEAVES_OUT, token_embeddings, token_ov, token_qk
from microtome.models.low_rank import LowRank, copying
from microtome.models.model import Model
from microtome.models.random_twin import random_twin
from microtome.models.readout import readout

card = Card(
    name="qk_ov",
    title="QK and OV circuits",
    question="Which tokens does each head look for, and which tokens does it make likelier when it finds them?",
    steps=(
        "Take QK and OV of each head as low-rank factors between tokens, norms multiplied in as a view.",
        "Score copying by the eigenvalues of OV: their sum over the sum of their sizes.",
        "Count how often the token written most is the token attended.",
        "List the strongest pairs of tokens of both circuits.",
        "Do the same for a twin with shuffled weights.",
    ),
    reference="Elhage et al. (2021), A Mathematical Framework for Transformer Circuits",
    misleads=(
        "Tokens are taken as their embeddings. Past the first layer the stream holds much else, and a head may read "
        "what an earlier layer wrote: then these tables show nothing of what it does. QK knows no positions."
    ),
    needs="weights",
    causal="observation",
    locality="global",
    comprehensiveness="partial",
    claims=("role:copying",),
)

_AFFORDABLE = 2e11
"""Multiplications for the pairs of all heads; beyond, heads must be named."""


_PAIR_ARRAYS = ("ov_value", "ov_source", "ov_out", "qk_value", "qk_query", "qk_key")


class Config(base.Config):
    """Settings of QK and OV."""

    heads: tuple[str, ...] | None = Field(
        None,
        description="Heads, as LAYER.HEAD, whose strongest pairs are listed; by default all, if the vocabulary is "
        "small enough for that.",
    )
    pairs: int = Field(10, ge=0, description="How many pairs of tokens to list for each head and circuit.")
    sample: int = Field(256, ge=1, description="Tokens on which copying is counted.")
    control: bool = Field(True, description="Whether to do the same for a twin with shuffled weights.")
    seed: base.Seed = Field(0, description="Of the sample and the twin.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`copying`, `writes_itself` `[layer, head]`, the same of the twin with `twin_`; `eigenvalue` `[layer, head, rank,
    (re, im)]`; `ov_value`, `ov_source`, `ov_out`, `qk_value`, `qk_query`, `qk_key` `[listed, pair]`."""

    def answers(self) -> tuple[Answer, ...]:
        """How much each head copies: the share of positive eigenvalues of its OV circuit, where it is positive."""
        scores = {
            f"z.{n}.h{h}": max(0.0, float(v)) for (n, h), v in np.ndenumerate(self.data["copying"].values)
        }
        return (NodeScores(scores, "copying"),)

    def shapes(self) -> tuple[Shape, ...]:
        layers, heads = (tuple(map(str, self.data[name].values)) for name in ("layer", "head"))
        controlled = "twin_copying" in self.data
        chance = self.data["twin_copying"] if controlled else None
        caption = "1 copies, -1 writes the negative." + (
            f" In the twin with shuffled weights: {float(chance.min()):.2f} … {float(chance.max()):.2f}."
            if chance is not None
            else ""
        )
        grids: list[Shape] = [
            Grid(
                "Copying score of OV",
                self.data["copying"].values,
                "layer",
                layers,
                "head",
                heads,
                caption=caption,
            ),
            Grid(
                "Tokens that raise their own logit most",
                self.data["writes_itself"].values,
                "layer",
                layers,
                "head",
                heads,
                "share",
                diverging=False,
                caption=f"Of {self.data.attrs['sample']} tokens drawn at random; by chance "
                f"{1 / self.data.attrs['d_vocab']:.2g}.",
            ),
        ]
        return (*grids, *(self._table(i, str(name)) for i, name in enumerate(self.data["listed"].values)))

    def _table(self, index: int, name: str) -> Table:
        pick = {key: self.data[key].values[index] for key in _PAIR_ARRAYS}
        rows = tuple(
            (
                str(pick["ov_source"][i]),
                str(pick["ov_out"][i]),
                float(pick["ov_value"][i]),
                str(pick["qk_query"][i]),
                str(pick["qk_key"][i]),
                float(pick["qk_value"][i]),
            )
            for i in range(self.data.sizes["pair"])
        )
        return Table(
            f"Strongest pairs of head {name}",
            ("attended", "written", "OV", "asks", "attended ", "QK"),
            rows,
            f"The largest of {self.data.attrs['d_vocab'] ** 2} entries of each circuit, chosen by size. Divisors of "
            "norms left out.",
            self.notes,
        )


@torch.no_grad()
def run(model: Model, data: None = None, config: Config | None = None) -> Result:
    """Read QK and OV of every head. `data` is not looked at: this reads the weights.

    Raises `InputError` for a head that does not exist; `SiteError`, `FamilyError` for a model without a linear head.
    """
    config = config or Config()
    with measure() as recorder:
        listed = _listed(model, config)
        arrays, pairs = _read(model, config, listed, recorder)
        if config.control:
            twin, _ = _read(random_twin(model, config.seed), config, [], recorder)
            arrays |= {f"twin_{name}": twin[name] for name in ("copying", "writes_itself")}
    notes = [
        QK_LEAVES_OUT,
        "Gain and centring of the norms are multiplied into the factors, not into the model.",
    ]
    if config.pairs and config.heads is None and not listed:
        notes.append(
            f"No pairs are listed: {model.sizes['d_vocab']} tokens are too many for all heads; name some heads."
        )
    return Result.of(
        card,
        xr.Dataset(
            {
                "copying": (("layer", "head"), arrays["copying"]),
                "writes_itself": (("layer", "head"), arrays["writes_itself"]),
                "eigenvalue": (("layer", "head", "rank", "complex"), arrays["eigenvalue"]),
                **{name: (("layer", "head"), arrays[name]) for name in arrays if name.startswith("twin_")},
                **{name: (("listed", "pair"), values) for name, values in pairs.items()},
            },
            {
                "layer": np.arange(model.n_layers),
                "head": np.arange(model.n_heads),
                "complex": ["re", "im"],
                "listed": [f"{n}.{h}" for n, h in listed],
            },
            {"d_vocab": model.sizes["d_vocab"], "sample": min(config.sample, model.sizes["d_vocab"])},
        ),
        config,
        Provenance(model.name, model_hash(model.module.state_dict())),
        recorder.cost(),
        notes,
    )


def writes_itself(circuit: LowRank, tokens: Tensor) -> float:
    """Of these tokens (rows of an OV circuit), the share whose largest entry is their own."""
    best = (circuit.left[tokens] @ circuit.right).argmax(dim=-1)
    return float((best == tokens).float().mean())


def _listed(model: Model, config: Config) -> list[tuple[int, int]]:
    """The heads whose pairs are listed."""
    every = [(n, h) for n in range(model.n_layers) for h in range(model.n_heads)]
    if not config.pairs:
        return []
    if config.heads is None:
        work = 2 * len(every) * model.sizes["d_vocab"] ** 2 * model.sizes["d_head"]
        return every if work <= _AFFORDABLE else []
    by_name = {f"{n}.{h}": (n, h) for n, h in every}
    if unknown := [name for name in config.heads if name not in by_name]:
        raise InputError(
            f"{', '.join(unknown)} is no head of {model.name}; heads are written LAYER.HEAD, 0.0 … "
            f"{every[-1][0]}.{every[-1][1]}"
        )
    return [by_name[name] for name in config.heads]


def _read(
    model: Model, config: Config, listed: list[tuple[int, int]], recorder: Recorder
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores of every head, and the strongest pairs of the listed ones."""
    embeddings, head = token_embeddings(model), readout(model)
    recorder.add(passes=-(-len(embeddings) // 4096))
    generator = torch.Generator().manual_seed(config.seed)
    sample = torch.randperm(len(embeddings), generator=generator)[: config.sample].to(embeddings.device)
    shape = (model.n_layers, model.n_heads)
    scores, itself = np.zeros(shape), np.zeros(shape)
    eigenvalues = np.zeros((*shape, model.sizes["d_head"], 2), dtype=np.float32)
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for n in range(model.n_layers):
        for h, circuit in enumerate(token_ov(model, n, head, embeddings)):
            values = circuit.eigenvalues()
            scores[n, h] = float(copying(values))
            eigenvalues[n, h] = torch.view_as_real(values[values.abs().argsort(descending=True)]).cpu()
            itself[n, h] = writes_itself(circuit, sample)
            if (n, h) in listed:
                found[n, h] = _pairs(model, circuit, config.pairs, _PAIR_ARRAYS[:3])
        if any(layer == n for layer, _ in listed):
            for h, circuit in enumerate(token_qk(model, n, embeddings)):
                if (n, h) in listed:
                    found[n, h] |= _pairs(model, circuit, config.pairs, _PAIR_ARRAYS[3:])
    names = next(iter(found.values()), {})
    pairs = {name: np.array([found[place][name] for place in listed]) for name in names}
    return {"copying": scores, "writes_itself": itself, "eigenvalue": eigenvalues}, pairs


def _pairs(model: Model, circuit: LowRank, count: int, names: tuple[str, ...]) -> dict[str, Any]:
    values, rows, columns = circuit.largest(count)
    texts = ([_text(model, int(token)) for token in side] for side in (rows, columns))
    return dict(zip(names, (values.cpu().numpy(), *texts), strict=True))


def _text(model: Model, token: int) -> str:
    known = model.tokenizer is not None and token < len(model.tokenizer)
    return token_text(model.tokenizer, token) if known else str(token)
