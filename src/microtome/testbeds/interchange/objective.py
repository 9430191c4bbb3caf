"""How is a network made to work as its causal model says, and in no other way? The loss of strict interchange training.

Of each row's run, every part is also put into the run of another row:

1. behaviour: the run itself must give the right answer;
2. interchange: with the parts that hold some variables taken from another row, the answer must be the one that the
   causal model gives when those variables have that row's values;
3. strict: with any set of edges outside the circuit taken from another row, the answer must stay as it is.

Reference: Geiger et al. (2022), Inducing Causal Structure; Gupta et al. (2024), InterpBench, whose strictness is of
nodes. Here it is of edges, of which all those out of a node are the node.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from microtome.core.draws import generator
from microtome.data.causal_model import UNASKED
from microtome.models.transformer import Transformer
from microtome.testbeds.interchange.alignment import Alignment
from microtome.testbeds.interchange.task import Rows, Task
from microtome.testbeds.interchange.wiring import traced

GROUPS = 4  # sets of variables interchanged in one step, each in as many rows


@dataclass(frozen=True, eq=False)
class Step:
    """Rows, the answers due; and, where each row reads some edges from the row after it, the answers due then.

    The first half of the rows are interchanges of variables, the second changes outside the circuit.
    """

    rows: Rows
    due: Rows
    swapped: Bool[Tensor, "row source target"]
    due_swapped: Rows


def step(task: Task, seed: int, number: int) -> Step:
    """The data of a step, a function of the task, the seed and the number alone."""
    source = generator(seed, number)
    rows = task.draw(task.batch, True, source)
    due, half = task.answers(rows), task.batch // 2
    other = rows.roll(-1, 0)
    swapped, counterfactual = [], []
    for group in torch.arange(half).chunk(GROUPS):
        names = _some(task.model.inner, source)
        nodes = [node for name in names for node in task.places[name].nodes]
        swapped.append(task.alignment.wiring.out_of(nodes).expand(len(group), -1, -1))
        counterfactual.append(task.model.interchange(rows[group], other[group], names))
    swapped.append(outside(task.alignment, task.batch - half, source))
    return Step(rows, due, torch.cat(swapped), torch.cat([*counterfactual, due[half:]]))


def outside(alignment: Alignment, count: int, source: torch.Generator) -> Bool[Tensor, "row source target"]:
    """For each of so many rows a random set of edges outside the circuit; for a fifth of the rows, all of them."""
    edges = alignment.outside
    share = 1.25 * torch.rand(count, 1, 1, generator=source)
    return (torch.rand(count, *edges.shape, generator=source) < share) & edges


def loss(task: Task, module: nn.Module, given: Step) -> Float[Tensor, ""]:
    """The weighted sum of the three cross-entropies, in nats."""
    assert isinstance(module, Transformer)
    logits, written = traced(module, given.rows)
    swapped, _ = traced(module, given.rows, written.roll(-1, 1), given.swapped)
    half, weights = task.batch // 2, task.weights
    return (
        weights.behaviour * _entropy(logits, given.due)
        + weights.interchange * _entropy(swapped[:half], given.due_swapped[:half])
        + weights.strict * _entropy(swapped[half:], given.due_swapped[half:])
    )


def _entropy(logits: Float[Tensor, "row column token"], due: Rows) -> Float[Tensor, ""]:
    return functional.cross_entropy(logits.flatten(0, 1), due.flatten(), ignore_index=UNASKED)


def _some(names: tuple[str, ...], source: torch.Generator) -> tuple[str, ...]:
    """One name or more, every set as likely."""
    number = int(torch.randint(1, 2 ** len(names), (), generator=source))
    return tuple(name for place, name in enumerate(names) if number >> place & 1)
