"""Are values at a site kinds of things, or things put together? Clusters or factors, by what each says of the unseen.

1. On one plot of directions on in a row against variance explained, on values put aside, all with as many units:
   k-means in stages, its centroids with strengths of their own, a sparse dictionary (K-SVD), a sparse autoencoder,
   random directions.
2. Group the values by k-means. On these alone groups and factors may be equally right. So leave out each group in
   turn, fit a sparse dictionary to the others, and see what it explains of the group that it never met, as a share of
   what it explains of unseen values of groups that it met.
3. The control: the same values with each group moved to where nothing leads, its distance from the middle kept and its
   direction drawn at random.
4. Neither, if k-means explains no more than of normal values of the same covariance, where groups are only cut out.
   Factors, if what is explained of groups left out exceeds the controls; clusters otherwise. To exceed is to lie above
   where 99 of 100 further controls would, by Student's t.

Bengio, Courville and Vincent (2013), Representation Learning, for factors that generalise beyond the combinations seen.
Misleads: with fewer groups than factors, or factors that stand for single groups, leaving one out takes its factors
away; and in few dimensions every group lies near a sum of directions of the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from pydantic import Field
from scipy.stats import t as student
from torch import Tensor

from microtome.bases import k_means
from microtome.bases.basis import Basis
from microtome.core import result
from microtome.core.card import Card
from microtome.core.errors import InputError
from microtome.core.shapes import Curve, Shape, Table
from microtome.dictionaries import random_dictionary, sparse_autoencoder
from microtome.dictionaries.coders import k_svd
from microtome.dictionaries.coders.coded_dictionary import CodedDictionary
from microtome.dictionaries.coders.pursuit import OrthogonalMatchingPursuit
from microtome.evaluation import site_values
from microtome.evaluation.site_values import examined, sampled
from microtome.models.model import Model

Verdict = Literal["factors", "clusters", "neither"]
_SITE: Final = "path:values"
_AUTOENCODER: Final = "autoencoder"
_ROUNDS: Final = 10  # of K-SVD, which is fitted again for every group and control

card = Card(
    name="clusters_or_factors",
    title="Clusters or factors",
    question="Are the values at a site kinds of things, or sums of factors that combine?",
    steps=(
        "Plot explained variance against directions on in a row: k-means, sparse dictionaries, random directions.",
        "Leave out each group of values and see what a dictionary of the others explains of it.",
        "Do the same with each group moved in a random direction, and see if there are groups in normal values too.",
    ),
    reference="Bengio, Courville and Vincent (2013), Representation Learning: A Review and New Perspectives",
    misleads=(
        "Factors that stand for single groups go when the group is left out; in few dimensions every group lies near "
        "sums of the others' directions."
    ),
    needs="tokens",
    causal="observation",
    locality="global",
    comprehensiveness="partial",
)


class Config(site_values.Config):
    """Settings of clusters or factors."""

    units: int = Field(32, ge=2, description="Units of every basis on the plot.")
    l0: tuple[int, ...] = Field(
        (1, 2, 4, 8), description="Directions on in a row, from point to point of the plot."
    )
    autoencoder: int = Field(
        300, ge=0, description="Steps that the autoencoder is trained for; 0 leaves it out."
    )
    groups: int = Field(6, ge=3, description="Groups that are left out in turn.")
    within: int = Field(4, ge=1, description="Directions on in a row for groups left out.")
    controls: int = Field(5, ge=2, description="Values with moved groups.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`explained [basis, l0]` of values put aside; `transfer [group]`, `control_transfer [control, group]`: what is
    explained of a group left out, over what is explained of groups met; `control_grouped [control]`: what k-means
    explains of normal values. Attributes: `verdict`, `grouped` (what it explains of these), `dictionary_ahead`, `n`,
    `site`."""

    @property
    def verdict(self) -> Verdict:
        """Factors, clusters or neither."""
        found: Verdict = self.data.attrs["verdict"]
        return found

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        names = tuple(map(str, data["basis"].values))
        control = data["control_transfer"].mean("group").values
        plot = Curve(
            "explained variance against sparsity",
            data["l0"].values.astype(float),
            data["explained"].values,
            names,
            "directions on in a row",
            "share of the variance of values put aside",
            caption=f"{data.attrs['n']} values at {data.attrs['site']}; {self.config['units']} units each",
        )
        rows = (
            ("verdict", data.attrs["verdict"]),
            ("explained of groups left out, as a share of groups met", float(data["transfer"].mean())),
            ("the same with groups moved, mean of the controls", float(control.mean())),
            ("explained by the group alone", data.attrs["grouped"]),
            ("the same of normal values, mean of the controls", float(data["control_grouped"].mean())),
            ("dictionary minus k-means, mean over the plot", data.attrs["dictionary_ahead"]),
        )
        said = Table(
            "clusters or factors", ("what", "value"), rows, f"{data.sizes['group']} groups", self.notes
        )
        return (plot, said)


