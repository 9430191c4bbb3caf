"""Each shipped case is served: it does its task on unseen rows, its labels are right, its pairs have two answers."""

from importlib import import_module
from types import ModuleType

import pytest
import torch

from microtome.core import plugins
from microtome.core.draws import generator
from microtome.core.errors import TruthError
from microtome.data.metrics import build as metric
from microtome.testbeds import kept
from microtome.testbeds.algorithmic import (
    automata,
    brackets,
    digit_addition,
    group_composition,
    induction,
    modular_addition,
    network,
    sorting,
    train,
)
from microtome.testbeds.case import Case

MODULES = {name: import_module(f"microtome.testbeds.algorithmic.{name}") for name in train.NAMES}
SHIPPED = sorted(
    (file.parent.name, *file.stem.split("-seed")) for file in network.SHIPPED.glob("*/*-seed*.safetensors")
)


@pytest.fixture(scope="module")
def served() -> dict[tuple[str, str, str], Case]:
    return {}


def case_of(served: dict[tuple[str, str, str], Case], one: tuple[str, str, str]) -> Case:
    if one not in served:
        served[one] = MODULES[one[0]].build(one[1], int(one[2]))
    return served[one]


@pytest.mark.parametrize("name", train.NAMES)
def test_each_is_offered_as_a_testbed_if_it_has_cases(name: str) -> None:
    module = MODULES[name]
    assert (name in plugins.names("testbeds")) == bool(module.cases())
    assert module.card.name == name
    assert set(module.cases()) == {case for testbed, case, _ in SHIPPED if testbed == name}, (
        "ship what is offered"
    )


@pytest.mark.parametrize("one", SHIPPED, ids="/".join)
def test_what_ships_does_its_task(
    served: dict[tuple[str, str, str], Case], one: tuple[str, str, str]
) -> None:
    case = case_of(served, one)
    assert case.name == f"{one[0]}/{one[1]}"
    assert all(evidence.holds for evidence in case.evidence)
    assert set(case.truth.kinds) == set(MODULES[one[0]].card.kinds)
    assert all(len(label) == len(case.tokens) for label in case.truth.labels.values())
    _, record = kept.read(network.path(MODULES[one[0]].task(one[1]), int(one[2])))
    assert record["steps"] > 0
    assert record["losses"]


@pytest.mark.parametrize("one", SHIPPED, ids="/".join)
def test_its_pairs_tell_right_from_wrong(
    served: dict[tuple[str, str, str], Case], one: tuple[str, str, str]
) -> None:
    case = case_of(served, one)
    assert case.pairs is not None
    assert len(case.pairs) >= 16
    difference = metric("logit-difference", case.pairs)
    clean = case.model.run(case.pairs.clean, metric=difference).metric
    corrupt = case.model.run(case.pairs.corrupt, metric=difference).metric
    assert clean is not None
    assert corrupt is not None
    # Nearly every clean row prefers its answer, and nearly every corrupt row the other.
    assert (clean > 0).float().mean() >= 0.95
    assert (corrupt < 0).float().mean() >= 0.95


@pytest.mark.parametrize("one", [one for one in SHIPPED if one[2] == "0"], ids="/".join)
def test_a_twin_cannot_serve(served: dict[tuple[str, str, str], Case], one: tuple[str, str, str]) -> None:
    case = case_of(served, one)
    evidence = network.evidence(MODULES[one[0]].task(one[1]), case.control, 0)
    assert not evidence.holds
    with pytest.raises(TruthError, match="cannot serve as truth"):
        Case("x/y", "", case.control, case.truth, (evidence,))


@pytest.mark.parametrize("name", train.NAMES)
def test_what_is_kept_back_is_not_learned_from(name: str) -> None:
    module: ModuleType = MODULES[name]
    for case in module.cases():
        task = module.task(case)
        if name == "induction":  # random rows of 64 of 64 tokens never come again
            continue
        asked = [task.held_out(0)] + [task.batch(0, step) for step in range(3)]
        width = {"sorting": sorting.LENGTH, "digit_addition": 6}.get(name)
        unseen, *seen = ({tuple(row) for row in rows.tokens[:, :width].tolist()} for rows in asked)
        assert all(unseen.isdisjoint(rows) for rows in seen)


def test_sums_are_sums() -> None:
    rows = modular_addition.examples(7, modular_addition.rows(7))
    assert all(
        (a + b) % 7 == c
        for (a, b, _), c in zip(rows.tokens.tolist(), rows.targets[:, -1].tolist(), strict=True)
    )


