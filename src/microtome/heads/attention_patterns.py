"""Where does each attention head look, on this text?

1. Patterns of the chosen layers and heads are read, a few prompts in a pass; the model keeps its own kernel.
2. For each head: the mean attention on the previous token, the first, itself, earlier copies of the same token, and
   what followed those copies; each over the tokens for which such a place exists.
3. The same numbers for attention spread evenly, which is what "no preference" looks like on this very text.
4. Entropy over the keys, as a share of the largest it could be: 0 looks at one token, 1 at all alike.
5. The patterns themselves are kept for the first few prompts.

Clark et al. (2019), What Does BERT Look At?; Elhage et al. (2021).
"""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, NodeScores
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.errors import InputError
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Grid, Shape, Strip, Table
from microtome.core.site import Site
from microtome.data.observed import Observed, as_prompts
from microtome.heads.relations import NAMES, allowed, mass, relations, uniform
from microtome.models.model import Model

ROLES = {"induction": "induction", "previous": "previous_token", "duplicate": "duplicate_token"}

card = Card(
    name="attention_patterns",
    title="Attention patterns",
    question="Where does each attention head look, on this text?",
    steps=(
        "Read the patterns of the chosen heads.",
        "Average the attention on the previous token, the first, itself, copies of the token, and what followed them.",
        "Compare with attention spread evenly on the same text.",
    ),
    reference="Clark et al. (2019), What Does BERT Look At?; Elhage et al. (2021), A Mathematical Framework",
    misleads=(
        "Where a head looks is not what it moves: attention to a token whose value is small, or that later parts "
        "ignore, does nothing. Much attention to the first token usually means that a head has nothing to do."
    ),
    needs="tokens",
    causal="observation",
    locality="local",
    comprehensiveness="partial",
    claims=("role:induction", "role:previous_token", "role:duplicate_token"),
)


