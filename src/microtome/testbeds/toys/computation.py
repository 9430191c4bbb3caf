"""Can a layer compute more functions than it has neurons? Absolute values, and the ANDs of all pairs, in superposition.

1. `absolute_value`, trained: |x_i| of each of `n` sparse numbers through fewer than `n` ReLU neurons. One number by
   itself takes two neurons, a half each: ReLU(x) and ReLU(−x). In superposition a neuron serves halves of several.
2. `pairwise_and`, trained: of `n` binary inputs at most two are on; the AND of each pair is read linearly off fewer
   neurons than there are pairs. No answer may be off by ¼ or more: without neurons, reading the inputs themselves, any
   AND is off by that much somewhere (with none, one and both on, a linear readout says a, a + b and a + 2b; if the
   first two are within ε of 0 the third is at most 3ε, and within ε of 1 only from ε = ¼).
3. `universal_and`, built: each neuron reads a random few of the inputs, ReLU(Σ x − 1). The AND of *any* pair is the
   mean of the neurons that read both; the error of that falls as one over the root of their number.

With at most two inputs on, what the neurons hold is known exactly, whatever their weights: for every input on, what it
brings alone; for every pair on, what the two bring together beyond that: h(ij) − h(i) − h(j) + h(0). The pair's share
is the direction along which its AND is written.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from microtome.core.draws import generator
from microtome.core.errors import InputError
from microtome.testbeds.case import Case, Evidence, TestbedCard, Truth
from microtome.testbeds.toys.network import Recipe, known, model_of, network
from microtome.testbeds.training import seeded

card = TestbedCard(
    name="computation_in_superposition",
    title="Computation in superposition",
    question="Which functions does a layer compute that computes more of them than it has neurons?",
    reference="Elhage et al. (2022), Toy Models of Superposition; Hänni et al. (2024), Computation in superposition",
    kinds=("features", "labels", "quantities"),
    misleads=(
        "Inputs have a dimension each and only the computation is in superposition. The directions are those along "
        "which values are written; those along which they are best read are others. A threshold on two inputs "
        "themselves already tells whether both are on; what takes neurons is to say so linearly, near 0 or near 1."
    ),
)

SITE: Final = "path:neurons"
NUMBERS, HALF_NEURONS, DENSITY, STARTS = 20, 12, 0.02, 4
INPUTS, AND_NEURONS, TOLERANCE = 16, 40, 0.18
MANY, MANY_ON, READ_PAIRS = 400, 3, 256
ROWS: Final = 1024
Pair = tuple[int, int]


class TwoLayers(nn.Module):
    """ReLU neurons and a linear readout, rectified where `rectified`: `[row, input]` to `[row, output]`."""

    def __init__(
        self, inputs: int, neurons: int, outputs: int, *, bias: bool = True, rectified: bool = False
    ) -> None:
        super().__init__()
        self.neurons = nn.Sequential(nn.Linear(inputs, neurons, bias=bias), nn.ReLU())
        self.readout = nn.Linear(neurons, outputs)
        self.output = nn.ReLU() if rectified else nn.Identity()

    def forward(self, x: Float[Tensor, "row input"]) -> Float[Tensor, "row output"]:
        found: Tensor = self.output(self.readout(self.neurons(x)))
        return found


def cases() -> tuple[str, ...]:
    """`absolute_value` and `pairwise_and` are trained, `universal_and` is built."""
    return ("absolute_value", "pairwise_and", "universal_and")


def recipe(case: str) -> Recipe:
    """How a trained case is trained. Raises `InputError` for another."""
    known(case, cases()[:2], f"{card.name} (trained)")
    return _absolute_recipe() if case == "absolute_value" else _and_recipe()


def build(case: str, seed: int = 0) -> Case:
    """A network that computes in superposition, with what each neuron layer holds."""
    known(case, cases(), card.name)
    return {"absolute_value": _absolute, "pairwise_and": _pairwise, "universal_and": _universal}[case](seed)


# Absolute values


def numbers(count: int, rows: int, source: torch.Generator) -> Float[Tensor, "row number"]:
    """Sparse numbers, uniform on [−1, 1] where they are there."""
    values = torch.rand(rows, count, generator=source) * 2 - 1
    return values * (torch.rand(rows, count, generator=source) < DENSITY)


def _absolute_recipe() -> Recipe:
    def make(seed: int) -> nn.Module:
        with seeded(seed):
            return nn.ModuleList(_empty_absolute() for _ in range(STARTS))

    def losses(module: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(module, nn.ModuleList)
        return torch.stack([((one(x) - x.abs()) ** 2).sum(-1).mean() for one in module])

    def served(module: nn.Module, seed: int) -> nn.Module:
        assert isinstance(module, nn.ModuleList)
        return module[int(losses(module, numbers(NUMBERS, 8192, generator(seed, -1))).argmin())]

    return Recipe(
        testbed=card.name,
        case="absolute_value",
        make=make,
        batch=lambda seed, step: numbers(NUMBERS, 512, generator(seed, step)),
        loss=lambda module, x: losses(module, x).sum(),
        rate=5e-3,
        steps=3000,
        settings={"numbers": NUMBERS, "neurons": HALF_NEURONS, "density": DENSITY, "starts": STARTS},
        choose=served,
        empty=_empty_absolute,
    )


def _empty_absolute() -> TwoLayers:
    return TwoLayers(NUMBERS, HALF_NEURONS, NUMBERS, bias=False, rectified=True)


def _absolute(seed: int) -> Case:
    model = network(recipe("absolute_value"), seed)
    x = numbers(NUMBERS, ROWS, generator(seed, -3))
    with torch.no_grad():
        halves = torch.cat([torch.eye(NUMBERS), -torch.eye(NUMBERS)])
        answered = (model.module(halves) * halves.abs()).sum(-1)
        fresh = numbers(NUMBERS, 8192, generator(seed, -2))
        loss = float(((model.module(fresh) - fresh.abs()) ** 2).sum(-1).mean())
    # One number takes two neurons; the others are best replaced by their mean, at the cost of their variance.
    alone = (NUMBERS - HALF_NEURONS / 2) * (DENSITY / 3 - DENSITY**2 / 4)
    computed = answered > 0.5
    directions = model.run({"x": halves}, read=[SITE])[SITE][computed]
    return Case(
        name=f"{card.name}/absolute_value",
        task=f"The absolute values of {NUMBERS} sparse numbers through {HALF_NEURONS} ReLU neurons.",
        model=model,
        truth=Truth(
            features={SITE: directions},
            labels={f"absolute {number}": x[:, number].abs() for number in range(NUMBERS)},
            quantities={"neurons": float(HALF_NEURONS), "halves computed": float(computed.sum())},
        ),
        evidence=(
            Evidence(
                "halves of absolute values computed", float(computed.sum()), least=float(HALF_NEURONS + 1)
            ),
            Evidence(
                "loss, in units of the best without superposition", loss / alone, most=0.9, n=len(fresh)
            ),
        ),
        tokens={"x": x},
        seed=seed,
    )


# ANDs of all pairs


def at_most_two(inputs: int) -> tuple[Float[Tensor, "row input"], list[Pair]]:
    """Every input with at most two on: none, each alone, each pair; and the pairs in that order."""
    pairs = list(combinations(range(inputs), 2))
    alone = torch.eye(inputs)
    both = torch.stack([alone[one] + alone[other] for one, other in pairs])
    return torch.cat([torch.zeros(1, inputs), alone, both]), pairs


def ands(x: Float[Tensor, "row input"], pairs: Sequence[Pair]) -> Bool[Tensor, "row pair"]:
    """Which pairs are on."""
    first, second = torch.tensor(pairs).T
    return (x[:, first] > 0) & (x[:, second] > 0)


def shares(
    neurons: nn.Module, inputs: int, pairs: Sequence[Pair]
) -> tuple[Float[Tensor, "input neuron"], Float[Tensor, "pair neuron"]]:
    """What each input brings to the neurons alone, and what each pair brings beyond its two inputs."""
    first, second = torch.tensor(pairs).T
    single = torch.eye(inputs)
    with torch.no_grad():
        nothing, alone = neurons(torch.zeros(1, inputs)), neurons(single)
        both = neurons(single[first] + single[second])
    return alone - nothing, both - alone[first] - alone[second] + nothing


def _and_recipe() -> Recipe:
    x, pairs = at_most_two(INPUTS)
    wanted = ands(x, pairs).float()

    def make(seed: int) -> nn.Module:
        with seeded(seed):
            return TwoLayers(INPUTS, AND_NEURONS, len(pairs))

    return Recipe(
        testbed=card.name,
        case="pairwise_and",
        make=make,
        batch=lambda seed, step: x,
        # Only what is off by more than the tolerance counts: fewer neurons than ANDs cannot get every one quite right.
        loss=lambda module, x: (((module(x) - wanted).abs() - TOLERANCE).clamp_min(0) ** 2).sum(),
        rate=0.01,
        steps=3000,
        settings={"inputs": INPUTS, "neurons": AND_NEURONS, "tolerance": TOLERANCE},
    )


def _pairwise(seed: int) -> Case:
    model = network(recipe("pairwise_and"), seed)
    module = model.module
    assert isinstance(module, TwoLayers)
    x, pairs = at_most_two(INPUTS)
    with torch.no_grad():
        off = float((module(x) - ands(x, pairs).float()).abs().max())
    alone, together = shares(module.neurons, INPUTS, pairs)
    return Case(
        name=f"{card.name}/pairwise_and",
        task=f"The AND of each pair of {INPUTS} inputs, at most two of them on, through {AND_NEURONS} neurons.",
        model=model,
        truth=_and_truth(x, pairs, alone, together),
        evidence=(
            Evidence("furthest that an AND is off, over every input", off, most=0.2, n=len(x) * len(pairs)),
            Evidence("ANDs for each neuron", len(pairs) / AND_NEURONS, least=1.0 + 1e-9),
        ),
        tokens={"x": x},
        seed=seed,
    )


def universal_and(
    inputs: int, neurons: int, pairs: Sequence[Pair], seed: int = 0, read: float = 4.0
) -> TwoLayers:
    """The random construction, with a readout of these pairs: the mean of the neurons that read both, minus ½.

    read: each neuron reads an input with probability read / √neurons, so that read² neurons read a given pair.
    Raises `InputError` where that is no probability, or a pair is read by no neuron.
    """
    share = read / math.sqrt(neurons)
    if not 0 < share <= 1:
        raise InputError(f"{neurons} neurons are too few to have {read:g}² read each pair; give more")
    reads = (torch.rand(neurons, inputs, generator=generator(seed, -1)) < share).float()
    first, second = torch.tensor(pairs).T
    both = (reads[:, first] * reads[:, second]).T
    if bool((both.sum(-1) == 0).any()):
        raise InputError(
            f"some of the {len(pairs)} pairs are read by no neuron; give more neurons or read more"
        )
    module = TwoLayers(inputs, neurons, len(pairs))
    module.load_state_dict(
        {
            "neurons.0.weight": reads,
            "neurons.0.bias": torch.full((neurons,), -1.0),
            "readout.weight": both / both.sum(-1, keepdim=True),
            "readout.bias": torch.full((len(pairs),), -0.5),
        }
    )
    return module.eval()


def some_on(
    inputs: int, on: int, pairs: Sequence[Pair], rows: int, source: torch.Generator
) -> Float[Tensor, "row input"]:
    """Rows with so many inputs on, one of the pairs among them in every other row."""
    order = torch.rand(rows, inputs, generator=source)
    which = torch.tensor(pairs)[torch.randint(len(pairs), (rows // 2,), generator=source)]
    order[: rows // 2] = order[: rows // 2].scatter(1, which, 2.0)
    return torch.zeros(rows, inputs).scatter(1, order.topk(on).indices, 1.0)


def sampled_pairs(inputs: int, count: int, source: torch.Generator) -> list[Pair]:
    """So many different pairs."""
    every = torch.combinations(torch.arange(inputs))
    return [(int(i), int(j)) for i, j in every[torch.randperm(len(every), generator=source)[:count]].tolist()]


def _universal(seed: int) -> Case:
    from sklearn.metrics import roc_auc_score  # takes a second, which a list of testbeds should not

    source = generator(seed, -3)
    pairs = sampled_pairs(MANY, READ_PAIRS, source)
    module = universal_and(MANY, MANY, pairs, seed)
    x = some_on(MANY, MANY_ON, pairs, ROWS, source)
    wanted = ands(x, pairs)
    with torch.no_grad():
        read = module(x)
    alone, together = shares(module.neurons, MANY, pairs)
    area = float(roc_auc_score(wanted.flatten().numpy(), read.flatten().numpy()))
    return Case(
        name=f"{card.name}/universal_and",
        task=f"The AND of any pair of {MANY} inputs, {MANY_ON} of them on, from {MANY} neurons built at random.",
        model=model_of(module, f"{card.name}/universal_and (seed {seed})"),
        truth=_and_truth(x, pairs, alone, together),
        evidence=(
            Evidence("area under the curve of what is read off", area, least=0.99, n=wanted.numel()),
            Evidence("pairs of inputs for each neuron", math.comb(MANY, 2) / MANY, least=1.0 + 1e-9),
        ),
        tokens={"x": x},
        seed=seed,
        twin="drawn",
    )


def _and_truth(
    x: Float[Tensor, "row input"],
    pairs: Sequence[Pair],
    alone: Float[Tensor, "input neuron"],
    together: Float[Tensor, "pair neuron"],
) -> Truth:
    """Of the pairs given; the universal AND writes all others likewise."""
    on = ands(x, pairs)
    every = torch.cat([alone, together])
    return Truth(
        features={SITE: every[every.norm(dim=-1) > 0]},
        labels={f"{one} and {other}": on[:, index] for index, (one, other) in enumerate(pairs)},
        quantities={
            "neurons": float(alone.shape[1]),
            "neurons that hold a share of a pair": float((together.abs() > 1e-4).sum(-1).float().mean()),
        },
    )
