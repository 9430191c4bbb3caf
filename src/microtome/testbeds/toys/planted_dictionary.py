"""Does a dictionary learner find the features that are there? Activations made of planted features, and nothing else.

1. Each feature has a direction. More directions than dimensions are drawn at random, or spread until they overlap as
   little as they can; their norms may differ.
2. Which features are on, in a row: each by itself with a probability of its own (Zipf's law from the highest to the
   lowest). Some are in trees: a child is on only where its parent is, and of siblings only one. Others lean on a hidden
   sign: with weight ±κ their probability is p (1 ± κ s), so that features on one sign come together or avoid each
   other, while every feature keeps its own p exactly and a pair has E[on_i on_j] = p_i p_j (1 ± κ²).
3. How strong: normal about a mean, or uniform; folded to be positive, or of random sign.
4. Activations are coefficients times directions, plus a bias, plus noise.

Rows come in chunks, and a chunk is a pure function of seed and number. Only what is on is drawn: the gaps between
features that are on are geometric, so the cost follows the few that are on, not the many that are not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from microtome.core.config import Config
from microtome.core.draws import generator
from microtome.core.errors import InputError
from microtome.testbeds.case import Case, Evidence, TestbedCard, Truth
from microtome.testbeds.toys.network import known, model_of

card = TestbedCard(
    name="planted_dictionary",
    title="Planted dictionaries",
    question="Which directions are activations made of, when all that they are made of is known?",
    reference="Sharkey, Braun, Millidge (2022), Taking features out of superposition with sparse autoencoders",
    kinds=("features", "labels", "quantities"),
    misleads=(
        "Real activations need not be sums of sparse features along fixed directions. A method that assumes just that "
        "does well here because it is right here."
    ),
)

SITE: Final = "path:activation"
ROWS: Final = 2048
LABELS: Final = 16  # features of which labels say where they are on: the first, which are on most often


class Setting(Config):
    """What is planted."""

    features: int = Field(64, ge=1, description="directions planted")
    dimensions: int = Field(32, ge=1, description="of the activations")
    highest: float = Field(0.1, gt=0, le=1, description="probability of the most frequent feature")
    lowest: float = Field(0.02, gt=0, le=1, description="probability of the least frequent feature")
    exponent: float = Field(0.5, ge=0, description="of Zipf's law between the two")
    spread: int = Field(0, ge=0, description="steps that push directions apart; 0 leaves them random")
    norms: float = Field(
        1.0, ge=1, description="the largest norm of a direction over the smallest, which is 1"
    )
    roots: int = Field(0, ge=0, description="features that have children")
    branching: int = Field(4, ge=1, description="children of each")
    depth: int = Field(2, ge=1, description="generations below a root")
    inherited: float = Field(0.8, gt=0, le=1, description="how often a feature with children has one on")
    correlation: float = Field(0.0, ge=0, le=1, description="κ: how far a hidden sign moves a probability")
    signs: int = Field(4, ge=1, description="hidden signs; each feature leans on one of them")
    magnitude: Literal["normal", "uniform"] = Field(
        "normal", description="of coefficients; uniform is on [0, 1]"
    )
    means: tuple[float, float] = Field(
        (1.0, 1.0), description="mean coefficient of the first and the last feature"
    )
    deviation: float = Field(0.25, ge=0, description="standard deviation of coefficients, where normal")
    positive: bool = Field(True, description="whether coefficients are folded to be positive")
    noise: float = Field(0.0, ge=0, description="standard deviation of the noise in each dimension")
    bias: float = Field(0.0, ge=0, description="norm of the constant added to all activations")

    @model_validator(mode="after")
    def _possible(self) -> "Setting":
        if self.lowest > self.highest:
            raise ValueError("the lowest probability is above the highest; exchange them")
        if self.highest * (1 + self.correlation) > 1:
            raise ValueError("highest · (1 + correlation) is a probability and must not exceed 1; lower one")
        if self.in_trees > self.features:
            raise ValueError(
                f"trees of these sizes have {self.in_trees} features, more than there are; use fewer roots"
            )
        return self

    @property
    def in_trees(self) -> int:
        """Features that belong to a tree."""
        return self.roots * sum(self.branching**level for level in range(self.depth + 1))


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows with their truth. row, feature, coefficient `[entry]`: what is on, sorted by row, then by feature.

    activations `[row, d]`: their sum along the directions, plus bias, plus noise. noise: no rows where there is none.
    signs `[row, sign]`: the hidden signs.
    """

    row: Int[Tensor, " entry"]
    feature: Int[Tensor, " entry"]
    coefficient: Float[Tensor, " entry"]
    activations: Float[Tensor, "row d"]
    noise: Float[Tensor, "noisy d"]
    signs: Float[Tensor, "row sign"]

    def coefficients(self, features: int) -> Float[Tensor, "row feature"]:
        """What is on, written out with its zeros."""
        dense = torch.zeros(len(self.activations), features)
        dense[self.row, self.feature] = self.coefficient
        return dense


