"""When is a feature dropped, when does it get a dimension of its own, and when does it share one? A phase diagram.

The toy model of superposition with one feature more than dimensions (2 in 1, or 3 in 2); the last, the extra one, is
`r` times as important as the others, and all are present with probability p. Three solutions compete, whose expected
losses follow from E[x²] = p/3, Var x = p/3 − p²/4, and, of two features, E[min(x_1, x_2)²] = p²/6:

1. dropped: the extra feature is replaced by its mean: r · Var x.
2. dedicated: it has a dimension to itself. Of one dimension, the other feature is dropped: Var x. Of two, either one of
   the others is dropped, or they share the other dimension in opposite directions: min(Var x, p²/3).
3. superposed: it shares a dimension with one of the others, in opposite directions: (1 + r) p²/6.

The lowest is the theory's phase. Networks are trained at every point of the diagram beside it, several beginnings
each, on the exact expected loss: the density weighs a fixed grid of inputs, so that there is no noise of sampling. As
sizes and bias are free there, a trained network may do better than the three solutions; it must not do worse.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from microtome.core.errors import InputError
from microtome.core.shapes import Grid
from microtome.testbeds.toys.superposition import Instances, dimensionality
from microtome.testbeds.training import seeded, train

PHASES: Final = ("dropped", "dedicated", "superposed")
_NODES: Final = 8


def closed_forms(
    features: int, density: Float[Tensor, "*cell"], importance: Float[Tensor, "*cell"]
) -> Float[Tensor, "phase *cell"]:
    """Expected losses of the three solutions. Raises `InputError` for other than 2 or 3 features."""
    _known(features)
    variance = density / 3 - density**2 / 4
    others = variance if features == 2 else torch.minimum(variance, density**2 / 3)
    dropped, dedicated = importance * variance, others.expand_as(importance * others)
    return torch.stack([dropped, dedicated, (1 + importance) * density**2 / 6])


def phase(weight: Float[Tensor, "*instance d feature"]) -> Int[Tensor, "*instance"]:
    """What became of the last feature, as a number in `PHASES`.

    Dropped: its squared norm is below ½. Dedicated: of all squared overlaps of other features with its direction, the
    sum is below ½. Superposed otherwise.
    """
    extra = weight[..., -1]
    norm = extra.norm(dim=-1)
    along = torch.einsum("...d,...df->...f", extra / norm.clamp_min(1e-12)[..., None], weight[..., :-1])
    crowded = (along**2).sum(-1) >= 0.5
    return torch.where(norm**2 < 0.5, 0, torch.where(crowded, 2, 1))


@dataclass(frozen=True, eq=False)
class PhaseDiagram:
    """Theory and trained networks over (relative importance, density).

    theory: `[phase, importance, density]`, losses of the three solutions.
    found: `[importance, density]`, the phase of the best trained network; loss: its expected loss; dimensionality: that
    of its last feature.
    """

    features: int
    importances: tuple[float, ...]
    densities: tuple[float, ...]
    theory: Float[Tensor, "phase importance density"]
    found: Int[Tensor, "importance density"]
    loss: Float[Tensor, "importance density"]
    dimensionality: Float[Tensor, "importance density"]

    @property
    def expected(self) -> Int[Tensor, "importance density"]:
        """The theory's phase at each point."""
        return self.theory.argmin(0)

    @property
    def margin(self) -> Float[Tensor, "importance density"]:
        """By what share of itself the second lowest closed-form loss exceeds the lowest."""
        lowest, second = self.theory.sort(0).values[:2]
        return second / lowest - 1

    def agreement(self, margin: float = 0.0) -> tuple[float, int]:
        """At what share of the points with at least this margin theory and networks agree, and how many they are."""
        clear = self.margin >= margin
        return float((self.found == self.expected)[clear].double().mean()), int(clear.sum())

    def shapes(self) -> tuple[Grid, ...]:
        """Both diagrams: how many dimensions the last feature has to itself, 0 dropped, ½ superposed, 1 dedicated."""
        share, points = self.agreement()
        theory = torch.tensor([0.0, 1.0, 0.5])[self.expected]
        return (
            Grid(
                title=f"What the last of {self.features} features gets, in one dimension less than there are features",
                values=100 * np.stack([theory.numpy(), self.dimensionality.numpy()]).astype(float),
                row_axis="relative importance",
                row_labels=tuple(f"{value:.2g}" for value in self.importances),
                column_axis="density",
                column_labels=tuple(f"{value:.2g}" for value in self.densities),
                unit="% of a dimension of its own",
                panels=("theory", "trained"),
                diverging=False,
                caption=(
                    "0 % dropped, 50 % superposed, 100 % dedicated. "
                    f"Theory and networks agree at {share:.0%} of {points} points."
                ),
            ),
        )


