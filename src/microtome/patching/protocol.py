"""Was the experiment done as it should be? An executable checklist, kept in every result of an intervention.

Each item is looked up in what was really done, and is `followed`, `broken`, or `does not apply`, with the numbers:

1. *sample*: the prompts are a random sample with a seed, or picked by hand;
2. *pair choice*: each corrupt prompt differs from its clean one, in few tokens, and the metric tells them apart;
3. *direction*: both directions were run, since one alone shows sufficiency or necessity, not both;
4. *metric*: it adds up over components (logit difference, log-probability, KL, cross-entropy), or saturates;
5. *baseline*: what stands in place of a value is one that the model could have had;
6. *multiple comparisons*: effects are tested over prompts and corrected for the number of cells looked at;
7. *off-distribution*: how many effects come from activations beyond natural ones.

Reference: Zhang and Nanda, "Towards Best Practices of Activation Patching in Language Models" (2023); Heimersheim
and Nanda, "How to Use and Interpret Activation Patching" (2024).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float
from scipy import stats

from microtome.core.shapes import Table
from microtome.data.pairs import Pairs
from microtome.patching.contrast import Contrast
from microtome.patching.off_distribution import LIMIT

Status = Literal["followed", "broken", "does not apply"]

RATE: Final = 0.05
_ADDITIVE: Final = ("logit-difference", "log-probability", "kl", "cross-entropy")
_NATURAL: Final = ("patch", "mean", "resample")
_SHOWS: Final = {
    "denoise": "sufficiency",
    "restore": "sufficiency",
    "noise": "necessity",
    "ablate": "necessity",
}


@dataclass(frozen=True)
class Item:
    """One rule of the protocol: what it is, whether it was kept, and the numbers that say so."""

    rule: str
    status: Status
    remark: str


def significant(effects: Float[np.ndarray, "cell row"], rate: float = RATE) -> Bool[np.ndarray, " cell"]:
    """Cells whose mean effect over prompts differs from zero, by t-test, Benjamini and Hochberg's rate controlled.

    Cells not measured (NaN) and effects that are zero on every prompt are never significant; one prompt tests nothing.
    """
    cells, rows = effects.shape
    if rows < 2 or not cells:
        return np.zeros(cells, dtype=bool)
    mean, error = effects.mean(axis=1), effects.std(axis=1, ddof=1) / np.sqrt(rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.abs(mean) / error
    p = 2 * stats.t.sf(statistic, rows - 1)
    tested = np.isfinite(mean) & (mean != 0)
    answer = np.zeros(cells, dtype=bool)
    if tested.any():
        answer[tested] = stats.false_discovery_control(p[tested]) <= rate
    return answer


def checklist(
    contrast: Contrast,
    directions: Sequence[str],
    baseline: Sequence[str],
    tested: int,
    percentiles: Float[np.ndarray, "..."],
) -> tuple[Item, ...]:
    """The protocol of an experiment on a contrast.

    directions: those run. baseline: what values were put in place (`patch`, `mean`, `resample`, `zero`, `noise`).
    tested: how many cells were tested for significance. percentiles: of every effect, NaN where not judged.
    """
    return (
        _sample(contrast.pairs),
        _pair_choice(contrast),
        _direction(directions),
        _metric(contrast.metric.name),
        _baseline(baseline),
        _comparisons(tested, len(contrast.pairs)),
        _off_distribution(percentiles),
    )


def _sample(pairs: Pairs) -> Item:
    if pairs.seed is None:
        return Item("sample", "broken", f"{len(pairs)} pairs without a seed: taken as picked by hand")
    return Item(
        "sample", "followed", f"{len(pairs)} pairs of {pairs.task or 'a task'} drawn with seed {pairs.seed}"
    )


def _pair_choice(contrast: Contrast) -> Item:
    pairs = contrast.pairs
    differing = pairs.clean != pairs.corrupt
    if pairs.mask is not None:
        differing &= pairs.mask.bool()
    changed = differing.sum(dim=1)
    same = int((changed == 0).sum())
    gap = (contrast.clean.metric - contrast.corrupt.metric).double().cpu().numpy()
    apart = bool(significant(gap[None])[0])
    remark = (
        f"{float(changed.double().mean()):.1f} of {float(np.mean(pairs.lengths)):.1f} tokens differ in a pair; "
        f"clean minus corrupt {gap.mean():+.3g} over {len(gap)} pairs, of one sign in {_of_one_sign(gap):.0%}"
    )
    if same:
        return Item("pair choice", "broken", f"{same} pairs do not differ at all; {remark}")
    if not apart:
        return Item("pair choice", "broken", f"the metric does not tell clean from corrupt; {remark}")
    return Item("pair choice", "followed", remark)


def _of_one_sign(gap: Float[np.ndarray, " row"]) -> float:
    return float(max((gap > 0).mean(), (gap < 0).mean()))


def _direction(directions: Sequence[str]) -> Item:
    if set(directions) == {"denoise", "noise"}:
        return Item("direction", "followed", "both: what restores the behaviour and what breaks it")
    told = ", ".join(f"{direction} shows {_SHOWS[direction]} alone" for direction in directions)
    return Item("direction", "broken", told)


def _metric(name: str) -> Item:
    if name in _ADDITIVE:
        return Item("metric", "followed", f"{name}: contributions that add up stay visible")
    return Item(
        "metric", "broken", f"{name} saturates or is a count, so contributions that add up can be invisible"
    )


def _baseline(kinds: Sequence[str]) -> Item:
    unnatural = [kind for kind in kinds if kind not in _NATURAL]
    if unnatural:
        return Item("baseline", "broken", f"{', '.join(unnatural)} puts in values that no prompt gives")
    return Item("baseline", "followed", f"{', '.join(kinds)}: values of natural prompts")


def _comparisons(tested: int, rows: int) -> Item:
    if rows < 2:
        return Item(
            "multiple comparisons", "broken", f"{tested} cells on {rows} prompt: nothing can be tested"
        )
    if not tested:
        return Item("multiple comparisons", "does not apply", "no cell was tested against zero")
    return Item(
        "multiple comparisons",
        "followed",
        f"{tested} cells tested over {rows} prompts, false discoveries held below {RATE:.0%} (Benjamini–Hochberg)",
    )


def _off_distribution(percentiles: Float[np.ndarray, "..."]) -> Item:
    judged = np.isfinite(percentiles)
    if not judged.any():
        return Item("off-distribution", "does not apply", "no effect could be judged")
    beyond = int((percentiles[judged] > LIMIT).sum())
    remark = f"{beyond} of {int(judged.sum())} measured distances lie beyond the {LIMIT:.0f}th percentile"
    return Item("off-distribution", "broken" if beyond else "followed", remark)


def stored(items: Sequence[Item]) -> dict[str, xr.DataArray]:
    """The checklist as arrays of a result."""
    rules = {"rule": [item.rule for item in items]}
    return {
        name: xr.DataArray([getattr(item, name) for item in items], coords=rules, dims=("rule",), name=name)
        for name in ("status", "remark")
    }


def table(data: xr.Dataset) -> Table:
    """The checklist of a result, to draw."""
    rules, status, remarks = (data[name].values.tolist() for name in ("rule", "status", "remark"))
    broken = sum(word == "broken" for word in status)
    return Table(
        "protocol",
        ("rule", "status", "remark"),
        tuple(zip(rules, status, remarks, strict=True)),
        caption=f"{broken} of {len(rules)} rules broken; read the effects accordingly",
    )
