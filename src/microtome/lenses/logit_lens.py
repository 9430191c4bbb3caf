"""What would the model say if it stopped here? Every residual stream through the model's own head.

1. One pass reads the stream entering the first block, and after each attention and each MLP (in parallel blocks, after
   both).
2. Each goes through the model's own final norm, unembedding and soft cap: `Model.unembed`, nothing trained. It is the
   stream before the norm that is fed; what Transformers calls the last hidden state is already normed, and would be
   normed twice.
3. At each layer and position: log-probability and rank of the target token, the divergence of the lens from the final
   prediction, its entropy, and its top tokens.
4. The last stream must give the model's own logits; the difference is kept with the result.

nostalgebraist (2020), interpreting GPT: the logit lens.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, Quantities
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Curve, Grid, Shape, Table
from microtome.core.site import Site
from microtome.data.observed import Observed, as_prompts
from microtome.data.tokens import token_text
from microtome.models.model import Model

card = Card(
    name="logit_lens",
    title="Logit lens",
    question="At which layer does the model's prediction take shape, and through which guesses?",
    steps=(
        "Read the residual stream before the first block and after every attention and MLP.",
        "Put each through the model's own final norm and unembedding.",
        "Compare with the target token and with the final prediction, at every layer and position.",
    ),
    reference="nostalgebraist (2020), interpreting GPT: the logit lens",
    misleads=(
        "The head is made for the last stream. Early streams may hold the answer in another form, which the lens "
        "cannot see, and some models shift their representation so much that early readings are noise."
    ),
    needs="tokens",
    causal="observation",
    locality="local",
    comprehensiveness="partial",
    claims=("quantity:top",),
)

_MEASURES = ("log_probability", "rank", "divergence", "entropy")


class Config(base.Config):
    """Settings of the logit lens."""

    target: Literal["next", "final"] = Field(
        "next",
        description="`next`: the token that follows in the text (at the end of a text, the model's own choice). "
        "`final`: the model's own most likely token, everywhere.",
    )
    top: int = Field(5, ge=1, description="How many of the most likely tokens to keep at each place.")
    block: int = Field(256, ge=1, description="Positions unembedded at a time.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """Over `[site, row, position]`, NaN at padding: `log_probability` (nats) and `rank` (1 is the top) of the target,
    `divergence` KL(final ‖ lens) in nats, `entropy` in nats; `top_token` `[site, row, position, rank]` as text,
    `token` and `target` `[row, position]` as text."""

    def answers(self) -> tuple[Answer, ...]:
        """At each site, the share of places at which the lens puts the target on top."""
        right = (self.data["rank"] == 1).where(self.data["rank"].notnull()).mean(("row", "position"))
        return (
            Quantities(
                {f"top.{site}": float(right.sel(site=site)) for site in right["site"].values.tolist()}
            ),
        )

    def shapes(self) -> tuple[Shape, ...]:
        sites = tuple(map(str, self.data["site"].values))
        rows, real = self.data.sizes["row"], self.data["token"].values[0] != ""
        tokens = tuple(map(str, self.data["token"].values[0][real]))
        places = int(np.isfinite(self.data["rank"].values[0]).sum())

        def grid(name: str, title: str, unit: str) -> Grid:
            return Grid(
                title,
                self.data[name].values[:, 0, real],
                "site",
                sites,
                "position",
                tokens,
                unit,
                diverging=False,
                caption=f"The first of {rows} prompts, not chosen: {self.data['row'].values[0]}",
            )

        mean = np.stack(
            [np.nanmean(self.data[name].values, axis=(1, 2)) for name in ("log_probability", "divergence")]
        )
        curve = Curve(
            "Through the layers",
            np.arange(len(sites), dtype=float),
            mean,
            ("log-probability of the target", "divergence from the final prediction"),
            "site",
            "nats",
            caption=f"Mean over {places} tokens of {rows} prompts. Sites: {sites[0]} … {sites[-1]}.",
        )
        last = int(np.flatnonzero(real)[-1])
        table = Table(
            "Guesses at the last token",
            ("site", *(f"{i + 1}" for i in range(self.data.sizes["choice"]))),
            tuple(
                (site, *(str(token) for token in self.data["top_token"].values[i, 0, last]))
                for i, site in enumerate(sites)
            ),
            f"The first of {rows} prompts, not chosen. Target: {self.data['target'].values[0, last]!r}.",
            self.notes,
        )
        return (
            grid("log_probability", "Log-probability of the target", "nats"),
            grid("rank", "Rank of the target", ""),
            grid("divergence", "Divergence from the final prediction", "nats"),
            curve,
            table,
        )


def streams(model: Model) -> list[Site]:
    """The residual streams of a model, in the order of a pass."""
    found = [Site("resid_pre", 0)]
    for n in range(model.n_layers):
        found += [Site("resid_mid", n)] if model.has(Site("resid_mid", n)) else []
        found.append(Site("resid_post", n))
    return found


@torch.no_grad()
def run(model: Model, data: Observed, config: Config | None = None) -> Result:
    """Read every residual stream of each prompt through the model's head.

    data: prompts, pairs (their clean prompts), texts or token ids. Raises `SiteError` for a model without a head.
    """
    config = config or Config()
    prompts = as_prompts(data, model.tokenizer)
    sites = streams(model)
    with measure() as recorder:
        seen = model.run(prompts.tokens, sites, logits=True, mask=prompts.mask)
        recorder.add(passes=1)
        assert seen.logits is not None
        ids, logits = prompts.tokens.to(seen.logits.device), seen.logits.float()
        real = (
            torch.ones_like(ids, dtype=torch.bool)
            if prompts.mask is None
            else prompts.mask.bool().to(ids.device)
        )
        targets = _targets(ids, real, logits.argmax(-1), config.target)
        final = logits[real].log_softmax(-1)
        measured = {name: np.full((len(sites), *ids.shape), np.nan, dtype=np.float32) for name in _MEASURES}
        top = np.zeros((len(sites), *ids.shape, min(config.top, logits.shape[-1])), dtype=np.int64)
        where = real.cpu().numpy()
        for i, site in enumerate(sites):
            values, best, last = _through(model, seen[site][real], final, targets[real], config)
            for name in _MEASURES:
                measured[name][i][where] = values[name].cpu().numpy()
            top[i][where] = best.cpu().numpy()
        error = float((last - logits[real]).abs().max() / logits[real].abs().max().clamp_min(1e-30))
    text = _Texts(model)
    notes = [f"The last stream gives the model's own logits to {error:.1e} relative."]
    if model.anatomy.family.residual == "post_norm":
        notes.append("In this model each stream has been normed already; an early one is not half of a sum.")
    return Result.of(
        card,
        xr.Dataset(
            {
                **{name: (("site", "row", "position"), values) for name, values in measured.items()},
                "top_token": (("site", "row", "position", "choice"), text.of(top, where[None, :, :, None])),
                "token": (("row", "position"), text.of(ids.cpu().numpy(), where)),
                "target": (("row", "position"), text.of(targets.cpu().numpy(), where)),
            },
            {
                "site": [str(site) for site in sites],
                "row": list(prompts.texts),
                "position": np.arange(ids.shape[1]),
            },
            {"error": error},
        ),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), prompts.hash),
        recorder.cost(),
        notes,
    )


def _targets(
    ids: Int[Tensor, "row position"], real: Tensor, own: Int[Tensor, "row position"], which: str
) -> Int[Tensor, "row position"]:
    """The token asked for at each position; where the text has no next one, the model's own choice."""
    if which == "final":
        return own
    following = torch.zeros_like(real)
    following[:, :-1] = real[:, :-1] & real[:, 1:]
    return torch.where(following, ids.roll(-1, dims=1), own)


