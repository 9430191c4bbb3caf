"""How well do single units tell what is known to be true of a row, and how much better do several together?

1. Rows are dealt into two halves by a seed; those of one text go together, since what is known of one tells much of
   the next. Everything is chosen on the first half and scored on the second.
2. A latent is true, false or undefined in a row. A label with several values becomes one latent for each value.
3. Best unit: the unit, its sign and the cut between two of its values with the largest F1 on the first half. Any cut,
   either way, for every basis: a list of cuts suits dense codes or sparse ones.
4. Best k: the k units whose means differ most between true and false, in standard deviations; ridge regression on
   them, cut where F1 is largest on the first half. k grows in powers of two.
5. Splitting: the smallest k that comes within 0.03 of the largest F1 of the list: a latent that takes several units has
   been split among them, or is written along a direction that no unit has.

F1 is used because latents are rare. `chance` is the F1 of saying true always. Reference: Gurnee et al. (2023), Finding
neurons in a haystack; Chanin et al. (2024), A is for absorption, for 5. Misleads where a latent is frequent: there
saying true always scores well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core.errors import InputError
from microtome.core.shapes import Table

FEWEST: Final = 5  # rows of each half in which a latent is true, and false
CLOSE: Final = 0.03
RIDGE: Final = 1e-3


@dataclass(frozen=True, eq=False)
class Probed:
    """F1 on held-out rows. names, chance, unit, best_unit `[latent]`; best_k `[latent, k]` for the counts `ks`.

    unit: which one is best; sign: -1 where it tells by being low. skipped: latents too rare or too common to score.
    """

    names: tuple[str, ...]
    rows: int
    chance: Float[Tensor, " latent"]
    unit: Int[Tensor, " latent"]
    sign: Int[Tensor, " latent"]
    best_unit: Float[Tensor, " latent"]
    ks: tuple[int, ...]
    best_k: Float[Tensor, "latent k"]
    skipped: tuple[str, ...] = ()

    @property
    def split(self) -> Int[Tensor, " latent"]:
        """Over how many units each latent is spread."""
        reached = self.best_k >= self.best_k.amax(-1, keepdim=True) - CLOSE
        return torch.tensor(self.ks)[reached.long().argmax(-1)]

    def numbers(self) -> dict[str, float]:
        """Means over latents."""
        return {
            "best_unit_f1": float(self.best_unit.mean()),
            **{f"best_{k}_f1": float(f1) for k, f1 in zip(self.ks, self.best_k.mean(0), strict=True)},
            "units_a_latent": float(self.split.double().mean()),
            "chance_f1": float(self.chance.mean()),
        }

    def table(self) -> Table:
        """A row for each latent, the best told first."""
        order = self.best_unit.argsort(descending=True).tolist()
        rows = tuple(
            (
                self.names[one],
                ("-" if self.sign[one] < 0 else "") + f"u{int(self.unit[one])}",
                float(self.best_unit[one]),
                *map(float, self.best_k[one]),
                int(self.split[one]),
                float(self.chance[one]),
            )
            for one in order
        )
        return Table(
            "known latents: F1 of the best unit and of the best k",
            ("latent", "unit", "best unit", *(f"best {k}" for k in self.ks), "units it takes", "always true"),
            rows,
            caption=f"chosen on one half of {self.rows} rows, scored on the other; {len(self.skipped)} latents "
            "too rare or too common",
        )


def binary(labels: Mapping[str, Tensor], most: int = 64) -> dict[str, Float[Tensor, " row"]]:
    """Labels `[row]` as latents: 1, 0, or NaN where undefined (-1 or NaN).

    A label of more than two values becomes `name=value` for each of them; one with more than `most` is told by its
    median. Raises `InputError` for labels of different lengths.
    """
    lengths = {len(label) for label in labels.values()}
    if len(lengths) > 1:
        raise InputError(f"labels must be of the same rows; they have lengths {sorted(lengths)}")
    found: dict[str, Tensor] = {}
    for name, label in labels.items():
        value = label.double()
        known = value.isfinite() & ((value != -1) | label.is_floating_point())
        values = value[known].unique().tolist()
        unknown = torch.where(known, 0.0, float("nan"))
        if len(values) == 2:
            found[name] = (value == values[1]).float() + unknown
        elif 2 < len(values) <= most:
            found |= {f"{name}={one:g}": (value == one).float() + unknown for one in values}
        elif len(values) > most:
            found[f"{name} above its median"] = (value > value[known].median()).float() + unknown
    return found


@torch.no_grad()
def known_latents(
    codes: Float[Tensor, "row unit"],
    latents: Mapping[str, Float[Tensor, " labelled"]],
    ks: Sequence[int] = (1, 2, 4, 8, 16),
    seed: int = 0,
    text: Int[Tensor, " labelled"] | None = None,
) -> Probed:
    """Hold units to latents, as `binary` gives them. text: which one each row is of; by default each stands alone.

    Raises `InputError` where no latent can be scored.
    """
    if any(len(latent) != len(codes) for latent in latents.values()):
        raise InputError(f"there are codes of {len(codes)} rows; give each latent for the same rows")
    halves = _halves(len(codes), text, seed)
    names = [name for name, latent in latents.items() if all(_enough(latent[half]) for half in halves)]
    if not names:
        raise InputError(
            f"none of {len(latents)} latents is both true and false in {FEWEST} rows of each half; give more rows"
        )
    truth = torch.stack([latents[name] for name in names], -1).to(codes.device)
    first, second = ((codes[half], truth[half]) for half in halves)
    ks = tuple(k for k in sorted(set(ks)) if k <= codes.shape[1])
    unit, sign, cut = _chosen(*first)
    known, real = second[1].isfinite(), second[1] > 0
    told = second[0][:, unit] * sign > cut
    ranked = _apart(*first).topk(max(ks), -1).indices
    several = torch.stack([_several(first, second, n, ranked[n], ks) for n in range(len(names))])
    return Probed(
        tuple(names),
        len(codes),
        f1(known, real, known),
        unit,
        sign.long(),
        f1(told, real, known),
        ks,
        several,
        tuple(name for name in latents if name not in names),
    )


def _halves(
    rows: int, text: Int[Tensor, " row"] | None, seed: int
) -> tuple[Int[Tensor, " first"], Int[Tensor, " second"]]:
    """Rows of half the texts, and of the others; texts in random order."""
    of = torch.arange(rows) if text is None else text.unique(return_inverse=True)[1]
    texts = len(of.unique())
    order = torch.randperm(texts, generator=torch.Generator().manual_seed(seed))
    rank = order.argsort()[of]
    ranked, first = rank.argsort(stable=True), int((rank < texts // 2).sum())
    return ranked[:first], ranked[first:]


def f1(
    told: Bool[Tensor, "row *latent"], real: Bool[Tensor, "row *latent"], known: Bool[Tensor, "row *latent"]
) -> Float[Tensor, "*latent"]:
    """The harmonic mean of precision and recall, over the rows where it is known; 0 where nothing is right."""
    both = (told & real & known).sum(0)
    return 2 * both / ((told & known).sum(0) + (real & known).sum(0)).clamp_min(1)


def _enough(latent: Float[Tensor, " row"]) -> bool:
    true = int((latent > 0).sum())
    return FEWEST <= true <= int(latent.isfinite().sum()) - FEWEST


def _chosen(
    codes: Float[Tensor, "row unit"], truth: Float[Tensor, "row latent"]
) -> tuple[Int[Tensor, " latent"], Float[Tensor, " latent"], Float[Tensor, " latent"]]:
    """The unit, sign and cut of the largest F1, for each latent; a unit that is always the same has no cut."""
    known, real = truth.isfinite().float(), (truth > 0).float()
    everything, true = known.sum(0), real.sum(0)
    best = torch.full_like(true, -1.0)
    unit, sign, cut = torch.zeros_like(true).long(), torch.ones_like(true), torch.zeros_like(true).double()
    for one in range(codes.shape[1]):
        value, order = codes[:, one].double().sort(descending=True)
        ends = (value[1:] < value[:-1]).nonzero()[:, 0]
        if not len(ends):
            continue
        head = order[: int(ends[-1]) + 1]  # the others are alike: no cut comes after them
        right, told = real[head].cumsum(0)[ends], known[head].cumsum(0)[ends]
        between = (value[ends] + value[ends + 1]) / 2
        for way, hits, said in ((1.0, right, told), (-1.0, true - right, everything - told)):
            highest, place = (2 * hits / (said + true).clamp_min(1)).max(0)
            better = highest > best
            best = torch.where(better, highest, best)
            unit[better], sign[better] = one, way
            cut = torch.where(better, way * between[place], cut)
    return unit, sign, cut


def _apart(
    codes: Float[Tensor, "row unit"], truth: Float[Tensor, "row latent"]
) -> Float[Tensor, "latent unit"]:
    """How far each unit's means differ between true and false, in its standard deviations where a latent is known."""
    codes, known, true = codes.double(), truth.isfinite().double(), (truth > 0).double()
    rows, hits = known.sum(0)[:, None], true.sum(0)[:, None]
    total, own = known.mT @ codes, true.mT @ codes
    variance = (known.mT @ codes.square() - total.square() / rows) / (rows - 1)
    return (own / hits - (total - own) / (rows - hits)).abs() / variance.clamp_min(1e-24).sqrt()


