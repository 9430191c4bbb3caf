"""Why do units stand for several things: are features rotated, held redundantly, or more than there are dimensions?

1. Independent components of half the values at the site. Those that are further from normal (in kurtosis) than any
   that the same search finds in normal values of the same size are features.
2. Superposed? A dictionary of more directions than dimensions (K-SVD), and the components, each explain the other half
   of the values with the same few directions a row. What the dictionary explains more is its gain. It is compared with
   the gain on values made of the same components, each shuffled over the rows, where there is nothing to be gained:
   features are more than dimensions if there is a gain, and it exceeds that of every such control, by at least `least`.
3. How many units hold a feature: its participation ratio, (Σ a²)² / Σ a⁴ over the units' shares a. About one:
   the units are the features. More, yet fewer than for 99 of 100 random directions: copies, which noise and dropout
   lead to. As many as for random ones: a rotation of the features, which another rotation undoes.
4. The score of a unit: the participation ratio of the features in its variance. One: monosemantic.
5. Is the basis privileged at all? The mean excess kurtosis of units against that of random rotations of the values.

Elhage et al. (2022), Toy Models of Superposition; Lecomte et al. (2024), What Causes Polysemanticity?. Misleads: two
features that point opposite ways and never come together are taken for one of both signs; features that come together
may be taken for superposed; a feature that is normal is not seen at all.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
import xarray as xr
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.bases import independent_components
from microtome.bases.basis import Basis
from microtome.bases.linear import LinearBasis
from microtome.core import result
from microtome.core.card import Card
from microtome.core.shapes import Shape, Table
from microtome.dictionaries.coders import k_svd
from microtome.dictionaries.coders.coded_dictionary import CodedDictionary
from microtome.dictionaries.coders.pursuit import OrthogonalMatchingPursuit
from microtome.evaluation import site_values
from microtome.evaluation.site_values import examined, sampled
from microtome.models.model import Model

Cause = Literal["monosemantic", "redundant", "rotated", "superposed", "no structure"]
_ONE: Final = 1.5  # units that hold a feature: nearer to one than to two
_SHOWN: Final = 20

card = Card(
    name="polysemanticity",
    title="Polysemanticity and its cause",
    question="Do single units (neurons) stand for several features, and is it rotation, redundancy or superposition?",
    steps=(
        "Find independent components, and keep those that normal values would not show.",
        "Compare them with a larger dictionary at equal sparsity, beside controls without superposition.",
        "Count the units that hold each feature and the features that each unit holds.",
        "Compare the kurtosis of units with that of random rotations.",
    ),
    reference="Elhage et al. (2022), Toy Models of Superposition; Lecomte et al. (2024), What Causes Polysemanticity?",
    misleads=(
        "Opposite features that never come together count as one of both signs; features that come together can look "
        "superposed; normal features are not seen."
    ),
    needs="tokens",
    causal="observation",
    locality="global",
    comprehensiveness="partial",
)


class Config(site_values.Config):
    """Settings of polysemanticity."""

    units: int | None = Field(
        None, ge=2, description="Of the larger dictionary; by default twice the dimensions, + 8."
    )
    l0: int = Field(
        2, ge=1, description="Directions a row that both explain values with; at most half the dimensions."
    )
    controls: int = Field(3, ge=1, description="Shuffled controls of the gain.")
    rotations: int = Field(50, ge=2, description="Random rotations that kurtosis is compared with.")
    least: float = Field(
        0.03, ge=0, description="A gain in explained variance of less is not called superposition."
    )


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`features_of_unit`, `kurtosis [unit]`; `units_of_feature [feature]`; `control_gain [control]`;
    `rotated_kurtosis [rotation]`. Attributes: `cause`, `gain`, `complete`, `overcomplete` (shares explained), `n`."""

    @property
    def cause(self) -> Cause:
        """The verdict."""
        found: Cause = self.data.attrs["cause"]
        return found

    def shapes(self) -> tuple[Shape, ...]:
        data, told = self.data, self.data.attrs
        unit, rotated = float(data["kurtosis"].mean()), data["rotated_kurtosis"].values
        held = data["features_of_unit"].values
        chance = f"{told['random_units']:.3g} if random"
        controls = f"at most {float(data['control_gain'].max()):.3f} in controls"
        rows = (
            ("verdict", told["cause"], ""),
            ("features of a unit, mean", float(held.mean()), "1: monosemantic"),
            ("units of a feature, median", float(data["units_of_feature"].median()), chance),
            ("gain of a larger dictionary", told["gain"], controls),
            (
                "mean excess kurtosis of units",
                unit,
                f"{rotated.mean():.3g} ± {rotated.std():.2g} when rotated",
            ),
        )
        caption = (
            f"{told['n']} values of {data.sizes['unit']} units at {told['site']}; with {told['l0']} directions a row "
            f"{data.sizes['component']} components explain {told['complete']:.1%} of values put aside, "
            f"{told['units']} directions {told['overcomplete']:.1%}"
        )
        order = (-held).argsort(kind="stable")[:_SHOWN]
        units = tuple((int(i), float(held[i]), float(data["kurtosis"].values[i])) for i in order)
        return (
            Table("polysemanticity", ("what", "value", "beside"), rows, caption, self.notes),
            Table("most polysemantic units", ("unit", "features", "excess kurtosis"), units),
        )


