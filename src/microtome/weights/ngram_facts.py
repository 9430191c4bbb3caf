"""Which n-grams does the first MLP know: after `first second`, and not after either alone, `out`?

An attention layer can bring `first` to where `second` stands, but in the logits it can only add what each of them says.
That Nobel and Peace *together* make Prize needs a nonlinearity, so it is looked for in the neurons.

1. From the first half of the text, the pairs of adjacent tokens that occur most. Every first of theirs is combined with
   every second, as prompts of two tokens, and the neurons of the first MLP are read at the second.
2. Of each neuron, what the firsts and what the seconds explain by themselves is taken off: the interaction is left.
3. The interaction, written through `W_out` and the unembedding with the divisors frozen, is the fact: the out whose
   logit it raises most, by how much, and the neurons that do most of it. That is the prediction.
4. It is tested on the prompt: the carrying neurons are set to what they would be without interaction, and the logit
   must fall by what their share says.
5. It is tested on the second half of the text, by setting the same neurons to their mean: the out's log-probability
   should fall where the pair stands, and not where the second stands without the first (control), nor when as many
   other neurons, drawn at random, are set to their means (control).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, RuleScores
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.edits import Set
from microtome.core.errors import InputError
from microtome.core.logits import LogitSelection
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Shape, Table
from microtome.core.site import Site
from microtome.data.observed import Observed, as_prompts
from microtome.data.tokens import token_text
from microtome.models.model import Model
from microtome.models.readout import readout
from microtome.models.stream_parts import behind, require_additive

card = Card(
    name="ngram_facts",
    title="N-gram facts of the first MLP",
    question="Which pairs of tokens does the first MLP know a continuation for, that neither token alone suggests?",
    steps=(
        "Combine the firsts and seconds of frequent pairs, and read the neurons of the first MLP at the second.",
        "Take off what firsts and seconds explain alone; write the rest through to the logits: a predicted fact.",
        "Test it on the prompt: neurons without their interaction must lower the logit by what was predicted.",
        "Test it on held-out text: at the pair, at the second alone, and with random neurons.",
    ),
    reference="Geva et al. (2021), Transformer Feed-Forward Layers Are Key-Value Memories",
    misleads=(
        "Only what the first MLP writes straight to the logits is seen; in a deep model later layers may use or undo "
        "it. An interaction of neurons is a fact of this grid of pairs: other pairs, other interactions."
    ),
    needs="tokens",
    causal="intervention",
    locality="global",
    comprehensiveness="partial",
    claims=("rule:ngram",),
)

Row = Int[Tensor, " _"]
"""A text; texts differ in length."""
_NEURONS = "mlp_post.0"


class Config(base.Config):
    """Settings of n-gram facts."""

    pairs: int = Field(32, ge=2, description="Frequent pairs of the text to look at.")
    facts: int = Field(10, ge=1, description="Facts to list and test.")
    neurons: int = Field(3, ge=1, description="Neurons that carry a fact: those of the largest share.")
    cases: int = Field(8, ge=1, description="Places of the held-out text at which a fact is tested, at most.")
    seed: base.Seed = Field(0, description="Of the random neurons.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """Over `[fact]`: `first`, `second`, `out`, `neurons` as text, `ids` `[fact, place]`; `interaction` in logits, of
    all neurons; `predicted`, `measured`: fall of the logit on the prompt without the interaction of those neurons;
    `at_pair`, `at_second`, `random`: change of the out's log-probability on text (NaN without a case), with `cases`
    `[fact, condition]`."""

    def answers(self) -> tuple[Answer, ...]:
        ids, strength = self.data["ids"].values, self.data["interaction"].values
        scores = {tuple(rule.tolist()): float(score) for rule, score in zip(ids, strength, strict=True)}
        return (RuleScores("ngram", scores),)

    def shapes(self) -> tuple[Shape, ...]:
        names: tuple[str, ...] = ("first", "second", "out", "neurons", "interaction", "predicted", "measured")
        names += ("at_pair", "at_second", "random")
        columns = [self.data[name].values for name in names]
        rows = tuple(
            tuple(value.item() if isinstance(value, np.generic) else str(value) for value in row)
            for row in zip(*columns, strict=True)
        )
        return (
            Table(
                "Facts of the first MLP",
                (*names[:7], "text: pair", "text: second alone", "text: random neurons"),
                rows,
                f"The {len(rows)} strongest of {self.data.attrs['pairs']} frequent pairs, chosen by interaction. "
                "Logits on the prompt of two tokens; on held-out text the change of the out's log-probability, in "
                f"nats, over at most {int(self.config['cases'])} places.",
                self.notes,
            ),
        )


@torch.no_grad()
def run(model: Model, data: Observed, config: Config | None = None) -> Result:
    """Look for facts in the first MLP, and test them.

    data: at least two prompts, texts or rows of ids; pairs are counted in the first half, facts tested on the second.
    Raises `InputError` for too little text, or a model whose first MLP shows no neurons; `FamilyError` where the stream
    is not additive.
    """
    config = config or Config()
    require_additive(model)
    if not model.has(_NEURONS):
        raise InputError(
            f"the first MLP of {model.name} shows no neurons; n-gram facts need an ordinary MLP there"
        )
    prompts = as_prompts(data, model.tokenizer)
    real = torch.ones_like(prompts.tokens) if prompts.mask is None else prompts.mask
    rows = [row[there.bool()] for row, there in zip(prompts.tokens, real, strict=True)]
    half = len(rows) // 2
    pairs = frequent_pairs(rows[:half], config.pairs)
    if len(pairs) < 2:
        raise InputError("expected text with at least two pairs of tokens in its first half; give more")
    with measure() as recorder:
        grid = interactions(model, pairs)
        found = _facts(grid, pairs, config)
        mean = _mean_neurons(model, rows[:half])
        recorder.add(passes=1 + half)
        generator = torch.Generator().manual_seed(config.seed)
        tested = [_on_text(model, fact, rows[half:], mean, config.cases, generator) for fact in found]
        measured = [_on_prompt(model, grid, fact) for fact in found]
        recorder.add(passes=2 * len(found) + sum(int(4 * count.sum()) for _, count in tested))
    changes = np.array([change for change, _ in tested])
    return Result.of(
        card,
        xr.Dataset(
            {
                **{
                    name: ("fact", np.array([_text(model, int(getattr(fact, name))) for fact in found]))
                    for name in ("first", "second", "out")
                },
                "ids": (("fact", "place"), np.array([(f.first, f.second, f.out) for f in found])),
                "neurons": ("fact", np.array([" ".join(f"u{n}" for n in fact.neurons) for fact in found])),
                "interaction": ("fact", np.array([fact.interaction for fact in found])),
                "predicted": ("fact", np.array([fact.predicted for fact in found])),
                "measured": ("fact", np.array(measured)),
                **{
                    name: ("fact", changes[:, i]) for i, name in enumerate(("at_pair", "at_second", "random"))
                },
                "cases": (("fact", "condition"), np.array([count for _, count in tested])),
            },
            {"condition": ["pair", "second alone"]},
            {"pairs": len(pairs)},
        ),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), prompts.hash),
        recorder.cost(),
        ("Predictions use frozen divisors of the norms; measurements let them change.",),
    )


@dataclass(frozen=True)
class Interactions:
    """Of the first MLP on every combination of firsts and seconds.

    value: `[first, second, neuron]` as read; interaction: with what either explains alone taken off.
    writes: `[neuron, token]`: what a neuron at one adds to each logit, for divisors of one. divisor: `[first, second]`.
    """

    firsts: list[int]
    seconds: list[int]
    value: Float[Tensor, "first second neuron"]
    interaction: Float[Tensor, "first second neuron"]
    writes: Float[Tensor, "neuron token"]
    divisor: Float[Tensor, "first second"]


@dataclass(frozen=True)
class Fact:
    """After `first second`, `out`; ids. interaction: of all neurons, in logits; predicted: of the carrying ones."""

    first: int
    second: int
    out: int
    neurons: tuple[int, ...]
    interaction: float
    predicted: float


def frequent_pairs(rows: Sequence[Row], count: int) -> list[tuple[int, int]]:
    """The pairs of adjacent tokens that occur most."""
    counted: Counter[tuple[int, int]] = Counter()
    for row in rows:
        ids = row.tolist()
        counted.update(pairwise(ids))
    return [pair for pair, _ in counted.most_common(count)]


@torch.no_grad()
def interactions(model: Model, pairs: Sequence[tuple[int, int]]) -> Interactions:
    """Read the first MLP on all combinations of the firsts and seconds of pairs. One pass."""
    firsts, seconds = (sorted(set(side)) for side in zip(*pairs, strict=True))
    ids = torch.cartesian_prod(torch.tensor(firsts), torch.tensor(seconds))
    last = Site("resid_post", model.n_layers - 1, positions=(-1,))
    norm = behind(model.anatomy, 0, "mlp")
    seen = model.run(ids, [f"{_NEURONS}@-1", last], mask=torch.ones_like(ids))
    shape = (len(firsts), len(seconds))
    flat = seen[f"{_NEURONS}@-1"][:, 0].float()
    value = flat.view(*shape, -1)
    head = readout(model)
    divisor = head.norm.scale(seen[last][:, 0])[:, 0]
    out = model.weight("W_out.0").detach().float()
    if norm is not None:
        bias = getattr(model.anatomy.role("mlp_down", 0), "bias", None)
        divisor = divisor * norm.scale(flat @ out if bias is None else flat @ out + bias.float())[:, 0]
        out = norm.push(out, torch.ones_like(out[:, :1]))
    everything = torch.arange(head.n_tokens, device=out.device)
    alone = value.mean(0, keepdim=True) + value.mean(1, keepdim=True) - value.mean((0, 1), keepdim=True)
    writes = out @ head.directions(everything).T
    return Interactions(
        firsts,
        seconds,
        value,
        value - alone,
        writes - writes.mean(dim=1, keepdim=True),
        divisor.view(shape),
    )


def _facts(grid: Interactions, pairs: Sequence[tuple[int, int]], config: Config) -> list[Fact]:
    """For each pair the out that the interaction raises most; the strongest first."""
    found = []
    for first, second in pairs:
        a, b = grid.firsts.index(first), grid.seconds.index(second)
        own = grid.interaction[a, b] / grid.divisor[a, b]
        logits = own @ grid.writes
        out = int(logits.argmax())
        shares = own * grid.writes[:, out]
        top = shares.topk(min(config.neurons, len(shares)))
        found.append(
            Fact(
                first,
                second,
                out,
                tuple(top.indices.tolist()),
                float(logits[out]),
                float(top.values.sum()),
            )
        )
    return sorted(found, key=lambda fact: -fact.interaction)[: config.facts]


def _on_prompt(model: Model, grid: Interactions, fact: Fact) -> float:
    """How far the logit of the out, above the mean, falls when the carrying neurons lose their interaction."""
    a, b = grid.firsts.index(fact.first), grid.seconds.index(fact.second)
    index = list(fact.neurons)
    alone = (grid.value - grid.interaction)[a, b, index]
    ids = torch.tensor([[fact.first, fact.second]])
    edit = Set(Site.parse(_NEURONS).unit(*fact.neurons).at(-1), value=alone[None, None].to(model.dtype))
    before, after = (
        model.run(ids, edit=edits, logits=LogitSelection((-1,)), mask=torch.ones_like(ids)).logits
        for edits in ([], [edit])
    )
    assert before is not None
    assert after is not None
    return float(
        (before[0, 0, fact.out] - before.mean()).float() - (after[0, 0, fact.out] - after.mean()).float()
    )


def _mean_neurons(model: Model, rows: Sequence[Row]) -> Float[Tensor, " neuron"]:
    total, count = torch.zeros(()), 0
    for row in rows:
        total = total + model.run(row[None], [_NEURONS])[_NEURONS][0].float().sum(0)
        count += len(row)
    return total / count


def _on_text(
    model: Model,
    fact: Fact,
    rows: Sequence[Row],
    mean: Float[Tensor, " neuron"],
    limit: int,
    generator: torch.Generator,
) -> tuple[list[float], np.ndarray]:
    """Mean change of the out's log-probability when neurons take their mean: the fact's at the pair, the fact's at the
    second alone, random ones at the pair. And the numbers of places."""
    at_pair: list[Tensor] = []
    alone: list[Tensor] = []
    for row in rows:
        for place in (row[1:] == fact.second).nonzero()[:, 0].tolist():
            (at_pair if int(row[place]) == fact.first else alone).append(row[: place + 2])
    at_pair, alone = at_pair[:limit], alone[:limit]
    others = [n for n in torch.randperm(len(mean), generator=generator).tolist() if n not in fact.neurons]
    random = tuple(others[: len(fact.neurons)])
    changes = [
        _change(model, texts, neurons, mean, fact.out)
        for texts, neurons in ((at_pair, fact.neurons), (alone, fact.neurons), (at_pair, random))
    ]
    return changes, np.array([len(at_pair), len(alone)])


def _change(
    model: Model,
    texts: Sequence[Row],
    neurons: tuple[int, ...],
    mean: Float[Tensor, " neuron"],
    out: int,
) -> float:
    if not texts:
        return float("nan")
    value = mean[list(neurons)][None, None].to(model.dtype)
    edit = Set(Site.parse(_NEURONS).unit(*neurons).at(-1), value=value, origin="mean")
    total = 0.0
    for ids in texts:
        said = [
            model.run(ids[None], edit=edits, logits=LogitSelection((-1,))).logits for edits in ([], [edit])
        ]
        before, after = (
            float(logits[0, 0].float().log_softmax(-1)[out]) for logits in said if logits is not None
        )
        total += after - before
    return total / len(texts)


def _text(model: Model, token: int) -> str:
    known = model.tokenizer is not None and token < len(model.tokenizer)
    return token_text(model.tokenizer, token) if known else f" {token}"
