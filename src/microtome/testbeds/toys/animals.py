"""Factors or clusters? Animals that differ in the length of their legs and of their tail, seen in few combinations.

Legs and tails come in four lengths each, but of the sixteen combinations only six are seen. Six clusters of rows would
then look alike whether a network holds two lengths that add up or six animals that it knows one by one. Combinations
that were never seen tell them apart: where lengths are held, they are read off an animal that no one has met.

1. `few` and `every`, planted: legs and tail have a direction each; six combinations are seen, or all.
2. `clusters`, planted: the same animals, but each combination has a direction of its own. Its truth is the opposite.
3. `measured` and `named`, trained on the six from a picture of the body: the one to say both lengths as numbers, the
   other to choose them from four classes. The first gets unseen combinations right; the second does not.
"""

from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from microtome.core.draws import generator
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.testbeds.case import Case, Evidence, TestbedCard, Truth, Variable
from microtome.testbeds.toys.network import Recipe, known, model_of, network
from microtome.testbeds.training import seeded

card = TestbedCard(
    name="animals",
    title="Compositional animals",
    question="Does a method find the lengths that animals are made of, or the animals that were seen?",
    reference="Bengio, Courville, Vincent (2013), Representation Learning: A Review and New Perspectives",
    kinds=("variables", "features", "labels", "quantities"),
    misleads=(
        "On the rows that are seen alone, factors and clusters can both be right accounts of the same activations; "
        "the truth says which one holds beyond them."
    ),
)

SITE: Final = "path:hidden"
LENGTHS: Final = 4
SEEN: Final = ((0, 0), (0, 3), (1, 1), (2, 3), (3, 0), (3, 2))
EVERY: Final = tuple((legs, tail) for legs in range(LENGTHS) for tail in range(LENGTHS))
UNSEEN: Final = tuple(kind for kind in EVERY if kind not in SEEN)
OTHERS, WIDTH, PIXELS, ROWS = 6, 32, 24, 1024
HIDDEN: Final = 16
Kinds = tuple[tuple[int, int], ...]


def cases() -> tuple[str, ...]:
    """`few`, `every` and `clusters` are planted, `measured` and `named` are trained."""
    return ("few", "every", "clusters", "measured", "named")


def animals(
    kinds: Kinds, rows: int, source: torch.Generator
) -> tuple[Int[Tensor, "row factor"], Float[Tensor, "row factor"]]:
    """The kinds of legs and tail of each row, and their lengths, which vary a little from animal to animal."""
    if not kinds:
        raise InputError("no kinds of animals; give combinations (legs, tail), for example SEEN")
    kind = torch.tensor(kinds)[torch.randint(len(kinds), (rows,), generator=source)]
    return kind, kind + 0.1 * torch.randn(rows, 2, generator=source)


def build(case: str, seed: int = 0) -> Case:
    """Activations of animals seen. The seed draws directions, weights and rows."""
    known(case, cases(), card.name)
    return _trained(case, seed) if case in ("measured", "named") else _planted(case, seed)


# Planted


class Planted(nn.Module):
    """Causes to activations, `[row, cause]` to `[row, d]`; the rows of `directions` are orthogonal."""

    def __init__(self, directions: Float[Tensor, "cause d"]) -> None:
        super().__init__()
        causes, width = directions.shape
        self.hidden = nn.Linear(causes, width, bias=False)
        self.load_state_dict({"hidden.weight": directions.mT})

    def forward(self, causes: Float[Tensor, "row cause"]) -> Float[Tensor, "row d"]:
        found: Tensor = self.hidden(causes)
        return found


def causes_of(
    case: str, kinds: Kinds, rows: int, source: torch.Generator
) -> tuple[Int[Tensor, "row factor"], Float[Tensor, "row cause"]]:
    """Kinds, and the causes of a planted case: lengths or which of the combinations; then sparse things besides."""
    kind, length = animals(kinds, rows, source)
    others = torch.rand(rows, OTHERS, generator=source) * (torch.rand(rows, OTHERS, generator=source) < 0.3)
    if case != "clusters":
        return kind, torch.cat([length, others], -1)
    which = functional.one_hot(kind[:, 0] * LENGTHS + kind[:, 1], LENGTHS**2)
    # Animals of one kind vary here too, by what they are.
    strength = 1 + (length - kind).sum(-1, keepdim=True)
    return kind, torch.cat([which * strength, others], -1)


@torch.no_grad()
def read_off(
    activations: Float[Tensor, "row d"],
    kind: Int[Tensor, "row factor"],
    others: Float[Tensor, "other d"],
    other_kind: Int[Tensor, "other factor"],
) -> float:
    """Fit a linear reader of both lengths to some rows: the share of lengths it reads right from others."""
    design, other = (functional.pad(values, (0, 1), value=1.0).double() for values in (activations, others))
    reader = torch.linalg.lstsq(design, kind.double(), driver="gelsd").solution
    return float(((other @ reader).round() == other_kind).double().mean())


