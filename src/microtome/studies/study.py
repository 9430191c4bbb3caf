"""From a model to an account of how it does its tasks, with the account's accuracy and length measured.

For each task, the three steps of interpretation at the level of heads and MLPs:

1. *Mathematical description*: patch maps, direct attribution, ablation in four ways; a circuit found by attribution and
   pruned by exact tests; the paths between its parts.
2. *Semantic description*: a sentence for each part of the circuit, from its measurements. What the sentences foretell
   for prompts never seen is registered in the ledger before any of these is run.
3. *Validation* on held-out prompts: each prediction, hit or miss; the circuit kept alone, removed, restored, thinned;
   beside random circuits of its size, predictions dealt to the wrong parts, and a twin with shuffled weights.

The same at the grain of edges (`microtome.studies.edges`); in the end, all tasks' circuits in the place of the network.

Every step is a stage of the study folder: a study that was interrupted goes on where it stopped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from microtome.attribution import direct_logit_attribution
from microtome.circuits import node_circuit
from microtome.core import config as base
from microtome.core.circuit import Circuit
from microtome.core.claim import Claim, Evidence, Level, Prediction
from microtome.core.errors import FamilyError, InputError
from microtome.core.provenance import model_hash, versions
from microtome.core.result import Result
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.data.tasks.task import Task
from microtome.evaluation import circuit_scores
from microtome.evaluation.whole_replacement import Replacement
from microtome.heads import head_scorecard
from microtome.models.components import components, parse
from microtome.models.model import Model
from microtome.patching import ablation, activation_patching, path_patching
from microtome.patching.components import order
from microtome.store.study_folder import StudyFolder
from microtome.studies import edges, sentences
from microtome.studies.account_numbers import account_numbers
from microtome.studies.behaviour import behaviour, not_done
from microtome.studies.edges import EdgeStages
from microtome.studies.measurements import Measured, columns, measure
from microtome.studies.predictions import foretell

LEAST_FAITHFUL, MOST_LEFT = 0.7, 0.3
MOST_PATHS = 24
Progress = Callable[[str, int, int], None]


class Config(base.Config):
    """How much evidence a study gathers."""

    prompts: int = Field(32, ge=4, description="Pairs of prompts for finding and describing, for each task.")
    held_out: int = Field(32, ge=4, description="Pairs of held-out prompts for testing, for each task.")
    metric: str = Field(metrics.DEFAULT, description="Metric by name.")
    target: float = Field(0.9, gt=0, le=1, description="Share of the behaviour that a circuit must keep.")
    random_circuits: int = Field(20, ge=1, description="Random circuits of the same size, for control.")
    seed: base.Seed = Field(0, description="Of prompts and controls.")


@dataclass(frozen=True)
class TaskAccount:
    """What a study says of one task. `refused`: why there is nothing to say; then the rest is empty.

    record: plain values (see `account_numbers`). results: by method, for their pictures.
    """

    task: Task
    refused: str
    record: dict[str, Any]
    results: dict[str, Result]


@dataclass(frozen=True)
class Account:
    """A whole study: one account a task, the scorecard of all heads, and all circuits put in the network's place (none
    where no task has a circuit of edges)."""

    model: Model
    config: Config
    tasks: tuple[TaskAccount, ...]
    scorecard: Result
    folder: StudyFolder
    together: Replacement | None


def identity(model: Model, tasks: Sequence[Task], config: Config) -> dict[str, Any]:
    """What makes a study this one and no other."""
    return {
        "model": model.name,
        "model_hash": model_hash(model.module.state_dict()),
        "tasks": [task.name for task in tasks],
        "config": config.model_dump(mode="json"),
        "microtome": versions()["microtome"],
    }


def study(
    model: Model,
    tasks: Sequence[Task],
    folder: StudyFolder,
    config: Config,
    progress: Progress = lambda *_: None,
) -> Account:
    """Make the account, going on with whatever of it is in the folder. Raises `InputError` for a model without a map
    or without a tokenizer; a task that does not suit the model is refused with its reason, not an error."""
    components(model)
    if model.tokenizer is None:
        raise InputError(
            f"{model.name} has no tokenizer, so tasks cannot be put to it; load it with tokenizer=…"
        )
    progress("scorecard of heads", 0, len(tasks))
    scorecard = folder.result("head_scorecard", lambda: head_scorecard.run(model, None))
    studied = [
        _TaskStudy(model, task, folder, config, scorecard, _Saying(progress, task.name, number, len(tasks)))
        for number, task in enumerate(tasks)
    ]
    accounts = tuple(one.account() for one in studied)
    progress("all circuits at once", len(tasks), len(tasks))
    circuits = {
        one.task.name: (one.edge_circuit, one.unseen) for one in studied if one.edge_circuit is not None
    }
    together = edges.together(model, circuits, folder, config.metric, config.seed)
    progress("done", len(tasks), len(tasks))
    return Account(model, config, accounts, scorecard, folder, together)


@dataclass(frozen=True)
class _Saying:
    progress: Progress
    task: str
    number: int
    total: int

    def __call__(self, what: str) -> None:
        self.progress(f"{self.task}: {what}", self.number, self.total)


class _TaskStudy:
    """The stages of one task."""

    def __init__(
        self, model: Model, task: Task, folder: StudyFolder, config: Config, scorecard: Result, say: _Saying
    ) -> None:
        self.model, self.task, self.folder, self.config = model, task, folder, config
        self.scorecard, self.say = scorecard, say
        self.edge_circuit: Circuit | None = None
        self.edges = EdgeStages(model, task.name, config.metric, config.target, config.seed, self._result)

    def account(self) -> TaskAccount:
        """All stages, in order."""
        config = self.config
        try:
            self.pairs = self.task.pairs(self.model.tokenizer, config.prompts, config.seed, "train")
            self.unseen = self.task.pairs(self.model.tokenizer, config.held_out, config.seed, "test")
        except InputError as error:
            return TaskAccount(self.task, str(error), {}, {})
        self.say("does the model do it?")
        splits = {"train": self.pairs, "test": self.unseen}
        done = self._stage("behaviour", lambda: behaviour(self.model, splits, config.seed))
        if refused := not_done(done):
            return TaskAccount(self.task, refused, {"behaviour": done}, {})
        results = self._describe_mathematically()
        found = results["node_circuit"]
        assert isinstance(found, node_circuit.Result)
        self.nodes = parse(self.model, found.circuit.nodes)
        results["path_patching"] = self._paths(found.circuit)
        no_edges = self._find_edges()
        described = self._describe()
        self._register(described)
        scores = results["circuit_scores"] = self._validate(described)
        told = [claim.statement for claim in self._claims(described).values()]
        record = {
            "behaviour": done,
            "examples": [self.pairs.texts[0], self.pairs.corrupt_texts[0], list(self.pairs.answer_texts[0])],
            "no_edges": no_edges,
            **account_numbers(described, self.tested, told, scores, len(components(self.model))),
        }
        if self.edge_circuit is not None:
            tested = self.edges.test(self.edges.find(self.pairs), self.pairs, self.unseen, self.folder.ledger)
            results |= tested
            record["edges"] = edges.summary(tested)
        return TaskAccount(self.task, "", record, results)

    def _stage(self, name: str, make: Callable[[], Any]) -> Any:
        return self.folder.stage(f"{self.task.name}/{name}", make)

    def _result(self, name: str, make: Callable[[], Result]) -> Result:
        self.say(name.replace("_", " "))
        return self.folder.result(f"{self.task.name}/{name}", make)

    # 1. Mathematical description.

    def _describe_mathematically(self) -> dict[str, Result]:
        model, pairs, metric, seed = self.model, self.pairs, self.config.metric, self.config.seed
        patching = activation_patching.Config(
            parts=("resid_pre", "attn_out", "mlp_out"),
            direction="both",
            metric=metric,
            seed=seed,
            positions="auto" if columns(pairs) == "slots" else columns(pairs),
        )
        target = node_circuit.Config(target=self.config.target, metric=metric, seed=seed)
        return {
            "activation_patching": self._result(
                "activation_patching", lambda: activation_patching.run(model, pairs, patching)
            ),
            "direct_logit_attribution": self._result(
                "direct_logit_attribution", lambda: direct_logit_attribution.run(model, pairs)
            ),
            "ablation": self._result(
                "ablation", lambda: ablation.run(model, pairs, ablation.Config(metric=metric, seed=seed))
            ),
            "node_circuit": self._result("node_circuit", lambda: node_circuit.run(model, pairs, target)),
        }

    def _paths(self, circuit: Circuit) -> Result:
        """Paths from each part of the circuit to the next and to the logits; of a large circuit, of its heaviest."""
        weight = dict(zip(circuit.nodes, circuit.weights, strict=True))
        heaviest = sorted(self.nodes, key=lambda site: -weight[str(site)])[:MOST_PATHS]
        chosen = [site for site in self.nodes if site in heaviest]
        receivers = [
            _receiver(self.model, site) for site in chosen[1:] if _reads_after(self.model, chosen[0], site)
        ]
        settings = path_patching.Config(
            receivers=(*receivers, "logits"), senders=tuple(map(str, chosen)), metric=self.config.metric
        )
        return self._result("path_patching", lambda: path_patching.run(self.model, self.pairs, settings))

    def _find_edges(self) -> str:
        """Find the circuit of edges; returns why there is none to find, or nothing."""
        try:
            found = self.edges.find(self.pairs)
        except FamilyError as error:
            return str(error)
        self.edge_circuit = found.circuit
        return ""

    # 2. Semantic description, and what follows from it.

    def _describe(self) -> list[Measured]:
        self.say("describing each part")
        made = self._stage("measured", lambda: [m.plain() for m in self._measure(self.pairs, None)])
        return [Measured(**plain) for plain in made]

    def _measure(self, pairs: Pairs, places: dict[str, str] | None) -> list[Measured]:
        return measure(self.model, pairs, self.nodes, self.config.metric, places)

    def _claims(self, described: Sequence[Measured]) -> dict[str, Claim]:
        roles = self._roles()
        scope = f"{self.task.name} prompts like those of its templates"
        return {m.component: Claim(sentences.sentence(m, roles), (m.component,), scope) for m in described}

    def _circuit_claim(self) -> tuple[Claim, list[Prediction]]:
        names = tuple(map(str, self.nodes))
        claim = Claim(
            f"these {len(names)} heads and MLPs do {self.task.name}, and no others are needed",
            names,
            f"{self.task.name} prompts like those of its templates",
        )
        control = "random circuits of as many heads and MLPs (their best)"
        return claim, [
            Prediction(claim.key, FAITHFUL, self.unseen.hash, LEAST_FAITHFUL, None, "above", control),
            Prediction(claim.key, LEFT, self.unseen.hash, None, MOST_LEFT),
        ]

    def _register(self, described: Sequence[Measured]) -> None:
        """Write claims and predictions down before any held-out prompt is run."""
        self.say("registering predictions")
        ledger = self.folder.ledger
        for name, claim in self._claims(described).items():
            ledger.add(claim)
            for one in foretell(next(m for m in described if m.component == name)):
                ledger.register(one.prediction(claim.key, self.unseen.hash))
        claim, predictions = self._circuit_claim()
        ledger.add(claim)
        for prediction in predictions:
            ledger.register(prediction)
        if self.edge_circuit is not None:
            self.edges.register(ledger, self.edge_circuit, self.unseen)

    # 3. Validation.

    def _validate(self, described: Sequence[Measured]) -> circuit_scores.Result:
        self.say("testing on held-out prompts")
        places = {m.component: m.place for m in described}
        self.tested = [
            Measured(**plain)
            for plain in self._stage(
                "held_out", lambda: [m.plain() for m in self._measure(self.unseen, places)]
            )
        ]
        settings = circuit_scores.Config(
            circuit=tuple(map(str, self.nodes)),
            metric=self.config.metric,
            random_circuits=self.config.random_circuits,
            seed=self.config.seed,
        )
        scores = self._result("circuit_scores", lambda: circuit_scores.run(self.model, self.unseen, settings))
        assert isinstance(scores, circuit_scores.Result)
        self._record(described, scores)
        return scores

    def _record(self, described: Sequence[Measured], scores: circuit_scores.Result) -> None:
        ledger, n, data = self.folder.ledger, len(self.unseen), self.unseen.hash
        by_name = {m.component: m for m in self.tested}
        for name, claim in self._claims(described).items():
            for one in foretell(next(m for m in described if m.component == name)):
                value = one.value(by_name[name])
                if value is not None:
                    level: Level = "correlational" if one.kind == "attends" else "interventional"
                    ledger.record(one.prediction(claim.key, data), Evidence(value, n, level, data))
        _, (faithful, left) = self._circuit_claim()
        best = float(scores.data["random"].sel(kind="resample").max())
        kept, rest = scores.score("faithfulness"), scores.score("leftover")
        ledger.record(
            faithful,
            Evidence(kept, n, "interventional", data, scores.interval("faithfulness"), control_value=best),
        )
        ledger.record(left, Evidence(rest, n, "interventional", data, scores.interval("leftover")))

    # The account.

    def _roles(self) -> dict[str, list[str]]:
        named = self.scorecard.data["named"]
        found: dict[str, list[str]] = {}
        for score, role in head_scorecard.KINDS.items():
            for site in self.nodes:
                if site.heads and bool(named.sel(score=score, layer=site.layer, head=site.heads[0])):
                    found.setdefault(str(site), []).append(role)
        return found


FAITHFUL = "share of the behaviour kept by the circuit alone (resample ablation)"
LEFT = "share of the behaviour left when only the circuit is replaced"


def _reads_after(model: Model, sender: Site, receiver: Site) -> bool:
    """Whether one component sees what another writes."""
    return order(model, sender) < order(model, receiver)


def _receiver(model: Model, site: Site) -> str:
    """What a component reads, as path patching names it: queries, keys and values of a head, or an MLP's input."""
    if not site.heads:
        return f"mlp_in.{site.layer}"
    shared = site.heads[0] * model.sizes["n_kv_heads"] // model.n_heads
    return f"q.{site.layer}.h{site.heads[0]} k.{site.layer}.h{shared} v.{site.layer}.h{shared}"
