"""Which rules of the form `source … destination → out` does an attention layer hold, and how much do they explain?

1. Of the tokens that occur in the text, the first layer's QK and OV are read off by token (`token_story`), positions
   and later layers left out. The direct path from embedding to logits holds the bigrams.
2. The strongest rules are listed: bigrams by logit, skip-trigrams by how much the destination prefers the source times
   how much the source raises the out.
3. Each skip-trigram is held against the model: is the out likelier, after the destination, with the source before than
   without? And against the text. A rule that the table holds and the model does not obey is where the story is wrong;
   the product form forces some, since any source that serves two destinations serves both with all its outs.
4. The story is run as a predictor on the second half of the text, in rungs that know more and more: the mean
   prediction, counted unigrams and bigrams (from the first half), the direct path, the direct path with a few rules for
   each source, with all rules, and with the model's own patterns in place of those by token.
5. Each rung is scored by its divergence from the model's own predictions, by its loss on the text, and by how often its
   best guess is the model's. The places where the whole story is furthest from the model are shown.

Elhage et al. (2021), A Mathematical Framework for Transformer Circuits.
"""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, RuleScores
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.errors import InputError
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Shape, Table
from microtome.data.observed import Observed, as_prompts
from microtome.data.prompts import Prompts
from microtome.data.tokens import token_text
from microtome.models.model import Model
from microtome.weights.rungs import Rungs, climb
from microtome.weights.token_story import TokenStory, token_story

card = Card(
    name="skip_trigrams",
    title="Skip-trigrams",
    question="Which bigram and skip-trigram rules does the first layer hold, and how much behaviour do they explain?",
    steps=(
        "Read QK, OV and the direct path by token, positions and later layers left out.",
        "List the strongest bigrams and skip-trigrams.",
        "Test each rule on the model and on the text: is the out likelier with the source before than without?",
        "Run the rules as a predictor on held-out text, beside counted unigrams and bigrams.",
        "Score each by divergence from the model and by loss; show where the story is furthest off.",
    ),
    reference="Elhage et al. (2021), A Mathematical Framework for Transformer Circuits",
    misleads=(
        "The story is of one attention layer. In deeper models, or with an MLP, most of the behaviour lies outside it, "
        "as its score then says. A table of the strongest rules shows the rarest tokens; the score is over all of them."
    ),
    needs="tokens",
    causal="observation",
    locality="global",
    comprehensiveness="partial",
    claims=("rule:skip_trigram", "rule:bigram"),
)


