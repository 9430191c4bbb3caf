"""How close does a dictionary learner come where features are as messy as in a language model? Thousands of them, in
trees, correlated, of Zipf's frequencies: the settings of SynthSAEBench, made fast enough to train on a processor.

1. Feature i asks to be on with probability p_i: Zipf's law, scaled between the highest and the lowest.
2. The first features are trees, level by level: a child is on only where its parent is, and of siblings only one. So
   that this costs them little, a child asks with p_i / p_parent · (1 + what its siblings ask for, of p_parent), at most
   1. The rates that come out lie below p_i where a parent is rarer than its children together.
3. What is asked comes from a Gaussian copula of low rank: feature i asks where w_i · f + sqrt(1 - |w_i|²) ε exceeds the
   quantile of its probability; f `[rank]` is shared by the row, so that features with like w come together.
4. Of siblings that ask at once, one is drawn. Its coefficient is normal about its mean, folded at 0 (a negative one is
   off), times its parent's coefficient over the parent's mean.
5. Activations are coefficients times directions, unit vectors that a few steps of Adam push apart, plus a bias.

Rows come in chunks, and a chunk is a pure function of seed and number. Only what is on is drawn: a rare feature is a
candidate where a uniform number lies below a ceiling (the gaps between such places are geometric), and the few places
where f carries its probability above that ceiling are drawn one by one. Both together are exact.

Reference: Chanin and Garriga-Alonso (2026), SynthSAEBench. The random numbers are ours: statistics agree with theirs,
rows do not. Misleads where real features are no sums along fixed directions.
"""

import math
from collections.abc import Mapping
from typing import Final

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from microtome.core.config import Config
from microtome.core.draws import generator
from microtome.core.errors import InputError
from microtome.testbeds.case import Case, Evidence, TestbedCard, Truth
from microtome.testbeds.toys.network import known, model_of
from microtome.testbeds.toys.planted_dictionary import SITE, Chunk, LinearMap, bernoulli_places

card = TestbedCard(
    name="synthetic_benchmark",
    title="Synthetic benchmark of sparse autoencoders",
    question="Which of a thousand correlated features in trees does a dictionary find?",
    reference="Chanin and Garriga-Alonso (2026), SynthSAEBench",
    kinds=("features", "labels"),
    misleads=(
        "There are more features than any dictionary trained here has units, so that no method can find them all; "
        "compare methods of one width."
    ),
)

ROWS: Final = 2048
FREQUENT: Final = 0.02  # asked for more often than this: drawn in every row, without candidates
REACH: Final = 2.25  # standard deviations of w · f up to which the ceiling holds
BLOCK: Final = 512  # rows whose w · f stay in a processor's cache
SHARED: Final = 0.95  # at most so much of a feature's variance comes from f

Entries = tuple[Int[Tensor, " on"], Int[Tensor, " on"], Float[Tensor, " on"]]


class Setting(Config):
    """What is planted. The defaults are those of SynthSAEBench-16k."""

    features: int = Field(16384, ge=1, description="directions planted")
    dimensions: int = Field(768, ge=1, description="of the activations")
    exponent: float = Field(0.5, gt=0, description="of Zipf's law")
    highest: float = Field(0.4, gt=0, lt=1, description="probability of the first feature")
    lowest: float = Field(5e-4, gt=0, lt=1, description="probability of the last feature")
    roots: int = Field(128, ge=0, description="features that head a tree")
    branching: int = Field(4, ge=1, description="children of each")
    depth: int = Field(3, ge=1, description="generations below a root")
    rank: int = Field(25, ge=1, description="of the correlation")
    correlation: float = Field(0.1, ge=0, description="standard deviation of the entries of w")
    means: tuple[float, float] = Field((5.0, 4.0), description="mean coefficient of the first and the last")
    deviations: tuple[float, float] = Field(
        (0.5, 0.5), description="mean and spread of the folded normal that standard deviations are drawn from"
    )
    bias: float = Field(0.5, ge=0, description="norm of the constant added to all activations")
    steps: int = Field(100, ge=0, description="of Adam, which push directions apart")
    rate: float = Field(3e-4, gt=0, description="learning rate of these steps")

    @model_validator(mode="after")
    def _possible(self) -> "Setting":
        if self.lowest > self.highest:
            raise ValueError("the lowest probability is above the highest; exchange them")
        trees = self.roots * sum(self.branching**level for level in range(self.depth + 1))
        if trees > self.features:
            raise ValueError(
                f"trees of these sizes have {trees} features, more than there are; use fewer roots"
            )
        return self


FULL: Final = Setting()
SMALL: Final = Setting(features=1024, dimensions=128, roots=32, depth=2, lowest=2e-3, rank=8)
CASES: Final[Mapping[str, Setting]] = {"small": SMALL}


