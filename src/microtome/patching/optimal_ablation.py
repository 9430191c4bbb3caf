"""How much is lost without a component, if what stands in its place does the least harm? Constants learned by gradient.

1. A head or MLP of the clean prompts is replaced, at every position of every prompt, by one constant.
2. The constant starts at the component's mean and follows the gradient of the loss (L-BFGS); the best one met is kept,
   so that on the prompts it was learned from it never does worse than the mean.
3. The excess loss with that constant is the component's importance: what no constant can give back. It stands beside
   zero, mean and resampling, all on prompts that the constant was not learned from.

Reference: Li and Janson (2024), Optimal Ablation for Interpretability. Misleads: the constant may be a value that the
network never has, chosen to steer later parts; and a component that matters only by its mean is called idle. Costs a
pass and back for every step and component.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, NodeScores
from microtome.core.card import Card
from microtome.core.cost import Recorder, measure
from microtome.core.edits import Set
from microtome.core.errors import InputError
from microtome.core.shapes import Shape, Table
from microtome.core.site import Site
from microtome.data.pairs import Pairs
from microtome.models import select
from microtome.models.components import components as every_component
from microtome.models.components import parse
from microtome.models.model import Model
from microtome.models.sweep import Variant
from microtome.patching import ablation, components, protocol
from microtome.patching.contrast import Contrast
from microtome.patching.effects import WHERE, patched
from microtome.patching.off_distribution import LIMIT

card = Card(
    name="optimal_ablation",
    title="Optimal ablation",
    question="How much is lost without a component, if the constant in its place does the least harm?",
    steps=(
        "Replace a head or MLP by one constant, at first its mean.",
        "Move the constant along the gradient of the loss; keep the best one met.",
        "The excess loss that is left is the component's importance, told on prompts kept back.",
        "Zero, mean and resampling stand beside it.",
    ),
    reference="Li and Janson 2024, Optimal Ablation for Interpretability",
    misleads=(
        "The constant may be a value that the network never has; a component that matters only by its mean is idle "
        "here; and few prompts teach a constant what is true of them alone."
    ),
    needs="pairs",
    causal="intervention",
    claims=("nodes",),
)

KINDS = ("zero", "mean", "resample", "optimal")


class Config(base.Config):
    """What is lost, and how long constants are learned."""

    loss: Literal["kl", "cross-entropy"] = Field(
        "kl",
        description="What is to stay low: divergence from the clean run, or cross-entropy of the next tokens.",
    )
    steps: int = Field(10, ge=0, description="Steps of L-BFGS for each component; none leaves the mean.")
    unseen: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="Share of prompts kept back to be judged by; none: judged where learned.",
    )
    reference: Literal["corrupt", "clean", "both"] = Field(
        "clean", description="Prompts that means are taken over and values are resampled from."
    )
    components: tuple[str, ...] | None = Field(
        None, description="Components, as z.3.h1 and mlp_out.2; None: all."
    )
    seed: base.Seed = Field(0, description="Seed of the prompts kept back, and of resampling.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`effect [kind, component, row]`: excess loss in nats; `unseen [row]`: which rows were kept back.

    `importance [kind, component]`: its mean over rows kept back (all, where none were); `fitted`: over the others.
    `constant [component, unit]`: the constants, NaN past the component's width. `percentile [where, kind, component]`.
    """

    def edit(self, component: str) -> Set:
        """The constant of a component, as an edit."""
        value = self.data["constant"].sel(component=component).values
        site = Site.parse(component)
        shape = (1, 1, 1, -1) if site.heads else (1, 1, -1)
        return Set(site, value=torch.from_numpy(value[np.isfinite(value)]).view(shape))

    def answers(self) -> tuple[Answer, ...]:
        """How much each head and MLP matters: what is lost with the best constant in its place."""
        lost = self.data["importance"].sel(kind="optimal")
        return (NodeScores(dict(zip(lost["component"].values.tolist(), lost.values.tolist(), strict=True))),)

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        names, kinds = data["component"].values.tolist(), data["kind"].values.tolist()
        n, kept = data.sizes["row"], int(data["unseen"].sum())
        told = f"{kept} prompts kept back, constants learned from {n - kept}" if kept else f"{n} prompts"
        unit = f"excess {self.config['loss']} (nats)"
        lost = components.grid(
            "optimal ablation", names, data["importance"].values, kinds, unit, f"mean over {told}"
        )
        far = components.off_distribution("optimal ablation", names, data["percentile"], kinds)
        return (lost, self._table(told), protocol.table(data), far)

    def _table(self, told: str) -> Table:
        data = self.data
        order = np.argsort(-data["importance"].sel(kind="optimal").values, kind="stable")
        beyond = (data["percentile"].sel(kind="optimal") > LIMIT).any("where").values
        rows = tuple(
            (
                str(data["component"].values[i]),
                *(float(data["importance"].sel(kind=kind).values[i]) for kind in KINDS),
                float(data["fitted"].sel(kind="mean").values[i]),
                float(data["fitted"].sel(kind="optimal").values[i]),
                "beyond" if beyond[i] else "",
            )
            for i in order
        )
        return Table(
            "excess loss without a component",
            ("component", *KINDS, "mean, where learned", "optimal, where learned", "mark"),
            rows,
            caption=f"nats of {self.config['loss']}, mean over {told}; beyond: the constant lies past the "
            f"{LIMIT:.0f}th percentile of natural values",
        )