def _planted(case: str, seed: int) -> Case:
    kinds = EVERY if case == "every" else SEEN
    source = generator(seed, -3)
    kind, causes = causes_of(case, kinds, ROWS, source)
    new_kind, new_causes = causes_of(case, EVERY if case == "every" else UNSEEN, ROWS, source)
    width = causes.shape[1]
    directions = torch.linalg.qr(torch.randn(WIDTH, width, generator=generator(seed, -1))).Q.mT.contiguous()
    model = model_of(Planted(directions), f"{card.name}/{case} (seed {seed})")
    share = read_off(
        model.run({"causes": causes}, read=[SITE])[SITE],
        kind,
        model.run({"causes": new_causes}, read=[SITE])[SITE],
        new_kind,
    )
    clusters = case == "clusters"
    there = causes.any(0)
    return Case(
        name=f"{card.name}/{case}",
        task="Animals with a direction for each combination of lengths."
        if clusters
        else f"Animals with a direction for legs and one for tails, {len(kinds)} of 16 combinations seen.",
        model=model,
        truth=Truth(
            variables=(
                _variables_of_clusters(directions)
                if clusters
                else (
                    Variable("legs", Site.parse(SITE), directions[:1]),
                    Variable("tail", Site.parse(SITE), directions[1:2]),
                )
            ),
            features={SITE: directions[there]},
            labels=_labels(kind),
            quantities={"combinations seen": float(len(kinds)), "lengths read right where unseen": share},
        ),
        evidence=(
            Evidence(
                "share of lengths that a linear reader, fitted to animals seen, reads right from the others",
                share,
                least=None if clusters else 0.99,
                most=0.5 if clusters else None,  # the best constant gets 0.3 right
                n=2 * ROWS,
            ),
        ),
        tokens={"causes": causes},
        seed=seed,
    )


def _variables_of_clusters(directions: Float[Tensor, "cause d"]) -> tuple[Variable, ...]:
    chosen = torch.tensor([legs * LENGTHS + tail for legs, tail in SEEN])
    return (Variable("animal", Site.parse(SITE), directions[chosen], tuple(chosen.tolist())),)


def _labels(kind: Int[Tensor, "row factor"]) -> dict[str, Tensor]:
    return {"legs": kind[:, 0], "tail": kind[:, 1], "animal": kind[:, 0] * LENGTHS + kind[:, 1]}


# Trained


class Seer(nn.Module):
    """A picture of a body, `[row, pixel]`, to what is said of it, through one hidden layer."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU())
        self.readout = nn.Linear(HIDDEN, outputs)

    def forward(self, picture: Float[Tensor, "row pixel"]) -> Float[Tensor, "row output"]:
        found: Tensor = self.readout(self.hidden(picture))
        return found


def pictures(
    kinds: Kinds, rows: int, seed: int, source: torch.Generator
) -> tuple[Int[Tensor, "row factor"], Float[Tensor, "row pixel"]]:
    """Kinds, and pictures: half the pixels fill up with the length of the legs, half with that of the tail, a little
    noisy; then all are mixed by a rotation that depends on the seed, so that no pixel is of one part."""
    kind, length = animals(kinds, rows, source)
    heights = torch.linspace(-0.5, LENGTHS - 0.5, PIXELS // 2)
    filled = torch.sigmoid(6 * (length[:, :, None] - heights)).flatten(1)
    noise = 0.05 * torch.randn(filled.shape, generator=source)
    rotation = torch.linalg.qr(torch.randn(PIXELS, PIXELS, generator=generator(seed, -1))).Q
    return kind, (filled + noise) @ rotation


def said(answers: Float[Tensor, "row output"], case: str) -> Int[Tensor, "row factor"]:
    """The kinds that a network says: the number nearest to what it measures, or the likeliest names."""
    if case == "measured":
        return answers.round().long()
    return answers.view(-1, 2, LENGTHS).argmax(-1)


def recipe(case: str) -> Recipe:
    """How a trained case is trained, on the combinations seen alone."""
    known(case, cases()[3:], f"{card.name} (trained)")

    def make(seed: int) -> nn.Module:
        with seeded(seed):
            return Seer(2 if case == "measured" else 2 * LENGTHS)

    def loss(module: nn.Module, given: tuple[Tensor, Tensor]) -> Tensor:
        kind, picture = given
        answers = module(picture)
        if case == "measured":
            return ((answers - kind) ** 2).mean()
        return functional.cross_entropy(answers.view(-1, LENGTHS), kind.flatten())

    return Recipe(
        testbed=card.name,
        case=case,
        make=make,
        batch=lambda seed, step: pictures(SEEN, 128, seed, generator(seed, step)),
        loss=loss,
        rate=0.01,
        steps=1500,
        settings={"seen": [list(kind) for kind in SEEN], "pixels": PIXELS, "hidden": HIDDEN},
    )


def _trained(case: str, seed: int) -> Case:
    model = network(recipe(case), seed)
    source = generator(seed, -3)
    kind, picture = pictures(SEEN, ROWS, seed, source)
    new_kind, new_picture = pictures(UNSEEN, ROWS, seed, source)
    with torch.no_grad():
        seen = float((said(model.module(picture), case) == kind).double().mean())
        unseen = float((said(model.module(new_picture), case) == new_kind).double().mean())
    composes = case == "measured"
    return Case(
        name=f"{card.name}/{case}",
        task=f"Legs and tail of an animal, {'measured' if composes else 'named'}; {len(SEEN)} of 16 kinds seen.",
        model=model,
        truth=Truth(
            labels=_labels(kind),
            quantities={"combinations seen": float(len(SEEN)), "lengths said right where unseen": unseen},
        ),
        evidence=(
            Evidence("share of lengths said right of animals seen", seen, least=0.99, n=2 * ROWS),
            Evidence(
                "share of lengths said right of the others",
                unseen,
                least=0.95 if composes else None,
                most=None if composes else 0.85,
                n=2 * ROWS,
            ),
        ),
        tokens={"picture": picture},
        seed=seed,
    )
