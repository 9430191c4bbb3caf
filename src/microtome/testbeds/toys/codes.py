"""How else than by a direction can a layer say something? By how much, by an angle, by the size of everything.

1. `magnitude`: one direction means nothing, one thing or another, by how far along it the activation lies. The network
   reads the three bands with bumps; no threshold on the direction finds the middle one.
2. `days` and `months`: a point on a circle in a plane of a wider space. A trained network adds a number of steps to it,
   at any angle, so that turning the plane moves the answer by as much.
3. `entropy`: a direction that the unembedding does not read. It only makes the stream longer, so that after the norm
   the logits are smaller: it says how unsure the answer is, and nothing about which.
"""

import math
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from microtome.core.draws import generator
from microtome.core.site import Site
from microtome.testbeds.case import Case, Evidence, TestbedCard, Truth, Variable
from microtome.testbeds.toys.network import Recipe, known, model_of, network
from microtome.testbeds.training import seeded

card = TestbedCard(
    name="codes",
    title="Magnitude, circle and entropy codes",
    question="Is something found that is not on or off along a direction: a band, an angle, a scale?",
    reference=(
        "Engels et al. (2024), Not All Language Model Features Are Linear; "
        "Stolfo et al. (2024), Confidence Regulation Neurons"
    ),
    kinds=("variables", "labels", "quantities"),
    misleads="Where the values stand is planted, and each code is alone in its network; in models they come mixed.",
)

STREAM: Final = "path:stream"
CIRCLES: Final = {"days": 7, "months": 12}
WIDTH, NEURONS = 16, 64
OTHERS, BANDS = 8, 3
TOKENS, CONTENTS = 50, 10
ROWS: Final = 1024


def cases() -> tuple[str, ...]:
    """`magnitude` and `entropy` are built, `days` and `months` are trained."""
    return ("magnitude", *CIRCLES, "entropy")


def build(case: str, seed: int = 0) -> Case:
    """A network with this code. The seed draws the planted directions and the data."""
    known(case, cases(), card.name)
    if case in CIRCLES:
        return _circular(case, seed)
    return _magnitude(seed) if case == "magnitude" else _entropy(seed)


def orthonormal(count: int, width: int, seed: int) -> Float[Tensor, "direction d"]:
    """So many random directions, orthogonal to each other."""
    return torch.linalg.qr(torch.randn(width, count, generator=generator(seed, -1))).Q.mT.contiguous()


# A band of magnitudes


class Bands(nn.Module):
    """Coefficients to a stream, and the band of the first of them: 1 in its band, 0 in the others.

    A bump is a ramp up at its lower edge and down at its upper edge; two ReLUs make a ramp.
    """

    RAMP = 0.2

    def __init__(self, directions: Float[Tensor, "direction d"]) -> None:
        super().__init__()
        count, width = directions.shape
        self.write = nn.Linear(count, width, bias=False)
        self.stream = nn.Identity()
        self.neurons = nn.Sequential(nn.Linear(width, 2 * (BANDS - 1)), nn.ReLU())
        self.readout = nn.Linear(2 * (BANDS - 1), BANDS)
        edges = torch.tensor(
            [edge - side for edge in range(1, BANDS) for side in (self.RAMP / 2, -self.RAMP / 2)]
        )
        step = torch.tensor([1.0, -1.0]) / self.RAMP
        up = torch.block_diag(*[step[None]] * (BANDS - 1))  # [edge, neuron]: 0 below an edge, 1 above it
        zero = torch.zeros(1, up.shape[1])
        self.load_state_dict(
            {
                "write.weight": directions.mT,
                "neurons.0.weight": directions[:1].expand(len(edges), -1),
                "neurons.0.bias": -edges,
                "readout.weight": torch.cat([zero, up]) - torch.cat([up, zero]),
                "readout.bias": torch.tensor([1.0] + [0.0] * (BANDS - 1)),
            }
        )

    def forward(self, coefficients: Float[Tensor, "row feature"]) -> Float[Tensor, "row band"]:
        found: Tensor = self.readout(self.neurons(self.stream(self.write(coefficients))))
        return found