class PlantedDictionary:
    """The planted truth of a setting and seed, and rows made from it.

    dictionary `[feature, d]`: directions with their norms. bias `[d]`. probability `[feature]`: how often each is on.
    parent `[feature]`: whose child it is, or -1. sign `[feature]`: which hidden sign it leans on; lean: by how much.
    """

    def __init__(self, setting: Setting, seed: int = 0) -> None:
        self.setting, self.seed = setting, seed
        source = generator(seed, -1)
        count, d = setting.features, setting.dimensions
        directions = functional.normalize(torch.randn(count, d, generator=source), dim=-1)
        norms = torch.logspace(0, math.log10(setting.norms), count)[torch.randperm(count, generator=source)]
        self.dictionary = spread(directions, setting.spread) * norms[:, None]
        self.bias = setting.bias * functional.normalize(torch.randn(d, generator=source), dim=0)
        self.sign = torch.randint(setting.signs, (count,), generator=source)
        positive = torch.rand(count, generator=source) < 0.5
        self.lean = setting.correlation * torch.where(positive, 1.0, -1.0)
        self.parent = self._parents()
        self.lean[self.parent >= 0] = 0.0  # a child follows its parent, and leans on nothing else
        self.probability = self._probabilities()
        first, last = setting.means
        self.mean = torch.linspace(first, last, count)
        self._buckets = self._octaves()

    def chunk(self, number: int, rows: int = 4096) -> Chunk:
        """Rows number `number`, always the same ones. Raises `InputError` for no rows."""
        if rows < 1:
            raise InputError(f"a chunk has at least one row, not {rows}")
        setting, source = self.setting, generator(self.seed, number)
        signs = torch.randint(2, (rows, setting.signs), generator=source).float() * 2 - 1
        parts = [self._drawn(bucket, top, signs, source) for bucket, top in self._buckets]
        row, feature = (torch.cat(axis) for axis in zip(*parts, strict=True))
        row, feature = self._with_children(row, feature, source)
        order = (row * setting.features + feature).argsort()
        row, feature = row[order], feature[order]
        coefficient = self._coefficients(feature, source)
        starts = torch.searchsorted(row, torch.arange(rows))
        activations = functional.embedding_bag(
            feature, self.dictionary, starts, mode="sum", per_sample_weights=coefficient
        )
        noise = torch.zeros(0, setting.dimensions)
        if setting.noise:
            noise = setting.noise * torch.randn(rows, setting.dimensions, generator=source)
            activations += noise
        return Chunk(row, feature, coefficient, activations + self.bias, noise, signs)

    def expected_on(self) -> float:
        """Features on in a row, on average."""
        return float(self.probability.double().sum())

    def _parents(self) -> Int[Tensor, " feature"]:
        """Trees come first: all roots, then their children, then theirs."""
        setting = self.setting
        parent = torch.full((setting.features,), -1)
        start, size = 0, setting.roots
        for _ in range(setting.depth if setting.roots else 0):
            children = torch.arange(size * setting.branching)
            parent[start + size + children] = start + children // setting.branching
            start, size = start + size, len(children)
        return parent

    def _probabilities(self) -> Float[Tensor, " feature"]:
        setting = self.setting
        free = int((self.parent < 0).sum())
        falling = torch.arange(1, free + 1, dtype=torch.float32) ** -setting.exponent
        share = (falling - falling[-1]) / (falling[0] - falling[-1]).clamp_min(1e-12)
        probability = torch.zeros(setting.features)
        probability[self.parent < 0] = setting.lowest + (setting.highest - setting.lowest) * share
        for child in (self.parent >= 0).nonzero().flatten().tolist():  # parents stand before their children
            probability[child] = probability[self.parent[child]] * setting.inherited / setting.branching
        return probability

    def _octaves(self) -> list[tuple[Int[Tensor, " feature"], float]]:
        """Features without parents, those of like probability together, with the highest that any can have."""
        bound = self.probability * (1 + self.lean.abs())
        free = (self.parent < 0).nonzero().flatten()
        octave = bound[free].log2().floor()
        groups = [free[octave == which] for which in octave.unique()]
        return [(group, min(1.0, float(bound[group].max()))) for group in groups]

    def _drawn(
        self,
        bucket: Int[Tensor, " feature"],
        top: float,
        signs: Float[Tensor, "row sign"],
        source: torch.Generator,
    ) -> tuple[Int[Tensor, " entry"], Int[Tensor, " entry"]]:
        """Who of a bucket is on: candidates at the bucket's highest probability, each then kept with its own share."""
        place = bernoulli_places(len(signs) * len(bucket), top, source)
        row, feature = place // len(bucket), bucket[place % len(bucket)]
        chance = self.probability[feature] * (1 + self.lean[feature] * signs[row, self.sign[feature]])
        kept = torch.rand(len(place), generator=source) * top < chance
        return row[kept], feature[kept]

    def _with_children(
        self, row: Int[Tensor, " entry"], feature: Int[Tensor, " entry"], source: torch.Generator
    ) -> tuple[Int[Tensor, " grown"], Int[Tensor, " grown"]]:
        setting = self.setting
        start, size = 0, setting.roots
        rows, features = [row], [feature]
        for _ in range(setting.depth if setting.roots else 0):
            family = (features[-1] >= start) & (features[-1] < start + size)
            row, parent = rows[-1][family], features[-1][family]
            which = torch.rand(len(row), generator=source) * (setting.branching / setting.inherited)
            born = which < setting.branching
            children = start + size + (parent - start) * setting.branching + which.long()
            rows.append(row[born])
            features.append(children[born])
            start, size = start + size, size * setting.branching
        return torch.cat(rows), torch.cat(features)

    def _coefficients(
        self, feature: Int[Tensor, " entry"], source: torch.Generator
    ) -> Float[Tensor, " entry"]:
        setting = self.setting
        if setting.magnitude == "uniform":
            found = torch.rand(len(feature), generator=source)
        else:
            found = torch.randn(len(feature), generator=source) * setting.deviation + self.mean[feature]
        if setting.positive:
            return found.abs()
        return found * (torch.randint(2, found.shape, generator=source) * 2 - 1)


