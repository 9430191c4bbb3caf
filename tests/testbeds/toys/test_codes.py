"""Codes that are no direction: what they say is changed by changing them, and a linear reader misses it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from microtome.core import plugins
from microtome.core.edits import Add, Function, Project
from microtome.core.errors import InputError, TruthError
from microtome.testbeds.case import Case
from microtome.testbeds.toys import codes
from microtome.testbeds.toys.codes import CIRCLES, STREAM, Bands, Clock, orthonormal, recipe, wanted
from microtome.testbeds.toys.network import fit, model_of


def variable(case: Case, name: str) -> Tensor:
    return next(one.directions for one in case.truth.variables if one.name == name)


@given(st.integers(1, 16), st.integers(0, 10**6))
def test_planted_directions_are_orthonormal(count: int, seed: int) -> None:
    found = orthonormal(count, 16, seed)
    torch.testing.assert_close(found @ found.mT, torch.eye(count), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", codes.cases())
@pytest.mark.parametrize("seed", [0, 1])
def test_a_case_holds_and_its_stream_holds_the_variables(name: str, seed: int) -> None:
    case = codes.build(name, seed)
    assert set(case.truth.kinds) == set(codes.card.kinds)
    rows = {len(label) for label in case.truth.labels.values()}
    stream = case.model.run(case.tokens, read=[STREAM])[STREAM]
    assert rows == {len(stream)}
    for one in case.truth.variables:
        label = case.truth.labels[one.name]
        directions = one.directions if one.values else one.directions * label[:, None].float()
        written = directions[label] if one.values else directions
        if name == "magnitude" and one.name == "band":
            continue  # a band is a stretch of its direction, told by its middle
        stream = stream - written
    rest = stream if name != "magnitude" else stream @ variable(case, "size").mT
    assert float(rest.abs().max()) < 1e-4, "nothing else stands there"


@given(st.floats(-1, 4))
def test_bands_are_told_apart_at_every_size(size: float) -> None:
    module = Bands(torch.eye(3))
    with torch.no_grad():
        answer = module(torch.tensor([[size, 0.3, -2.0]]))[0]
    assert float(answer.sum()) == pytest.approx(1, abs=1e-5)
    if min(abs(size - edge) for edge in (1, 2)) >= Bands.RAMP / 2:
        band = min(max(math.floor(size), 0), 2)
        assert answer.tolist() == pytest.approx([float(k == band) for k in range(3)], abs=1e-4)


def test_moving_along_the_direction_moves_through_the_bands() -> None:
    case = codes.build("magnitude")
    band = case.truth.labels["band"]
    up = Add(STREAM, vector=variable(case, "size")[0])
    answers = case.model.run(case.tokens, edit=[up], logits=True).logits
    assert answers is not None
    assert torch.equal(answers.argmax(-1), (band + 1).clamp_max(2))
    gone = case.model.run(case.tokens, edit=[Project(STREAM, directions=variable(case, "size"))]).logits
    assert gone is not None
    assert gone.argmax(-1).unique().tolist() == [0]


@pytest.mark.parametrize("name", CIRCLES)
@pytest.mark.parametrize("turn", [1.0, 2.5, -0.3])
def test_turning_the_plane_turns_the_answer(name: str, turn: float) -> None:
    case = codes.build(name)
    points = CIRCLES[name]
    circle = variable(case, name.removesuffix("s"))
    _, _, basis = torch.linalg.svd(circle - circle.mean(0), full_matrices=False)
    plane = basis[:2]
    # Which way the points go around in this basis.
    first, second = (circle[:2] @ plane.mT).tolist()
    sense = math.copysign(1, first[0] * second[1] - first[1] * second[0])
    angle = sense * turn * 2 * math.pi / points
    rotation = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])

    def turned(stream: Tensor) -> Tensor:
        inside = stream @ plane.mT
        return stream + (inside @ rotation - inside) @ plane

    logits = case.model.run(case.tokens, edit=[Function(STREAM, function=turned)], logits=True).logits
    assert logits is not None
    expected = wanted(points, case.truth.labels["answer"] + turn)
    assert float((logits - expected).pow(2).mean().sqrt()) < 0.05
    if turn == int(turn):
        assert torch.equal(logits.argmax(-1), (case.truth.labels["answer"] + int(turn)) % points)


def test_a_circle_has_two_dimensions_and_no_fewer() -> None:
    for name, points in CIRCLES.items():
        circle = variable(codes.build(name), name.removesuffix("s"))
        sizes = torch.linalg.svdvals(circle)
        assert sizes[:2].tolist() == pytest.approx([math.sqrt(points / 2)] * 2, rel=1e-4)
        assert float(sizes[2:].max()) < 1e-4


def test_doubt_changes_how_sure_and_not_what() -> None:
    case = codes.build("entropy")
    direction = variable(case, "doubt")[0]
    before = case.model.run(case.tokens, logits=True).logits
    after = case.model.run(case.tokens, edit=[Add(STREAM, vector=direction)], logits=True).logits
    assert before is not None
    assert after is not None
    assert torch.equal(before.argmax(-1), after.argmax(-1))

    def entropy(logits: Tensor) -> Tensor:
        return torch.distributions.Categorical(logits=logits).entropy()

    assert bool((entropy(after) > entropy(before)).all())
    # Without the norm the direction says nothing at all.
    module = case.model.module
    assert isinstance(module, codes.Unsure)
    assert float(module.unembed(direction).detach().abs().max()) < 1e-5


@pytest.mark.parametrize("name", codes.cases())
def test_the_twin_does_not_do_it(name: str) -> None:
    case = codes.build(name)
    stream = case.control.run(case.tokens, logits=True).logits
    assert stream is not None
    plain = case.model.run(case.tokens, logits=True).logits
    assert plain is not None
    same = float((stream.argmax(-1) == plain.argmax(-1)).double().mean())
    assert same < 0.6


def test_training_replays_and_leaves_the_planted_planes() -> None:
    one, first = fit(recipe("days"), 3, steps=10)
    two, second = fit(recipe("days"), 3, steps=10)
    assert first.losses == second.losses
    assert all(torch.equal(two.state_dict()[key], value) for key, value in one.state_dict().items())
    assert isinstance(one, Clock)
    assert torch.equal(torch.cat([one.day.plane, one.steps.plane]), orthonormal(4, codes.WIDTH, 3))


def test_one_trained_too_little_is_no_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = fit(recipe("days"), 0, steps=5)
    monkeypatch.setattr(codes, "network", lambda *_: model_of(module, "too little"))
    with pytest.raises(TruthError, match="between the points"):
        codes.build("days")


@pytest.mark.training
@pytest.mark.parametrize("name", CIRCLES)
def test_what_ships_is_what_training_gives(name: str) -> None:
    retrained: nn.Module = fit(recipe(name), 0)[0]
    shipped = codes.build(name).model.module
    for key, value in shipped.state_dict().items():
        torch.testing.assert_close(retrained.state_dict()[key], value, rtol=0.05, atol=0.05)


def test_unknown_cases_are_refused() -> None:
    with pytest.raises(InputError, match="no case 'weeks'"):
        codes.build("weeks")
    with pytest.raises(InputError, match="trained"):
        recipe("entropy")
    assert plugins.load("testbeds", "codes") is codes
