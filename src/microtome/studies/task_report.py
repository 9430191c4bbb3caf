"""How does the account of one task read? What the model does, the description, the evidence, the maps behind them.

Examples are drawn at random by the study's seed and say out of how many; nothing is picked by hand.
"""

from typing import Any

from microtome.core.shapes import Arc, Cell, Graph, Node, Table
from microtome.core.site import Site
from microtome.models.components import spoken
from microtome.studies.edge_report import edge_section
from microtome.studies.study import TaskAccount
from microtome.view.page import Section

WEAKEST_ARC = 0.02


def task_section(task: TaskAccount) -> Section:
    """All that is told of one task that was studied."""
    r, results = task.record, task.results
    return Section(
        task.task.name,
        (f"{task.task.question} Clean and corrupt prompts differ in: {task.task.varies}.",),
        sections=(
            Section("What the model does", _behaviour(r), (_answers(r),)),
            Section(
                "The circuit", _circuit_text(r), (circuit_graph(task), *results["node_circuit"].shapes())
            ),
            edge_section(task),
            Section("What each part does", (_READING,), (descriptions(task),)),
            Section("Predictions and outcomes", (_predicted(r),), (_predictions(r),)),
            Section("How true the circuit is", _scores_text(r), results["circuit_scores"].shapes()),
            Section(
                "Where the difference travels",
                _note(results["activation_patching"]),
                results["activation_patching"].shapes(),
            ),
            Section(
                "What writes the answer",
                _note(results["direct_logit_attribution"]),
                results["direct_logit_attribution"].shapes(),
            ),
            Section(
                "Does the kind of ablation matter?", _note(results["ablation"]), results["ablation"].shapes()
            ),
            Section(
                "Paths between the parts",
                _note(results["path_patching"]),
                results["path_patching"].shapes()[:2],
            ),
        ),
    )


_READING = (
    "Shares are of the behaviour: the mean logit difference between clean and corrupt prompts is 1. Slots of the "
    "templates stand in braces."
)


def _note(result: Any) -> tuple[str, ...]:
    return (result.describe(),)


def _behaviour(r: dict[str, Any]) -> tuple[str, ...]:
    clean, corrupt, answers = r["examples"]
    n = r["behaviour"]["train"]["n"]
    return (
        f"One of {n} pairs, the first in the random order of the seed. Clean: “{clean}”, answered by "
        f"“{', '.join(a.strip() for a in answers[:3])}”{' and others' if len(answers) > 3 else ''}. "
        f"Corrupt: “{corrupt}”.",
    )


