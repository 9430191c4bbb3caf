"""Which way to the goal? An agent in a small grid with walls, that learned by reinforcement what every step is worth.

1. The agent stands on one free square of a 5 × 5 grid and the goal on another; it steps up, right, down or left, and a
   step into a wall or over the edge leaves it where it is. Reaching the goal pays 1 and ends the walk.
2. Q-learning (Watkins and Dayan 1992): from random steps alone, the network learns the reward that each step brings,
   discounted by its distance in time. It is never told the way. It then takes the step that it values most.
3. There are few enough starts and goals to walk from all of them. Distances are known by breadth-first search, and so
   is the true value of a square: discount to the power of the steps that follow the first.
4. The first layer adds up one direction for the agent's square and one for the goal's: these are the true dictionary
   there (`path:encode`). With the goal's direction exchanged for another's, the agent must walk to the other square.
5. Deeper down goal and place are mixed, and the means of the values no longer steer: exchanged at `path:hidden`, those
   of the goals led 9 of 100 walks over the other square, where 11 pass it anyway.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from microtome.core.draws import generator
from microtome.core.edits import Add, Edit
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.models.model import Model
from microtome.testbeds.case import Case, Evidence, TestbedCard, Truth, Variable
from microtome.testbeds.others.network import Recipe, network

card = TestbedCard(
    name="gridworld",
    title="An agent in a grid with a goal",
    question="Does a method find where an agent holds its goal, and does changing it there change the way?",
    reference="Watkins and Dayan (1992), Q-learning; Mini et al. (2023), Understanding and Controlling a Maze-Solving "
    "Policy Network",
    kinds=("variables", "features", "labels"),
    misleads="The dictionary is true of the first layer, where nothing is mixed yet; deeper down nothing is claimed.",
)

GRID = (
    ".....",
    ".##..",
    ".....",
    "..##.",
    ".....",
)
SIDE = len(GRID)
STEPS = ((-1, 0), (0, 1), (1, 0), (0, -1))
DISCOUNT = 0.9
ENCODE = Site.module("encode")

Squares = Int[Tensor, " row"]
Boards = Float[Tensor, "row 2 5 5"]
"""A plane with a one on the agent's square, and a plane with a one on the goal's."""


class Agent(nn.Module):
    """Boards in, the value of each step (up, right, down, left) out."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.encode = nn.Linear(2 * SIDE**2, 96)
        self.relu0 = nn.ReLU()
        self.hidden = nn.Linear(96, 96)
        self.relu1 = nn.ReLU()
        self.value = nn.Linear(96, len(STEPS))

    def forward(self, boards: Boards) -> Float[Tensor, "row step"]:
        found: Tensor = self.value(self.relu1(self.hidden(self.relu0(self.encode(self.flatten(boards))))))
        return found


