"""How does a study read? One self-contained page: what was found, how true it is, what stays unexplained.

1. In a paragraph and a table: every task with its four numbers, its controls and what is not explained.
2. For each task: what the model does, the description, the circuit drawn, the predictions with hits and misses, the
   scores, and the maps behind them.
3. What this account does not cover, and how to reproduce it.

Examples are drawn at random by the study's seed and say out of how many; nothing is picked by hand.
"""

from microtome.core.cost import Cost
from microtome.core.shapes import Cell, Shape, Table
from microtome.studies.edge_report import together_section
from microtome.studies.study import Account
from microtome.studies.task_report import descriptions, task_section
from microtome.view.page import Section, page


def report(account: Account) -> str:
    """The page, as text."""
    sections = [
        _overview(account),
        *(task_section(task) for task in account.tasks if not task.refused),
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
    return [*(descriptions(task) for task in done), table]
