"""How does a study read? One self-contained page: what was found, how true it is, what stays unexplained.

1. In a paragraph and a table: every task with its four numbers, its controls and what is not explained.
2. For each task: what the model does, the description, the circuit drawn, the predictions with hits and misses, the
   scores, and the maps behind them.
3. What this account does not cover, and how to reproduce it.

Examples are drawn at random by the study's seed and say out of how many; nothing is picked by hand.
"""

from typing import Any

from microtome.core.cost import Cost
from microtome.core.shapes import Arc, Cell, Graph, Node, Shape, Table
from microtome.core.site import Site
from microtome.models.components import spoken
from microtome.studies.edge_report import edge_section, together_section
from microtome.studies.study import Account, TaskAccount
from microtome.view.page import Section, page

WEAKEST_ARC = 0.02


def report(account: Account) -> str:
    """The page, as text."""
    sections = [
        _overview(account),
        *(_task(task) for task in account.tasks if not task.refused),
        together_section(account),
        _heads(account),
        _limits(account),
        _provenance(account),
    ]
    return page(f"How {account.model.name} does its tasks", sections, _lead(account))


def overview(account: Account) -> tuple[Table, Table]:
    """One row a task: the two accuracies with their controls and what is unexplained; then the two lengths."""
    accuracy: list[tuple[Cell, ...]] = []
    length: list[tuple[Cell, ...]] = []
    for task in account.tasks:
        name, r = task.task.name, task.record
        if task.refused:
            accuracy.append((name, "not explained", *(None,) * 5))
            length.append((name, *(None,) * 4))
            continue
        right = f"{r['behaviour']['test']['right']:.0%}"
        kept, random = r["mathematical_accuracy"], r["random_circuits"]
        accuracy.append(
            (name, right, kept, random, r["unexplained"], r["semantic_accuracy"], r["semantic_control"])
        )
        parts = f"{r['mathematical_length']} of {r['components']}"
        length.append(
            (name, parts, round(r["mathematical_bits"], 1), r["semantic_length"], r["semantic_bits"])
        )
    return (
        Table(
            "How accurate the account is",
            (
                "task",
                "right answers",
                "mathematical accuracy",
                "… of random circuits",
                "unexplained",
                "semantic accuracy",
                "… dealt to wrong parts",
            ),
            tuple(accuracy),
            caption=(
                f"On {account.config.held_out} held-out prompts a task. Mathematical accuracy: share of the behaviour "
                "that the circuit keeps when everything else is replaced by its value on the corrupt prompt. Semantic "
                "accuracy: share of the predictions made from the sentences that came true."
            ),
        ),
        Table(
            "How long the account is",
            (
                "task",
                "mathematical length: parts",
                "… bits to name them",
                "semantic length: words",
                "… bits compressed",
            ),
            tuple(length),
        ),
    )


def _lead(account: Account) -> tuple[str, ...]:
    done = [t for t in account.tasks if not t.refused]
    refused = [t for t in account.tasks if t.refused]
    model = account.model
    what = (
        f"`{model.name}` is a {model.anatomy.family.name} model with {model.n_layers} layers of {model.n_heads} heads. "
        + (
            f"The task put to it {'could' if done else 'could not'} be studied at the level of heads and MLPs"
            if len(account.tasks) == 1
            else f"Of {len(account.tasks)} tasks put to it, {len(done)} could be studied at the level of heads and MLPs"
        )
        + ("; what could not is told below, with the reason." if refused else ".")
    )
    if not done:
        return (what,)
    accuracy = [t.record["mathematical_accuracy"] for t in done]
    hits = [sum(t.record["semantic_hits"][i] for t in done) for i in (0, 1)]
    kept = f"The circuits keep {min(accuracy):.2f} to {max(accuracy):.2f}"
    if len(done) == 1:
        kept = f"Its circuit keeps {accuracy[0]:.2f}"
    return (
        what,
        f"{kept} of the behaviour on prompts {'it was' if len(done) == 1 else 'they were'} not found "
        f"on. Of {hits[1]} predictions made from the descriptions before those prompts were run, {hits[0]} came true. "
        "What is not explained is listed with each task, and at the end.",
    )


