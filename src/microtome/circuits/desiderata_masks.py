"""Which parts carry just this, and nothing else? Masks learned from what must change and from what must not.

1. State the desiderata. A positive one is a set of pairs in which putting the chosen parts' values from the corrupt
   prompt into the clean one must bring about the corrupt prompt's answer (`wrong`); a negative one, in which the same
   must leave the clean answer as it is, though something else differs.
2. Every head and MLP has a gate; where it is open, the part takes the corrupt prompt's value. The gates learn to make
   the wanted answers likely in all desiderata together, at a `price` for each that is open.
3. The parts are the fewest, in the order of their gates, whose loss is within `slack` of the best such set.
4. How often each desideratum then holds is measured on pairs that the gates were not learned on, beside a random set
   of equally many parts.

Of plain pairs, a second desideratum is made where it can be: clean prompts that call for the same answer, put into each
other, must change nothing. Reference: Davies, Nadeau, Prakash, Rott Shaham, Bau (2023), Discovering Variable Binding
Circuitry with Desiderata. Misleads: what satisfies the desiderata is chosen, not what the network uses by itself; a
late part that carries the answer satisfies every positive one, so state negatives that only the part you seek passes.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from microtome.circuits.edge_estimates import errors
from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_pairs import EdgePairs
from microtome.circuits.learned_mask import Aim, Mask
from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, FoundCircuit, NodeScores
from microtome.core.card import Card
from microtome.core.circuit import Circuit
from microtome.core.cost import Recorder, measure
from microtome.core.errors import InputError
from microtome.core.logits import LogitSelection
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Curve, Shape, Table
from microtome.core.site import Site
from microtome.data.metrics import LogProbability, TokenRows
from microtome.data.pairs import Pairs
from microtome.models.components import spoken
from microtome.models.model import Model

card = Card(
    name="desiderata_masks",
    title="Desiderata-based masking",
    question="Which heads and MLPs carry just this, by what must and what must not change when they are patched?",
    steps=(
        "State pairs in which patching the parts must change the answer, and pairs in which it must not.",
        "Learn a gate for each head and MLP: wanted answers likely, at a price for each gate that is open.",
        "Take the fewest parts, in the order of their gates, that do nearly as well as any number.",
        "Measure on other pairs how often each desideratum holds, beside random parts.",
    ),
    reference="Davies et al. 2023, Discovering Variable Binding Circuitry with Desiderata",
    misleads="A late part that carries the answer satisfies every positive desideratum; state negatives.",
    needs="pairs",
    causal="intervention",
    claims=("circuit", "nodes"),
)


class Config(base.Config):
    """How the mask is learned, and on how much of the data."""

    price: float = Field(0.05, ge=0, description="Charge for each open gate, in nats.")
    slack: float = Field(
        0.05, ge=0, description="How much worse than the best number of parts the fewest may do, nats."
    )
    start: float = Field(-1.0, description="Where gates start; 0: half open, below: nearer to shut.")
    steps: int = Field(150, ge=1, description="Steps of learning.")
    rate: float = Field(0.1, gt=0, description="Learning rate of the gates (Adam).")
    learned_on: float = Field(
        0.75, gt=0, le=1, description="Share of each desideratum's pairs that gates are learned on."
    )
    checked: int = Field(16, ge=0, description="How many random parts are patched alone; 0: none.")
    rows: int = Field(64, ge=1, description="Pairs in a batch; all batches are held in memory.")
    seed: base.Seed = Field(0, description="Seed of the gates' noise, of the split and of the random parts.")


@dataclass(frozen=True)
class Desiderata:
    """What must change when parts are patched from corrupt to clean (`positive`), what must not (`negative`)."""

    positive: tuple[Pairs, ...]
    negative: tuple[Pairs, ...] = ()

    def __post_init__(self) -> None:
        if not self.positive:
            raise InputError(
                "expected at least one positive desideratum: nothing patched satisfies all negatives"
            )
        for pairs in (*self.positive, *self.negative):
            if not all(pairs.wrong):
                raise InputError(
                    "each row of a desideratum needs a wrong answer: what a positive one must bring about, and what a "
                    "negative one must not"
                )

    @staticmethod
    def of(pairs: Pairs) -> "Desiderata":
        """Of plain pairs: patching must bring about the other answer; and between clean prompts that call for the same
        answer it must not, where there are such."""
        alike: list[tuple[int, int]] = []
        by_answer: dict[tuple[tuple[int, ...], int], int] = {}
        for row, answers in enumerate(pairs.answers):
            key = (answers, pairs.lengths[row])
            if key in by_answer and not torch.equal(pairs.clean[by_answer[key]], pairs.clean[row]):
                alike.append((row, by_answer[key]))
            by_answer[key] = row
        if not alike:
            return Desiderata((pairs,))
        here, there = pairs.rows([row for row, _ in alike]), pairs.rows([row for _, row in alike])
        same = replace(here, corrupt=there.clean, corrupt_texts=there.texts)
        return Desiderata((pairs,), (same,))

    @property
    def named(self) -> list[tuple[str, Pairs, TokenRows]]:
        """Each with the answers that it wants."""
        found = [(f"positive {n}", pairs, pairs.wrong) for n, pairs in enumerate(self.positive)]
        return found + [(f"negative {n}", pairs, pairs.answers) for n, pairs in enumerate(self.negative)]


@dataclass(frozen=True)
class Unlikely:
    """How unlikely the wanted answers are, in nats. For a metric to be minimised."""

    wanted: TokenRows
    name = "unlikely"

    @property
    def needs(self) -> LogitSelection:
        return LogProbability(self.wanted).needs

    def __call__(self, logits: Float[Tensor, "batch position token"]) -> Float[Tensor, " batch"]:
        return -LogProbability(self.wanted)(logits)

    def for_rows(self, rows: list[int]) -> "Unlikely":
        return Unlikely(tuple(self.wanted[row] for row in rows))


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`chance component`: that its gate is open. `chosen component`. `loss`, `open [step]`: while learning.

    `holds [desideratum, set]`: in what share of held-out pairs the wanted answers are likelier than the others, with
    the `chosen` parts patched, with `random` ones (as many), with `none`. `held_out desideratum`: how many pairs that
    is; of those that could not be split, the pairs learned on, and a note says so.
    `sample_estimated`, `sample_exact [sample]`: chances, and by how much patching the part alone lowers the loss.
    """

    @property
    def circuit(self) -> Circuit:
        """The chosen parts, weighted by the chance of their gates."""
        data = self.data
        chosen = data["chance"][data["chosen"].values > 0]
        return Circuit.of(dict(zip(chosen["component"].values.tolist(), chosen.values.tolist(), strict=True)))

    def answers(self) -> tuple[Answer, ...]:
        """The chosen parts, and how likely each gate is to be open."""
        chance = self.data["chance"]
        scores = dict(zip(chance["component"].values.tolist(), chance.values.tolist(), strict=True))
        return (FoundCircuit(self.circuit), NodeScores(scores))

    def shapes(self) -> tuple[Shape, ...]:
        data, found = self.data, self.circuit
        ranked = sorted(zip(found.nodes, found.weights, strict=True), key=lambda item: (-item[1], item[0]))
        parts = Table(
            "chosen parts",
            ("component", "chance that its gate is open"),
            tuple((spoken(Site.parse(name)), weight) for name, weight in ranked),
            caption=f"{len(ranked)} of {data.sizes['component']} heads and MLPs",
        )
        held = Table(
            "how often each desideratum holds",
            ("desideratum", "pairs", *(str(name) for name in data["set"].values)),
            tuple(
                (name, int(n), *map(float, shares))
                for name, n, shares in zip(
                    data["desideratum"].values.tolist(),
                    data["held_out"].values.tolist(),
                    data["holds"].values,
                    strict=True,
                )
            ),
            caption="share of pairs with the wanted answers likelier than the others",
        )
        learned = Curve(
            "loss while the mask is learned",
            np.arange(data.sizes["step"], dtype=float),
            data["loss"].values[None],
            ("loss",),
            "step",
            "nats",
            caption=f"with gates drawn; {data['open'].values[-1]:.1f} expected to be open at the end",
        )
        guess, exact = data["sample_estimated"].values, data["sample_exact"].values
        return (parts, held, learned, errors(guess, exact, data.sizes["component"], False, "components"))


