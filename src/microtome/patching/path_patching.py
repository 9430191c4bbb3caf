"""Along which edges does information flow? Patch one path from a sender to a receiver, everything else held still.

1. Run clean and corrupt prompts. The base is one of them, the sender's other value comes from the other.
2. Run the base with the sender (a head or an MLP, at all positions) at its other value, and every attention layer and
   MLP that comes after the sender and before the receiver frozen: what it adds to the stream is set to its base value.
   What then arrives at the receiver differs from the base by what the sender writes, and by nothing else. Norms are
   computed anew. Heads beside the sender need no freezing: they do not see it.
3. For the logits as receiver that is the answer. For a head's `q`, `k` or `v` (as the kernel sees them: rotated, and of
   grouped heads the shared ones) or an MLP's input `mlp_in`, what arrives there is read, and put into a second run of
   the base in which everything else is free again.
4. The effect of the edge is the metric minus that of the base. An edge to an earlier component does not exist: it is
   left blank, and a sender without any edge is refused. Several receivers patched together are written in one string,
   separated by spaces.

Reference: Wang et al., "Interpretability in the Wild" (2022); Goldowsky-Dill et al., "Localizing Model Behavior with
Path Patching" (2023). Wang et al. let MLPs on the way answer; here they are frozen too, so a path through an MLP is two
edges. Misleads since edges add up to the effect of a node only where the network is linear.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from pydantic import Field

from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, EdgeScores
from microtome.core.card import Card
from microtome.core.cost import Recorder, measure
from microtome.core.edits import Edit, Set
from microtome.core.errors import InputError, SiteError
from microtome.core.shapes import Shape, Table
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.components import components as every_component
from microtome.models.components import parse
from microtome.models.model import Model
from microtome.models.sweep import Variant, sweep
from microtome.patching import components, protocol
from microtome.patching.cells import Cell
from microtome.patching.components import END
from microtome.patching.contrast import Contrast, Direction
from microtome.patching.effects import WHERE, Effects, patched, portion_of
from microtome.patching.off_distribution import LIMIT
from microtome.patching.stretches import WHOLE

grading = ({"receivers": ("all",)},)  # the defaults ask for the edges to the logits only

card = Card(
    name="path_patching",
    title="Path patching",
    question="Along which edges, from which sender to which receiver, does the difference between prompts flow?",
    steps=(
        "Run clean and corrupt prompts.",
        "Run the base with the sender patched and everything between it and the receiver frozen at the base.",
        "Put what arrives at the receiver's query, key, value or MLP input into a second, otherwise free run.",
        "The effect of the edge is the change of the metric; edges backwards are refused.",
    ),
    reference="Wang et al. 2022, Interpretability in the Wild; Goldowsky-Dill et al. 2023",
    misleads="Edges add up to the effect of a node only where the network is linear; paths can need each other.",
    needs="pairs",
    causal="intervention",
    claims=("edges",),
)

_RECEIVERS = ("q", "k", "v", "mlp_in")


class Config(base.Config):
    """Which edges, and in which direction."""

    receivers: tuple[str, ...] = Field(
        ("logits",),
        min_length=1,
        description="Each `logits`, or q.5.h1, k.5.h0, v.5.h0, mlp_in.6, or several of these separated by spaces, "
        "patched together. Keys and values are named by their own (grouped) heads. Alone, `all`: every receiver.",
    )
    senders: tuple[str, ...] | None = Field(
        None, description="Heads and MLPs, as z.3.h1 and mlp_out.2; None: all."
    )
    direction: Direction = Field(
        "noise", description="noise (corrupt into clean) or denoise (clean into corrupt)."
    )
    metric: str = Field(metrics.DEFAULT, description="Metric by name.")
    seed: base.Seed = Field(0, description="Seed of the off-distribution guard.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`effect` `[receiver, sender, row]`, `normalised`, `significant`, `percentile`; NaN where there is no edge."""

    def answers(self) -> tuple[Answer, ...]:
        """The effect along each edge; receivers patched together are no edge."""
        data = self.data
        queries = data.attrs["queries_a_key"]
        scores = {}
        for receiver in data["receiver"].values.tolist():
            if " " in receiver.strip():
                continue
            target, kind = _end(receiver.strip(), queries)
            for sender in data["sender"].values.tolist():
                effect = float(data["normalised"].sel(receiver=receiver, sender=sender))
                if np.isfinite(effect):
                    scores[sender, target, kind] = effect
        return (EdgeScores(scores),)

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        receivers, senders = data["receiver"].values.tolist(), data["sender"].values.tolist()
        edges = int(np.isfinite(data["normalised"].values).sum())
        beyond = int((data["percentile"] > LIMIT).any("where").sum())
        effects = components.grid(
            "path patching: effect by sender",
            senders,
            data["normalised"].values,
            [f"to {receiver}" for receiver in receivers],
            "normalised effect",
            f"{self.config['direction']}; mean over {data.sizes['row']} prompts; 1 = all of the difference between the "
            f"two runs; {beyond} of {edges} edges are off-distribution; blank: no such edge",
        )
        far = components.off_distribution(
            "path patching",
            senders,
            data["percentile"],
            [f"to {receiver}" for receiver in receivers],
            "receiver",
        )
        return (effects, self._largest(receivers, senders), protocol.table(data), far)

    def _largest(self, receivers: list[str], senders: list[str]) -> Table:
        data = self.data
        size = np.nan_to_num(np.abs(data["normalised"].values))
        rows = []
        for receiver, sender in zip(
            *np.unravel_index(np.argsort(-size, axis=None)[:20], size.shape), strict=True
        ):
            edge = data.isel(receiver=receiver, sender=sender)
            near, far = edge["percentile"].values.tolist()
            rows.append(
                (
                    senders[sender],
                    receivers[receiver],
                    float(edge["normalised"]),
                    float(edge["effect"].mean()),
                    bool(edge["significant"]),
                    near,
                    far,
                    "beyond" if max(np.nan_to_num([near, far])) > LIMIT else "",
                )
            )
        return Table(
            "largest edges",
            ("sender", "receiver", "normalised", "raw", "significant", "site %ile", "final %ile", "mark"),
            tuple(row for row in rows if np.isfinite(row[2])),
            caption=f"of {int(np.isfinite(data['normalised'].values).sum())} edges, over {data.sizes['row']} prompts",
        )


