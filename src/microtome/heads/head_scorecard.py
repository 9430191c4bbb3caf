"""What kind of head is each? Scores on random repeated tokens, beside what chance would score.

1. Rows of random tokens that repeat, each row with its own period, so that position alone tells nothing.
2. From the patterns, the mean attention on
     induction   what followed earlier occurrences of the token, all occurrences together (prefix matching)
     previous    the token before
     duplicate   earlier occurrences of the token
3. From the weights, copying: the eigenvalues of OV over the vocabulary, their sum over the sum of their sizes.
4. From both, own logit: the direct effect of a head on the logit of the token it attends to. Negative is suppression.
5. Each score with a 95 % interval over the rows (Student's t).
6. Three controls: attention spread evenly; the places of another row's tokens, whose period is another; the same model
   with its weights shuffled. A head is named for a score only if its whole interval is beyond every head of the twin,
   and beyond the other two.

Elhage et al. (2021), A Mathematical Framework; Olsson et al. (2022), In-context Learning and Induction Heads; McDougall
et al. (2023), Copy Suppression.
"""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import t as student
from torch import Tensor

from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, NodeScores
from microtome.core.card import Card
from microtome.core.cost import Recorder, measure
from microtome.core.provenance import Provenance, hash_tensors, model_hash
from microtome.core.shapes import Grid, Shape, Table
from microtome.core.site import Site
from microtome.heads.own_logit import own_logit_effect
from microtome.heads.relations import allowed, mass, relations, uniform
from microtome.heads.repeated_tokens import RepeatedTokens, repeated_tokens
from microtome.models.head_circuits import token_embeddings, token_ov
from microtome.models.low_rank import copying
from microtome.models.model import Model
from microtome.models.random_twin import random_twin
from microtome.models.readout import readout

card = Card(
    name="head_scorecard",
    title="Attention-head scorecard",
    question="Which heads are induction, previous-token, duplicate-token, copying or suppressing heads?",
    steps=(
        "Make rows of random tokens that repeat with a period of their own.",
        "Score where each head looks: on what followed earlier occurrences, on the token before, on the same token.",
        "Score what it writes: eigenvalues of OV, and its direct effect on the logit of the token it attends to.",
        "Give each score an interval over the rows, and compare with a shuffled twin, other rows and even attention.",
    ),
    reference="Olsson et al. (2022), In-context Learning and Induction Heads",
    misleads=(
        "Random tokens show what a head can do, not what it does on text. A score says where a head looks, not that "
        "the model needs it: several heads may do the same, and copying by eigenvalues knows only embeddings. Ablate."
    ),
    needs="weights",
    causal="observation",
    locality="global",
    comprehensiveness="partial",
    claims=(
        "role:induction",
        "role:previous_token",
        "role:duplicate_token",
        "role:suppression",
        "role:copying",
    ),
)

LOOKS = ("induction", "previous", "duplicate")
SCORES = (*LOOKS, "own_logit", "copying")
KINDS = {
    "induction": "induction head",
    "previous": "previous-token head",
    "duplicate": "duplicate-token head",
    "own_logit": "suppressing head",
    "copying": "copying head",
}
ROLES = {
    "induction": "induction",
    "previous": "previous_token",
    "duplicate": "duplicate_token",
    "own_logit": "suppression",
    "copying": "copying",
}


