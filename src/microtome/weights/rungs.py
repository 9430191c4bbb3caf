"""How close do rules come to the model on text? Predictors that know more and more, scored against the model itself.

Rows in the first half are counted, rows in the second half predicted. Every predictor gives log-probabilities for the
token after each place, and is scored by KL(model ‖ predictor), by its loss on the text, and by how often its best guess
is the model's own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.models.model import Model
from microtome.weights.token_story import TokenStory

NAMES = (
    "mean prediction of the model",
    "unigrams, counted",
    "bigrams, counted",
    "direct path",
    "direct path and few rules",
    "direct path and all rules",
    "all rules, the model's own patterns",
    "the model",
)
_STORY = NAMES.index("direct path and all rules")
Row = Int[Tensor, " _"]
"""A text; texts differ in length."""
Rule = tuple[int, int, int]
"""Ids of source, destination and out."""
_PRIOR = 1.0
"""Weight of the coarser counts among the finer ones, in tokens."""


@dataclass(frozen=True)
class Change:
    """Of an out after a destination: mean log-probability with the source before, minus that without."""

    model: float
    text: float
    cases: int


@dataclass(frozen=True)
class Rungs:
    """Scores of each predictor, the places where the story is furthest off, and how each rule fared."""

    names: tuple[str, ...]
    divergence: list[float]
    loss: list[float]
    agreement: list[float]
    places: int
    worst_places: list[tuple[int, int]]
    worst_model: list[int]
    worst_story: list[int]
    worst_divergence: list[float]
    changes: list[Change]


class _Test:
    """One rule at every place of the text where its destination stands and something follows."""

    def __init__(self, rule: Rule) -> None:
        self.source, self.destination, self.out = rule
        self.cases: tuple[list[tuple[float, bool]], list[tuple[float, bool]]] = ([], [])

    def see(self, ids: Int[Tensor, " position"], own: Float[Tensor, "position token"]) -> None:
        before = (ids == self.source).cumsum(0) > 0
        for place in (ids[:-1] == self.destination).nonzero()[:, 0].tolist():
            case = (float(own[place, self.out]), bool(ids[place + 1] == self.out))
            self.cases[bool(before[place])].append(case)

    @property
    def change(self) -> Change:
        without, with_source = self.cases
        if not with_source or not without:
            return Change(math.nan, math.nan, len(with_source))
        model = sum(p for p, _ in with_source) / len(with_source) - sum(p for p, _ in without) / len(without)
        return Change(model, _log_share(with_source) - _log_share(without), len(with_source))


def _log_share(cases: list[tuple[float, bool]]) -> float:
    """Log of the share of cases in which the out follows, one half of a case added to either side."""
    return math.log((sum(right for _, right in cases) + 0.5) / (len(cases) + 1))


def climb(
    model: Model,
    story: TokenStory,
    rows: Sequence[Row],
    rules: Sequence[Rule],
    top: int,
    worst: int,
) -> Rungs:
    """Score every predictor on the second half of the rows, and test the rules on all. One pass for each row."""
    half = len(rows) // 2
    everything = torch.arange(model.sizes["d_vocab"], device=model.device)
    counts = _Counts(model, rows[:half])
    tables = [story.tables(h, top) for h in range(story.q.shape[1])]
    totals = torch.zeros(3, len(NAMES), dtype=torch.float64)
    places, furthest = 0, []
    tests = [_Test(rule) for rule in rules]
    for number, ids in enumerate(rows):
        run = model.run(ids[None], ["pattern.0"] if number >= half else [], logits=True)
        assert run.logits is not None
        own = run.logits[0].float().log_softmax(-1)
        for test in tests:
            test.see(ids, own)
        if number < half:
            counts.see(own)
            continue
        at = story.index(ids.to(story.tokens.device))
        stream, pattern = story.stream[at], story.pattern(at)
        whole = stream + story.attention(at, pattern)
        informed = stream + story.attention(at, run["pattern.0"][0].float())
        guesses = [
            counts.mean().expand_as(own),
            counts.unigram().expand_as(own),
            counts.bigrams(ids),
            story.head.capped(story.logits(stream, everything)).log_softmax(-1),
            story.head.capped(_few_rules(story, at, pattern, whole, tables, everything)).log_softmax(-1),
            story.head.capped(story.logits(whole, everything)).log_softmax(-1),
            story.head.capped(story.logits(informed, everything)).log_softmax(-1),
            own,
        ]
        gaps = _score(totals, own, guesses, ids)
        places += len(ids) - 1
        furthest += [
            (float(gap), number, place, int(own[place].argmax()), int(guesses[_STORY][place].argmax()))
            for place, gap in enumerate(gaps[_STORY])
        ]
    furthest = sorted(furthest, reverse=True)[:worst]
    divergence, loss, agreement = (totals / places).tolist()
    return Rungs(
        NAMES,
        divergence,
        loss,
        agreement,
        places,
        [(row, place) for _, row, place, _, _ in furthest],
        [token for *_, token, _ in furthest],
        [token for *_, token in furthest],
        [gap for gap, *_ in furthest],
        [test.change for test in tests],
    )


def _score(
    totals: Float[Tensor, "score rung"],
    own: Float[Tensor, "position token"],
    guesses: list[Float[Tensor, "position token"]],
    ids: Int[Tensor, " position"],
) -> list[Float[Tensor, " place"]]:
    """Add divergence, loss and agreement of each predictor to the totals; returns the divergence at each place."""
    gaps = []
    for rung, guess in enumerate(guesses):
        terms = torch.where(own > -torch.inf, own.exp() * (own - guess), 0.0)[:-1]
        gaps.append(terms.sum(-1))
        following = guess[:-1].gather(-1, ids[1:, None].to(guess.device))
        totals[0, rung] += gaps[-1].sum().double().cpu()
        totals[1, rung] -= following.sum().double().cpu()
        totals[2, rung] += (guess[:-1].argmax(-1) == own[:-1].argmax(-1)).sum().double().cpu()
    return gaps


def _few_rules(
    story: TokenStory,
    at: Int[Tensor, " position"],
    pattern: Float[Tensor, "head query key"],
    whole: Float[Tensor, "position d_model"],
    tables: list[tuple[Tensor, Tensor]],
    everything: Int[Tensor, " token"],
) -> Float[Tensor, "position token"]:
    """The direct path, and of what each source makes a head write its few strongest logits. Divisors are the whole
    story's."""
    divisor = story.head.norm.scale(whole)
    direct = story.stream[at] / divisor @ story.head.directions(everything).T
    logits = direct + story.head.norm_bias(everything) + story.head.bias(everything)
    if story.after is not None:
        mixed = torch.einsum("hqk,khd->qhd", pattern, story.v[at])
        divisor = divisor * story.after.scale(torch.einsum("qhd,hdm->qm", mixed, story.written) + story.bias)
    for h, (values, outs) in enumerate(tables):
        rules = torch.zeros(len(at), logits.shape[1], device=logits.device)
        rules.scatter_(1, outs[at], values[at])
        logits = logits + pattern[h] @ rules / divisor
    return logits


