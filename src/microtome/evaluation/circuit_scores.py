"""How true is a circuit? Keep only it, remove only it, restore only it, thin it; beside random circuits of its size.

All on prompts that the circuit was not found on, as shares of the behaviour (0 = nothing kept, 1 = the whole model):

1. *Faithfulness*: everything else is replaced. *Leftover* (completeness): only the circuit is replaced; what remains
   was done by something else.
2. *Sufficiency*: the corrupt prompt is run with the circuit's values from the clean one. *Necessity*: one minus the
   leftover.
3. *Minimality*: what the circuit loses without each of its components; the smallest loss is its slack.
4. Each with the replaced values from corrupt twins (resample) and from their mean: where the two disagree, the
   conclusion rests on the kind of ablation.
5. Control: circuits of the same number of heads and of MLPs, drawn at random.

Reference: Wang et al. (2022) for faithfulness, completeness and minimality; Miller et al. (2024) on what they depend
on. Misleads where random circuits of the size score as high: then the size, not the choice, carries the score.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from pydantic import Field

from microtome.circuits.knockout import LEAST_GAP, Kind, Knockout
from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, Quantities
from microtome.core.card import Card
from microtome.core.cost import Cost, measure
from microtome.core.edits import Edit, Set
from microtome.core.errors import InputError
from microtome.core.logits import LogitSelection
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Cell, Shape, Table
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.components import parse, spoken
from microtome.models.model import Model

SCORES = ("faithfulness", "leftover", "sufficiency")


card = Card(
    name="circuit_scores",
    title="Circuit scores (faithfulness, completeness, minimality)",
    question="Does this circuit do the task alone, is nothing of the task left without it, and is all of it needed?",
    steps=(
        "Keep only the circuit; remove only the circuit; restore only the circuit in the corrupt prompt.",
        "Leave out each of its components in turn.",
        "Do the same with random circuits of as many heads and MLPs.",
    ),
    reference="Wang et al. 2022, Interpretability in the Wild; Miller et al. 2024",
    misleads="Where random circuits of the same size score as high, the size and not the choice carries the score.",
    needs="pairs",
    causal="intervention",
    claims=("quantity:circuit",),
)


class Config(base.Config):
    """Which circuit, and how the rest is replaced."""

    circuit: tuple[str, ...] = Field((), description="Heads and MLPs, as z.3.h1 and mlp_out.2; at least one.")
    metric: str = Field(metrics.DEFAULT, description="Metric by name.")
    kinds: tuple[Kind, ...] = Field(("resample", "mean"), min_length=1, description="What replaces the rest.")
    random_circuits: int = Field(20, ge=1, description="Random circuits of the same size, for control.")
    seed: base.Seed = Field(0, description="Seed of the random circuits and of the bootstrap.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`share [kind, score]`, `low` and `high` (95 %), `loss [kind, component]`, `random [kind, draw]`, `right [which]`.

    `kl [kind, which]`: mean Kullback–Leibler divergence from the whole model's next-token distribution, in nats.
    """

    def score(self, name: str, kind: Kind = "resample") -> float:
        """One score, as a share of the behaviour."""
        return float(self.data["share"].sel(kind=kind, score=name))

    def interval(self, name: str, kind: Kind = "resample") -> tuple[float, float]:
        """Its 95 % bootstrap interval over prompts."""
        at = self.data.sel(kind=kind, score=name)
        return float(at["low"]), float(at["high"])

    def answers(self) -> tuple[Answer, ...]:
        """What the circuit keeps, leaves and restores: of a true one all, nothing, all."""
        kind = self.data["kind"].values.tolist()[0]
        return (Quantities({f"circuit.{name}": self.score(name, kind) for name in SCORES}),)

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        rows: list[tuple[Cell, ...]] = []
        for kind in data["kind"].values.tolist():
            for name in SCORES:
                low, high = self.interval(name, kind)
                rows.append((name, kind, self.score(name, kind), low, high))
            drawn = data["random"].sel(kind=kind).values
            rows.append(
                (
                    "faithfulness of random circuits",
                    kind,
                    float(drawn.mean()),
                    float(drawn.min()),
                    float(drawn.max()),
                )
            )
        scores = Table(
            "scores of the circuit",
            ("score", "replaced by", "share of the behaviour", "low", "high"),
            tuple(rows),
            caption=f"{data.attrs['n']} prompts, {data.attrs['size']} of {data.attrs['count']} components; 95 % "
            f"bootstrap intervals over prompts; of {data.sizes['draw']} random circuits of that size: mean, least, "
            "greatest. "
            f"Right answers: whole model {float(data['right'].sel(which='whole model')):.0%}, circuit alone "
            f"{float(data['right'].sel(which='circuit alone')):.0%}",
        )
        kinds = data["kind"].values.tolist()
        losses = Table(
            "what the circuit loses without each component",
            ("component", *kinds),
            tuple(
                (
                    spoken(Site.parse(name)),
                    *(float(data["loss"].sel(kind=kind, component=name)) for kind in kinds),
                )
                for name in data["component"].values.tolist()
            ),
            caption="share of the behaviour; the smallest is the slack that minimality leaves",
        )
        return (scores, losses)


