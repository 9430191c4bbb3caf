"""Which parts are needed, which suffice, and which only together? Groups of heads and MLPs, patched both ways.

1. *Necessity* of a group: what of the behaviour is lost when clean prompts run and it takes its values from the corrupt
   twin. *Sufficiency*: what is restored when corrupt prompts run and it takes its values from the clean one.
2. The same for each of its members alone, as shares of what the group does.
3. Where the members add up, each does its part, 1/k. AND-like: each by itself breaks nearly all that the group does,
   and restores hardly any. OR-like: each by itself breaks hardly anything, and restores nearly all. "Nearly all" and
   "hardly any" begin half-way between the share 1/k and the end of the scale.
4. Each direction votes where the group does anything in it; both must agree. One direction alone decides where the
   other shows nothing, as where more than the group is needed to restore a behaviour; the result tells which voted.

Reference: Heimersheim and Nanda (2024), How to Use and Interpret Activation Patching. Misleads: a member that another
part of the network backs up looks unneeded, as in an OR with what is outside the group; and chains, in which one part
feeds the next, are neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, NodeScores
from microtome.core.card import Card
from microtome.core.cost import Recorder, measure
from microtome.core.errors import InputError
from microtome.core.shapes import Cell, Shape, Table
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.components import components, parse, spoken
from microtome.models.model import Model
from microtome.patching.contrast import Contrast, Direction
from microtome.patching.joint_effects import Joint

Verdict = Literal["AND-like", "OR-like", "neither", "does nothing"]
WAYS: Final[tuple[Direction, ...]] = ("noise", "denoise")

card = Card(
    name="necessity_sufficiency",
    title="Necessity and sufficiency, AND and OR",
    question="Is each head or MLP of a group needed, does each suffice, or do they work only together?",
    steps=(
        "Patch corrupt values into clean prompts (necessity) and clean ones into corrupt prompts (sufficiency).",
        "Do so for groups and for each of their members alone.",
        "Call a group AND-like where each member breaks it and none restores it, OR-like where it is the reverse.",
    ),
    reference="Heimersheim and Nanda 2024, How to Use and Interpret Activation Patching",
    misleads="A part that something outside the group backs up looks unneeded; parts that feed each other are neither.",
    needs="pairs",
    causal="intervention",
    claims=("nodes", "role:and_gate", "role:or_gate"),
)


class Config(base.Config):
    """Which groups, and from where on an effect counts."""

    groups: tuple[tuple[str, ...], ...] = Field(
        (), description="Groups of heads and MLPs, as [z.0.h1, z.0.h2]; none: all pairs of the strongest."
    )
    strongest: int = Field(
        8,
        ge=2,
        description="Without groups, how many components are paired: those that do most in either direction.",
    )
    least: float = Field(
        0.05, gt=0, lt=1, description="Share of the behaviour below which a group does nothing."
    )
    metric: str = Field(metrics.DEFAULT, description="Metric by name.")
    seed: base.Seed = Field(0, description="Recorded; nothing here is drawn at random.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`single [way, component]`, `joint [way, group]`: shares of the behaviour lost (noise) and restored (denoise).

    `member [way, group]`: the least share of what the group does that one of its members does alone; NaN where the
    group does nothing. `verdict`, `voted [group]`. Groups are named by their members, joined by ` + `.
    """

    def verdict(self, group: Sequence[str]) -> str:
        """What was found of a group. Raises `InputError` for one that was not measured."""
        wanted = set(group)
        for name, verdict in zip(self.data["group"].values, self.data["verdict"].values, strict=True):
            if set(str(name).split(" + ")) == wanted:
                return str(verdict)
        raise InputError(f"the group {' + '.join(group)} was not measured; give it in groups")

    def answers(self) -> tuple[Answer, ...]:
        """How needed each component is; and in how clear an AND or OR it stands, by its best pair."""
        data = self.data
        needed = data["single"].sel(way="noise")
        names = data["component"].values.tolist()
        found: list[Answer] = [NodeScores(dict(zip(names, needed.values.tolist(), strict=True)))]
        joint = data["joint"].sel(way="noise").values
        for role, verdict in (("and_gate", "AND-like"), ("or_gate", "OR-like")):
            scores = dict.fromkeys(names, 0.0)
            for group, told, share in zip(data["group"].values, data["verdict"].values, joint, strict=True):
                for member in str(group).split(" + ") if told == verdict else ():
                    scores[member] = max(scores[member], abs(float(share)))
            found.append(NodeScores(scores, role))
        return tuple(found)

    def shapes(self) -> tuple[Shape, ...]:
        data, n = self.data, self.data.attrs["n"]
        rows: list[tuple[Cell, ...]] = []
        for i, group in enumerate(data["group"].values.tolist()):
            told = " + ".join(spoken(Site.parse(name)) for name in group.split(" + "))
            numbers = [float(data[name].values[way, i]) for way in (0, 1) for name in ("joint", "member")]
            rows.append((told, str(data["verdict"].values[i]), str(data["voted"].values[i]), *numbers))
        rank = {"AND-like": 0, "OR-like": 0, "neither": 1, "does nothing": 2}
        rows.sort(key=lambda row: (rank[str(row[1])], -max(abs(float(row[j] or 0)) for j in (3, 5))))
        groups = Table(
            "groups",
            (
                "group",
                "together",
                "by",
                "lost without",
                "… least by one alone",
                "restored",
                "… least by one alone",
            ),
            tuple(rows),
            caption=f"{self.config['metric']}, ratio of means over {n} pairs; shares of the behaviour; of members, "
            f"shares of what the group does; groups below {self.config['least']:g} both ways do nothing",
        )
        single = data["single"].values
        order = np.argsort(-np.abs(single).max(axis=0), kind="stable")
        each = Table(
            "each component alone",
            ("component", "lost without it", "restored by it"),
            tuple(
                (
                    spoken(Site.parse(str(data["component"].values[i]))),
                    float(single[0, i]),
                    float(single[1, i]),
                )
                for i in order
            ),
            caption=f"{self.config['metric']}, ratio of means over {n} pairs; shares of the behaviour",
        )
        return (groups, each)