def _end(receiver: str, queries: int) -> tuple[str, str]:
    """A receiver as the end of an edge: the node, and through what it reads. A shared key is of all its queries."""
    if receiver == "logits":
        return "logits", "logits"
    site = Site.parse(receiver)
    if site.part == "mlp_in":
        return f"mlp_out.{site.layer}", "mlp"
    assert site.heads is not None
    (head,) = site.heads
    heads = (head,) if site.part == "q" else range(head * queries, (head + 1) * queries)
    return f"z.{site.layer}.h{','.join(map(str, heads))}", site.part


def run(model: Model, data: Pairs, config: Config | None = None) -> Result:
    """Patch every edge from the senders to the receivers.

    Raises `SiteError` for components that the model lacks and for a named sender that comes before none of the
    receivers, `InputError` for receivers that cannot be patched together, `FamilyError` where a part cannot be frozen.
    """
    config = config or Config()
    texts = _every_receiver(model) if config.receivers == ("all",) else config.receivers
    receivers = [_receivers(model, text) for text in texts]
    named = () if config.senders is None else parse(model, config.senders)
    senders = named or every_component(model)
    for sender in named:
        if not any(_edge(model, sender, group) for group in receivers):
            raise SiteError(
                f"there is no edge from {sender} to {' or to '.join(texts)}: a sender must come before its "
                "receiver (in a parallel block attention and MLP do not see each other)"
            )
    with measure() as recorder:
        frozen = components.between(model, (-1, 0), END)
        ends = [site for group in receivers for site in group]
        contrast = Contrast.of(model, data, config.metric, [*senders, *frozen, *ends], config.seed)
        recorder.add(passes=2)
        shape = (len(receivers), len(senders))
        raw = np.full((*shape, len(data)), np.nan)
        percentile = np.full((len(WHERE), *shape), np.nan)
        for number, group in enumerate(receivers):
            held = [index for index, sender in enumerate(senders) if _edge(model, sender, group)]
            if held:
                found = _edges(contrast, config.direction, [senders[i] for i in held], group, recorder)
                raw[number, held] = found.raw.double().cpu().numpy()
                percentile[:, number, held] = found.percentile.double().numpy()
    coords = {
        "receiver": list(texts),
        "sender": list(map(str, senders)),
        "where": list(WHERE),
    }
    flat = protocol.significant(raw.reshape(-1, len(data)))
    arrays = {
        "effect": (("receiver", "sender", "row"), raw),
        "normalised": (("receiver", "sender"), contrast.share(raw, config.direction)),
        "significant": (("receiver", "sender"), flat.reshape(shape)),
        "percentile": (("where", "receiver", "sender"), percentile),
        **contrast.metrics,
    }
    tested = int(np.isfinite(raw[..., 0]).sum())
    items = protocol.checklist(contrast, (config.direction,), ("patch",), tested, percentile)
    return Result.of(
        card,
        xr.Dataset(arrays, coords, {"queries_a_key": _queries_a_key(model)}).assign(protocol.stored(items)),
        config,
        contrast.provenance,
        recorder.cost(),
        (
            "Frozen at the base: every attention layer and MLP between sender and receiver, at all positions; not "
            "frozen: norms, and after the receiver everything.",
        ),
    )


