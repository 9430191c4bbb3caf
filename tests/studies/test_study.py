"""The main job on the bundled model: what it claims is true of prompts it has not seen, and a twin shows none of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from microtome.circuits import edge_circuit
from microtome.core.errors import StoreError
from microtome.core.site import Site
from microtome.data import metrics, tasks
from microtome.models.load import load
from microtome.models.model import Model
from microtome.models.random_twin import random_twin
from microtome.store.study_folder import StudyFolder
from microtome.studies import study as studies
from microtome.studies.edge_report import edge_graph
from microtome.studies.measurements import Measured
from microtome.studies.predictions import foretell, hits, shuffled_hits
from microtome.studies.report import report, summary
from microtome.studies.sentences import length, sentence

CONFIG = studies.Config(prompts=12, held_out=12, random_circuits=5)
TASK = "indirect-object"


@pytest.fixture(scope="module")
def model() -> Model:
    return load("fruitfly")


@pytest.fixture(scope="module")
def account(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[studies.Account]:
    path = tmp_path_factory.mktemp("study") / "one"
    chosen = [tasks.get(TASK)]
    with StudyFolder.open(path, studies.identity(model, chosen, CONFIG)) as folder:
        yield studies.study(model, chosen, folder, CONFIG)


def test_the_circuit_keeps_the_behaviour_and_random_ones_do_not(account: studies.Account) -> None:
    record = account.tasks[0].record
    assert record["mathematical_accuracy"] > 0.7
    assert record["leftover"] < 0.3
    assert record["random_circuits"] < record["mathematical_accuracy"] - 0.3
    assert record["mathematical_length"] < record["components"] / 2
    assert record["unexplained"] == pytest.approx(max(0.0, 1.0 - record["mathematical_accuracy"]))


def test_what_it_says_of_the_circuit_is_what_a_plain_pass_does(
    model: Model, account: studies.Account
) -> None:
    """Everything outside the circuit replaced by hand, on the held-out prompts."""
    from microtome.core.edits import Set

    record = account.tasks[0].record
    pairs = tasks.get(TASK).pairs(model.tokenizer, CONFIG.held_out, CONFIG.seed, "test")
    metric = metrics.build(None, pairs)
    sites = [Site("z", n, heads=(h,)) for n in range(4) for h in range(4)] + [
        Site("mlp_out", n) for n in range(4)
    ]
    corrupt = model.run(pairs.corrupt, read=sites, mask=pairs.mask)

    def keeping(names: list[str]) -> torch.Tensor:
        edits = [Set(s, value=corrupt[s]) for s in sites if str(s) not in names]
        found = model.run(pairs.clean, edit=edits, metric=metric, mask=pairs.mask).metric
        assert found is not None
        return found.mean()

    whole, empty = keeping([str(s) for s in sites]), keeping([])
    share = float((keeping(record["nodes"]) - empty) / (whole - empty))
    assert share == pytest.approx(record["mathematical_accuracy"], abs=1e-4)


def test_predictions_come_true_more_often_than_for_the_wrong_parts(account: studies.Account) -> None:
    record = account.tasks[0].record
    assert record["semantic_accuracy"] > 0.7
    assert record["semantic_accuracy"] > record["semantic_control"] + 0.2


def test_every_prediction_was_registered_and_tested(account: studies.Account) -> None:
    ledger = account.folder.ledger
    assert ledger.registered
    assert not ledger.untested
    assert len(ledger.hits) + len(ledger.misses) == len(ledger.registered)
    lines = (account.folder.path / "ledger.jsonl").read_text().splitlines()
    kinds = [line.split('"kind": "')[1].split('"')[0] for line in lines]
    assert "prediction" not in kinds[kinds.index("evidence") :], "a prediction was made after a test"


def test_the_circuit_of_edges_keeps_the_behaviour_on_held_out_prompts(account: studies.Account) -> None:
    found = account.tasks[0].record["edges"]
    assert found["kept"] > 0.7
    assert found["left"] < 0.3
    assert found["random_best"] < 0.3
    assert found["edges"] < found["total"] / 10
    assert found["tests"]["sufficiency"]["passed"]
    assert found["tests"]["partial necessity"]["passed"]
    together = account.together
    assert together is not None
    # With one task the union is its circuit.
    assert together.union == found["edges"]
    assert together.together[TASK] == pytest.approx(together.alone[TASK][TASK], abs=1e-9)
    assert together.alone[TASK][TASK] == pytest.approx(found["kept"], abs=1e-5)


def test_every_drawn_edge_says_what_was_measured_of_it(account: studies.Account) -> None:
    task = account.tasks[0]
    drawn = edge_graph(task)
    circuit = task.results["edge_circuit"]
    assert isinstance(circuit, edge_circuit.Result)
    assert {(arc.source, arc.target) for arc in drawn.arcs} == {
        (edge.source, edge.target) for edge in circuit.circuit.edges
    }
    assert all("On held-out prompts the circuit loses" in arc.note for arc in drawn.arcs)
    layers = {node.id: node.layer for node in drawn.nodes}
    assert all(layers[arc.source] < layers[arc.target] for arc in drawn.arcs)
    assert min(layers, key=lambda name: layers[name]) == "embed"
    assert max(layers, key=lambda name: layers[name]) == "logits"


def test_a_second_opening_makes_nothing_again(model: Model, account: studies.Account) -> None:
    before = account.folder.manifest["stages"]
    again = studies.study(model, [tasks.get(TASK)], account.folder, CONFIG)
    assert account.folder.manifest["stages"] == before
    assert again.tasks[0].record == account.tasks[0].record


def test_the_report_holds_the_numbers_and_no_address(account: studies.Account) -> None:
    page = report(account)
    assert f"{account.tasks[0].record['mathematical_accuracy']:.2f}" in page
    assert "What this account does not say" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert len(summary(account)) == 2


def test_a_twin_with_shuffled_weights_has_no_behaviour_to_explain(model: Model, tmp_path: Path) -> None:
    twin = random_twin(model)
    chosen = [tasks.get("agreement")]
    with StudyFolder.open(tmp_path / "twin", studies.identity(twin, chosen, CONFIG)) as folder:
        found = studies.study(twin, chosen, folder, CONFIG).tasks[0]
    behaviour = found.record["behaviour"]["train"]
    assert found.refused or behaviour["clean"] - behaviour["corrupt"] < 1.0, (
        "the model itself shows nineteen logits"
    )


def test_another_model_is_refused_the_folder(model: Model, account: studies.Account) -> None:
    path = account.folder.path
    account.folder.close()
    with pytest.raises(StoreError, match="model_hash"):
        StudyFolder.open(path, studies.identity(random_twin(model), [tasks.get(TASK)], CONFIG))


def measured(name: str, total: float, target: str = "{A}") -> Measured:
    attends = {"first token": 0.1, "{A}": 0.1, "{B}": 0.1} | {target: 0.8}
    even = dict.fromkeys(attends, 0.25)
    return Measured(name, total, total / 2, "last token", {"last token": total, "{A}": 0.0}, attends, even)


def test_foretold_of_itself_comes_true_and_of_another_does_not() -> None:
    one, two = measured("z.0.h1", 0.5), measured("z.1.h0", -0.4, "{B}")
    told = [*foretell(one), *foretell(two)]
    assert hits(told, [one, two]) == (len(told), len(told))
    assert shuffled_hits(told, [one, two])[0] == 0


def test_sentences_say_the_sign_and_the_place() -> None:
    helps = sentence(measured("z.0.h1", 0.5), {"z.0.h1": ["induction head"]})
    assert "acts mostly at the last token; from the last token it" in helps
    assert "helps the answer" in helps
    assert "attends to {A} (0.80" in helps
    assert "It is" not in helps
    assert "an induction head" in helps
    assert "works against" in sentence(measured("mlp_out.2", -0.5), {})
    assert length([helps])[0] == len(helps.split())
