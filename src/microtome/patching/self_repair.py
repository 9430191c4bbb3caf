"""When a part is gone, who makes up for it? Ablate each head and MLP, and watch what all others write to the answer.

1. The logit difference is taken apart: a component's *direct effect* is what it writes along the answer's direction,
   over the divisor of the final norm.
2. Component u is ablated. Its own direct effect is lost (`own`); that of every other component c changes by
   `compensation[u, c]`; the norm's divisor changes too (`scale`). Own, compensation, scale and a rest (biases behind
   norms) add up to the whole change; after a soft cap of the logits, what bends there is told apart (`cap`).
3. *Self-repair* of u is the whole change less its own. A *backup* of u is a component whose direct effect moves against
   the loss, significantly and by a share of it that counts.
4. Importance with compensation removed, beside the naive one: u ablated with its backups held still; with everything
   after it held still; and together with its backups, less what these do alone.
5. Trigger: for the strongest backups that are heads, the ablation again with the head's queries, keys or values held
   still: what of the compensation is gone came in by these.

Reference: McGrath et al. (2023), The Hydra Effect; Rushing and Nanda (2024), Explorations of Self-Repair; Wang et al.
(2022) for backup heads. Misleads: direct effects are of writing only; a part that helps through others shows no repair
here. And an ablation far from what the network ever sees may call up what plays no part on natural inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, NodeScores
from microtome.core.card import Card
from microtome.core.cost import Recorder, measure
from microtome.core.edits import Edit
from microtome.core.shapes import Cell, Grid, Shape, Table
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.components import components, spoken
from microtome.models.model import Model
from microtome.patching.components import END, between, order
from microtome.patching.contrast import Contrast
from microtome.patching.direct_effects import DirectEffects
from microtome.patching.joint_effects import Joint, Kind
from microtome.patching.protocol import significant

card = Card(
    name="self_repair",
    title="Self-repair: backup heads and the hydra effect",
    question="Which heads and MLPs make up for one that is ablated, and how important are parts once that is removed?",
    steps=(
        "Take the logit difference apart into what each component writes along the answer.",
        "Ablate each component; tell its own loss, the change of every other's direct effect, and the norm's part.",
        "List who moves against the loss: the backups.",
        "Measure importance again with backups held still, with all later parts held still, and jointly ablated.",
        "Hold a backup's queries, keys or values still to see what triggers it.",
    ),
    reference="McGrath et al. 2023, The Hydra Effect; Rushing and Nanda 2024, Explorations of Self-Repair",
    misleads=(
        "Only what is written to the answer is seen: repair by parts that work through others does not show; and an "
        "unnatural ablation may call up what plays no part otherwise."
    ),
    needs="pairs",
    causal="intervention",
    claims=("nodes", "role:backup"),
)
IMPORTANCES = ("naive", "backups held", "all held", "joint")


class Config(base.Config):
    """How components are ablated, and what counts as a backup."""

    kind: Kind = Field("resample", description="Ablated to the corrupt twin (resample), its mean, or zero.")
    least: float = Field(
        0.1, gt=0, lt=1, description="A backup makes up for at least this share of what is lost directly."
    )
    counts: float = Field(
        0.02,
        gt=0,
        lt=1,
        description="Losses below this share of the behaviour are not looked at for backups.",
    )
    traced: int = Field(8, ge=0, description="How many of the strongest backups are traced to their trigger.")
    seed: base.Seed = Field(0, description="Recorded; nothing here is drawn at random.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """In logits, means over pairs: `compensation [ablated, component]` (signed; its own loss on the diagonal),
    `significant` likewise, `scale`, `rest`, `cap`, `total [ablated]`; `total_row [ablated, row]`.

    `importance [which, ablated]`: shares of the behaviour lost, naive and with compensation removed. `trigger
    [backup, through]`: share of a backup's compensation that is gone with its q, k, v held; backups as `u -> c`.
    """

    def backups(self) -> dict[tuple[str, str], float]:
        """Backups as (ablated, backup), with what each makes up, in logits against the loss; the strongest first."""
        data = self.data
        names = data["component"].values.tolist()
        c = self.config
        found = _backups(
            data["compensation"].values,
            data["significant"].values,
            c["least"],
            c["counts"] * abs(data.attrs["gap"]),
        )
        return {(names[u], names[v]): size for (u, v), size in found.items()}

    def repaired(self, ablated: str) -> float:
        """The share of its own loss that is made up for, all compensation and the norm together."""
        at = self.data.sel(ablated=ablated)
        own = float(at["compensation"].sel(component=ablated))
        return 1 - float(at["total"]) / own if own else float("nan")

    def answers(self) -> tuple[Answer, ...]:
        """Importance jointly with backups; and how much each component makes up for others, at most."""
        names = self.data["component"].values.tolist()
        joint = self.data["importance"].sel(which="joint").values.tolist()
        scores = dict.fromkeys(names, 0.0)
        for (_, backup), size in self.backups().items():
            scores[backup] = max(scores[backup], size)
        return NodeScores(dict(zip(names, joint, strict=True))), NodeScores(scores, "backup")

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        names = tuple(spoken(Site.parse(str(name))) for name in data["component"].values)
        told = (
            f"mean over {data.attrs['n']} pairs; ablated by {self.config['kind']}; whole behaviour "
            f"{data.attrs['gap']:.3g}"
        )
        matrix = data["compensation"].values
        backups = self.backups()
        grid = Grid(
            "change of direct effects",
            matrix,
            "ablated",
            names,
            "component",
            names,
            unit="logits",
            caption=f"{told}. On the diagonal its own loss; against its sign: compensation; with it: what it passes on",
        )
        rows: list[tuple[Cell, ...]] = []
        for i in np.argsort(-np.abs(np.diag(matrix)), kind="stable"):
            at = data.isel(ablated=i)
            name = str(data["component"].values[i])
            who = ", ".join(spoken(Site.parse(v)) for u, v in backups if u == name)
            own, scale, total = float(matrix[i, i]), float(at["scale"]), float(at["total"])
            rest = float(at["rest"]) + float(at["cap"])
            others = float(matrix[i].sum() - own)
            importance = [float(at["importance"].sel(which=which)) for which in IMPORTANCES]
            rows.append((names[i], own, others, scale, rest, total, who or "none", *importance))
        table = Table(
            "what is lost, and what is made up for",
            (
                "ablated",
                "own",
                "others",
                "norm",
                "rest",
                "total",
                "backups",
                *(f"lost: {w}" for w in IMPORTANCES),
            ),
            tuple(rows),
            caption=f"{told}. Own, others, norm and rest add up to total (logits). Lost: share of the behaviour, "
            "naive; with its backups held still; with all after it held still; jointly with backups less these alone",
        )
        return (grid, table, *self._triggers(told))

    def _triggers(self, told: str) -> tuple[Table, ...]:
        trigger = self.data["trigger"]
        if not trigger.size:
            return ()
        rows: tuple[tuple[Cell, ...], ...] = tuple(
            (str(name), *values.tolist())
            for name, values in zip(trigger["backup"].values, trigger.values, strict=True)
        )
        return (
            Table(
                "what triggers the backups",
                ("ablated -> backup", "by queries", "by keys", "by values"),
                rows,
                caption=f"share of the compensation that is gone when these are held still; {told}",
            ),
        )


def run(model: Model, data: Pairs, config: Config | None = None) -> Result:
    """Ablate every head and MLP. Raises `InputError` where clean and corrupt prompts are treated alike, `FamilyError`
    where the stream is not a sum of what components write."""
    config = config or Config()
    sites = components(model)
    with measure() as recorder:
        contrast = Contrast.of(model, data, metrics.DEFAULT, sites, config.seed)
        joint = Joint(contrast, config.kind)
        effects = DirectEffects(model, data)
        recorder.add(passes=3)
        changes = [effects.after([joint.replaced(site)]) for site in sites]
        recorder.add(passes=len(sites))
        by_row = np.stack([change.components for change in changes])
        matrix = by_row.mean(axis=2)
        differs = significant(by_row.reshape(-1, len(data))).reshape(matrix.shape)
        own = matrix.diagonal()
        found = _backups(matrix, differs, config.least, config.counts * abs(joint.gap))
        importance = _importance(joint, sites, found, recorder)
        traced = [pair for pair in found if sites[pair[1]].heads][: config.traced]
        trigger = np.array([_trigger(effects, joint, sites, pair, matrix[pair]) for pair in traced]).reshape(
            -1, 3
        )
        recorder.add(passes=3 * len(traced))
    assert own.shape == (len(sites),)
    names = list(map(str, sites))
    arrays = {
        "compensation": (("ablated", "component"), matrix),
        "significant": (("ablated", "component"), differs),
        **{
            name: (("ablated",), np.array([getattr(change, name).mean() for change in changes]))
            for name in ("scale", "rest", "cap", "total")
        },
        "total_row": (("ablated", "row"), np.stack([change.total for change in changes])),
        "importance": (("which", "ablated"), importance),
        "trigger": (("backup", "through"), trigger),
    }
    coords = {
        "ablated": names,
        "component": names,
        "which": list(IMPORTANCES),
        "backup": np.array([f"{names[u]} -> {names[v]}" for u, v in traced], dtype=str),
        "through": ["q", "k", "v"],
    }
    return Result.of(
        card,
        xr.Dataset(arrays, coords, {"n": len(data), "gap": joint.gap}),
        config,
        contrast.provenance,
        recorder.cost(),
    )


def _backups(
    matrix: NDArray[np.float64], differs: NDArray[np.bool_], least: float, counts: float
) -> dict[tuple[int, int], float]:
    """Who moves against whose loss, and by how much; the strongest first."""
    found = {}
    for u, own in enumerate(matrix.diagonal()):
        for v in range(len(matrix)):
            against = -np.sign(own) * matrix[u, v]
            if u != v and abs(own) >= counts and differs[u, v] and against >= least * abs(own):
                found[u, v] = float(against)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _importance(
    joint: Joint, sites: Sequence[Site], backups: dict[tuple[int, int], float], recorder: Recorder
) -> NDArray[np.float64]:
    """Shares of the behaviour lost, `[which, ablated]`."""
    who: list[list[Site]] = [[sites[v] for one, v in backups if one == u] for u in range(len(sites))]
    model = joint.contrast.model
    after = [between(model, order(model, site), END) for site in sites]
    each = [[site] for site in sites]
    runs = (
        (each, None),
        (each, who),
        (each, [_writing(sites, later) for later in after]),
        ([[site, *others] for site, others in zip(sites, who, strict=True)], None),
        (who, None),
    )
    found = []
    for sets, held in runs:
        effects, cost = joint.effects(sets, held)
        recorder.include(cost)
        found.append(-effects.mean(dim=1).numpy() / joint.gap)
    naive, held_backups, held_all, both, alone = found
    return np.stack([naive, held_backups, held_all, both - alone])


def _writing(sites: Sequence[Site], later: Sequence[Site]) -> list[Site]:
    """The components that write these sites."""
    written = {(block.part, block.layer) for block in later}
    return [site for site in sites if ("attn_out" if site.heads else site.part, site.layer) in written]


def _trigger(
    effects: DirectEffects, joint: Joint, sites: Sequence[Site], pair: tuple[int, int], whole: float
) -> list[float]:
    """The share of a backup's compensation that is gone with its queries, keys or values held still."""
    ablated, backup = sites[pair[0]], sites[pair[1]]
    assert backup.heads
    shared = backup.heads[0] * effects.model.sizes["n_kv_heads"] // effects.model.n_heads
    found = []
    for part, head in (("q", backup.heads[0]), ("k", shared), ("v", shared)):
        still: Edit = effects.held(Site(part, backup.layer, heads=(head,)))
        change = effects.after([joint.replaced(ablated), still]).components[pair[1]].mean()
        found.append(1 - float(change) / whole)
    return found