def spread(directions: Float[Tensor, "feature d"], steps: int) -> Float[Tensor, "feature d"]:
    """Unit directions pushed apart: gradient steps on the sum of squared cosines between them."""
    for _ in range(steps):
        gram = directions.mT @ directions
        # A step of half the inverse curvature of the sum at its steepest.
        pull = directions @ gram - directions
        directions = functional.normalize(directions - 0.5 * pull / torch.linalg.matrix_norm(gram, 2), dim=-1)
    return directions


def bernoulli_places(places: int, probability: float, source: torch.Generator) -> Int[Tensor, " place"]:
    """Which of so many places are hit, each by itself with this probability; by the gaps between hits."""
    if probability >= 1:
        return torch.arange(places)
    found, last = [], -1
    scale = 1 / math.log1p(-probability)
    while last < places:
        left = (places - last) * probability
        draws = int(left + 4 * math.sqrt(left)) + 16
        gaps = (torch.rand(draws, dtype=torch.float64, generator=source).log() * scale).clamp_max(places)
        found.append(last + (gaps.long() + 1).cumsum(0))
        last = int(found[-1][-1])
    hits = torch.cat(found)
    return hits[hits < places]


class LinearMap(nn.Module):
    """Coefficients to activations: the weight of `decoder` is the dictionary; `activation` is where methods look."""

    def __init__(self, dictionary: Float[Tensor, "feature d"], bias: Float[Tensor, " d"]) -> None:
        super().__init__()
        self.decoder = nn.Linear(*dictionary.shape)
        self.activation = nn.Identity()
        self.load_state_dict({"decoder.weight": dictionary.mT, "decoder.bias": bias})

    def forward(
        self, coefficients: Float[Tensor, "row feature"], noise: Float[Tensor, "row d"] | None = None
    ) -> Float[Tensor, "row d"]:
        found = self.decoder(coefficients)
        activations: Tensor = self.activation(found if noise is None else found + noise)
        return activations


