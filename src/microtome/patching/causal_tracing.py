"""Where is a fact recalled? Hide the subject under noise, restore single states, see which bring the answer back.

1. Run the clean prompts, reading every state.
2. Run them with Gaussian noise on the subject's embeddings, three standard deviations of the embeddings by default,
   drawn anew for each of several repeats: the corrupted run.
3. Run them again, noise and all, once for each state, with that one state taken from the clean run: the stream after
   one layer, or what the attention layers (or MLPs) of a window around a layer write, at one stretch of the prompt.
4. The effect is the metric restored: minus that of the corrupted run, mean over repeats; normalised, 1 = clean.

Reference: Meng, Bau, Andonian and Belinkov, "Locating and Editing Factual Associations in GPT" (2022). Misleads since
noise is no prompt: what restores the answer may be undoing the noise rather than recalling the fact (Zhang and Nanda
2023 find other layers with other corruptions), and a window's effect is not that of its layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from pydantic import Field

from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.edits import Edit, Noise
from microtome.core.errors import InputError
from microtome.core.shapes import Shape
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.models.sweep import Variant
from microtome.patching import effects, maps, protocol
from microtome.patching.cells import Cell, Choice, Part, make_maps, need
from microtome.patching.contrast import Contrast
from microtome.patching.effects import Effects
from microtome.patching.stretches import By, Stretch, stretches

card = Card(
    name="causal_tracing",
    title="Causal tracing",
    question="Which states bring the answer back when the subject is hidden under noise?",
    steps=(
        "Run the clean prompts, reading every state.",
        "Run them with Gaussian noise on the subject's embeddings, several draws of it.",
        "Restore single states of the stream, and windows of attention layers or MLPs, from the clean run.",
        "The effect is the metric restored, as a share of what the noise took.",
    ),
    reference="Meng, Bau, Andonian and Belinkov 2022, Locating and Editing Factual Associations in GPT",
    misleads=(
        "Noise is no prompt: a state that restores the answer may undo the noise rather than recall the fact, and "
        "other corruptions locate other layers."
    ),
    needs="pairs",
    causal="intervention",
    claims=("nodes",),
)

PARTS: Final[tuple[Part, ...]] = ("resid_post", "attn_out", "mlp_out")


class Config(base.Config):
    """What to hide, and what to restore."""

    subject: str | None = Field(
        None, description="Slot to hide; None: the tokens at which clean and corrupt prompts differ."
    )
    noise: float = Field(3.0, gt=0, description="Standard deviation of the noise, in that of the embeddings.")
    draws: int = Field(8, ge=1, description="Repeats, each with noise of its own.")
    window: int | None = Field(
        None, ge=1, description="Layers of attention or MLP restored together; None: a fifth of all."
    )
    metric: str = Field(metrics.DEFAULT, description="Metric by name.")
    positions: By = Field(
        "auto", description="Columns of a map: tokens, slots, all; auto: tokens if lengths agree."
    )
    layers: tuple[int, ...] | None = Field(None, description="Layers to restore; None: all.")
    seed: base.Seed = Field(0, description="Seed of the noise and of the off-distribution guard.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """Maps of restored effects by part (`microtome.patching.maps`), and `corrupted_metric` `[draw, row]`.

    Effects of a row are means over draws. Case (dimension `direction`): `restore`.
    """

    def answers(self) -> tuple[Answer, ...]:
        """How much MLPs matter, where each was restored alone: at its most telling position."""
        return maps.node_scores(self.data) if self.data.attrs["window"] == 1 else ()

    def shapes(self) -> tuple[Shape, ...]:
        parts = self.data.attrs["parts"]
        drawn = [maps.grids(self.data, part, "causal tracing") for part in parts]
        return (
            *(effect for effect, _ in drawn),
            maps.largest(self.data, parts),
            protocol.table(self.data),
            *(guard for _, guard in drawn),
        )


def run(model: Model, data: Pairs, config: Config | None = None) -> Result:
    """Trace the clean prompts; of the corrupt ones only the guard and the choice of the subject make use.

    Raises `SiteError` for a model without token embeddings, `InputError` for an unknown slot or an unknown subject.
    """
    config = config or Config()
    embed = Site("embed")
    need(model, embed)
    hidden = _subject(data, config.subject)
    window = config.window or max(1, round(model.n_layers / 5))
    with measure() as recorder:
        has = [part for part in PARTS if model.has(Site(part, 0))]
        charts = make_maps(model, stretches(data, config.positions), Choice(has, config.layers))
        everywhere = [Site(part, layer) for part in has for layer in range(model.n_layers)]
        contrast = Contrast.of(model, data, config.metric, [*everywhere, embed], config.seed)
        recorder.add(passes=2)
        real = contrast.batch.real(model.device)
        clean = contrast.clean.values
        scale = config.noise * float(clean[embed][real].float().std())
        noises = [_noise(hidden, scale, config.seed * 1009 + draw) for draw in range(config.draws)]
        found = []
        for chart in charts:
            reach = 1 if chart.part == "resid_post" else window
            variants = [Variant(_restored(model, cell, reach, contrast)) for cell in chart.cells]
            drawn = [
                effects.measure(
                    model,
                    data.clean,
                    variants,
                    contrast.metric,
                    contrast.natural,
                    clean,
                    edit=noise,
                    mask=data.mask,
                )
                for noise in noises
            ]
            found.append(drawn)
            for each in drawn:
                recorder.include(each.cost)
    corrupted = torch.stack([each.base for each in found[0]])
    gap = float((contrast.clean.metric - corrupted.mean(dim=0)).double().mean())
    far = float(np.mean([contrast.natural.of_edits(noise, clean) for noise in noises]))
    made = maps.dataset(contrast, ("restore",), (gap,), charts, [[_averaged(d)] for d in found], ("noise",))
    made = made.assign_attrs(window=window)
    told = (
        f"Noise of standard deviation {scale:.3g} ({config.noise:g} times that of the embeddings), {config.draws} "
        f"draws; the hidden embeddings lie at percentile {far:.0f} of natural ones. Attention and MLPs are restored in "
        f"windows of {window} layers."
    )
    return Result.of(
        card,
        made.assign(corrupted_metric=(("draw", "row"), corrupted.double().cpu().numpy())),
        config,
        contrast.provenance,
        recorder.cost(),
        (told,),
    )


def _subject(pairs: Pairs, slot: str | None) -> Stretch:
    """The positions to hide in each row. Raises `InputError` where a row has none."""
    if slot is None:
        real = torch.ones_like(pairs.clean, dtype=torch.bool) if pairs.mask is None else pairs.mask.bool()
        differing = (pairs.clean != pairs.corrupt) & real
        # Positions count real tokens; padding may stand on either side.
        counted = real.long().cumsum(dim=1) - 1
        held = tuple(tuple(counted[row][differing[row]].tolist()) for row in range(len(pairs)))
        if not all(held):
            raise InputError(
                f"clean and corrupt prompts of row {held.index(())} are the same, so the subject is unknown; name its "
                "slot"
            )
        return Stretch("subject", held)
    for row, spans in enumerate(pairs.slots):
        if slot not in spans:
            raise InputError(f"row {row} has no slot {slot!r}; it has {', '.join(spans) or 'none'}")
    return Stretch(slot, tuple(tuple(range(*spans[slot])) for spans in pairs.slots))


def _noise(hidden: Stretch, scale: float, seed: int) -> tuple[Noise, ...]:
    """Noise on the embeddings of the subject; rows with other positions get another seed."""
    return tuple(
        Noise(Site("embed", positions=positions), rows, scale, seed=seed * 1009 + number)
        for number, (positions, rows) in enumerate(hidden.groups)
    )


def _restored(model: Model, cell: Cell, reach: int, contrast: Contrast) -> tuple[Edit, ...]:
    """The cell's clean values, at `reach` layers around its own."""
    assert cell.site.layer is not None
    first = cell.site.layer - (reach - 1) // 2
    layers = range(max(0, first), min(model.n_layers, first + reach))
    cells = [replace(cell, site=replace(cell.site, layer=layer)) for layer in layers]
    return tuple(edit for each in cells for edit in each.patch(contrast.clean.values, contrast.batch))


def _averaged(draws: Sequence[Effects]) -> Effects:
    """The mean over draws, of effects and percentiles alike."""
    base = torch.stack([draw.base for draw in draws]).mean(dim=0)
    metric = torch.stack([draw.metric for draw in draws]).mean(dim=0)
    percentile = torch.stack([draw.percentile for draw in draws]).mean(dim=0)
    return Effects(base, metric, percentile, {}, draws[0].cost)