def run(model: Model, data: Pairs | Desiderata, config: Config | None = None) -> Result:
    """Learn the mask and measure it. Raises `InputError` for desiderata without a wrong answer, `FamilyError` where the
    stream is not a sum of what parts write."""
    config = config or Config()
    desiderata = data if isinstance(data, Desiderata) else Desiderata.of(data)
    graph = EdgeGraph.of(model)
    with measure() as recorder:
        aims, tests = _divided(model, graph, desiderata, config, recorder)
        mask = Mask.of(graph, "nodes", config.start, shuts=False)

        def price(chances: Float[Tensor, " gate"], step: int) -> Tensor:
            return config.price * chances.sum()

        mask.learn(aims, price, config.steps, config.rate, config.seed)
        recorder.add(passes=config.steps * len(aims))
        chosen = _fewest(mask, aims, config.slack, recorder)
        drawn = torch.Generator().manual_seed(config.seed)
        order = torch.randperm(len(chosen), generator=drawn)
        others = torch.zeros_like(chosen)
        others[order[: int(chosen.sum())]] = True
        sets = {"chosen": chosen, "random": others, "none": torch.zeros_like(chosen)}
        holds = np.array([[_held(mask, test, kept) for kept in sets.values()] for _, test, _ in tests])
        recorder.add(passes=2 * holds.size)
        sample = order.flip(0)[: config.checked].tolist()
        exact = _alone(mask, aims, sample, recorder)
    chances = mask.gates.chance().detach().double().numpy()
    names = list(graph.sources[1:])
    arrays = xr.Dataset(
        {
            "chance": (("component",), chances),
            "chosen": (("component",), chosen.numpy()),
            "loss": (("step",), np.array(mask.losses)),
            "open": (("step",), np.array(mask.opened)),
            "holds": (("desideratum", "set"), holds),
            "held_out": (("desideratum",), np.array([len(test) for _, test, _ in tests])),
            "sample_estimated": (("sample",), chances[sample]),
            "sample_exact": (("sample",), exact),
        },
        {
            "component": names,
            "set": list(sets),
            "desideratum": [name for name, _, _ in tests],
            "sample_component": ("sample", np.array([names[number] for number in sample], dtype=str)),
        },
    )
    same = [name for name, _, apart in tests if not apart]
    notes = (
        [f"of {', '.join(same)} no pairs could be held out: it is measured on those learned on"]
        if same
        else []
    )
    return Result.of(
        card,
        arrays,
        config,
        Provenance(
            model.name,
            model_hash(model.module.state_dict()),
            "".join(p.hash[:16] for _, p, _ in desiderata.named),
        ),
        recorder.cost(),
        notes,
    )