class Config(base.Config):
    """Settings of attention patterns."""

    layers: tuple[int, ...] | None = Field(None, description="Layers to look at; by default all.")
    heads: tuple[int, ...] | None = Field(None, description="Heads to look at in each layer; by default all.")
    keep: int = Field(1, ge=1, description="Prompts whose patterns are kept whole.")
    rows_at_once: int = Field(8, ge=1, description="Prompts in one pass.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`looks` `[relation, layer, head]` and `evenly` `[relation]`: mean attention; `entropy` `[layer, head]` as a share
    of the largest possible; `pattern` `[row, layer, head, query, key]` of the first prompts; `token` `[row, query]`."""

    def answers(self) -> tuple[Answer, ...]:
        """Where each head looks, beyond what even attention would give."""
        return tuple(
            NodeScores(
                {
                    f"z.{self.data['layer'].values[n]}.h{self.data['head'].values[h]}": max(
                        0.0, float(value) - float(self.data["evenly"].sel(relation=relation))
                    )
                    for (n, h), value in np.ndenumerate(self.data["looks"].sel(relation=relation).values)
                    if np.isfinite(value)
                },
                role,
            )
            for relation, role in ROLES.items()
        )

    def shapes(self) -> tuple[Shape, ...]:
        layers, heads = (tuple(map(str, self.data[name].values)) for name in ("layer", "head"))
        relations_ = tuple(map(str, self.data["relation"].values))
        evenly = ", ".join(
            f"{name} {value:.2f}" for name, value in zip(relations_, self.data["evenly"].values, strict=True)
        )
        count = self.data.attrs["n_prompts"]
        looks = Grid(
            "Where each head looks",
            self.data["looks"].values,
            "layer",
            layers,
            "head",
            heads,
            "attention",
            relations_,
            diverging=False,
            caption=f"Mean over the tokens of {count} prompts that have such a place. Spread evenly: {evenly}.",
        )
        entropy = Grid(
            "How widely each head looks",
            self.data["entropy"].values,
            "layer",
            layers,
            "head",
            heads,
            "share of the largest entropy",
            diverging=False,
            caption=f"0 one token, 1 all alike. Mean over {count} prompts.",
        )
        return (looks, entropy, *self._text(), self._table(relations_))

    def _text(self) -> tuple[Shape, ...]:
        """The first prompt: each head's look back from the last token, and whole patterns of a few heads."""
        tokens = self.data["token"].values[0]
        real = np.flatnonzero(tokens != "")
        pattern = self.data["pattern"].values[0][:, :, real][..., real]
        names = [f"{n}.{h}" for n in self.data["layer"].values for h in self.data["head"].values]
        flat = pattern.reshape(-1, len(real), len(real))
        chosen = np.argsort(self.data["entropy"].values.ravel(), kind="stable")[:12]
        labels = tuple(str(tokens[i]) for i in real)
        prompt = f"The first of {self.data.attrs['n_prompts']} prompts, not chosen."
        return (
            Strip(
                "What the last token looks at",
                labels,
                flat[:, -1],
                tuple(names),
                "attention",
                f"{prompt} One line for each head.",
            ),
            Grid(
                "Patterns",
                flat[chosen],
                "query",
                labels,
                "key",
                labels,
                "attention",
                tuple(names[i] for i in chosen),
                diverging=False,
                caption=f"{prompt} The {len(chosen)} of {len(names)} heads that look most narrowly.",
            ),
        )

    def _table(self, names: tuple[str, ...]) -> Table:
        looks = self.data["looks"].values
        rows = []
        for i, name in enumerate(names):
            if np.isnan(looks[i]).all():
                continue
            for place in np.argsort(-np.nan_to_num(looks[i], nan=-1.0), axis=None)[:3]:
                n, h = np.unravel_index(place, looks[i].shape)
                head = f"{self.data['layer'].values[n]}.{self.data['head'].values[h]}"
                rows.append((name, head, float(looks[i, n, h]), float(self.data["evenly"].values[i])))
        return Table(
            "Heads that look there most",
            ("place", "head", "attention", "spread evenly"),
            tuple(rows),
            f"The top 3 of {looks[0].size} heads for each place, chosen by size.",
            self.notes,
        )


@torch.no_grad()
def run(model: Model, data: Observed, config: Config | None = None) -> Result:
    """Read where heads look on prompts, pairs (their clean prompts), texts or token ids.

    Raises `InputError` for a layer or head out of range.
    """
    config = config or Config()
    prompts = as_prompts(data, model.tokenizer)
    layers = _chosen("layer", config.layers, model.n_layers)
    heads = _chosen("head", config.heads, model.n_heads)
    sites = [Site("pattern", n, heads=tuple(heads)) for n in layers]
    real = torch.ones_like(prompts.tokens, dtype=torch.bool) if prompts.mask is None else prompts.mask.bool()
    causal = model.anatomy.family.causal
    looks, evenly, entropies, kept = [], [], [], []
    with measure() as recorder:
        for start in range(0, len(prompts), config.rows_at_once):
            rows = slice(start, start + config.rows_at_once)
            mask = None if prompts.mask is None else prompts.mask[rows]
            seen = model.run(prompts.tokens[rows], sites, mask=mask)
            recorder.add(passes=1)
            pattern = torch.stack([seen[site].float().cpu() for site in sites], dim=1)
            places = relations(prompts.tokens[rows].cpu(), real[rows].cpu(), causal)
            may = allowed(real[rows].cpu(), causal)
            flat = pattern.flatten(1, 2)
            looks.append(torch.stack([mass(flat, places[name]) for name in NAMES], dim=1))
            evenly.append(torch.stack([mass(uniform(may), places[name])[:, 0] for name in NAMES], dim=1))
            entropies.append(relative_entropy(flat, may))
            if start < config.keep:
                kept.append(pattern[: config.keep - start])
    size = (len(layers), len(heads))
    keep = torch.cat(kept)
    return Result.of(
        card,
        xr.Dataset(
            {
                "looks": (("relation", "layer", "head"), torch.cat(looks).nanmean(0).view(-1, *size).numpy()),
                "evenly": ("relation", torch.cat(evenly).nanmean(0).numpy()),
                "entropy": (("layer", "head"), torch.cat(entropies).nanmean(0).view(size).numpy()),
                "pattern": (("row", "layer", "head", "query", "key"), keep.numpy()),
                "token": (("row", "query"), _texts(prompts.tokens[: len(keep)], real, prompts.token_strings)),
            },
            {"relation": list(NAMES), "layer": layers, "head": heads},
            {"n_prompts": len(prompts)},
        ),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), prompts.hash),
        recorder.cost(),
    )


def relative_entropy(
    pattern: Float[Tensor, "row head query key"], may: Bool[Tensor, "row query key"]
) -> Float[Tensor, "row head"]:
    """Entropy of each query's attention over the logarithm of how many tokens it may look at; mean over the queries
    that have a choice, NaN for a row without one."""
    entropy = torch.special.entr(pattern).sum(-1)
    count = may.sum(-1)[:, None]
    choice = count > 1
    share = torch.where(choice, entropy / count.clamp_min(2).log(), 0.0)
    total = choice.sum(-1).float()
    return torch.where(total > 0, share.sum(-1) / total, torch.nan)


def _chosen(what: str, chosen: tuple[int, ...] | None, count: int) -> list[int]:
    if chosen is None:
        return list(range(count))
    if not chosen or any(not 0 <= index < count for index in chosen):
        raise InputError(
            f"{what}s {list(chosen)} are not all there: this model has {count} (0 … {count - 1})"
        )
    return list(chosen)


def _texts(ids: Tensor, real: Tensor, strings: dict[int, str]) -> list[list[str]]:
    return [
        [strings[token] if there else "" for token, there in zip(row, here, strict=True)]
        for row, here in zip(ids.tolist(), real.tolist(), strict=False)
    ]