@pytest.mark.parametrize("case", group_composition.GENERATORS)
def test_a_group_is_a_group_and_its_characters_are_characters(case: str) -> None:
    table = group_composition.table(case)
    n = len(table)
    every = torch.arange(n)
    assert torch.equal(table[0], every)
    assert torch.equal(table[:, 0], every)
    assert all(torch.equal(line.sort().values, every) for line in (*table, *table.T))
    left, right = table[table], table[:, table]
    assert torch.equal(left, right), "composition is associative"
    named = group_composition.characters(case)
    found = torch.stack([character for _, character in named])
    products = found @ found.T / n
    # Different ones are orthogonal; the mean square is 1, or 2 for the sum of a conjugate pair.
    sizes = products.diagonal()
    assert torch.allclose(products, torch.diag(sizes.round()), atol=1e-6)
    # The squares of the dimensions add up to the order of the group; a pair's identity value is twice its dimension.
    dimensions = found[:, 0] / sizes.round()
    assert float((dimensions.square() * sizes.round()).sum()) == pytest.approx(n)
    conjugates = table[table, (table == 0).int().argmax(-1)[:, None].expand(-1, n)]
    assert torch.allclose(found[:, conjugates], found[:, None].expand(-1, n, -1), atol=1e-6)


def test_a_group_that_is_not_commutative_has_larger_dimensions() -> None:
    dimensions = {
        case: {name[0] for name, _ in group_composition.characters(case)}
        for case in group_composition.GENERATORS
    }
    assert dimensions["cyclic"] == {"1"}
    assert dimensions["dihedral"] == {"1", "2"}
    names = [name for name, _ in group_composition.characters("dihedral")]
    assert len(names) == 2 + 14


def test_carries_are_those_of_arithmetic() -> None:
    a, b = digit_addition.random_rows(200, 3, generator(0))
    total, carried = digit_addition.carries(a, b)
    places = 10 ** torch.arange(4)
    numbers = [(x * places[:3]).sum(1) for x in (a, b)]
    assert torch.equal((total * places).sum(1), numbers[0] + numbers[1])
    for i in range(4):
        below = 10**i
        assert torch.equal(carried[:, i], (numbers[0] % below + numbers[1] % below) // below)
    a, b = digit_addition.running(3, 200, generator(1))
    assert bool((digit_addition.carries(a, b)[1][:, 1:] == 1).all())


@pytest.mark.parametrize("case", automata.cases())
def test_states_are_those_of_the_machine(case: str) -> None:
    table = automata.machine(case)
    symbols = torch.randint(0, len(table), (20, 12), generator=generator(0))
    found = automata.states(table, symbols)
    for row, after in zip(symbols.tolist(), found.tolist(), strict=True):
        state = 0
        for symbol, said in zip(row, after, strict=True):
            state = int(table[symbol, state])
            assert said == state
    assert set(found.flatten().tolist()) == set(range(table.shape[1])), "every state is reached"
    if case == "parity":
        assert torch.equal(found, symbols.cumsum(-1) % 2)


def test_balanced_texts_are_balanced_and_every_one_as_likely() -> None:
    drawn = brackets.balanced_texts(4000, generator(0))
    assert bool(brackets.balanced(drawn).all())
    # Of the 1430 balanced texts of 16 brackets, 429 open with a pair (Catalan numbers): three standard errors about it.
    opens_with_pair = float((drawn[:, 1] == brackets.CLOSE).float().mean())
    assert opens_with_pair == pytest.approx(429 / 1430, abs=3 * (0.3 * 0.7 / 4000) ** 0.5)
    assert not bool(brackets.balanced(1 - drawn).any())
    exchanged = brackets.texts(300, generator(1))[1::3]
    assert bool((brackets.depth(exchanged)[:, -1] == 0).all())


def test_copies_still_to_come() -> None:
    ordered = torch.tensor([[1, 1, 1, 4, 5, 5]])
    assert sorting.still_to_come(ordered).tolist() == [[3 - 1, 1, 0, 0, 1, 0]]


def test_the_circuit_of_induction_is_the_textbooks(served: dict[tuple[str, str, str], Case]) -> None:
    for seed in "01":
        circuit = case_of(served, ("induction", "two_layers", seed)).truth.circuit
        assert circuit is not None
        assert {edge.ends for edge in circuit.edges} == induction.ALGORITHM


@pytest.mark.training
def test_without_weight_decay_a_network_remembers_and_does_not_add() -> None:
    task = modular_addition.task(weight_decay=0.0)
    module, training = network.fit(task, 0, steps=1100)
    assert not training.reached
    assert training.losses[-1] < 0.01
    assert network.right(module, task.held_out(0)).mean() < 0.9
    shares = modular_addition.frequency_shares(network.load(module.eval()), 53)
    assert shares.sum() < 0.5


@pytest.mark.training
@pytest.mark.parametrize("name", ["sorting", "automata"])
def test_training_again_gives_the_network_that_ships(name: str) -> None:
    module = MODULES[name]
    task = module.task(module.cases()[0])
    again, training = network.fit(task, 0)
    assert training.reached
    weights, record = kept.read(network.path(task, 0))
    assert training.steps == record["steps"]
    for key, weight in again.state_dict().items():  # on another machine the last bits may differ, and grow
        assert torch.allclose(weight, weights[key].float(), atol=0.05)