class Config(base.Config):
    """Settings of the scorecard."""

    rows: int = Field(16, ge=2, description="Rows of random tokens.")
    length: int = Field(48, ge=4, description="Tokens in a row.")
    shortest: int = Field(8, ge=2, description="Shortest period.")
    longest: int = Field(20, ge=2, description="Longest period.")
    control: bool = Field(
        True, description="Whether to score a twin with shuffled weights too; naming needs it."
    )
    seed: base.Seed = Field(0, description="Of the tokens and the twin.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """Over `[score, layer, head]`: `mean`, `low`, `high` (95 %; copying has no interval), `other_rows`, `twin`, and
    `named`: whether the head is named for this score. `evenly` `[score]`. Scores: induction previous duplicate
    (attention), own_logit (logits), copying (-1 … 1)."""

    def answers(self) -> tuple[Answer, ...]:
        """How much each head is of each kind; being the opposite of a kind counts as not being it."""
        sign = {"own_logit": -1.0}  # a suppressing head lowers the logit of the token it looks at
        return tuple(
            NodeScores(
                {
                    f"z.{n}.h{h}": max(0.0, sign.get(score, 1.0) * float(value))
                    for (n, h), value in np.ndenumerate(self.data["mean"].sel(score=score).values)
                    if np.isfinite(value)
                },
                role,
            )
            for score, role in ROLES.items()
        )

    def shapes(self) -> tuple[Shape, ...]:
        layers, heads = (tuple(map(str, self.data[name].values)) for name in ("layer", "head"))
        rows = self.data.attrs["rows"]
        grids = [
            Grid(
                title,
                self.data["mean"].sel(score=list(scores)).values,
                "layer",
                layers,
                "head",
                heads,
                unit,
                scores,
                diverging=scores != LOOKS,
                caption=f"Mean over {rows} rows of random repeated tokens. {self._chance(scores)}",
            )
            for title, scores, unit in (
                ("Where heads look", LOOKS, "attention"),
                ("What heads do to the token they attend to", ("own_logit",), "logits"),
                ("Copying by the eigenvalues of OV", ("copying",), ""),
            )
        ]
        return (self._named(), *grids)

    def _chance(self, scores: tuple[str, ...]) -> str:
        told = []
        for score in scores:
            one = self.data.sel(score=score)
            twin = one["twin"].values
            even = f"{float(one['evenly']):.2f} evenly, " if score in LOOKS else ""
            beside = (
                f"twin {np.nanmin(twin):.2f} … {np.nanmax(twin):.2f}"
                if np.isfinite(twin).any()
                else "no twin"
            )
            told.append(f"{score}: {even}{beside}")
        return "Chance: " + "; ".join(told) + "."

    def _named(self) -> Table:
        rows: list[tuple[str, str, float, float, float, float]] = []
        for i, score in enumerate(map(str, self.data["score"].values)):
            one = self.data.isel(score=i)
            for n, h in np.argwhere(one["named"].values):
                twin = one["twin"].values
                rows.append(
                    (
                        f"{n}.{h}",
                        KINDS[score],
                        float(one["mean"].values[n, h]),
                        float(one["low"].values[n, h]),
                        float(one["high"].values[n, h]),
                        float(np.nanmin(twin) if score == "own_logit" else np.nanmax(twin)),
                    )
                )
        total = self.data.sizes["layer"] * self.data.sizes["head"]
        ordered = sorted(rows, key=lambda row: (row[1], -abs(row[2])))
        return Table(
            "Heads named",
            ("head", "kind", "score", "low", "high", "best head of the twin"),
            tuple(ordered),
            f"{len({row[0] for row in rows})} of {total} heads are beyond chance on some score; the rest have no name.",
            self.notes,
        )


@torch.no_grad()
def run(model: Model, data: None = None, config: Config | None = None) -> Result:
    """Score every head. `data` is not looked at: the tokens are made here.

    Raises `InputError` where the vocabulary or the positions are too few for the tokens asked for.
    """
    config = config or Config()
    periods = (config.shortest, config.longest)
    tokens = repeated_tokens(model, config.rows, config.length, periods, config.seed)
    with measure() as recorder:
        scores, others, evenly = _score(model, tokens, recorder)
        twin = np.full((len(SCORES), model.n_layers, model.n_heads), np.nan)
        if config.control:
            twin = np.nanmean(_score(random_twin(model, config.seed), tokens, recorder)[0], axis=-1)
    mean, low, high = intervals(scores)
    other = np.nanmean(others, axis=-1)
    named = (
        names(mean, low, high, other, evenly, twin) if config.control else np.zeros(mean.shape, dtype=bool)
    )
    place = ("score", "layer", "head")
    return Result.of(
        card,
        xr.Dataset(
            {
                "mean": (place, mean),
                "low": (place, low),
                "high": (place, high),
                "other_rows": (place, other),
                "twin": (place, twin),
                "named": (place, named),
                "evenly": ("score", evenly),
            },
            {"score": list(SCORES), "layer": np.arange(model.n_layers), "head": np.arange(model.n_heads)},
            {"rows": config.rows},
        ),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), hash_tensors({"tokens": tokens.ids})),
        recorder.cost(),
        (
            "Random tokens show what a head can do, not what it does on text.",
            "A named head lies beyond all heads of the shuffled twin; with many heads and scores some pass by luck.",
        ),
    )


def _score(
    model: Model, tokens: RepeatedTokens, recorder: Recorder
) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]:
    """Scores `[score, layer, head, row]`, the same for another row's tokens, and those of even attention `[score]`."""
    size = (model.n_layers, model.n_heads)
    ids, start, other = tokens.ids, tokens.start, tokens.of_other_rows
    body = ids[:, start:]
    real = torch.ones_like(body, dtype=torch.bool)
    causal = model.anatomy.family.causal
    places = relations(body, real, causal)
    elsewhere = relations(other[:, start:], real, causal)
    seen = model.run(ids, [Site("pattern", n) for n in range(model.n_layers)])
    pattern = torch.stack([seen[Site("pattern", n)] for n in range(model.n_layers)], dim=1).float().cpu()
    flat = pattern.flatten(1, 2)[:, :, start:, start:]
    own, own_other = own_logit_effect(model, ids, other, start)
    recorder.add(passes=2)
    eigen = _copying(model)[None].expand(len(ids), -1, -1)
    looks, others = (
        torch.stack(
            [
                *(mass(flat, where[name]).view(-1, *size) for name in LOOKS),
                effect.cpu(),
                eigen,
            ]
        )
        for where, effect in ((places, own), (elsewhere, own_other))
    )
    even = uniform(allowed(real, causal))
    evenly = [float(mass(even, places[name]).nanmean()) for name in LOOKS] + [0.0, 0.0]
    return looks.permute(0, 2, 3, 1).numpy(), others.permute(0, 2, 3, 1).numpy(), np.array(evenly)


def _copying(model: Model) -> Float[Tensor, "layer head"]:
    head, embeddings = readout(model), token_embeddings(model)
    return torch.stack(
        [
            torch.stack([copying(one.eigenvalues()) for one in token_ov(model, n, head, embeddings)])
            for n in range(model.n_layers)
        ]
    ).cpu()


def intervals(
    scores: NDArray[np.floating],
) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]:
    """Mean over the last axis, and its 95 % interval by Student's t. Rows without a value (NaN) do not count."""
    count = np.isfinite(scores).sum(axis=-1)
    mean = np.nanmean(scores, axis=-1)
    error = np.nanstd(scores, axis=-1, ddof=1) / np.sqrt(count)
    half = student.ppf(0.975, count - 1) * error
    return mean, mean - half, mean + half


def names(
    mean: NDArray[np.floating],
    low: NDArray[np.floating],
    high: NDArray[np.floating],
    other: NDArray[np.floating],
    evenly: NDArray[np.floating],
    twin: NDArray[np.floating],
) -> NDArray[np.bool_]:
    """Which heads lie beyond chance `[score, layer, head]`: above it, for `own_logit` below it (suppression)."""
    best = np.nanmax(twin, axis=(1, 2), keepdims=True)
    found = (low > best) & (low > evenly[:, None, None])
    looks = slice(0, len(LOOKS))
    # Where the previous token stands does not depend on which tokens there are, so another row is no control for it.
    token_bound = np.array([name != "previous" for name in LOOKS])[:, None, None]
    found[looks] &= ~token_bound | (low[looks] > other[looks])
    own = SCORES.index("own_logit")
    worst = np.nanmin(twin[own])
    found[own] = (high[own] < min(worst, 0.0)) & (high[own] < other[own])
    return found