def squares() -> Squares:
    """The free squares, numbered row by row."""
    return torch.tensor([i for i in range(SIDE**2) if GRID[i // SIDE][i % SIDE] == "."])


def next_squares() -> Int[Tensor, "square step"]:
    """Where each step leads from each square, the walls' own squares included."""
    found = torch.arange(SIDE**2)[:, None].repeat(1, len(STEPS))
    for square in range(SIDE**2):
        for step, (down, right) in enumerate(STEPS):
            row, column = square // SIDE + down, square % SIDE + right
            if 0 <= row < SIDE and 0 <= column < SIDE and GRID[row][column] == ".":
                found[square, step] = row * SIDE + column
    return found


def distances() -> Int[Tensor, "square goal"]:
    """Steps from each square to each goal by breadth-first search; -1 where either is a wall."""
    after, free = next_squares(), squares()
    found = torch.full((SIDE**2, SIDE**2), -1)
    found[free, free] = 0
    for steps in range(1, SIDE**2):
        reached = (found[after] == steps - 1).any(1) & (found < 0)
        reached[[i for i in range(SIDE**2) if i not in free.tolist()]] = False
        found[reached] = steps
    return found


def boards(agent: Squares, goal: Squares) -> Boards:
    """What the agent sees."""
    planes = torch.stack([functional.one_hot(at, SIDE**2) for at in (agent, goal)], 1)
    return planes.float().unflatten(-1, (SIDE, SIDE))


def every_walk() -> tuple[Squares, Squares]:
    """All starts and goals that differ."""
    agent, goal = torch.cartesian_prod(squares(), squares()).unbind(1)
    return agent[agent != goal], goal[agent != goal]


def cases() -> tuple[str, ...]:
    """`walls`."""
    return ("walls",)


def recipe(case: str = "walls") -> Recipe:
    """How the agent learns. Raises `InputError` for an unknown case."""
    if case not in cases():
        raise InputError(f"gridworld has the case walls, not {case!r}")
    starts, goals = every_walk()
    after = next_squares()

    def batch(seed: int, step: int) -> tuple[Squares, Squares, Squares]:
        source = generator(seed, step)
        row = torch.randint(0, len(starts), (512,), generator=source)
        return starts[row], goals[row], torch.randint(0, len(STEPS), row.shape, generator=source)

    def loss(module: nn.Module, rows: tuple[Squares, Squares, Squares]) -> Float[Tensor, ""]:
        agent, goal, step = rows
        reached = after[agent, step]
        with torch.no_grad():
            to_come = DISCOUNT * module(boards(reached, goal)).amax(-1)
        worth = torch.where(reached == goal, 1.0, to_come)
        valued = module(boards(agent, goal)).gather(1, step[:, None])[:, 0]
        return functional.mse_loss(valued, worth)

    return Recipe(
        testbed=card.name,
        case=case,
        make=Agent,
        batch=batch,
        loss=loss,
        evidence=_evidence,
        rate=3e-3,
        steps=3000,
        settings={"grid": list(GRID), "discount": DISCOUNT},
    )


def walk(
    model: Model, start: Squares, goal: Squares, towards: Squares | None = None, edit: tuple[Edit, ...] = ()
) -> Squares:
    """How many steps the agent takes until it stands on `towards` (by default the goal that it sees); -1 for never,
    which is more steps than there are squares. edit: in force at every step."""
    after = next_squares()
    sought = goal if towards is None else towards
    agent = start
    taken = torch.where(agent == sought, 0, -1)
    for number in range(1, SIDE**2 + 1):
        logits = model.run({"boards": boards(agent, goal)}, edit=edit).logits
        assert logits is not None
        # Who has arrived stays.
        agent = torch.where(taken >= 0, agent, after[agent, logits.argmax(-1)])
        taken = torch.where((taken < 0) & (agent == sought), number, taken)
    return taken


def directions(model: Model) -> Float[Tensor, "plane square unit"]:
    """What the first layer adds for the agent on each square, and for the goal."""
    weight: Tensor = model.module.get_parameter("encode.weight").detach()
    return weight.T.unflatten(0, (2, SIDE**2))


def redirected(model: Model, start: Squares, goal: Squares, other: Squares) -> Squares:
    """Steps until an agent that sees `goal` stands on `other`, its goal exchanged for that one in the first layer."""
    for_goal = directions(model)[1]
    return walk(model, start, goal, other, (Add(ENCODE, vector=for_goal[other] - for_goal[goal]),))


def _evidence(model: Model, seed: int) -> tuple[Evidence, ...]:
    start, goal = every_walk()
    count = len(start)
    taken, least = walk(model, start, goal), distances()[start, goal]
    seen = model.run({"boards": boards(start, goal)}).logits
    assert seen is not None
    error = (seen.amax(-1) - DISCOUNT ** (least - 1)).abs().mean()
    # Another goal for each walk, neither the start nor the first goal.
    free = squares()
    drawn = free[torch.randint(0, len(free), (count,), generator=generator(seed, -1))]
    kept = (drawn != start) & (drawn != goal)
    start, goal, other = start[kept], goal[kept], drawn[kept]
    led, passed = redirected(model, start, goal, other), walk(model, start, goal, other)
    return (
        Evidence(
            "share of walks that reach the goal", float((taken >= 0).float().mean()), least=0.99, n=count
        ),
        Evidence("share of shortest walks", float((taken == least).float().mean()), least=0.95, n=count),
        Evidence("mean error of the value of a square", float(error), most=0.02, n=count),
        Evidence(
            "share of walks that reach the goal put in the place of the one seen",
            float((led >= 0).float().mean()),
            least=0.99,
            n=len(led),
        ),
        Evidence(
            "share of walks that pass the square of that goal unasked",
            float((passed >= 0).float().mean()),
            most=0.3,
            n=len(led),
        ),
    )


def build(case: str = "walls", seed: int = 0) -> Case:
    """An agent that finds its goal, seen on every start and goal."""
    asked = recipe(case)
    model = network(asked, seed)
    start, goal = every_walk()
    free = squares()
    for_agent, for_goal = directions(model)[:, free]
    least = distances()[start, goal]
    names = tuple(free.tolist())
    return Case(
        name=f"{card.name}/{case}",
        task="The discounted reward of a step up, right, down and left, in a grid with walls and a goal.",
        model=model,
        truth=Truth(
            variables=(
                Variable("agent", ENCODE, for_agent, names),
                Variable("goal", ENCODE, for_goal, names),
            ),
            features={str(ENCODE): torch.cat([for_agent, for_goal])},
            labels={"agent": start, "goal": goal, "distance": least, "value": DISCOUNT ** (least - 1)},
        ),
        evidence=asked.evidence(model, seed),
        tokens={"boards": boards(start, goal)},
        seed=seed,
    )