def run(model: Model, data: Pairs, config: Config | None = None) -> Result:
    """Score a circuit on pairs. Raises `InputError` for an empty circuit, or pairs without a difference to explain."""
    config = config or Config()
    nodes = parse(model, config.circuit)
    if not nodes:
        raise InputError(
            "no circuit was given: name its heads and MLPs, for example circuit=['z.3.h1', 'mlp_out.2']"
        )
    with measure() as recorder:
        found = [_scored(model, data, nodes, kind, config) for kind in config.kinds]
        for one in found:
            recorder.include(one.cost)
        right = {"whole model": found[0].right_whole, "circuit alone": found[0].right_alone}
    arrays = {
        "share": (("kind", "score"), np.array([one.shares for one in found])),
        "low": (("kind", "score"), np.array([[low for low, _ in one.intervals] for one in found])),
        "high": (("kind", "score"), np.array([[high for _, high in one.intervals] for one in found])),
        "loss": (("kind", "component"), np.array([one.losses for one in found])),
        "random": (("kind", "draw"), np.array([one.random for one in found])),
        "right": (("which",), np.array(list(right.values()))),
        "kl": (("kind", "which_kl"), np.array([one.divergence for one in found])),
    }
    coords = {
        "kind": list(config.kinds),
        "score": list(SCORES),
        "component": list(map(str, nodes)),
        "which": list(right),
    }
    attrs = {"n": len(data), "size": len(nodes), "count": found[0].count, "gap": found[0].gap}
    return Result.of(
        card,
        xr.Dataset(arrays, coords, attrs),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), data.hash),
        recorder.cost(),
    )


@dataclass(frozen=True)
class _Scored:
    shares: list[float]
    intervals: list[tuple[float, float]]
    losses: list[float]
    random: list[float]
    right_whole: float
    right_alone: float
    divergence: list[float]
    count: int
    gap: float
    cost: Cost


def _scored(model: Model, pairs: Pairs, nodes: tuple[Site, ...], kind: Kind, config: Config) -> _Scored:
    seed = config.seed
    knockout = Knockout(model, pairs, kind, config.metric)
    if not abs(knockout.gap) > LEAST_GAP:
        raise InputError(
            f"replacing everything changes the metric by {knockout.gap:.1e} on these prompts, so there is no behaviour "
            "to score a circuit on; give pairs whose clean and corrupt prompts the model tells apart"
        )
    inside = set(nodes)
    rest = [site for site in knockout.components if site not in inside]
    sets = [list(nodes), rest, *([s for s in nodes if s != site] for site in nodes)]
    sets += _random_circuits(knockout, nodes, config.random_circuits, seed)
    scores = knockout.scores(sets)
    restored = _restored(knockout, nodes)
    shares = knockout.share(scores)
    kept = float(shares[0])
    return _Scored(
        shares=[kept, float(shares[1]), float(restored.share)],
        intervals=[knockout.interval(scores[0], seed), knockout.interval(scores[1], seed), restored.interval],
        losses=[kept - float(share) for share in shares[2 : 2 + len(nodes)]],
        random=shares[2 + len(nodes) :].tolist(),
        right_whole=float((knockout.whole > 0).double().mean()),
        right_alone=float((scores[0] > 0).double().mean()),
        divergence=_divergence(knockout, nodes),
        count=len(knockout.components),
        gap=knockout.gap,
        cost=knockout.cost + Cost(passes=5),
    )


def _divergence(knockout: Knockout, nodes: Sequence[Site]) -> list[float]:
    """Mean divergence of the next-token distribution from the whole model's: circuit alone, and nothing kept."""
    model, pairs = knockout.model, knockout.pairs
    whole = model.run(pairs.clean, logits=LogitSelection((-1,)), mask=pairs.mask).logits
    assert whole is not None
    metric = metrics.build("kl", pairs, whole)
    found = []
    for kept in (nodes, ()):
        run = model.run(pairs.clean, edit=knockout.edits(kept), metric=metric, mask=pairs.mask)
        assert run.metric is not None
        found.append(float(run.metric.double().mean()))
    return found


def _random_circuits(knockout: Knockout, nodes: Sequence[Site], draws: int, seed: int) -> list[list[Site]]:
    """Circuits with as many heads and as many MLPs as this one."""
    generator = random.Random(seed)
    heads = [site for site in knockout.components if site.heads]
    mlps = [site for site in knockout.components if not site.heads]
    n_heads = sum(1 for site in nodes if site.heads)
    return [
        generator.sample(heads, n_heads) + generator.sample(mlps, len(nodes) - n_heads) for _ in range(draws)
    ]


@dataclass(frozen=True)
class _Restored:
    share: float
    interval: tuple[float, float]


def _restored(knockout: Knockout, nodes: Sequence[Site]) -> _Restored:
    """The share of the clean-corrupt gap that the circuit's clean values restore in the corrupt prompt."""
    model, pairs = knockout.model, knockout.pairs
    clean = model.run(pairs.clean, read=list(nodes), metric=knockout.metric, mask=pairs.mask)
    edits: list[Edit] = [Set(site, value=clean[site], origin="patch") for site in nodes]
    patched = model.run(pairs.corrupt, edit=edits, metric=knockout.metric, mask=pairs.mask)
    assert clean.metric is not None
    assert patched.metric is not None
    above = (patched.metric.float() - knockout.corrupt).double().cpu()
    gaps = (clean.metric.float() - knockout.corrupt).double().cpu()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(above), (1000, len(above)), generator=generator)
    drawn = above[rows].mean(dim=1) / gaps[rows].mean(dim=1)
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return _Restored(float(above.mean() / gaps.mean()), (low, high))