def run(model: Model, data: Any, config: Config | None = None) -> Result:
    """Read the values and examine them; see `microtome.evaluation.site_values`, with what it raises."""
    return examined(card, Result, examine, model, data, config or Config())


def examine(values: Float[Tensor, "row d"], config: Config) -> xr.Dataset:
    """The arrays of a `Result`, of values alone."""
    draw = torch.Generator().manual_seed(config.seed)
    values = sampled(values, config, draw)
    half = len(values) // 2
    components = independent_components.fit(values[:half], "path:values", _search(config))
    codes = components.encode(values)
    real = kurtosis(codes).abs() > _by_chance(half, components.n_units, config)
    l0 = max(1, min(config.l0, components.n_units // 2))
    units = config.units or 2 * components.n_units + 8
    complete, overcomplete, dictionary = _explained(components, values, half, units, l0, config.seed)
    control_gains = []
    for _ in range(config.controls):
        mixed = components.decode(codes.gather(0, torch.rand(codes.shape, generator=draw).argsort(0)))
        less, more, _ = _explained(components, mixed, half, units, l0, config.seed)
        control_gains.append(more - less)
    gain = overcomplete - complete
    superposed = gain - max(0.0, *control_gains) >= config.least
    if superposed:
        strength = dictionary.encode(values).square().mean(0)
        features = dictionary.directions() * strength.sqrt()[:, None]
    else:
        features = components.directions()[real]
    width = values.shape[1]
    random = participation(torch.randn(1000, width, generator=draw))
    holders = participation(features)
    cause = _cause(superposed, holders, float(random.quantile(0.01)))
    return xr.Dataset(
        {
            "features_of_unit": ("unit", participation(features.mT).numpy()),
            "kurtosis": ("unit", kurtosis(values).numpy()),
            "units_of_feature": ("feature", holders.numpy()),
            "control_gain": ("control", control_gains),
            "rotated_kurtosis": ("rotation", _rotated(values, config.rotations, draw)),
            "component_kurtosis": ("component", kurtosis(codes).numpy()),
        },
        attrs={
            "cause": cause,
            "gain": gain,
            "complete": complete,
            "overcomplete": overcomplete,
            "random_units": float(random.median()),
            "n": len(values),
            "l0": l0,
            "units": units,
        },
    )


def participation(shares: Float[Tensor, "row part"]) -> Float[Tensor, " row"]:
    """Over how many parts each row is spread, (Σ a²)² / Σ a⁴: one to all of them; zero for a row of zeros."""
    squares = shares.double().square()
    total = squares.sum(-1).square()
    return torch.where(total > 0, total / squares.square().sum(-1).clamp_min(1e-300), 0.0)


def kurtosis(values: Float[Tensor, "row d"]) -> Float[Tensor, " d"]:
    """Excess kurtosis of each column, 0 for normal values and for a column that does not vary."""
    exact = values.double() - values.double().mean(0)
    variance = exact.square().mean(0)
    fourth = exact.square().square().mean(0)
    return torch.where(variance > 0, fourth / variance.square().clamp_min(1e-300) - 3, 0.0)


def _search(config: Config) -> independent_components.Config:
    return independent_components.Config(seed=config.seed)


def _by_chance(rows: int, width: int, config: Config) -> float:
    """The largest kurtosis that the search for components finds in normal values."""
    normal = torch.randn(rows, width, generator=torch.Generator().manual_seed(config.seed + 1))
    return float(
        kurtosis(independent_components.fit(normal, "path:values", _search(config)).encode(normal))
        .abs()
        .max()
    )


def _explained(
    components: LinearBasis, values: Float[Tensor, "row d"], half: int, units: int, l0: int, seed: int
) -> tuple[float, float, CodedDictionary]:
    """Shares of the second half of the values that components and a larger dictionary explain, fitted to the first."""
    first, second = values[:half], values[half:]
    coder = OrthogonalMatchingPursuit(l0)
    complete = CodedDictionary.of(components, coder)
    dictionary = k_svd.fit(
        first, "path:values", k_svd.Config(width=units, k=l0, nonnegative=False, seed=seed)
    )
    mean = first.mean(0)
    return _share(complete, second, mean), _share(dictionary, second, mean), dictionary


def _share(basis: Basis, values: Float[Tensor, "row d"], mean: Float[Tensor, " d"]) -> float:
    left = (values - basis.reconstruct(values)).square().sum()
    return float(1 - left / (values - mean).square().sum())


def _rotated(values: Float[Tensor, "row d"], count: int, draw: torch.Generator) -> list[float]:
    """Mean kurtosis of the columns after each of some random rotations."""
    width = values.shape[1]
    found = []
    for _ in range(count):
        rotation = torch.linalg.qr(torch.randn(width, width, generator=draw)).Q
        found.append(float(kurtosis(values @ rotation).mean()))
    return found


def _cause(superposed: bool, holders: Float[Tensor, " feature"], few: float) -> Cause:
    if superposed:
        return "superposed"
    if not len(holders):
        return "no structure"
    typical = float(holders.median())
    if typical < _ONE:
        return "monosemantic"
    return "redundant" if typical < few else "rotated"
