"""Where does a recurrent network hold the state of a machine? Gated recurrent units that follow finite automata.

1. The machines are those of `algorithmic.automata`. The network reads a symbol at a time and says the state after it;
   all it knows of the past is its hidden state, which has an address at every time: `path:states.9:out` is what is
   held after symbol 9.
2. Trained on words of 16 symbols, it is asked for words of 48: it steps through the machine, and knows no shortcut.
   The readout is linear and right, so the state can be read off linearly at every time.
3. The truth is the state at every time, and a direction for each state: the mean of what is held in it. The evidence is
   an intervention. With the mean of one state exchanged for that of another, the network must go on, to the end of the
   word, as the machine does from the other state.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from microtome.core.draws import generator
from microtome.core.edits import Add
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.testbeds.algorithmic.automata import machine, states
from microtome.testbeds.algorithmic.network import contrast
from microtome.testbeds.case import Case, Evidence, TestbedCard, Truth, Variable
from microtome.testbeds.others.network import Recipe, network

card = TestbedCard(
    name="recurrent",
    title="Recurrent networks on finite automata",
    question="Does a method find the state that a recurrent network steps through, and the direction of each?",
    reference="Giles et al. (1992), Learning and Extracting Finite State Automata with Recurrent Networks",
    kinds=("variables", "labels"),
    misleads="A direction is the mean of what is held in a state; what is held besides, such as the last symbol, "
    "is not named.",
)

SHORT, LONG, UNITS = 16, 48, 24
MIDDLE = Site.module(f"states.{LONG // 2}")

Words = Int[Tensor, "row column"]


class Recurrent(nn.Module):
    """Symbols in, a logit for each state after each of them out; words of at most `LONG` symbols."""

    def __init__(self, symbols: int, count: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, UNITS)
        self.cell = nn.GRUCell(UNITS, UNITS)
        # The hidden state passes through one of these at each time, so that it can be read and edited there.
        self.states = nn.ModuleList(nn.Identity() for _ in range(LONG))
        self.readout = nn.Linear(UNITS, count)

    def forward(self, symbols: Words) -> Float[Tensor, "row column state"]:
        if symbols.shape[1] > LONG:
            raise InputError(f"words have at most {LONG} symbols here, got {symbols.shape[1]}; shorten them")
        held = torch.zeros(len(symbols), UNITS)
        said = []
        for read, state in zip(self.embed(symbols).unbind(1), self.states, strict=False):
            held = state(self.cell(read, held))
            said.append(self.readout(held))
        return torch.stack(said, 1)


def cases() -> tuple[str, ...]:
    """`parity`, `flip_flop`, `corridor`, `alternating_five`."""
    return ("parity", "flip_flop", "corridor", "alternating_five")


def words(case: str, count: int, length: int, source: torch.Generator) -> tuple[Words, Words]:
    """Random words, and the state after each symbol."""
    table = machine(case)
    symbols = torch.randint(0, len(table), (count, length), generator=source)
    return symbols, states(table, symbols)


def recipe(case: str = "parity") -> Recipe:
    """How a case is trained. Raises `InputError` for an unknown case."""
    symbols, count = machine(case).shape

    def loss(module: nn.Module, rows: tuple[Words, Words]) -> Float[Tensor, ""]:
        return functional.cross_entropy(module(rows[0]).flatten(0, 1), rows[1].flatten())

    return Recipe(
        testbed=card.name,
        case=case,
        make=lambda: Recurrent(symbols, count),
        batch=lambda seed, step: words(case, 128, SHORT, generator(seed, step)),
        loss=loss,
        evidence=lambda model, seed: _evidence(case, model, seed),
        rate=1e-2,
        steps=1000,
        settings={"symbols_of_a_word": SHORT, "units": UNITS},
    )


def means(case: str, model: Model, seed: int) -> Float[Tensor, "state unit"]:
    """The mean of what is held in each state, in the middle of words."""
    symbols, after = words(case, 1024, LONG, generator(seed, -2))
    held, state = model.run(symbols, read=[MIDDLE])[MIDDLE], after[:, LONG // 2]
    return torch.stack([held[state == one].mean(0) for one in range(machine(case).shape[1])])


def exchanged(
    case: str, model: Model, seed: int, symbols: Words
) -> tuple[Words, Float[Tensor, "row column state"]]:
    """What the machine does when its state in the middle of each word is exchanged for another, and what the network
    says when the mean of the one is exchanged for that of the other."""
    table = machine(case)
    truth = states(table, symbols)
    now = truth[:, LONG // 2]
    count = table.shape[1]
    other = (now + torch.randint(1, count, now.shape, generator=generator(seed, -4))) % count
    expected, state = truth.clone(), other
    for column in range(LONG // 2, LONG):
        state = other if column == LONG // 2 else table[symbols[:, column], state]
        expected[:, column] = state
    mean = means(case, model, seed)
    logits = model.run(symbols, edit=[Add(MIDDLE, vector=mean[other] - mean[now])]).logits
    assert logits is not None
    return expected, logits


def _evidence(case: str, model: Model, seed: int) -> tuple[Evidence, ...]:
    symbols, after = words(case, 512, LONG, generator(seed, -3))
    logits = model.run(symbols).logits
    assert logits is not None
    right = (logits.argmax(-1) == after).all(-1).float()
    expected, said = exchanged(case, model, seed, symbols)
    follows = (said.argmax(-1) == expected).all(-1).float()
    length = f"words of {LONG} symbols"
    return (
        Evidence(f"share of {length} with every state right", float(right.mean()), least=0.99, n=len(right)),
        Evidence(
            f"share of {length} in which it goes on from the state that was put in the place of its own",
            float(follows.mean()),
            least=0.95,
            n=len(follows),
        ),
    )


def pairs(case: str, seed: int) -> Pairs:
    """Words that differ in one symbol, anywhere, and in the state at their end."""
    clean, after = words(case, 2048, LONG, generator(seed, -5))
    corrupt, row = clean.clone(), torch.arange(len(clean))
    place = torch.randint(0, LONG, (len(clean),), generator=generator(seed, -6))
    table = machine(case)
    corrupt[row, place] = (corrupt[row, place] + 1) % len(table)
    answers, wrong = after[:, -1], states(table, corrupt)[:, -1]
    differ = torch.nonzero(answers != wrong)[:64, 0]
    return contrast(clean[differ], corrupt[differ], answers[differ], wrong[differ], task=card.name, seed=seed)


def build(case: str, seed: int = 0) -> Case:
    """A network that follows a machine. Its pairs are words that differ in one symbol and in their last state."""
    asked = recipe(case)
    model = network(asked, seed)
    symbols, after = words(case, 256, LONG, generator(seed, -1))
    count = machine(case).shape[1]
    return Case(
        name=f"{card.name}/{case}",
        task=f"The state of a machine ({case}, {count} states) after each of {LONG} symbols.",
        model=model,
        truth=Truth(
            variables=(Variable("state", MIDDLE, means(case, model, seed), tuple(range(count))),),
            labels={"state": after},
        ),
        evidence=asked.evidence(model, seed),
        pairs=pairs(case, seed),
        tokens=symbols,
        seed=seed,
    )