def _queries_a_key(model: Model) -> int:
    return model.n_heads // model.sizes["n_kv_heads"]


def _every_receiver(model: Model) -> tuple[str, ...]:
    """The inputs of every head and MLP that some sender comes before, and the logits."""
    found: list[str] = []
    for layer in range(model.n_layers):
        if layer or model.anatomy.family.residual != "parallel":
            found += [f"mlp_in.{layer}"] if model.has(Site("mlp_in", layer)) else []
        if layer:
            keys = range(model.n_heads // _queries_a_key(model))
            found += [f"q.{layer}.h{head}" for head in range(model.n_heads)]
            found += [f"{part}.{layer}.h{head}" for part in "kv" for head in keys]
    return (*found, "logits")


def _receivers(model: Model, text: str) -> tuple[Site, ...]:
    """The sites of one entry, none for the logits."""
    if text.strip() == "logits":
        return ()
    sites = tuple(Site.parse(word) for word in text.split())
    for site in sites:
        if site.part not in _RECEIVERS or site.positions is not None or site.units is not None:
            raise InputError(
                f"{site} is no receiver; write logits (alone), or sites of {', '.join(_RECEIVERS)} such as q.5.h1 and "
                "mlp_in.6, without positions or units"
            )
    if not sites:
        raise InputError("an empty string names no receiver; write logits, or sites such as q.5.h1")
    components.check_parts(model, sites)
    return sites


def _edge(model: Model, sender: Site, group: Sequence[Site]) -> bool:
    """Whether the sender comes before every receiver of the group."""
    return all(components.order(model, sender) < components.order(model, site) for site in group)


def _edges(
    contrast: Contrast,
    direction: Direction,
    senders: Sequence[Site],
    group: Sequence[Site],
    recorder: Recorder,
) -> Effects:
    """The effects of the edges from each sender to the group."""
    model, one, other = contrast.model, contrast.base(direction), contrast.other(direction)
    last = max((components.order(model, site) for site in group), default=END)
    # The logits at the metric's positions are all that counts, so there is nothing to freeze elsewhere.
    positions = None if group else contrast.metric.needs.positions
    sent = [Cell(sender, WHOLE).patch(other.values, contrast.batch) for sender in senders]
    first = [
        Variant(
            (
                *patch,
                *components.freeze(
                    components.between(model, components.order(model, sender), last),
                    one.values,
                    contrast.batch,
                    positions,
                ),
            )
        )
        for sender, patch in zip(senders, sent, strict=True)
    ]
    if not group:
        found = patched(contrast, direction, first, judged=sent)
    else:
        second: list[Variant] = []
        portion = portion_of(model, one.tokens, group)
        for start in range(0, len(first), portion):
            swept = sweep(
                model, one.tokens, first[start : start + portion], read=list(group), mask=contrast.pairs.mask
            )
            recorder.include(swept.cost)
            for number in range(len(first[start : start + portion])):
                arrived: list[Edit] = [
                    Set(site, value=swept.values[site][number], origin="patch") for site in group
                ]
                second.append(Variant(tuple(arrived)))
        found = patched(contrast, direction, second)
    recorder.include(found.cost)
    return found