class Config(base.Config):
    """Settings of skip-trigrams."""

    rules: int = Field(20, ge=1, description="How many rules of each kind to list.")
    top: int = Field(8, ge=1, description="Logits kept for each source and head in the rung with few rules.")
    worst: int = Field(10, ge=1, description="Places to show where the story is furthest from the model.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`divergence`, `loss` (nats), `agreement` `[rung]`; `bigram_*` `[bigram]` and `rule_*` `[rule]`: tokens as text
    and by id (`bigram_ids`, `rule_ids`), strength; for skip-trigrams `rule_model` and `rule_text`, the change of the
    out's log-probability when the source stands before (NaN where the text does not show both cases); `worst_*`
    `[place]`."""

    def answers(self) -> tuple[Answer, ...]:
        return tuple(
            RuleScores(
                kind,
                {
                    tuple(ids.tolist()): float(strength)
                    for ids, strength in zip(
                        self.data[f"{name}_ids"].values, self.data[strongest].values, strict=True
                    )
                },
            )
            for kind, name, strongest in (
                ("skip_trigram", "rule", "rule_strength"),
                ("bigram", "bigram", "bigram_logit"),
            )
        )

    def shapes(self) -> tuple[Shape, ...]:
        data, places = self.data, self.data.attrs["places"]
        unigram = float(data["divergence"].sel(rung="unigrams, counted"))
        rungs = Table(
            "How much the rules explain",
            ("predictor", "divergence from the model", "explained", "loss on the text", "same best guess"),
            tuple(
                (
                    str(rung),
                    float(data["divergence"].sel(rung=rung)),
                    1 - float(data["divergence"].sel(rung=rung)) / unigram,
                    float(data["loss"].sel(rung=rung)),
                    float(data["agreement"].sel(rung=rung)),
                )
                for rung in data["rung"].values
            ),
            f"Nats per token over {places} tokens of held-out text. Explained: the share of the divergence of counted "
            "unigrams that is gone.",
            self.notes,
        )
        bigrams = self._table("Bigrams of the direct path", ("token", "out", "logit"), "bigram")
        rules = self._table(
            "Skip-trigrams",
            ("head", "source", "destination", "out", "strength", "model", "text", "cases"),
            "rule",
        )
        worst = self._table(
            "Where the story is furthest from the model",
            ("context", "model_says", "story_says", "divergence"),
            "worst",
        )
        return (rungs, rules, bigrams, worst)

    def _table(self, title: str, columns: tuple[str, ...], prefix: str) -> Table:
        arrays = [self.data[f"{prefix}_{column}"].values for column in columns]
        captions = {
            "bigram": "The strongest, chosen by logit relative to the mean over the vocabulary.",
            "rule": "The strongest, chosen by preference × effect. `model`, `text`: change of the out's "
            "log-probability after the destination when the source stands before; not above zero: the rule fails.",
            "worst": f"The largest of {self.data.attrs['places']} tokens, chosen by divergence.",
        }
        rows = tuple(
            tuple(value.item() if isinstance(value, np.generic) else str(value) for value in row)
            for row in zip(*arrays, strict=True)
        )
        return Table(title, columns, rows, captions[prefix])


@torch.no_grad()
def run(model: Model, data: Observed, config: Config | None = None) -> Result:
    """Read the rules of the first layer, test them, and score them on text.

    data: at least two prompts, texts or rows of ids; the first half is counted, the second half predicted.
    Raises `InputError` for fewer.
    """
    config = config or Config()
    prompts = as_prompts(data, model.tokenizer)
    if len(prompts) < 2 or prompts.tokens.shape[1] < 2:
        raise InputError(
            f"expected at least two rows of at least two tokens, one half to count and one to predict; got "
            f"{list(prompts.tokens.shape)}"
        )
    rows = [row[real] for row, real in zip(prompts.tokens, _real(prompts), strict=True)]
    with measure() as recorder:
        story = token_story(model, torch.cat(rows).tolist(), prompts.tokens.shape[1])
        found = _strongest(story, config.rules)
        tested = [(int(story.tokens[s]), int(story.tokens[d]), out) for _, _, s, d, out in found]
        rungs = climb(model, story, rows, tested, config.top, config.worst)
        recorder.add(passes=4 + len(rows))
        pairs, bigrams = _bigrams(model, story, config.rules)
        rules = _rules(model, story, found, rungs)
    worst: dict[str, list[str] | list[float]] = {
        "worst_context": [_context(model, rows[row], place) for row, place in rungs.worst_places],
        "worst_model_says": [_text(model, token) for token in rungs.worst_model],
        "worst_story_says": [_text(model, token) for token in rungs.worst_story],
        "worst_divergence": rungs.worst_divergence,
    }
    return Result.of(
        card,
        xr.Dataset(
            {
                **{name: ("rung", getattr(rungs, name)) for name in ("divergence", "loss", "agreement")},
                **{name: ("bigram", values) for name, values in bigrams.items()},
                **{name: ("rule", values) for name, values in rules.items()},
                "bigram_ids": (("bigram", "pair"), pairs),
                "rule_ids": (("rule", "triple"), np.array(tested).reshape(-1, 3)),
                **{name: ("place", np.array(values)) for name, values in worst.items()},
            },
            {"rung": list(rungs.names)},
            {"places": rungs.places},
        ),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), prompts.hash),
        recorder.cost(),
        _notes(model, rules, rungs),
    )


def _real(prompts: Prompts) -> Tensor:
    return torch.ones_like(prompts.tokens, dtype=torch.bool) if prompts.mask is None else prompts.mask.bool()


def _bigrams(model: Model, story: TokenStory, count: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The strongest, as ids `[bigram, 2]` and as columns."""
    logits = story.direct()
    logits = logits - logits.mean(dim=-1, keepdim=True)
    top = logits.flatten().topk(min(count, logits.numel()))
    outs = top.indices % logits.shape[1]
    tokens = story.tokens[(top.indices // logits.shape[1]).cpu()]
    return torch.stack([tokens, outs.cpu()], -1).numpy(), {
        "bigram_token": np.array([_text(model, int(token)) for token in tokens]),
        "bigram_out": np.array([_text(model, int(out)) for out in outs]),
        "bigram_logit": top.values.cpu().numpy(),
    }


Found = tuple[float, int, int, int, int]
"""Strength, head, index of the source, index of the destination, id of the out."""


def _strongest(story: TokenStory, count: int) -> list[Found]:
    """The strongest skip-trigrams of the layer: for each head, destination and source the best out."""
    found: list[Found] = []
    for h in range(story.q.shape[1]):
        values, outs = story.tables(h, 1)
        preference = story.scores(h)
        preference = (preference - preference.mean(dim=1, keepdim=True)).clamp_min(0)
        strength = preference * values[:, 0].clamp_min(0)
        top = strength.flatten().topk(min(count, strength.numel()))
        for value, place in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            destination, source = divmod(place, len(story.tokens))
            found.append((value, h, source, destination, int(outs[source, 0])))
    return sorted(found, reverse=True)[:count]


def _rules(model: Model, story: TokenStory, found: list[Found], rungs: Rungs) -> dict[str, np.ndarray]:
    def texts(ids: list[int]) -> np.ndarray:
        return np.array([_text(model, token) for token in ids])

    return {
        "rule_head": np.array([f"0.{h}" for _, h, *_ in found]),
        "rule_source": texts([int(story.tokens[s]) for _, _, s, _, _ in found]),
        "rule_destination": texts([int(story.tokens[d]) for *_, d, _ in found]),
        "rule_out": texts([out for *_, out in found]),
        "rule_strength": np.array([value for value, *_ in found]),
        "rule_model": np.array([change.model for change in rungs.changes]),
        "rule_text": np.array([change.text for change in rungs.changes]),
        "rule_cases": np.array([change.cases for change in rungs.changes]),
    }


def _notes(model: Model, rules: dict[str, np.ndarray], rungs: Rungs) -> tuple[str, ...]:
    seen = np.isfinite(rules["rule_model"])
    broken = int((rules["rule_model"][seen] <= 0).sum())
    notes = [
        f"{int(seen.sum())} of the {len(seen)} rules listed could be tested on the text; the model does not obey "
        f"{broken}.",
    ]
    if model.n_layers > 1 or model.has("mlp_out.0"):
        notes.append(
            "This model is more than one attention layer; what its other parts do is outside the story and counts as "
            "unexplained."
        )
    return tuple(notes)


def _context(model: Model, ids: Int[Tensor, " position"], place: int) -> str:
    return "".join(_text(model, token) for token in ids[max(0, place - 7) : place + 1].tolist())


def _text(model: Model, token: int) -> str:
    known = model.tokenizer is not None and token < len(model.tokenizer)
    return token_text(model.tokenizer, token) if known else f" {token}"