@dataclass(frozen=True, eq=False)
class _Test:
    """Pairs of a desideratum to be measured on. flips: whether their answers are to change."""

    pairs: EdgePairs
    flips: bool

    def __len__(self) -> int:
        return len(self.pairs.pairs)


def _divided(
    model: Model, graph: EdgeGraph, desiderata: Desiderata, config: Config, recorder: Recorder
) -> tuple[list[Aim], list[tuple[str, _Test, bool]]]:
    """Aims to learn from, each desideratum counting alike, and tests by name; with whether a test was held out."""
    aims: list[Aim] = []
    tests: list[tuple[str, _Test, bool]] = []
    for name, pairs, _ in desiderata.named:
        flips = name.startswith("positive")
        learned, held, apart = pairs, pairs, False
        if config.learned_on < 1:
            with suppress(InputError):  # where all rows share prompts
                (learned, held), apart = pairs.split(config.learned_on, config.seed), True
        for batch, ablation in EdgePairs(
            model, graph, learned, "logit-difference", rows=config.rows
        ).batches():
            start = sum(len(aim.batch.tokens) for aim in aims if aim.name == name)
            part = learned.rows(range(start, start + len(batch.tokens)))
            metric = Unlikely(part.wrong if flips else part.answers)
            aims.append(Aim(replace(batch, metric=metric), ablation, len(part) / len(learned), name))
            recorder.add(passes=1)
        tests.append(
            (name, _Test(EdgePairs(model, graph, held, "logit-difference", rows=config.rows), flips), apart)
        )
    return aims, tests


def _fewest(mask: Mask, aims: Sequence[Aim], slack: float, recorder: Recorder) -> Bool[Tensor, " gate"]:
    """The fewest parts, likeliest first, within `slack` of the best number, up to twice what is expected open."""
    order = torch.sort(mask.gates.chance().detach(), descending=True, stable=True).indices
    most = min(len(order), math.ceil(2 * mask.opened[-1]) + 2)

    def first(count: int) -> Bool[Tensor, " gate"]:
        kept = torch.zeros(len(order), dtype=torch.bool)
        kept[order[:count]] = True
        return kept

    losses = [mask.loss(aims, first(count)) for count in range(most + 1)]
    recorder.add(passes=len(losses) * len(aims))
    return first(next(count for count, loss in enumerate(losses) if loss <= min(losses) + slack))


def _held(mask: Mask, test: _Test, kept: Bool[Tensor, " gate"]) -> float:
    """In what share of the pairs the wanted answers are likelier, with these parts patched."""
    ahead = test.pairs.scores(mask.cut(kept.float()))
    return float(((ahead < 0) if test.flips else (ahead > 0)).double().mean())


def _alone(
    mask: Mask, aims: Sequence[Aim], sample: Sequence[int], recorder: Recorder
) -> Float[np.ndarray, " sample"]:
    """By how much patching each of these parts alone lowers the loss."""
    none = torch.zeros(len(mask.gates.location), dtype=torch.bool)
    before = mask.loss(aims, none)
    found = []
    for number in sample:
        one = none.clone()
        one[number] = True
        found.append(before - mask.loss(aims, one))
    recorder.add(passes=(len(sample) + 1) * len(aims))
    return np.array(found, dtype=float)