def _answers(r: dict[str, Any]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for split, told in (("train", "for finding"), ("test", "held out")):
        for which, found in (
            ("model", r["behaviour"][split]),
            ("weights shuffled", r["behaviour"][split]["twin"]),
        ):
            rows.append(
                (told, which, r["behaviour"][split]["n"], found["right"], found["clean"], found["corrupt"])
            )
    return Table(
        "Answers of the model and of its random twin",
        ("prompts", "model", "n", "right", "logit difference, clean", "… corrupt"),
        tuple(rows),
        caption="right: share of prompts on which the answer is preferred to the wrong ones. The twin has the same "
        "numbers in random places: what it also shows is no behaviour of the model.",
    )


def _circuit_text(r: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{r['mathematical_length']} of {r['components']} heads and MLPs. Lines between parts are single paths, "
        "patched with everything between held still; lines from the prompt are attention; a line shows a share of the "
        f"behaviour (attention: of the head's attention) of at least {WEAKEST_ARC}.",
    )


def circuit_graph(task: TaskAccount) -> Graph:
    """The circuit drawn: the prompt's stretches, the parts, the logits, and the measured lines between them."""
    paths = task.results["path_patching"].data
    weight = task.results["node_circuit"].data["weight"]
    names = task.record["nodes"]
    top = max((Site.parse(name).layer or 0) for name in names) + 1.0
    nodes = [Node("logits", "logits", top + 0.5, 1.0, "logits")]
    arcs = []
    stretches: dict[str, None] = {}
    for name, told in zip(names, task.record["sentences"], strict=True):
        site = Site.parse(name)
        layer = (site.layer or 0) + (0.5 if not site.heads else 0.0)
        nodes.append(
            Node(name, spoken(site), layer + 0.5, float(weight.sel(component=name)), site.part, told)
        )
    for one in task.record["predictions"]:
        if one["quantity"].startswith("attention") and one["value"] is not None:
            label = one["quantity"].split(" to ", 1)[1]
            stretches[label] = None
            arcs.append(Arc(f"at {label}", one["component"], float(one["value"]), "attention"))
    nodes += [Node(f"at {label}", label, -1.0, 0.0, "prompt") for label in stretches]
    for receiver in paths["receiver"].values.tolist():
        target = _part_of(receiver, names)
        for sender in paths["sender"].values.tolist():
            effect = float(paths["normalised"].sel(receiver=receiver, sender=sender))
            if target and abs(effect) >= WEAKEST_ARC:
                arcs.append(Arc(sender, target, effect, "path"))
    return Graph(
        f"Circuit of {task.task.name}",
        tuple(nodes),
        tuple(arcs),
        unit="share of the behaviour",
        caption="From the prompt (below) to the logits (above). Parts are weighted by what the circuit loses without "
        "them, lines by what they carry; negative: it works against the answer.",
    )


def _part_of(receiver: str, names: list[str]) -> str:
    """The part of the circuit that a receiver of path patching belongs to."""
    if receiver == "logits":
        return receiver
    site = Site.parse(receiver.split()[0])
    name = f"mlp_out.{site.layer}" if site.part == "mlp_in" else f"z.{site.layer}.h{(site.heads or (0,))[0]}"
    return name if name in names else ""


def descriptions(task: TaskAccount) -> Table:
    """A sentence for each part, with how many of its predictions came true."""
    r = task.record
    hits: dict[str, list[bool]] = {}
    for one in r["predictions"]:
        hits.setdefault(one["component"], []).append(one["hit"])
    rows = tuple(
        (spoken(Site.parse(name)), told, f"{sum(hits.get(name, []))} of {len(hits.get(name, []))}")
        for name, told in zip(r["nodes"], r["sentences"], strict=True)
    )
    return Table(
        f"{task.task.name}: a sentence for each part",
        ("part", "what it does, by its measurements", "predictions true"),
        rows,
        caption=f"{r['semantic_length']} words, {r['semantic_bits']} bits compressed; measured on the prompts for "
        "finding",
    )


def _predicted(r: dict[str, Any]) -> str:
    right, total = r["semantic_hits"]
    control = (
        "no control was possible"
        if r["semantic_control"] is None
        else f"{r['semantic_control']:.0%} for them"
    )
    return (
        f"{right} of {total} came true on held-out prompts. Dealt out to the other parts of the same kind, the same "
        f"predictions come true less often or they say nothing: {control}. All were registered in the ledger before "
        "any held-out prompt was run."
    )


def _predictions(r: dict[str, Any]) -> Table:
    rows = tuple(
        (one["quantity"], one["low"], one["high"], one["value"], "hit" if one["hit"] else "miss")
        for one in sorted(r["predictions"], key=lambda one: one["hit"])
    )
    return Table(
        "Every prediction, misses first",
        ("quantity", "at least", "at most", "came out", "outcome"),
        rows,
        caption=f"{len(rows)} predictions, {sum(not one['hit'] for one in r['predictions'])} misses",
    )


def _scores_text(r: dict[str, Any]) -> tuple[str, ...]:
    low, high = r["mathematical_interval"]
    told = [
        f"Alone it keeps {r['mathematical_accuracy']:.2f} of the behaviour (95 % interval {low:.2f} to {high:.2f}); "
        f"random circuits of its size keep {r['random_circuits']:.2f} on average and {r['random_best']:.2f} at best. "
        f"Without it {r['leftover']:.2f} is left. Put into the corrupt prompt it restores {r['sufficiency']:.2f}.",
        f"Unexplained: {r['unexplained']:.2f} of the behaviour, and whatever the prompts of this task do not show.",
    ]
    if abs(r["mean_ablation"] - r["mathematical_accuracy"]) > 0.15:
        told.append(
            "The kind of ablation matters here: with means instead of corrupt values it keeps "
            f"{r['mean_ablation']:.2f}."
        )
    return tuple(told)