def run(model: Model, data: Pairs, config: Config | None = None) -> Result:
    """Learn a constant for each component and tell what is lost with it.

    Raises `SiteError` for unknown components, `InputError` for pairs that give no reference, or of which none would be
    left to learn from.
    """
    config = config or Config()
    chosen = every_component(model) if config.components is None else parse(model, config.components)
    unseen = kept_back(len(data), config.unseen, config.seed)
    with measure() as recorder:
        others = ablation.run(
            model,
            data,
            ablation.Config(
                kinds=("zero", "mean", "resample"),
                metric=config.loss,
                reference=config.reference,
                components=tuple(map(str, chosen)),
                seed=config.seed,
            ),
        )
        recorder.include(others.cost)
        contrast = Contrast.of(model, data, config.loss, chosen, config.seed)
        recorder.add(passes=2)
        rows: list[int] = (~unseen).nonzero()[:, 0].tolist()
        constants = [
            learned(contrast, site, mean(contrast, site, config.reference), rows, config.steps, recorder)
            for site in chosen
        ]
        edits = [
            Set(site, value=value.to(model.dtype)) for site, value in zip(chosen, constants, strict=True)
        ]
        found = patched(contrast, "noise", [Variant((edit,)) for edit in edits])
        recorder.include(found.cost)
    effect = np.concatenate([others.data["effect"].values, found.raw.double().cpu().numpy()[None]])
    percentile = np.concatenate(
        [others.data["percentile"].values, found.percentile.double().numpy()[:, None]], axis=1
    )
    seen = ~unseen.numpy()
    judged = ~seen if bool(unseen.any()) else seen
    arrays = {
        "effect": (("kind", "component", "row"), effect),
        "importance": (("kind", "component"), effect[..., judged].mean(axis=-1)),
        "fitted": (("kind", "component"), effect[..., seen].mean(axis=-1)),
        "percentile": (("where", "kind", "component"), percentile),
        "constant": (("component", "unit"), _padded(constants)),
        "unseen": ("row", unseen.numpy()),
        **contrast.metrics,
    }
    coords = {"kind": list(KINDS), "component": list(map(str, chosen)), "where": list(WHERE)}
    items = protocol.checklist(contrast, ("ablate",), KINDS, 0, percentile)
    return Result.of(
        card,
        xr.Dataset(arrays, coords).assign(protocol.stored(items)),
        config,
        contrast.provenance,
        recorder.cost(),
    )


def kept_back(count: int, share: float, seed: int) -> Bool[Tensor, " row"]:
    """Which rows constants are not learned from: a share drawn at random, one at least where any is wanted.

    Raises `InputError` where none would be left.
    """
    wanted = max(round(share * count), int(share > 0))
    if wanted >= count:
        raise InputError(
            f"of {count} pairs {wanted} would be kept back and none learned from; give more pairs, or unseen=0"
        )
    found = torch.zeros(count, dtype=torch.bool)
    found[torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted]] = True
    return found


def mean(contrast: Contrast, site: Site, reference: str = "clean") -> Tensor:
    """The mean of a component over prompts and real positions, `[1, 1, …]`."""
    sides = {"clean": [contrast.clean], "corrupt": [contrast.corrupt]}.get(
        reference, [contrast.clean, contrast.corrupt]
    )
    real = contrast.batch.real(contrast.model.device)
    values = [select.read(site, side.values[site.whole], contrast.batch)[real] for side in sides]
    return torch.cat(values).float().mean(dim=0)[None, None]


def learned(
    contrast: Contrast, site: Site, start: Tensor, rows: Sequence[int], steps: int, recorder: Recorder
) -> Tensor:
    """The constant of least mean metric over these rows of the clean prompts, of those met on the way from `start`."""
    pairs, model = contrast.pairs, contrast.model
    tokens = pairs.clean[list(rows)]
    mask = None if pairs.mask is None else pairs.mask[list(rows)]
    metric = contrast.metric.for_rows(list(rows))
    constant = start.detach().clone().requires_grad_()
    best, least = start, float("inf")

    def loss() -> Tensor:
        nonlocal best, least
        edit = Set(site, value=constant.to(model.dtype))
        found = model.run(tokens, edit=[edit], metric=metric, mask=mask, check_finite=False).metric
        recorder.add(passes=1)
        assert found is not None
        value = found.float().mean()
        if (reached := float(value.detach())) < least:
            best, least = constant.detach().clone(), reached
        (constant.grad,) = torch.autograd.grad(value, constant)
        return value.detach()

    if steps:
        torch.optim.LBFGS([constant], max_iter=steps, line_search_fn="strong_wolfe").step(loss)
    return best


def _padded(constants: Sequence[Tensor]) -> Float[NDArray[np.floating], "component unit"]:
    """Constants of different widths in one array."""
    widest = max(value.numel() for value in constants)
    found = np.full((len(constants), widest), np.nan, dtype=np.float32)
    for row, value in zip(found, constants, strict=True):
        row[: value.numel()] = value.flatten().cpu().numpy()
    return found
