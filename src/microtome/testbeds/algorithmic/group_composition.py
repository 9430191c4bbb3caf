"""What does a network that learned a group compute? Composition of two elements, with the group's representations.

1. Pairs `a b` of elements of a finite group; a share of all pairs is learned, the rest is never seen. The network has
   one layer of neurons over an embedding of each side. It is trained on all learned pairs at once with strong weight
   decay, in seconds, so it is trained where it is asked for and nothing ships.
2. The known account (Chughtai et al. 2023): the logits are sums over irreducible representations ρ of their characters,
   χ_ρ(a b c⁻¹); for a cyclic group these are the waves of modular addition. Which representations is a matter of the
   seed.
3. How far each carries the logits is measured on all of them. The characters are found from the table of the group
   alone (Burnside): the class sums commute, their common eigenvectors are the characters.
"""

from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from microtome.core.draws import generator
from microtome.core.errors import InputError
from microtome.models.load import load
from microtome.testbeds.case import Case, Evidence, TestbedCard, Truth
from microtome.testbeds.training import Training, seeded, train

card = TestbedCard(
    name="group_composition",
    title="Composition in a finite group",
    question="Through which irreducible representations does a network compose two elements?",
    reference="Chughtai, Chan, Nanda (2023), A Toy Model of Universality",
    kinds=("quantities", "labels"),
    misleads="Representations differ between seeds; networks that agree on all answers need not agree on these.",
)

Permutation = tuple[int, ...]
GENERATORS: Mapping[str, tuple[Permutation, ...]] = {
    "symmetric": ((1, 0, 2, 3), (1, 2, 3, 0)),
    "cyclic": (tuple((i + 1) % 41 for i in range(41)),),
    "dihedral": (tuple((i + 1) % 29 for i in range(29)), tuple(-i % 29 for i in range(29))),
    "alternating": ((1, 2, 0, 3, 4), (1, 2, 3, 4, 0)),
}


LEARNED: Final = 0.8
NEURONS: Final = 256
STEPS: Final[Mapping[str, int]] = {"symmetric": 2500, "cyclic": 900, "dihedral": 900}
RATE: Final = 2e-2
WEIGHT_DECAY: Final = 1.0


def cases() -> tuple[str, ...]:
    """The symmetric group of 24 elements, the cyclic one of 41, the dihedral one of 58. The alternating one of 60 is
    learned to 0.989 to 0.992 of the unseen pairs, which is too little to rely on."""
    return tuple(STEPS)


def elements(generators: tuple[Permutation, ...]) -> list[Permutation]:
    """All products of the generators, in order of discovery from the identity."""
    found = [tuple(range(len(generators[0])))]
    for one in found:
        for other in generators:
            product = tuple(one[i] for i in other)
            if product not in found:
                found.append(product)
    return found


@cache
def table(case: str) -> Int[Tensor, "a b"]:
    """The number of the element a·b, for the numbers of a and b; the identity has number 0."""
    if case not in GENERATORS:
        raise InputError(f"group composition has the cases {', '.join(GENERATORS)}, not {case!r}")
    every = elements(GENERATORS[case])
    number = {one: i for i, one in enumerate(every)}
    return torch.tensor([[number[tuple(a[i] for i in b)] for b in every] for a in every])


@cache
def characters(case: str) -> tuple[tuple[str, Float[Tensor, " element"]], ...]:
    """The real irreducible characters by name, `d` and a letter: `1a` is the trivial one, `3b` the second of three
    dimensions. A pair of complex conjugates counts as one, by its sum.

    1. A function of the conjugacy class that is the same for g and g⁻¹ acts on all functions of the group as a
       symmetric matrix, f(x y⁻¹); for a function drawn at random, its eigenspaces are the representations.
    2. The projection on an eigenspace, seen from the identity, is the character times d/n.
    """
    product = table(case)
    n = len(product)
    inverse = (product == 0).int().argmax(-1)
    conjugates = product[product, inverse[:, None].expand(-1, n)]  # [x, g]: x g x⁻¹
    drawn = torch.rand(n, dtype=torch.double, generator=generator(0))
    central = drawn[conjugates].mean(0)
    central = central + central[inverse]
    values, vectors = torch.linalg.eigh(central[product[:, inverse]])
    starts = [0, *(torch.nonzero(values.diff() > 1e-9)[:, 0] + 1).tolist(), n]
    found = []
    for start, stop in pairwise(starts):
        space = vectors[:, start:stop]
        projection = space @ space[0]
        # A real representation of dimension d fills d² dimensions, a pair of conjugates 2d²; χ(1) tells them apart,
        # since the mean of |χ|² is 1 for one and 2 for two.
        pair = not _is_square(stop - start)
        dimension = round(((stop - start) / (2 if pair else 1)) ** 0.5)
        found.append((dimension, pair, projection * n / dimension))
    found.sort(key=lambda one: (one[0], one[1], (-one[2]).round(decimals=6).tolist()))
    counts: dict[int, int] = {}
    named = []
    for dimension, _, character in found:
        counts[dimension] = counts.get(dimension, 0) + 1
        named.append((f"{dimension}{chr(ord('a') + counts[dimension] - 1)}", character))
    return tuple(named)