def diagram(
    features: int,
    importances: Sequence[float],
    densities: Sequence[float],
    seed: int = 0,
    *,
    starts: int = 12,
    steps: int = 600,
) -> PhaseDiagram:
    """Train at each point and compare.

    features: 2 (in one dimension) or 3 (in two). importances: of the last feature, those of the others being 1.
    starts: beginnings at each point, of which the lowest loss counts. Raises `InputError` for a setting that has no
    diagram.
    """
    _known(features)
    if not all(0 < p <= 1 for p in densities) or not all(r > 0 for r in importances):
        raise InputError(
            f"densities lie above 0 and at most at 1, importances above 0; got {[*densities]}, {[*importances]}"
        )
    if not (len(densities) and len(importances) and starts > 0):
        raise InputError("a diagram has at least one density, one importance and one start at each point")
    axes = (torch.tensor([*values], dtype=torch.float32) for values in (importances, densities))
    weigh, density = torch.meshgrid(*axes, indexing="ij")
    grid, shares = _quadrature(features, density.flatten().repeat_interleave(starts))
    importance = torch.ones(len(shares), features)
    importance[:, -1] = weigh.flatten().repeat_interleave(starts)

    def losses(module: nn.Module) -> Float[Tensor, " instance"]:
        error = (grid - module(grid.expand(len(shares), -1, -1))) ** 2
        return torch.einsum("irf,ir,if->i", error, shares, importance)

    with seeded(seed):
        module = Instances(len(shares), features, features - 1)
    # Rare features move a loss little; each instance learns at one pace when its loss is told in units of its density.
    pace = 1 / density.flatten().repeat_interleave(starts)
    train(
        module,
        torch.optim.Adam(module.parameters(), 0.02),
        lambda step: pace,
        lambda module, pace: (losses(module) * pace).sum(),
        steps,
        rate=lambda step: min(1.0, 3 * (steps - step) / steps),
    )
    with torch.no_grad():
        lowest = losses(module).view(-1, starts).min(-1)
        best = lowest.indices + starts * torch.arange(len(lowest.indices))
        weight = module.weight[best]
        sizes = dimensionality(weight.mT)
    return PhaseDiagram(
        features=features,
        importances=tuple(importances),
        densities=tuple(densities),
        theory=closed_forms(features, density, weigh),
        found=phase(weight).view_as(weigh),
        loss=lowest.values.view_as(weigh),
        dimensionality=sizes[:, -1].view_as(weigh),
    )


def _known(features: int) -> None:
    if features not in (2, 3):
        raise InputError(
            f"the diagram is known for 2 features in 1 dimension and 3 in 2, not for {features} features"
        )


def _quadrature(
    features: int, density: Float[Tensor, " instance"]
) -> tuple[Float[Tensor, "row feature"], Float[Tensor, "instance row"]]:
    """Inputs, absent or at a node of Gauss and Legendre on [0, 1], and the probability of each at each density."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    values = torch.tensor([0.0, *((nodes + 1) / 2)], dtype=torch.float32)
    within = torch.tensor([0.0, *(weights / 2)], dtype=torch.float32)
    absent = torch.zeros(len(values))
    absent[0] = 1.0
    single = (1 - density)[:, None] * absent + density[:, None] * within
    grid = torch.cartesian_prod(*[values] * features)
    shares = single
    for _ in range(features - 1):
        shares = (shares[:, :, None] * single[:, None, :]).flatten(1)
    return grid, shares