def _through(
    model: Model,
    stream: Float[Tensor, "place d_model"],
    final: Float[Tensor, "place token"],
    targets: Int[Tensor, " place"],
    config: Config,
) -> tuple[dict[str, Tensor], Int[Tensor, "place choice"], Float[Tensor, "place token"]]:
    """The measures, the top tokens and the logits of one stream, block by block."""
    found: dict[str, list[Tensor]] = {name: [] for name in _MEASURES}
    best, all_logits = [], []
    for start in range(0, len(stream), config.block):
        part = slice(start, start + config.block)
        logits = model.unembed(stream[part]).float()
        log_probabilities = logits.log_softmax(-1)
        target = log_probabilities.gather(-1, targets[part, None])
        probabilities = final[part].exp()
        # A token of probability zero takes no part, though its logarithm is minus infinity.
        terms = torch.where(probabilities > 0, probabilities * (final[part] - log_probabilities), 0.0)
        found["log_probability"].append(target[:, 0])
        found["rank"].append(1 + (log_probabilities > target).sum(-1))
        found["divergence"].append(terms.sum(-1))
        found["entropy"].append(torch.special.entr(log_probabilities.exp()).sum(-1))
        best.append(log_probabilities.topk(min(config.top, logits.shape[-1])).indices)
        all_logits.append(logits)
    return {name: torch.cat(pieces) for name, pieces in found.items()}, torch.cat(best), torch.cat(all_logits)


class _Texts:
    """Token ids as text, each decoded once."""

    def __init__(self, model: Model) -> None:
        self.tokenizer = model.tokenizer
        self.known: dict[int, str] = {}

    def of(self, ids: np.ndarray, where: np.ndarray) -> np.ndarray:
        """The text of each id; nothing where `where` is false."""
        for token in np.unique(ids):
            if int(token) not in self.known:
                inside = self.tokenizer is not None and token < len(self.tokenizer)
                self.known[int(token)] = token_text(self.tokenizer, int(token)) if inside else str(token)
        texts = np.array([self.known[int(token)] for token in ids.ravel()]).reshape(ids.shape)
        return np.where(where, texts, "")
