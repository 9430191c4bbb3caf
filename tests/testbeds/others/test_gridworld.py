"""An agent whose goal is exchanged walks to the other one; distances and values are those of breadth-first search."""

import networkx
import pytest
import torch

from microtome.core.edits import Add
from microtome.testbeds.case import Case
from microtome.testbeds.others import gridworld
from microtome.testbeds.others.gridworld import DISCOUNT, ENCODE, GRID, SIDE


@pytest.fixture(scope="module")
def built() -> Case:
    return gridworld.build()


def test_steps_and_distances_are_those_of_the_graph() -> None:
    graph = networkx.Graph()
    free = gridworld.squares().tolist()
    assert [GRID[i // SIDE][i % SIDE] for i in free] == ["."] * 21
    graph.add_nodes_from(free)
    for square in free:
        for other in (square + 1, square + SIDE):
            if other in free and not (other == square + 1 and other % SIDE == 0):
                graph.add_edge(square, other)
    after, found = gridworld.next_squares(), gridworld.distances()
    for square in free:
        assert set(after[square].tolist()) - {square} == set(graph[square])
    for square, lengths in networkx.all_pairs_shortest_path_length(graph):
        for goal, steps in lengths.items():
            assert found[square, goal] == steps
    assert int((found >= 0).sum()) == 21 * 21
    # The walls matter: some ways are longer than the grid alone would make them.
    assert found[1, 11] == 4


def test_it_sees_every_walk_once(built: Case) -> None:
    walks = list(zip(built.truth.labels["agent"].tolist(), built.truth.labels["goal"].tolist(), strict=True))
    assert len(set(walks)) == len(walks) == 21 * 20
    seen = built.tokens["boards"]
    for plane, name in enumerate(("agent", "goal")):
        assert torch.equal(seen[:, plane].flatten(1).argmax(-1), built.truth.labels[name])
        assert bool((seen[:, plane].sum((1, 2)) == 1).all())


def test_values_are_what_the_best_walk_brings(built: Case) -> None:
    """Bellman's equation holds of the labels: 1 beside the goal, else discount times the best that follows."""
    value = dict(
        zip(
            zip(built.truth.labels["agent"].tolist(), built.truth.labels["goal"].tolist(), strict=True),
            built.truth.labels["value"].tolist(),
            strict=True,
        )
    )
    after = gridworld.next_squares()
    for (agent, goal), worth in value.items():
        best = max(1.0 if to == goal else DISCOUNT * value[to, goal] for to in after[agent].tolist())
        assert worth == pytest.approx(best, rel=1e-6)


def test_the_first_layer_is_the_sum_of_its_dictionary(built: Case) -> None:
    agent, goal = (built.truth.labels[name] for name in ("agent", "goal"))
    names = torch.tensor(built.truth.variables[0].values)
    index = {int(square): i for i, square in enumerate(names)}
    for_agent, for_goal = (variable.directions for variable in built.truth.variables)
    whole = (
        for_agent[[index[int(square)] for square in agent]]
        + for_goal[[index[int(square)] for square in goal]]
        + built.model.module.get_parameter("encode.bias")
    )
    read = built.model.run(built.tokens, read=[ENCODE])[ENCODE]
    assert torch.allclose(read, whole, atol=1e-5)
    assert torch.equal(built.truth.features[str(ENCODE)], torch.cat([for_agent, for_goal]))


def test_an_exchanged_goal_is_the_other_goal(built: Case) -> None:
    agent, goal = (built.truth.labels[name] for name in ("agent", "goal"))
    other = goal.roll(7)
    direction = gridworld.directions(built.model)[1]
    edited = built.model.run(
        built.tokens, edit=[Add(ENCODE, vector=direction[other] - direction[goal])]
    ).logits
    seen = built.model.run({"boards": gridworld.boards(agent, other)}).logits
    assert edited is not None
    assert seen is not None
    assert torch.allclose(edited, seen, atol=1e-5)


def test_a_redirected_agent_takes_the_shortest_way_to_the_other_goal(built: Case) -> None:
    start, goal = gridworld.every_walk()
    other = goal.roll(7)
    kept = (other != start) & (other != goal)
    led = gridworld.redirected(built.model, start[kept], goal[kept], other[kept])
    least = gridworld.distances()[start[kept], other[kept]]
    assert (led == least).float().mean() >= 0.95
    # With the agent's directions for the goal's, it is not led.
    wrong = gridworld.directions(built.model)[0]
    edit = Add(ENCODE, vector=wrong[other[kept]] - wrong[goal[kept]])
    lost = gridworld.walk(built.model, start[kept], goal[kept], other[kept], (edit,))
    assert (lost == least).float().mean() < 0.5


def test_means_of_the_goals_do_not_steer_deeper_down(built: Case) -> None:
    """What the module says of `path:hidden`: the mean over the walks to a goal does not stand for that goal there."""
    start, goal = gridworld.every_walk()
    other = goal.roll(7)
    kept = (other != start) & (other != goal)
    held = built.model.run(built.tokens, read=["path:hidden"])["path:hidden"]
    mean = torch.stack([held[goal == square].sum(0) for square in range(SIDE**2)]) / 20
    edit = Add("path:hidden", vector=mean[other[kept]] - mean[goal[kept]])
    led = gridworld.walk(built.model, start[kept], goal[kept], other[kept], (edit,)) >= 0
    passed = gridworld.walk(built.model, start[kept], goal[kept], other[kept]) >= 0
    assert float(led.float().mean()) < float(passed.float().mean()) + 0.25


def test_an_agent_that_learned_nothing_rarely_arrives(built: Case) -> None:
    start, goal = gridworld.every_walk()
    taken = gridworld.walk(built.control, start, goal)
    assert (taken >= 0).float().mean() < 0.5


def test_walks_are_counted(built: Case) -> None:
    """One who stands on the goal has arrived; one who is beside it takes one step."""
    at = torch.tensor([0, 0])
    assert gridworld.walk(built.model, at, torch.tensor([0, 1])).tolist() == [0, 1]