def _magnitude(seed: int) -> Case:
    from sklearn.metrics import roc_auc_score  # takes a second, which a list of testbeds should not

    directions = orthonormal(1 + OTHERS, WIDTH, seed)
    model = model_of(Bands(directions), f"{card.name}/magnitude (seed {seed})")
    source = generator(seed, -3)
    band = torch.arange(ROWS) % BANDS
    # Away from the edges, where a ramp is neither here nor there.
    size = band + 0.2 + 0.6 * torch.rand(ROWS, generator=source)
    others = torch.rand(ROWS, OTHERS, generator=source) * (torch.rand(ROWS, OTHERS, generator=source) < 0.2)
    coefficients = torch.cat([size[:, None], others], -1)
    with torch.no_grad():
        off = float((model.module(coefficients) - functional.one_hot(band, BANDS)).abs().max())
    area = float(roc_auc_score((band == 1).numpy(), size.numpy()))
    middles = torch.arange(BANDS) + 0.5
    return Case(
        name=f"{card.name}/magnitude",
        task="Which of three bands the size of one feature lies in.",
        model=model,
        truth=Truth(
            variables=(
                Variable("band", Site.parse(STREAM), middles[:, None] * directions[:1], tuple(range(BANDS))),
                Variable("size", Site.parse(STREAM), directions[:1]),
            ),
            labels={"band": band, "size": size},
            quantities={"bands": float(BANDS)},
        ),
        evidence=(
            Evidence("furthest that an answer is off", off, most=1e-4, n=ROWS),
            Evidence("area under the curve of size for the middle band", area, least=0.4, most=0.6, n=ROWS),
        ),
        tokens={"coefficients": coefficients},
        seed=seed,
        twin="drawn",
    )


# A circle


class Circle(nn.Module):
    """Where a number stands: at its angle on a circle in a plane of the stream, `[row]` to `[row, d]`."""

    def __init__(self, points: int, plane: Float[Tensor, "two d"]) -> None:
        super().__init__()
        self.points = points
        self.plane = nn.Parameter(plane, requires_grad=False)  # planted; training leaves it as it is

    def forward(self, number: Float[Tensor, " row"]) -> Float[Tensor, "row d"]:
        angle = number * (2 * math.pi / self.points)
        return torch.stack([angle.cos(), angle.sin()], -1) @ self.plane


class Clock(nn.Module):
    """A point on one circle, and how far to go on another; logits of where that leads."""

    def __init__(self, points: int, planes: Float[Tensor, "four d"]) -> None:
        super().__init__()
        self.day, self.steps = Circle(points, planes[:2]), Circle(points, planes[2:])
        self.stream = nn.Identity()
        self.neurons = nn.Sequential(nn.Linear(planes.shape[1], NEURONS), nn.ReLU())
        self.readout = nn.Linear(NEURONS, points)

    def forward(self, day: Float[Tensor, " row"], steps: Float[Tensor, " row"]) -> Float[Tensor, "row point"]:
        found: Tensor = self.readout(self.neurons(self.stream(self.day(day) + self.steps(steps))))
        return found


def wanted(points: int, there: Float[Tensor, " row"]) -> Float[Tensor, "row point"]:
    """What a clock says of a place, which may lie between points: the cosine of the angle to each of them."""
    return torch.cos((there[:, None] - torch.arange(points)) * (2 * math.pi / points))


def recipe(case: str) -> Recipe:
    """How a circle's network is trained: on numbers between the points as well."""
    known(case, tuple(CIRCLES), f"{card.name} (trained)")
    points = CIRCLES[case]

    def make(seed: int) -> nn.Module:
        with seeded(seed):
            return Clock(points, orthonormal(4, WIDTH, seed))

    def batch(seed: int, step: int) -> tuple[Tensor, Tensor]:
        day, steps = points * torch.rand(2, 256, generator=generator(seed, step))
        return day, steps

    def loss(module: nn.Module, given: tuple[Tensor, Tensor]) -> Tensor:
        day, steps = given
        return ((module(day, steps) - wanted(points, day + steps)) ** 2).mean()

    return Recipe(
        testbed=card.name,
        case=case,
        make=make,
        batch=batch,
        loss=loss,
        rate=1e-2,
        steps=2000,
        settings={"points": points, "width": WIDTH, "neurons": NEURONS},
    )


