"""What state is a machine in after each symbol? Finite automata, and networks too shallow to step through them.

1. A machine is a table: the state that follows each state and symbol. The network reads symbols and is asked at each
   place for the state that the machine is in.
2. The network has fewer layers than the text has symbols, so it cannot go from state to state: it has found a shortcut
   (Liu et al. 2023). The states are the labels.
3. Every word of the length is either learned from or kept back, by a fixed rule, and what is reported is on the latter.
   Longer words are no part of the claim: shortcuts are known to fail there.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from microtome.core.draws import generator
from microtome.core.errors import InputError
from microtome.testbeds.algorithmic.network import Examples, Task, contrast, evidence, network
from microtome.testbeds.case import Case, Evidence, TestbedCard, Truth

card = TestbedCard(
    name="automata",
    title="Finite automata",
    question="How does a shallow network know the state of a machine without stepping through it?",
    reference="Liu et al. (2023), Transformers Learn Shortcuts to Automata",
    kinds=("labels",),
    misleads="The truth is the state, not how a shortcut finds it; a probe that reads the state has not explained it.",
)

Table = tuple[tuple[int, ...], ...]

# [symbol][state]: the state that follows.
MACHINES: Mapping[str, Table] = {
    # one bit, which 1 turns over
    "parity": ((0, 1), (1, 0)),
    # one bit that is left, set or cleared: a memory, without a group in it
    "flip_flop": ((0, 1), (0, 0), (1, 1)),
    # a walk on four places in a row, that stops at the walls
    "corridor": ((0, 0, 1, 2), (1, 2, 3, 3)),
    # one of five things under two even changes of order that make A5, the smallest group that is not solvable
    "alternating_five": ((0, 1, 2, 3, 4), (1, 2, 0, 3, 4), (1, 2, 3, 4, 0)),
}
LENGTH = 10


def cases() -> tuple[str, ...]:
    """`parity`, `flip_flop`, `corridor`, `alternating_five`."""
    return tuple(MACHINES)


def machine(case: str) -> Int[Tensor, "symbol state"]:
    """The table of a case; every machine starts in state 0."""
    if case not in MACHINES:
        raise InputError(f"automata has the cases {', '.join(MACHINES)}, not {case!r}")
    return torch.tensor(MACHINES[case])


def states(
    table: Int[Tensor, "symbol state"], symbols: Int[Tensor, "row column"]
) -> Int[Tensor, "row column"]:
    """The state after each symbol, step by step."""
    state = torch.zeros(len(symbols), dtype=torch.long)
    found = []
    for column in symbols.T:
        state = table[column, state]
        found.append(state)
    return torch.stack(found, 1)


def _words(case: str, count: int, seen: bool, source: torch.Generator) -> Examples:
    table = machine(case)
    drawn = torch.randint(0, len(table), (2 * count if seen else 16 * count, LENGTH), generator=source)
    code = (drawn * (torch.arange(LENGTH) * 7 + 3) ** 2).sum(1)
    symbols = drawn[(code % 10 != 0) == seen][:count]
    return Examples(symbols, states(table, symbols))


def task(case: str) -> Task:
    """How a case is trained. Symbols and states share their ids: the network reads the ones and says the others."""
    table = machine(case)
    return Task(
        testbed=card.name,
        case=case,
        sizes={
            "vocab_size": max(table.shape),
            "hidden_size": 32,
            "num_hidden_layers": 1 if case == "flip_flop" else 2,
            "num_attention_heads": 4,
            "head_dim": 8,
            "intermediate_size": 128,
            "max_position_embeddings": LENGTH,
            "norm": "layer",
            "hidden_act": "relu",
            "initializer_range": 0.1,
        },
        batch=lambda seed, step: _words(case, 256, True, generator(seed, step)),
        held_out=lambda seed: _words(case, 1000, False, generator(seed, -1)),
        rate=3e-3,
        weight_decay=0.01,
        steps=4000,
        loss=5e-3 if table.shape[1] < 5 else 1e-3,  # with more states, whole rows are harder to get right
    )


def build(case: str, seed: int = 0) -> Case:
    """A network that knows the state after each symbol. Its pairs differ in one symbol that changes the last state."""
    asked = task(case)
    table = machine(case)
    model = network(asked, seed)
    unseen = asked.held_out(seed)
    tokens, after = unseen.tokens[:256], unseen.targets[:256]
    other = tokens.clone()
    place = torch.randint(0, LENGTH, (len(other),), generator=generator(seed, 1))
    row = torch.arange(len(other))
    other[row, place] = (other[row, place] + 1) % len(table)
    answers, wrong = after[:, -1], states(table, other)[:, -1]
    differ = torch.nonzero(answers != wrong)[:64, 0]
    return Case(
        name=f"{card.name}/{case}",
        task=f"The state of a machine ({case}, {table.shape[1]} states) after each of {LENGTH} symbols.",
        model=model,
        truth=Truth(labels={"state": after}),
        evidence=(
            evidence(asked, model, seed),
            Evidence("layers of the network", model.n_layers, most=LENGTH - 1),
        ),
        pairs=contrast(
            tokens[differ], other[differ], answers[differ], wrong[differ], task=card.name, seed=seed
        ),
        tokens=tokens,
        seed=seed,
    )