def _is_square(number: int) -> bool:
    return round(number**0.5) ** 2 == number


class Composer(nn.Module):
    """relu(left[a] + right[b]) @ out: a logit for each element. Rows are `a b`, b counted on from n."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(2 * n, NEURONS)
        self.neurons = nn.ReLU()
        self.unembed = nn.Linear(NEURONS, n, bias=False)
        nn.init.normal_(self.embed.weight, std=0.3)
        nn.init.normal_(self.unembed.weight, std=NEURONS**-0.5)

    def forward(self, tokens: Int[Tensor, "row 2"]) -> Float[Tensor, "row element"]:
        logits: Tensor = self.unembed(self.neurons(self.embed(tokens).sum(dim=1)))
        return logits


def rows(n: int) -> Int[Tensor, "pair 2"]:
    """All pairs `a b`. An element has the id of its number on the left, n more on the right."""
    return torch.cartesian_prod(torch.arange(n), torch.arange(n, 2 * n))


def products(case: str, tokens: Int[Tensor, "row 2"]) -> Int[Tensor, " row"]:
    """The number of the product of each row."""
    product = table(case)
    return product[tokens[:, 0], tokens[:, 1] - len(product)]


def split(case: str, seed: int) -> tuple[Int[Tensor, "learned 2"], Int[Tensor, "unseen 2"]]:
    """The pairs learned from, and the others."""
    every = rows(len(table(case)))
    order = torch.randperm(len(every), generator=generator(seed))
    count = round(LEARNED * len(every))
    return every[order[:count]], every[order[count:]]


def fit(case: str, seed: int = 0, steps: int | None = None) -> tuple[Composer, Training]:
    """Train a new network; the same seed gives the same one. In the last third the rate falls to nothing.

    steps: fewer than it takes, for a trial. Raises `InputError` for a group that is no case.
    """
    if case not in STEPS:
        raise InputError(f"group composition has the cases {', '.join(STEPS)}, not {case!r}")
    whole = STEPS[case]
    learned, _ = split(case, seed)
    targets = products(case, learned)
    with seeded(seed):
        module = Composer(len(table(case)))
    training = train(
        module,
        torch.optim.AdamW(module.parameters(), RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY),
        lambda step: learned,
        lambda module, given: functional.cross_entropy(module(given), targets),
        whole if steps is None else steps,
        rate=lambda step: min(1.0, (step + 1) / 10, 3 * (whole - step) / whole),
    )
    return module, training


@torch.no_grad()
def representation_shares(module: nn.Module, case: str) -> dict[str, float]:
    """For each irreducible character, by name, the share of the variance of all logits `[a, b, c]` (centred over c,
    which no softmax sees) that is a multiple of χ(a b c⁻¹)."""
    product = table(case)
    n = len(product)
    inverse = (product == 0).int().argmax(-1)
    logits = module(rows(n)).double().view(n, n, n)
    logits = logits - logits.mean(-1, keepdim=True)
    distance = product[product][:, :, inverse]  # [a, b, c]: the number of a·b·c⁻¹
    mean = torch.zeros(n, dtype=torch.double).index_add_(0, distance.flatten(), logits.flatten()) / n**2
    total = logits.square().mean()
    shares = {}
    for name, character in characters(case):
        amplitude = (mean * character).mean() / character.square().mean()
        shares[name] = float(amplitude.square() * character.square().mean() / total)
    return shares


def build(case: str, seed: int = 0) -> Case:
    """A network that composes, trained now. Its tokens are all pairs. Raises `InputError` for an unknown group."""
    module, training = fit(case, seed)
    n = len(table(case))
    model = load(module)
    model.name = f"{card.name}/{case} (seed {seed})"
    shares = representation_shares(module, case)
    every, (_, unseen) = rows(n), split(case, seed)
    with torch.no_grad():
        right = (module(unseen).argmax(-1) == products(case, unseen)).double().mean()
    return Case(
        name=f"{card.name}/{case}",
        task=f"The product of two elements of the {case} group of {n}.",
        model=model,
        truth=Truth(
            quantities={f"character_share.{name}": share for name, share in shares.items()},
            labels={"product": products(case, every)},
        ),
        evidence=(
            Evidence("share of unseen pairs answered right", float(right), least=0.99, n=len(unseen)),
            Evidence("loss on the pairs learned, in nats", training.losses[-1], most=0.05),
            Evidence(
                "share of logit variance in characters of a·b·c⁻¹", sum(shares.values()), least=0.5, n=n**3
            ),
        ),
        tokens=every,
        seed=seed,
    )
