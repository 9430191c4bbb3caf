"""Which activations carry the difference between two prompts? Put values of one run into the other, one cell at a time.

1. Run the clean and the corrupt prompts, reading every value that will be patched.
2. Denoise: run the corrupt prompts again, once for each cell, with that cell's values taken from the clean run; a
   cell that restores the metric suffices for the difference. Noise: the other way round; a cell that breaks it is
   needed for it.
3. The effect is the metric of the patched run minus that of its base: raw, and as a share of the gap between the runs.
4. Each effect is tested over prompts, corrected for the number of cells, and judged by how far the patched values and
   the stream that follows lie from natural ones.

Reference: Vig et al., "Investigating Gender Bias in Language Models Using Causal Mediation Analysis" (2020); Meng et
al. (2022); Zhang and Nanda (2023). Misleads where a behaviour has a backup: patching one of two redundant cells does
little in either direction; and a cell of the stream carries everything written before it, not only its own layer.
"""

from dataclasses import dataclass
from itertools import chain

from pydantic import Field

from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.shapes import Shape
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.models.sweep import Variant
from microtome.patching import maps, protocol
from microtome.patching.cells import Choice, Map, Part, make_maps
from microtome.patching.contrast import Contrast, Direction, Directions, directions
from microtome.patching.effects import Effects, patched
from microtome.patching.stretches import By, stretches

card = Card(
    name="activation_patching",
    title="Activation patching",
    question="Which activations carry the difference between a clean and a corrupt prompt?",
    steps=(
        "Run clean and corrupt prompts, reading every value to be patched.",
        "Run one of them again for each cell, with that cell's values from the other run.",
        "The effect is the change of the metric, raw and as a share of the gap between the two runs.",
        "Test each effect over prompts and judge how far off-distribution it is.",
    ),
    reference="Vig et al. 2020; Meng et al. 2022; Zhang and Nanda 2023, Towards Best Practices of Activation Patching",
    misleads="Redundant components hide each other: patching one of two backups shows little in either direction.",
    needs="pairs",
    causal="intervention",
    claims=("nodes",),
)


class Config(base.Config):
    """What to patch, in which direction, and how to score it."""

    parts: tuple[Part, ...] | None = Field(
        None,
        description="Parts to map: resid_pre resid_mid resid_post attn_out mlp_out z mlp_post; None: the usual four.",
    )
    direction: Directions = Field(
        "both", description="denoise (clean into corrupt), noise (corrupt into clean), both."
    )
    metric: str = Field(metrics.DEFAULT, description="Metric by name.")
    positions: By = Field(
        "auto", description="Columns of a map: tokens, slots, all; auto: tokens if lengths agree."
    )
    by_position: bool = Field(
        False, description="Map heads and neurons by position too, not over whole prompts."
    )
    layers: tuple[int, ...] | None = Field(None, description="Layers to patch; None: all.")
    heads: tuple[int, ...] | None = Field(None, description="Heads to patch; None: all.")
    units: tuple[int, ...] | None = Field(None, description="Neurons to patch; needed for mlp_post.")
    guard: bool = Field(
        True, description="Whether to judge how far each intervention leads from what is natural."
    )
    seed: base.Seed = Field(0, description="Seed of the split of prompts for the off-distribution guard.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """Maps of effects by part: see `microtome.patching.maps` for the arrays."""

    def answers(self) -> tuple[Answer, ...]:
        """How much heads and MLPs matter: at their most telling position, over both directions."""
        return maps.node_scores(self.data)

    def shapes(self) -> tuple[Shape, ...]:
        parts = self.data.attrs["parts"]
        drawn = [maps.grids(self.data, part, "activation patching") for part in parts]
        return (
            *(effect for effect, _ in drawn),
            maps.largest(self.data, parts),
            protocol.table(self.data),
            *(guard for _, guard in drawn),
        )


def run(model: Model, data: Pairs, config: Config | None = None) -> Result:
    """Patch every cell. Raises `SiteError` for parts and indices the model lacks, `InputError` for unfit pairs."""
    config = config or Config()
    with measure() as recorder:
        choice = Choice(config.parts, config.layers, config.heads, config.units, config.by_position)
        charts = make_maps(model, stretches(data, config.positions), choice)
        sites = [cell.site for chart in charts for cell in chart.cells]
        contrast = Contrast.of(model, data, config.metric, sites, config.seed, guard=config.guard)
        recorder.add(passes=2)
        cases = directions(config.direction)
        found = [[_patched(contrast, case, chart) for case in cases] for chart in charts]
        for effects in chain.from_iterable(found):
            recorder.include(effects.cost)
        gaps = [contrast.gap(case) for case in cases]
        made = maps.dataset(contrast, cases, gaps, charts, found, ("patch",))
    return Result.of(card, made, config, contrast.provenance, recorder.cost())


def _patched(contrast: Contrast, direction: Direction, chart: Map) -> Effects:
    values = contrast.other(direction).values
    return patched(contrast, direction, [Variant(cell.patch(values, contrast.batch)) for cell in chart.cells])
