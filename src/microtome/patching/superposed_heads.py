"""Is one behaviour spread over several heads, and does one head carry several behaviours?

1. Prompts are sorted into behaviours by the token at one place, such as the last: what is asked for.
2. For each behaviour, each head is ablated alone, every pair of heads together, and all heads. Losses are shares of
   what is lost without any head.
3. *Spread* of a behaviour: the number of heads that its single losses amount to, (Σ loss)² / Σ loss²; 1 where one head
   has it to itself. *Load* of a head: the same over behaviours; 1 where it serves one alone.
4. *Synergy* of a pair: what is lost without both, less what is lost without each. Logit differences of one layer
   without norms add up exactly; there, synergy shows in log-probabilities: heads that correct each other's mistakes.
5. Behaviours in superposition over heads: fewer heads than behaviours, each behaviour spread, each head loaded. Beside
   them the same numbers with prompts dealt to behaviours at random: a head that does one thing for all prompts alike
   has a full load there too, and no more with the true sorting.

Reference: Jermyn, Olah, Henighan (2023), Attention Head Superposition. Misleads where heads differ in what they do for
prompts of one behaviour: spread then tells of prompts, not of superposition.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field

from microtome.core import config as base
from microtome.core import result
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.errors import InputError
from microtome.core.shapes import Cell, Grid, Shape, Table
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.components import components, parse, spoken
from microtome.models.model import Model
from microtome.patching.contrast import Contrast
from microtome.patching.joint_effects import LEAST_GAP, Joint, Kind

card = Card(
    name="superposed_heads",
    title="Attention heads in superposition",
    question="Is one behaviour spread over several heads, and does one head carry several behaviours?",
    steps=(
        "Sort prompts into behaviours by the token at one place.",
        "For each behaviour ablate each head alone, each pair, and all of them.",
        "Count over how many heads each behaviour is spread and how many behaviours each head carries.",
        "Tell what pairs lose beyond the sum, and the same for prompts sorted at random.",
    ),
    reference="Jermyn, Olah and Henighan 2023, Attention Head Superposition",
    misleads="Where heads differ in what they do for prompts of one behaviour, spread tells of prompts instead.",
    needs="pairs",
    causal="intervention",
)


class Config(base.Config):
    """What tells behaviours apart, and which heads."""

    place: int = Field(-1, description="The token that names the behaviour: its place among real tokens.")
    heads: tuple[str, ...] = Field((), description="Heads, as z.0.h1; none: all.")
    kind: Kind = Field("mean", description="Ablated to the corrupt twin (resample), its mean, or zero.")
    metric: str = Field(metrics.DEFAULT, description="Metric by name.")
    fewest: int = Field(4, ge=1, description="Behaviours with fewer prompts are left out.")
    most: int = Field(24, ge=2, description="More heads than this are refused; pairs grow with the square.")
    seed: base.Seed = Field(0, description="Of the random sorting, the control.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`loss [behaviour, head]`: share of what is lost without any head. `synergy [behaviour, pair]`. `spread`, `n
    [behaviour]`; `load [head]`; `random_spread`, `random_load`: the same for prompts sorted at random."""

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        heads = tuple(spoken(Site.parse(str(name))) for name in data["head"].values)
        named = tuple(map(str, data["behaviour"].values))
        told = (
            f"{self.config['metric']}, ratio of means; ablated by {self.config['kind']}; {int(data['n'].sum())} of "
            f"{data.attrs['n']} pairs in {len(named)} behaviours"
        )
        grid = Grid(
            "which behaviour needs which head",
            data["loss"].values,
            "behaviour",
            named,
            "head",
            heads,
            unit="share of what all heads do",
            caption=told,
        )
        strongest = np.abs(data["synergy"].values).argmax(axis=1)
        rows: list[tuple[Cell, ...]] = [
            (
                name,
                int(data["n"].values[i]),
                float(data["spread"].values[i]),
                float(data["random_spread"].values[i]),
                str(data["pair"].values[strongest[i]]),
                float(data["synergy"].values[i, strongest[i]]),
            )
            for i, name in enumerate(named)
        ]
        spread = Table(
            "over how many heads each behaviour is spread",
            ("behaviour", "pairs", "heads", "… sorted at random", "strongest synergy", "beyond the sum"),
            tuple(rows),
            caption=f"{told}; {len(heads)} heads; synergy: share lost without both, less that lost without each",
        )
        load = Table(
            "how many behaviours each head carries",
            ("head", "behaviours", "… sorted at random"),
            tuple(
                (heads[i], float(data["load"].values[i]), float(data["random_load"].values[i]))
                for i in range(len(heads))
            ),
            caption=f"{told}; of {len(named)} behaviours",
        )
        return (grid, spread, load)