class SyntheticBenchmark:
    """The planted truth of a setting and seed, and rows made from it.

    dictionary `[feature, d]`: unit directions. bias `[d]`. probability `[feature]`: p_i; asked: with its correction.
    parent `[feature]`: whose child it is, or -1. shared `[feature, rank]`: w. mean, deviation `[feature]`: of
    coefficients.
    """

    def __init__(self, setting: Setting, seed: int = 42) -> None:
        self.setting, self.seed = setting, seed
        source = generator(seed, -1)
        count, d = setting.features, setting.dimensions
        directions = functional.normalize(torch.randn(count, d, generator=source), dim=-1)
        self.dictionary = pushed_apart(directions, setting.steps, setting.rate)
        self.bias = setting.bias * functional.normalize(torch.randn(d, generator=source), dim=0)
        self.mean = torch.linspace(*setting.means, count)
        middle, spread = setting.deviations
        self.deviation = (middle + spread * torch.randn(count, generator=source)).abs()
        shared = setting.correlation * torch.randn(count, setting.rank, generator=source)
        variance = shared.square().sum(-1, keepdim=True)
        self.shared = shared * (SHARED / variance).sqrt().clamp_max(1.0)
        self.probability = _zipf(setting)
        self._levels = self._laid_out()
        self.parent = self._parents()
        self.asked = self._asked()
        own = (1 - self.shared.square().sum(-1)).sqrt()
        # On given f with probability Φ(pull · f - hurdle): what exceeds the quantile, in units of what is its own.
        self._pull = self.shared / own[:, None]
        self._hurdle = (-torch.special.ndtri(self.asked.double()) / own).float()
        self._groups = self._grouped()

    def chunk(self, number: int, rows: int = 4096) -> Chunk:
        """Rows number `number`, always the same ones. Raises `InputError` for no rows."""
        if rows < 1:
            raise InputError(f"a chunk has at least one row, not {rows}")
        setting, source = self.setting, generator(self.seed, number)
        latent = torch.randn(rows, setting.rank, generator=source)
        found = [self._standing(latent, source)]
        for start, size in self._levels[:-1]:
            found.append(self._born(*found[-1], start, size, latent, source))
        row, feature, coefficient = (torch.cat(axis) for axis in zip(*found, strict=True))
        order = (row * setting.features + feature).argsort()
        row, feature, coefficient = row[order], feature[order], coefficient[order]
        starts = torch.searchsorted(row, torch.arange(rows))
        activations = functional.embedding_bag(
            feature, self.dictionary, starts, mode="sum", per_sample_weights=coefficient
        )
        nothing = torch.zeros(0, setting.dimensions)
        return Chunk(row, feature, coefficient, activations + self.bias, nothing, torch.zeros(rows, 0))

    def _laid_out(self) -> list[tuple[int, int]]:
        """First feature and number of features of each level of the trees."""
        setting = self.setting
        levels = [(0, setting.roots)]
        for _ in range(setting.depth if setting.roots else 0):
            start, size = levels[-1]
            levels.append((start + size, size * setting.branching))
        return levels

    def _parents(self) -> Int[Tensor, " feature"]:
        parent = torch.full((self.setting.features,), -1)
        for (above, _), (start, size) in zip(self._levels, self._levels[1:], strict=False):
            parent[start : start + size] = above + torch.arange(size) // self.setting.branching
        return parent

    def _asked(self) -> Float[Tensor, " feature"]:
        asked = self.probability.clone()
        for start, size in self._levels[1:]:
            mine = self.probability[start : start + size].view(-1, self.setting.branching)
            above = self.probability[self.parent[start : start + size]].view(mine.shape)
            siblings = mine.sum(-1, keepdim=True) - mine
            asked[start : start + size] = (mine / above * (1 + siblings / above)).flatten()
        return asked.clamp_max(1.0)

    def _grouped(self) -> list[tuple[Int[Tensor, " feature"], Float[Tensor, " feature"], float]]:
        """Features without parents in groups of like ceilings: who, how far w · f may reach, the ceiling (1: none)."""
        alone = (self.parent < 0).nonzero().flatten()
        often = self.asked[alone] > FREQUENT
        groups = [(alone[often], torch.zeros(int(often.sum())), 1.0)] if often.any() else []
        rare = alone[~often]
        reach = REACH * self._pull[rare].norm(dim=-1)
        ceiling = torch.special.ndtr(reach - self._hurdle[rare])
        octave = ceiling.log2().floor()
        for which in octave.unique():
            mine = octave == which
            groups.append((rare[mine], reach[mine], float(ceiling[mine].max())))
        return groups

    def _standing(self, latent: Float[Tensor, "row rank"], source: torch.Generator) -> Entries:
        """Who of those without parents is on."""
        rows, features = [], []
        for group, reach, ceiling in self._groups:
            pull = self._pull[group].mT
            for first, some in zip(range(0, len(latent), BLOCK), latent.split(BLOCK), strict=True):
                push = some @ pull
                if ceiling >= 1:
                    chance = torch.special.ndtr(push - self._hurdle[group])
                    row, column = (torch.rand(chance.shape, generator=source) < chance).nonzero(as_tuple=True)
                else:
                    row, column = self._rare(push, self._hurdle[group], reach, ceiling, source)
                rows.append(row + first)
                features.append(group[column])
        row, feature = torch.cat(rows), torch.cat(features)
        drawn = torch.randn(len(feature), generator=source)
        coefficient = drawn * self.deviation[feature] + self.mean[feature]
        on = coefficient > 0
        return row[on], feature[on], coefficient[on]

    def _rare(
        self,
        push: Float[Tensor, "row feature"],
        hurdle: Float[Tensor, " feature"],
        reach: Float[Tensor, " feature"],
        ceiling: float,
        source: torch.Generator,
    ) -> tuple[Int[Tensor, " entry"], Int[Tensor, " entry"]]:
        """Who is on: below the ceiling where f does not reach far, and place by place where it does."""
        near, width = bernoulli_places(push.numel(), ceiling, source), len(hurdle)
        here, column = push.view(-1)[near], near % width
        chance = torch.special.ndtr(here - hurdle[column])
        kept = (torch.rand(len(near), generator=source) * ceiling < chance) & (here <= reach[column])
        far = (push > reach).view(-1).nonzero().flatten()
        chance = torch.special.ndtr(push.view(-1)[far] - hurdle[far % width])
        place = torch.cat([near[kept], far[torch.rand(len(far), generator=source) < chance]])
        return place // width, place % width

    def _born(
        self,
        row: Int[Tensor, " entry"],
        feature: Int[Tensor, " entry"],
        coefficient: Float[Tensor, " entry"],
        start: int,
        size: int,
        latent: Float[Tensor, "row rank"],
        source: torch.Generator,
    ) -> Entries:
        """The children of those of one level that are on: at most one of each."""
        family = (feature >= start) & (feature < start + size)
        row, parent, scale = row[family], feature[family], coefficient[family] / self.mean[feature[family]]
        first, branching = start + size, self.setting.branching

        def of_children(table: Float[Tensor, "feature *rank"]) -> Float[Tensor, "entry child *rank"]:
            mine = table[first : first + size * branching].unflatten(0, (size, branching))
            return mine.index_select(0, parent - start)

        push = (of_children(self._pull) @ latent[row][:, :, None])[..., 0]
        magnitude = torch.randn(push.shape, generator=source) * of_children(self.deviation) + of_children(
            self.mean
        )
        asks = torch.rand(push.shape, generator=source) < torch.special.ndtr(push - of_children(self._hurdle))
        asks &= magnitude > 0
        best, which = torch.rand(push.shape, generator=source).masked_fill(~asks, -1.0).max(-1)
        born = best >= 0
        value = magnitude.gather(1, which[:, None])[:, 0] * scale
        return row[born], (first + (parent - start) * branching + which)[born], value[born]