def _circular(case: str, seed: int) -> Case:
    points = CIRCLES[case]
    model = network(recipe(case), seed)
    module = model.module
    assert isinstance(module, Clock)
    day, steps = torch.cartesian_prod(torch.arange(points), torch.arange(points)).T
    with torch.no_grad():
        answers = module(day.float(), steps.float()).argmax(-1)
        between, further = points * torch.rand(2, 4096, generator=generator(seed, -2))
        off = (module(between, further) - wanted(points, between + further)).pow(2).mean().sqrt()
    what = case.removesuffix("s")
    return Case(
        name=f"{card.name}/{case}",
        task=f"The {what} so many {case} after a {what}, of {points}.",
        model=model,
        truth=Truth(
            variables=(
                Variable(
                    what, Site.parse(STREAM), module.day(torch.arange(points).float()), tuple(range(points))
                ),
                Variable(
                    "steps",
                    Site.parse(STREAM),
                    module.steps(torch.arange(points).float()),
                    tuple(range(points)),
                ),
            ),
            labels={what: day, "steps": steps, "answer": (day + steps) % points},
            quantities={"points": float(points), "radius": 1.0, "dimensions of the circle": 2.0},
        ),
        evidence=(
            Evidence(
                "share of sums that are right",
                float((answers == (day + steps) % points).double().mean()),
                least=1.0,
                n=len(day),
            ),
            Evidence("root mean square error between the points", float(off), most=0.05, n=len(between)),
        ),
        tokens={"day": day.float(), "steps": steps.float()},
        seed=seed,
    )


# One quantity: how unsure


class Unsure(nn.Module):
    """What is said, by one direction for each content; how unsure, along a direction that no logit reads."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        directions = orthonormal(1 + CONTENTS, 2 * WIDTH, seed)
        self.content = nn.Linear(CONTENTS, 2 * WIDTH, bias=False)
        self.doubt = nn.Linear(1, 2 * WIDTH, bias=False)
        self.stream = nn.Identity()
        self.norm = nn.RMSNorm(2 * WIDTH, elementwise_affine=False)
        self.unembed = nn.Linear(2 * WIDTH, TOKENS, bias=False)
        drawn = torch.randn(TOKENS, 2 * WIDTH, generator=generator(seed, -2))
        blind = drawn - (drawn @ directions[0])[:, None] * directions[0]
        self.load_state_dict(
            {
                "content.weight": directions[1:].mT,
                "doubt.weight": directions[:1].mT,
                "unembed.weight": blind,
            }
        )

    def forward(
        self, content: Float[Tensor, "row content"], doubt: Float[Tensor, "row one"]
    ) -> Float[Tensor, "row token"]:
        found: Tensor = self.unembed(self.norm(self.stream(self.content(content) + self.doubt(doubt))))
        return found


def _entropy(seed: int) -> Case:
    from scipy.stats import spearmanr  # takes a second, which a list of testbeds should not

    module = Unsure(seed)
    source = generator(seed, -3)
    which = torch.arange(ROWS) % CONTENTS
    content = functional.one_hot(which, CONTENTS).float()
    doubt = 5 * torch.rand(ROWS, 1, generator=source)
    with torch.no_grad():
        logits, sure = module(content, doubt), module(content, torch.zeros_like(doubt))
        spread = torch.distributions.Categorical(logits=logits).entropy()
    order = min(
        float(spearmanr(doubt[which == one, 0].numpy(), spread[which == one].numpy()).statistic)
        for one in range(CONTENTS)
    )
    direction = module.doubt.weight.detach().mT
    read = float((module.unembed.weight @ module.doubt.weight).detach().norm())
    return Case(
        name=f"{card.name}/entropy",
        task="The next token of a content, with as much doubt as is asked for.",
        model=model_of(module, f"{card.name}/entropy (seed {seed})"),
        truth=Truth(
            variables=(
                Variable("doubt", Site.parse(STREAM), direction, writer="path:doubt:out"),
                Variable(
                    "content",
                    Site.parse(STREAM),
                    module.content.weight.detach().mT.contiguous(),
                    tuple(range(CONTENTS)),
                    writer="path:content:out",
                ),
            ),
            labels={"content": which, "doubt": doubt[:, 0], "entropy": spread},
            quantities={"norm of what the unembedding reads of doubt": read},
        ),
        evidence=(
            Evidence(
                "lowest rank correlation of doubt and entropy, of all contents", order, least=0.999, n=ROWS
            ),
            Evidence(
                "share of answers that doubt leaves as they are",
                float((logits.argmax(-1) == sure.argmax(-1)).double().mean()),
                least=1.0,
                n=ROWS,
            ),
        ),
        tokens={"content": content, "doubt": doubt},
        seed=seed,
    )