CASES: Final[Mapping[str, Setting]] = {
    "orthogonal": Setting(features=32, spread=100),
    "sparse": Setting(),
    "signed": Setting(positive=False),
    "unequal_norms": Setting(norms=8.0),
    "noisy": Setting(noise=0.1, bias=1.0),
    "correlated": Setting(correlation=0.9),
    "hierarchy": Setting(roots=2, branching=3, depth=2, highest=0.3, lowest=0.03),
    "uniform": Setting(features=512, dimensions=256, highest=0.02, lowest=1e-3, magnitude="uniform"),
    "all_together": Setting(
        features=1024,
        dimensions=128,
        highest=0.4,
        lowest=2e-3,
        roots=32,
        correlation=0.5,
        means=(5.0, 4.0),
        deviation=0.5,
        bias=0.5,
        spread=20,
        noise=0.05,
    ),
}


def cases() -> tuple[str, ...]:
    """One difficulty at a time, from a basis of orthogonal directions on; and all of them together."""
    return tuple(CASES)


def build(case: str, seed: int = 0) -> Case:
    """The linear map of a planted dictionary, and rows of it. The seed draws the dictionary and the rows."""
    known(case, cases(), card.name)
    setting = CASES[case]
    planted = PlantedDictionary(setting, seed)
    chunk = planted.chunk(0, ROWS)
    coefficients = chunk.coefficients(setting.features)
    tokens = {"coefficients": coefficients} | ({"noise": chunk.noise} if setting.noise else {})
    model = model_of(LinearMap(planted.dictionary, planted.bias), f"{card.name}/{case} (seed {seed})")
    on = (coefficients != 0).sum(-1).float()
    rebuilt = model.run(tokens, read=[SITE])[SITE] - chunk.activations
    apart = float((on.mean() - planted.expected_on()).abs() / (on.std() / math.sqrt(ROWS)))
    cosines = functional.normalize(planted.dictionary, dim=-1)
    overlap = (cosines @ cosines.mT).fill_diagonal_(0.0).abs().max()
    often = (coefficients[:, :LABELS] != 0).long()
    labels = {f"feature {number} on": is_on for number, is_on in enumerate(often.unbind(-1))}
    if setting.correlation:
        labels |= {f"sign {number}": chunk.signs[:, number] for number in range(setting.signs)}
    return Case(
        name=f"{card.name}/{case}",
        task=f"Sums of {setting.features} planted features in {setting.dimensions} dimensions.",
        model=model,
        truth=Truth(
            features={SITE: planted.dictionary},
            labels=labels,
            quantities={
                "features on in a row": planted.expected_on(),
                "largest cosine between two directions": float(overlap),
            },
        ),
        evidence=(
            Evidence(
                "largest error of a sum, in units of the largest activation",
                float(rebuilt.abs().max() / chunk.activations.abs().max()),
                most=1e-5,
                n=ROWS,
            ),
            Evidence("standard errors between features on and what is expected", apart, most=5.0, n=ROWS),
        ),
        tokens=tokens,
        seed=seed,
    )