def run(model: Model, data: Pairs, config: Config | None = None) -> Result:
    """Measure groups. Raises `InputError` for a group of fewer than two, and where clean and corrupt prompts are
    treated alike; `SiteError` for a component that the model does not have."""
    config = config or Config()
    every = components(model)
    given = tuple(parse(model, group) for group in config.groups)
    if small := [group for group in config.groups if len(set(group)) < 2]:
        raise InputError(f"a group has at least two different members, got {list(small[0])}")
    with measure() as recorder:
        contrast = Contrast.of(model, data, config.metric, every, config.seed)
        recorder.add(passes=2)
        ways = [Joint(contrast, direction=way) for way in WAYS]
        single = _shares(ways, [(site,) for site in every], recorder)
        groups = given or tuple(combinations(_strongest(every, single, config.strongest), 2))
        joint = _shares(ways, groups, recorder)
    place = {site: number for number, site in enumerate(every)}
    member = np.full((2, len(groups)), np.nan)
    verdicts, voted = [], []
    for number, group in enumerate(groups):
        alone = single[:, [place[site] for site in group]]
        member[:, number], verdict, by = _judge(joint[:, number], alone, config.least)
        verdicts.append(verdict)
        voted.append(by)
    arrays = {
        "single": (("way", "component"), single),
        "joint": (("way", "group"), joint),
        "member": (("way", "group"), member),
        "verdict": (("group",), np.array(verdicts, dtype=str)),
        "voted": (("group",), np.array(voted, dtype=str)),
    }
    coords = {
        "way": list(WAYS),
        "component": list(map(str, every)),
        "group": [" + ".join(map(str, group)) for group in groups],
    }
    return Result.of(
        card,
        xr.Dataset(arrays, coords, {"n": len(data), "gap": contrast.gap("denoise")}),
        config,
        contrast.provenance,
        recorder.cost(),
    )


def _shares(
    ways: Sequence[Joint], sets: Sequence[Sequence[Site]], recorder: Recorder
) -> Float[NDArray[np.float64], "way set"]:
    """Lost by noise and restored by denoise, as shares of the behaviour."""
    found: list[Tensor] = []
    for joint, sign in zip(ways, (-1.0, 1.0), strict=True):
        effects, cost = joint.effects(sets)
        recorder.include(cost)
        found.append(sign * effects.mean(dim=1) / joint.gap)
    made: NDArray[np.float64] = torch.stack(found).numpy()
    return made


def _strongest(every: Sequence[Site], single: NDArray[np.float64], count: int) -> list[Site]:
    """Components that do most alone in either direction, in the order of a pass."""
    order = np.argsort(-np.abs(single).max(axis=0), kind="stable")[:count]
    return [every[i] for i in sorted(order.tolist())]


def _judge(
    joint: NDArray[np.float64], alone: NDArray[np.float64], least: float
) -> tuple[list[float], Verdict, str]:
    """The least share of a member in each direction, the verdict, and which directions voted."""
    members, size = alone.shape[1], 1 / alone.shape[1]
    assert members > 1
    low, high = size / 2, (1 + size) / 2
    shares: list[float] = []
    votes: list[Verdict] = []
    by: list[str] = []
    for way, name in enumerate(WAYS):
        if not abs(joint[way]) >= least:
            shares.append(float("nan"))
            continue
        each = alone[way] / joint[way]
        shares.append(float(each.min()))
        # In the direction of sufficiency the ends of the scale change sides.
        ends: tuple[Verdict, Verdict] = ("OR-like", "AND-like") if way == 0 else ("AND-like", "OR-like")
        votes.append(ends[1] if each.min() >= high else ends[0] if each.max() <= low else "neither")
        by.append(name)
    if not votes:
        return shares, "does nothing", ""
    return shares, votes[0] if len(set(votes)) == 1 else "neither", " and ".join(by)