def run(model: Model, data: Any, config: Config | None = None) -> Result:
    """Read the values and examine them; see `microtome.evaluation.site_values`, with what it raises."""
    return examined(card, Result, examine, model, data, config or Config())


def examine(values: Float[Tensor, "row d"], config: Config) -> xr.Dataset:
    """The arrays of a `Result`, of values alone."""
    draw = torch.Generator().manual_seed(config.seed)
    values = sampled(values, config, draw)
    aside = len(values) // 5
    plot = {
        name: [
            explained(make(values[aside:], l0, config), values[:aside], values[aside:]) for l0 in config.l0
        ]
        for name, make in BASES.items()
        if name != _AUTOENCODER or config.autoencoder
    }
    group = _groups(values, config)
    own = transfers(values, group, config)
    controls = [transfers(_moved(values, group, draw), group, config) for _ in range(config.controls)]
    grouped, *cut_out = (
        explained(_grouping(one[aside:], config), one[:aside], one[aside:])
        for one in (values, *(_normal(values, draw) for _ in range(config.controls)))
    )
    factors = exceeds(float(np.mean(own)), [float(np.mean(one)) for one in controls])
    verdict: Verdict = "factors" if factors else "clusters"
    if not exceeds(grouped, cut_out):
        verdict = "neither"
    ahead = np.array(plot["dictionary"]) - np.array(plot["k-means"])
    return xr.Dataset(
        {
            "explained": (("basis", "l0"), np.array(list(plot.values()))),
            "transfer": ("group", np.array(own)),
            "control_transfer": (("control", "group"), np.array(controls)),
            "control_grouped": ("control", np.array(cut_out)),
        },
        {"basis": list(plot), "l0": list(config.l0)},
        {
            "verdict": verdict,
            "grouped": grouped,
            "dictionary_ahead": float(ahead.mean()),
            "n": len(values),
        },
    )


def explained(basis: Basis, values: Float[Tensor, "row d"], seen: Float[Tensor, "seen d"]) -> float:
    """The share of the variance about the mean of what was seen, of any basis; 0 where the mean says as much."""
    left = (values - basis.reconstruct(values)).square().sum()
    return float(1 - left / (values - seen.mean(0)).square().sum().clamp_min(1e-30))


def exceeds(value: float, controls: Sequence[float]) -> bool:
    """Whether a value lies above where 99 of 100 further controls would, of which these are a sample."""
    n = len(controls)
    reach = float(student.ppf(0.99, n - 1)) * float(np.std(controls, ddof=1)) * (1 + 1 / n) ** 0.5
    return value > float(np.mean(controls)) + reach


def frontier(
    bases: Sequence[Basis], values: Float[Tensor, "row d"], seen: Float[Tensor, "seen d"]
) -> list[tuple[str, float, float]]:
    """Where any bases lie on the plot: name, units on in a row, share explained."""
    return [
        (
            basis.name,
            float((basis.encode(values) != 0).sum(-1).float().mean()),
            explained(basis, values, seen),
        )
        for basis in bases
    ]