def pushed_apart(
    directions: Float[Tensor, "feature d"], steps: int, rate: float
) -> Float[Tensor, "feature d"]:
    """Adam on the sum of squared cosines between different unit directions, back on the sphere after each step.

    The gradient needs the `d × d` second moment only, never all pairs of features.
    """
    free = directions.clone().requires_grad_()
    adam = torch.optim.Adam([free], rate)
    with torch.no_grad():
        for _ in range(steps):
            free.grad = 4 * (free @ (free.mT @ free) - free)
            adam.step()
            free.copy_(functional.normalize(free, dim=-1))
    return free.detach()


def _zipf(setting: Setting) -> Float[Tensor, " feature"]:
    falling = torch.arange(1, setting.features + 1, dtype=torch.float32) ** -setting.exponent
    share = (falling - falling[-1]) / (falling[0] - falling[-1]).clamp_min(1e-12)
    return setting.lowest + (setting.highest - setting.lowest) * share


def cases() -> tuple[str, ...]:
    """The small one; the full one is for benchmarks, which stream its rows."""
    return tuple(CASES)


def build(case: str, seed: int = 0) -> Case:
    """The linear map of the benchmark's dictionary, and rows of it. The seed draws the dictionary and the rows."""
    known(case, cases(), card.name)
    benchmark = SyntheticBenchmark(CASES[case], seed)
    chunk = benchmark.chunk(0, ROWS)
    coefficients = chunk.coefficients(benchmark.setting.features)
    tokens = {"coefficients": coefficients}
    model = model_of(LinearMap(benchmark.dictionary, benchmark.bias), f"{card.name}/{case} (seed {seed})")
    rebuilt = model.run(tokens, read=[SITE])[SITE] - chunk.activations
    first = (coefficients[:, 0] > 0).float().mean()
    wanted = float(benchmark.probability[0])
    apart = float((first - wanted).abs() / math.sqrt(wanted * (1 - wanted) / ROWS))
    return Case(
        name=f"{card.name}/{case}",
        task=f"Sums of {benchmark.setting.features} features in trees in {benchmark.setting.dimensions} dimensions.",
        model=model,
        truth=Truth(
            features={SITE: benchmark.dictionary},
            labels={"features on": (coefficients != 0).sum(-1).float()},
        ),
        evidence=(
            Evidence(
                "largest error of a sum, in units of the largest activation",
                float(rebuilt.abs().max() / chunk.activations.abs().max()),
                most=1e-5,
                n=ROWS,
            ),
            Evidence(
                "standard errors between the first feature's rate and what is asked", apart, most=5.0, n=ROWS
            ),
        ),
        tokens=tokens,
        seed=seed,
    )
