"""How do more features than dimensions fit into a layer? The toy model of superposition (Elhage et al. 2022).

1. Each of `n` features is absent with probability 1 − p, else uniform on [0, 1]. They pass through `m` < `n`
   dimensions and back by the same matrix: x̂ = ReLU(Wᵀ W x + b). What is minimised is Σ I_i (x_i − x̂_i)², where the
   importance I_i falls from feature to feature.
2. Many instances are trained at once, for several densities p and from several beginnings; of the instances of one
   density, the one with the lowest loss on fresh data is kept, since many get stuck.
3. Where features are dense, the `m` most important get a dimension each and the rest are dropped. As they become
   sparse, more share the space, arranged as the corners of regular figures.

A feature's dimensionality ‖W_i‖² / Σ_j (Ŵ_i · W_j)² says which figure it is a corner of; `m / ‖W‖²` is about the
number of dimensions that a feature has on average.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from microtome.core.draws import generator
from microtome.core.errors import InputError
from microtome.core.shapes import Points
from microtome.testbeds.case import Case, Evidence, TestbedCard, Truth
from microtome.testbeds.toys.network import Recipe, as_made, fit, known, network
from microtome.testbeds.training import seeded

card = TestbedCard(
    name="superposition",
    title="Toy models of superposition",
    question="Which features does a layer hold that has fewer dimensions than features, and along which directions?",
    reference="Elhage et al. (2022), Toy Models of Superposition",
    kinds=("features", "labels", "quantities"),
    misleads=(
        "The features are independent, of one size, and nothing is computed with them. At the densities where one "
        "figure gives way to another, the instance of lowest loss is a matter of luck; the cases stay away from there."
    ),
)

SITE: Final = "path:hidden"
ROWS: Final = 512
REPRESENTED: Final = 0.5
"""A feature counts as represented from this norm of its direction."""


class TiedAutoencoder(nn.Module):
    """x̂ = ReLU(Wᵀ W x + b). `hidden` maps `[row, feature]` to `[row, d]`; its weight is W, `[d, feature]`."""

    def __init__(self, features: int, dimensions: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(features, dimensions, bias=False)
        self.bias = nn.Parameter(torch.zeros(features))
        self.output = nn.ReLU()

    def forward(self, x: Float[Tensor, "row feature"]) -> Float[Tensor, "row feature"]:
        found: Tensor = self.output(self.hidden(x) @ self.hidden.weight + self.bias)
        return found


class Instances(nn.Module):
    """Many toy models side by side: weight `[instance, d, feature]`, bias `[instance, feature]`."""

    def __init__(self, instances: int, features: int, dimensions: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(instances, dimensions, features) * dimensions**-0.5)
        self.bias = nn.Parameter(torch.zeros(instances, features))

    def forward(self, x: Float[Tensor, "instance row feature"]) -> Float[Tensor, "instance row feature"]:
        hidden = einsum(self.weight, x, "instance d feature, instance row feature -> instance row d")
        back = einsum(self.weight, hidden, "instance d feature, instance row d -> instance row feature")
        return torch.relu(back + self.bias[:, None])

    def one(self, instance: int) -> TiedAutoencoder:
        """One of them by itself."""
        _, dimensions, features = self.weight.shape
        alone = TiedAutoencoder(features, dimensions)
        alone.load_state_dict({"hidden.weight": self.weight[instance], "bias": self.bias[instance]})
        return alone


@dataclass(frozen=True)
class Setting:
    """What is trained. densities: the p of each group of instances; starts: instances of each density."""

    features: int = 5
    dimensions: int = 2
    densities: tuple[float, ...] = (0.05,)
    starts: int = 4
    decay: float = 0.9
    rows: int = 256

    def __post_init__(self) -> None:
        bad = [p for p in self.densities if not 0 < p <= 1]
        if bad or not self.densities:
            raise InputError(
                f"densities are probabilities above 0 and at most 1; got {bad or 'none'}, give for example 0.05"
            )
        if min(self.features, self.dimensions, self.starts, self.rows) < 1:
            raise InputError("features, dimensions, starts and rows count from 1; give at least one of each")

    @property
    def importance(self) -> Float[Tensor, " feature"]:
        """I_i of each feature."""
        return self.decay ** torch.arange(self.features, dtype=torch.float32)

    def instances(self) -> Instances:
        return Instances(len(self.densities) * self.starts, self.features, self.dimensions)

    def draw(self, source: torch.Generator, rows: int) -> Float[Tensor, "instance row feature"]:
        """Fresh data for every instance."""
        density = torch.tensor(self.densities).repeat_interleave(self.starts)
        shape = (len(density), rows, self.features)
        values, there = torch.rand(shape, generator=source), torch.rand(shape, generator=source)
        return values * (there < density[:, None, None])

    def losses(
        self, module: nn.Module, x: Float[Tensor, "instance row feature"]
    ) -> Float[Tensor, " instance"]:
        """Σ I_i (x_i − x̂_i)² of each instance, the mean over rows."""
        return (self.importance * (x - module(x)) ** 2).sum(-1).mean(-1)

    def best(self, module: nn.Module, seed: int) -> list[int]:
        """Of each density, the instance of lowest loss on data that none was trained on."""
        losses = self.losses(module, self.draw(generator(seed, -1), 4096))
        within = rearrange(losses, "(density start) -> density start", start=self.starts).argmin(-1)
        return [int(start) + self.starts * density for density, start in enumerate(within)]


@dataclass(frozen=True)
class Figure:
    """What is expected of the represented features: how many at least and at most, and their dimensionality.

    share: how many of them must have it. gap: degrees from one direction to the next, in two dimensions.
    """

    represented: tuple[int, int]
    dimensionality: float
    gap: float | None = None
    share: float = 1.0


CASES: Final[Mapping[str, tuple[Setting, Figure]]] = {
    "dense": (Setting(densities=(1.0,)), Figure((2, 2), 1.0)),
    "square": (Setting(densities=(0.25,), starts=8), Figure((4, 4), 1 / 2, 90.0)),
    "pentagon": (Setting(densities=(0.05,)), Figure((5, 5), 2 / 5, 72.0)),
    "digons": (
        Setting(features=80, dimensions=10, densities=(0.3,), starts=2, decay=1.0, rows=128),
        Figure((11, 80), 1 / 2, share=0.5),  # most of them: some sit in other figures
    ),
}


def cases() -> tuple[str, ...]:
    """Two features of five in two dimensions; four as a square; five as a pentagon; pairs of opposites in ten."""
    return tuple(CASES)


def recipe(case: str, setting: Setting | None = None, steps: int = 2000) -> Recipe:
    """How a case, or another setting under a name of its own, is trained."""
    if setting is None:
        known(case, cases(), card.name)
        setting, _ = CASES[case]
    one = setting

    def make(seed: int) -> nn.Module:
        with seeded(seed):
            return one.instances()

    def served(module: nn.Module, seed: int) -> nn.Module:
        assert isinstance(module, Instances)
        return module.one(one.best(module, seed)[0])

    return Recipe(
        testbed=card.name,
        case=case,
        make=make,
        batch=lambda seed, step: one.draw(generator(seed, step), one.rows),
        # The sum: instances know nothing of each other, so each learns as if it were alone.
        loss=lambda module, x: one.losses(module, x).sum(),
        rate=5e-3,
        steps=steps,
        settings=dict(vars(one)),
        choose=served,
        empty=lambda: TiedAutoencoder(one.features, one.dimensions),
    )


def dimensionality(
    directions: Float[Tensor, "*instance feature d"],
) -> Float[Tensor, "*instance feature"]:
    """‖W_i‖² / Σ_j (Ŵ_i · W_j)² of each feature: 1 for a dimension of its own, less where it is shared; 0 for none."""
    overlap = directions @ directions.mT
    norms = overlap.diagonal(dim1=-2, dim2=-1)
    return (norms**2 / (overlap**2).sum(-1)).nan_to_num(0.0)


def dimensions_per_feature(directions: Float[Tensor, "*instance feature d"]) -> Float[Tensor, "*instance"]:
    """D* = m / ‖W‖²: dimensions there are for each feature that is represented."""
    return directions.shape[-1] / (directions**2).sum((-2, -1))


def sweep(
    setting: Setting, seed: int = 0, steps: int = 2000
) -> tuple[Float[Tensor, "density feature d"], Float[Tensor, " density"]]:
    """The directions of the best instance of each density, and its loss on fresh data."""
    module, _ = fit(replace(recipe("sweep", setting, steps), choose=as_made), seed)
    assert isinstance(module, Instances)
    with torch.no_grad():
        chosen = setting.best(module, seed)
        losses = setting.losses(module, setting.draw(generator(seed, -2), 4096))
    return rearrange(module.weight.detach()[chosen], "density d feature -> density feature d"), losses[chosen]


def gaps(directions: Float[Tensor, "feature d"]) -> Float[Tensor, " feature"]:
    """Degrees from each direction in the plane to the next one around. Raises `InputError` for another space."""
    if directions.shape[-1] != 2:
        raise InputError(f"directions have {directions.shape[-1]} dimensions; around is said of two")
    around = torch.atan2(directions[:, 1], directions[:, 0]).rad2deg().sort().values
    return torch.cat([around[1:], around[:1] + 360]) - around


def figure(directions: Float[Tensor, "frame feature d"], frames: Sequence[str], title: str) -> Points:
    """Directions in the plane, a frame for each density. Raises `InputError` for more than two dimensions."""
    if directions.shape[-1] != 2:
        raise InputError(f"directions have {directions.shape[-1]} dimensions; a figure shows two")
    return Points(
        title=title,
        values=directions[:, None].numpy(),
        frame_axis="density",
        frames=tuple(frames),
        planes=("hidden layer",),
        labels=tuple(str(feature) for feature in range(directions.shape[1])),
        caption="Where each feature, by its number, is written; one at the origin is not represented.",
    )


def evidence(directions: Float[Tensor, "feature d"], expected: Figure) -> tuple[Evidence, ...]:
    """That the represented features form the expected figure."""
    count = len(directions)
    least, most = expected.represented
    found = [Evidence("features represented", count, least=least, most=most)]
    # The tolerances of the published geometry, read off trained instances: unequal importance bends a figure a little.
    near = (dimensionality(directions) - expected.dimensionality).abs() <= 0.02
    share = float(near.double().mean()) if count else float("nan")
    what = f"share whose dimensionality is {expected.dimensionality:g} ± 0.02"
    found.append(Evidence(what, share, least=expected.share, n=count))
    if expected.gap is not None:
        furthest = float((gaps(directions) - expected.gap).abs().max()) if count else float("nan")
        found.append(
            Evidence(f"furthest gap between neighbours from {expected.gap:g}°", furthest, most=3.0, n=count)
        )
    return tuple(found)


def build(case: str, seed: int = 0) -> Case:
    """A trained instance. Its features are the directions of those inputs that it represents."""
    asked = recipe(case)
    setting, expected = CASES[case]
    model = network(asked, seed)
    assert isinstance(model.module, TiedAutoencoder)
    everything = model.module.hidden.weight.detach().mT
    there = everything.norm(dim=-1) > REPRESENTED
    directions = everything[there].contiguous()
    x = setting.draw(generator(seed, -3), ROWS)[0]
    numbers = there.nonzero().flatten().tolist()
    sizes = dimensionality(everything)
    return Case(
        name=f"{card.name}/{case}",
        task=f"Rebuild {setting.features} sparse features from {setting.dimensions} dimensions.",
        model=model,
        truth=Truth(
            features={SITE: directions},
            labels={f"feature {number}": x[:, number] for number in numbers},
            quantities={
                "features represented": float(len(numbers)),
                "dimensions per feature": float(dimensions_per_feature(everything)),
                **{f"dimensionality of feature {number}": float(sizes[number]) for number in numbers},
            },
        ),
        evidence=evidence(directions, expected),
        tokens={"x": x},
        seed=seed,
    )