def _several(
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    latent: int,
    ranked: Tensor,
    ks: Sequence[int],
) -> Float[Tensor, " k"]:
    """Held-out F1 of ridge regression on the k units that differ most, which are ranked."""
    (codes, truth), (held, held_truth) = (
        (codes[:, ranked][known].double(), truth[known, latent] > 0)
        for codes, truth in (first, second)
        for known in (truth[:, latent].isfinite(),)
    )
    mean, deviation = codes.mean(0), codes.std(0).clamp_min(1e-12)
    scaled, scaled_held = ((rows - mean) / deviation for rows in (codes, held))
    wanted = truth.double() - truth.double().mean()
    found = []
    for k in ks:
        gram = scaled[:, :k].mT @ scaled[:, :k] + RIDGE * len(scaled) * torch.eye(k, dtype=torch.float64)
        weight = torch.linalg.solve(gram, scaled[:, :k].mT @ wanted)
        cut = _best_cut(scaled[:, :k] @ weight, truth)
        found.append(f1(scaled_held[:, :k] @ weight > cut, held_truth, torch.ones_like(held_truth)))
    return torch.stack(found)


def _best_cut(score: Float[Tensor, " row"], truth: Bool[Tensor, " row"]) -> float:
    """The threshold above which saying true has the largest F1."""
    ranked, order = score.sort(descending=True)
    right = truth[order].cumsum(0)
    f1s = 2 * right / (torch.arange(1, len(score) + 1) + truth.sum())
    last = torch.ones_like(truth)
    last[:-1] = ranked[1:] < ranked[:-1]  # equal scores go together
    place = int(f1s.masked_fill(~last, -1.0).argmax())
    return float((ranked[place] + ranked[place + 1]) / 2) if place + 1 < len(ranked) else float("-inf")