class _Counts:
    """Unigrams and bigrams of a text, each smoothed by the next coarser, and the model's mean prediction on it."""

    def __init__(self, model: Model, rows: Sequence[Row]) -> None:
        self.size = model.sizes["d_vocab"]
        self.device = model.device
        following = torch.cat([row[1:] for row in rows]).to(self.device)
        self.single = torch.bincount(following, minlength=self.size).float()
        self.pairs = torch.cat([row[:-1] for row in rows]).to(self.device) * self.size + following
        self.total = torch.zeros(self.size, dtype=torch.float64, device=self.device)

    def see(self, own: Float[Tensor, "position token"]) -> None:
        self.total += own.exp().sum(dim=0).double()

    def mean(self) -> Float[Tensor, " token"]:
        return (self.total / self.total.sum()).float().clamp_min(1e-30).log()

    def unigram(self) -> Float[Tensor, " token"]:
        counted = self.single + _PRIOR
        return (counted / counted.sum()).log()

    def bigrams(self, ids: Int[Tensor, " position"]) -> Float[Tensor, "position token"]:
        unigram = self.unigram().exp()
        rows = []
        for token in ids.tolist():
            after = self.pairs[self.pairs // self.size == token] % self.size
            counted = torch.bincount(after, minlength=self.size).float()
            rows.append(((counted + _PRIOR * unigram) / (len(after) + _PRIOR)).log())
        return torch.stack(rows)