def transfers(values: Float[Tensor, "row d"], group: Int[Tensor, " row"], config: Config) -> list[float]:
    """For each group, what a dictionary of the others explains of it, over what it explains of values put aside of
    those it met; at least 0."""
    found = []
    for left in range(config.groups):
        among = values[group != left]
        aside = len(among) // 5
        dictionary = _dictionary(among[aside:], config.within, config)
        met = explained(dictionary, among[:aside], among[aside:])
        unmet = explained(dictionary, values[group == left], among[aside:])
        found.append(max(0.0, unmet) / max(met, 1e-6))
    return found


def _grouping(values: Float[Tensor, "row d"], config: Config) -> Basis:
    return k_means.fit(values, _SITE, k_means.Config(units=config.groups, seed=config.seed))


def _groups(values: Float[Tensor, "row d"], config: Config) -> Int[Tensor, " row"]:
    found: Tensor = _grouping(values, config).encode(values).argmax(-1)
    smallest = int(torch.bincount(found, minlength=config.groups).min())
    if smallest < 2:
        raise InputError(f"of {config.groups} groups one has {smallest} values; ask for fewer groups")
    return found


def _moved(
    values: Float[Tensor, "row d"], group: Int[Tensor, " row"], draw: torch.Generator
) -> Float[Tensor, "row d"]:
    """Each group's mean as far from the middle as it is, in a direction of its own; the rest of a value stays."""
    middle, moved = values.mean(0), values.clone()
    for one in group.unique().tolist():
        mine = group == one
        mean = values[mine].mean(0) - middle
        away = torch.randn(mean.shape, generator=draw)
        moved[mine] += away / away.norm() * mean.norm() - mean
    return moved


def _normal(values: Float[Tensor, "row d"], draw: torch.Generator) -> Float[Tensor, "row d"]:
    """Normal values of the same mean and covariance."""
    centred = values - values.mean(0)
    mixed = torch.randn(len(values), len(values), generator=draw) @ centred / len(values) ** 0.5
    return values.mean(0) + mixed


def _dictionary(values: Float[Tensor, "row d"], l0: int, config: Config) -> Basis:
    k = min(l0, config.units)
    settings = k_svd.Config(width=config.units, k=k, nonnegative=False, rounds=_ROUNDS, seed=config.seed)
    return k_svd.fit(values, _SITE, settings)


def _stages(values: Float[Tensor, "row d"], l0: int, config: Config) -> Basis:
    units = config.units - config.units % l0
    kind: Literal["nearest", "residual"] = "nearest" if l0 == 1 else "residual"
    return k_means.fit(values, _SITE, k_means.Config(units=units, kind=kind, l0=l0, seed=config.seed))


def _centroids(values: Float[Tensor, "row d"], l0: int, config: Config) -> Basis:
    plain = k_means.fit(values, _SITE, k_means.Config(units=config.units, seed=config.seed))
    kept = plain.directions()[plain.directions().norm(dim=-1) > 0]
    coder = OrthogonalMatchingPursuit(l0)
    return CodedDictionary([_SITE], [values.shape[1]], kept, coder, plain.centre, "centroids")


def _autoencoder(values: Float[Tensor, "row d"], l0: int, config: Config) -> Basis:
    settings = sparse_autoencoder.Config(
        width=config.units, k=min(l0, config.units), steps=config.autoencoder, seed=config.seed
    )
    return sparse_autoencoder.fit(values, _SITE, settings)


def _random(values: Float[Tensor, "row d"], l0: int, config: Config) -> Basis:
    return random_dictionary.fit(
        values, _SITE, random_dictionary.Config(units=config.units, l0=l0, seed=config.seed)
    )


BASES: Final[dict[str, Callable[[Tensor, int, Config], Basis]]] = {
    "k-means": _stages,
    "centroids with strengths": _centroids,
    "dictionary": _dictionary,
    _AUTOENCODER: _autoencoder,
    "random directions": _random,
}