def _overview(account: Account) -> Section:
    refused = [f"`{t.task.name}` was not studied: {t.refused}." for t in account.tasks if t.refused]
    return Section("Overview", tuple(refused), overview(account))


def _task(task: TaskAccount) -> Section:
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
            Section("What each part does", (_READING,), (_descriptions(task),)),
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


def _descriptions(task: TaskAccount) -> Table:
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


def _heads(account: Account) -> Section:
    return Section(
        "All heads on random text",
        (account.scorecard.describe(),),
        account.scorecard.shapes(),
    )


def _limits(account: Account) -> Section:
    done = [t for t in account.tasks if not t.refused]
    outside = [
        f"`{t.task.name}`: {t.record['components'] - t.record['mathematical_length']} of "
        f"{t.record['components']} heads "
        f"and MLPs are outside the circuit and are not described; {t.record['unexplained']:.2f} of the behaviour is "
        "unexplained."
        for t in done
    ]
    return Section(
        "What this account does not say",
        (
            "It covers the listed tasks, on prompts made from their templates, and nothing else that the model does. A "
            "circuit is found for a contrast between two kinds of prompts: what both have in common is not explained "
            "by it. Parts are whole heads and MLPs; what happens inside them (neurons, directions) is not described.",
            "Sentences say what was measured and no more. Backup parts that take over when others are gone may have "
            "been left out. No inputs were searched for on which the account fails, and none outside the templates "
            "were tried. It is no evidence that the model is safe for any use, and should not be cited as such. The "
            "same knowledge that explains a behaviour can be used to change it; say so when you share it.",
            *outside,
        ),
    )


def _provenance(account: Account) -> Section:
    manifest = account.folder.manifest
    cost = sum(account.folder.costs.values(), Cost())
    ledger = account.folder.ledger
    rows: tuple[tuple[Cell, ...], ...] = (
        ("model", account.model.name),
        ("model hash", manifest["identity"]["model_hash"]),
        ("seed", account.config.seed),
        ("versions", ", ".join(f"{name} {version}" for name, version in manifest["versions"][-1].items())),
        ("cost", cost.sentence()),
        ("predictions in the ledger", len(ledger.registered)),
        ("… tested", len(ledger.tested)),
        ("… hits", len(ledger.hits)),
        ("… misses", len(ledger.misses)),
        ("head of the ledger", ledger.head),
    )
    return Section(
        "Where this comes from",
        (
            "The folder of the study holds every array, claim and prediction behind this page. The same model, "
            "settings and seed give the same study.",
        ),
        (Table("Provenance", ("what", "value"), rows),),
    )


def summary(account: Account) -> list[Shape]:
    """What a terminal shows: the sentences of each task, and one table of them all."""
    done = [task for task in account.tasks if not task.refused]
    rows = tuple(
        (
            task.task.name,
            f"{task.record['behaviour']['test']['right']:.0%}",
            f"{task.record['mathematical_length']} of {task.record['components']}",
            round(task.record["mathematical_accuracy"], 2),
            round(task.record["random_circuits"], 2),
            "{} of {}".format(*task.record["semantic_hits"]),
            round(task.record["unexplained"], 2),
        )
        for task in done
    )
    table = Table(
        f"How {account.model.name} does its tasks",
        ("task", "right", "parts", "kept", "random", "predicted", "unexplained"),
        rows,
        caption=f"On {account.config.held_out} held-out prompts a task. right: answers; parts: heads and MLPs of the "
        "circuit; kept: share of the behaviour that these keep when everything else is replaced; random: by random "
        "circuits of that size; predicted: predictions made from the sentences beforehand that came true; unexplained: "
        "what the circuit does not keep. The report has every number behind these.",
    )
    return [*(_descriptions(task) for task in done), table]