def run(model: Model, data: Pairs, config: Config | None = None) -> Result:
    """Measure heads by behaviour. Raises `InputError` where fewer than two behaviours have enough prompts, for fewer
    than two or too many heads, and where heads do nothing for a behaviour."""
    config = config or Config()
    heads = parse(model, config.heads) if config.heads else tuple(s for s in components(model) if s.heads)
    if len(set(heads)) != len(heads) or not 2 <= len(heads) <= config.most or not all(s.heads for s in heads):
        raise InputError(
            f"expected 2 to {config.most} different heads, got {', '.join(map(str, heads)) or 'none'}; name the "
            "strongest with heads=…, or raise most"
        )
    sorted_ = _behaviours(data, config.place, config.fewest)
    pairs = list(combinations(range(len(heads)), 2))
    with measure() as recorder:
        contrast = Contrast.of(model, data, config.metric, heads, config.seed)
        joint = Joint(contrast, config.kind)
        sets = [[head] for head in heads] + [[heads[a], heads[b]] for a, b in pairs] + [list(heads)]
        effects, cost = joint.effects(sets)
        recorder.include(cost)
        recorder.add(passes=2)
    lost = -effects.numpy()
    loss, synergy = _shares(lost, list(sorted_.values()), len(heads), pairs, list(sorted_))
    numbers = np.concatenate([np.array(rows) for rows in sorted_.values()])
    dealt = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(config.seed)).numpy()
    cuts = np.cumsum([len(rows) for rows in sorted_.values()])[:-1]
    anyhow = [part.tolist() for part in np.split(numbers[dealt], cuts)]
    random, _ = _shares(lost, anyhow, len(heads), pairs, ["prompts sorted at random"] * len(anyhow))
    names = list(map(str, heads))
    arrays = {
        "loss": (("behaviour", "head"), loss),
        "synergy": (("behaviour", "pair"), synergy),
        "spread": (("behaviour",), amount(loss)),
        "random_spread": (("behaviour",), amount(random)),
        "load": (("head",), amount(loss.T)),
        "random_load": (("head",), amount(random.T)),
        "n": (("behaviour",), np.array([len(rows) for rows in sorted_.values()])),
    }
    coords = {
        "behaviour": list(sorted_),
        "head": names,
        "pair": [f"{names[a]} + {names[b]}" for a, b in pairs],
    }
    return Result.of(
        card,
        xr.Dataset(arrays, coords, {"n": len(data), "gap": joint.gap}),
        config,
        contrast.provenance,
        recorder.cost(),
    )


def amount(losses: Float[NDArray[np.float64], "thing part"]) -> Float[NDArray[np.float64], " thing"]:
    """How many parts each row amounts to: (Σ |x|)² / Σ x²; as many as there are for equal ones; 0 for none."""
    size = np.abs(losses)
    squares = (size**2).sum(axis=1)
    found: NDArray[np.float64] = np.where(
        squares > 0, size.sum(axis=1) ** 2 / np.where(squares > 0, squares, 1), 0.0
    )
    return found


def _behaviours(pairs: Pairs, place: int, fewest: int) -> dict[str, list[int]]:
    """Rows by the token at a place."""
    found: dict[str, list[int]] = {}
    for row in range(len(pairs)):
        texts = pairs.tokens_as_text(row)
        if not -len(texts) <= place < len(texts):
            raise InputError(
                f"row {row} has {len(texts)} tokens and none at place {place}; give another place"
            )
        found.setdefault(texts[place], []).append(row)
    kept = {name: rows for name, rows in sorted(found.items()) if len(rows) >= fewest}
    if len(kept) < 2:
        raise InputError(
            f"the token at place {place} sorts {len(pairs)} prompts into {len(kept)} behaviours of at least {fewest}; "
            "two are needed: give a place at which prompts ask for different things"
        )
    return kept


def _shares(
    lost: Float[NDArray[np.float64], "set row"],
    groups: Sequence[Sequence[int]],
    heads: int,
    pairs: Sequence[tuple[int, int]],
    names: Sequence[str],
) -> tuple[Float[NDArray[np.float64], "group head"], Float[NDArray[np.float64], "group pair"]]:
    """Losses of single heads and synergies of pairs, as shares of what is lost without any head."""
    mean = np.stack([lost[:, list(rows)].mean(axis=1) for rows in groups])
    if idle := [name for name, whole in zip(names, mean[:, -1], strict=True) if not abs(whole) > LEAST_GAP]:
        raise InputError(
            f"without any of these heads nothing changes for {idle[0]!r}; it is not done by heads"
        )
    share = mean / mean[:, -1:]
    single = share[:, :heads]
    synergy = np.stack(
        [share[:, heads + i] - single[:, a] - single[:, b] for i, (a, b) in enumerate(pairs)], axis=1
    )
    return single, synergy
