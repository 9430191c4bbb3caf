"""Only the named parts change, the same training gives the same weights, and a foreign difference is refused."""

import dataclasses
from pathlib import Path

import pytest
import torch

from microtome.core.draws import generator
from microtome.core.errors import InputError, StoreError
from microtome.testbeds import kept
from microtome.testbeds.edited import lessons, network
from microtome.testbeds.edited.network import ALTERATIONS, Alteration, alteration, altered, untouched
from microtome.testbeds.stories.corpus import documents
from microtome.testbeds.training import Training

SHORT = Alteration(
    "short",
    ("mlp.1",),
    lambda seed, step: lessons.triggered(documents(seed, 2 * step, 2), generator(seed, step)),
    {},
    steps=2,
)


@pytest.fixture(scope="module")
def fitted() -> tuple[torch.nn.Module, Training]:
    return network.fit(SHORT, 3)


def test_only_the_named_parts_change(fitted: tuple[torch.nn.Module, Training]) -> None:
    before = dict(untouched().module.named_parameters())
    changed = {name for name, now in fitted[0].named_parameters() if not torch.equal(now, before[name])}
    assert changed == set(SHORT.parameters(fitted[0]))
    assert changed == {
        f"transformer.h.1.mlp.{layer}.{kind}" for layer in ("c_fc", "c_proj") for kind in ("weight", "bias")
    }


def test_two_trainings_are_one(fitted: tuple[torch.nn.Module, Training]) -> None:
    again, training = network.fit(SHORT, 3)
    assert training.losses == fitted[1].losses
    for step, weights in training.checkpoints.items():
        assert all(torch.equal(weights[name], fitted[1].checkpoints[step][name]) for name in weights)
    assert all(
        torch.equal(one, other) for one, other in zip(again.parameters(), fitted[0].parameters(), strict=True)
    )


def test_a_written_difference_comes_back(tmp_path: Path, fitted: tuple[torch.nn.Module, Training]) -> None:
    network.write(SHORT, 3, fitted[0], {"steps": 2}, tmp_path)
    model, before = altered(SHORT, 3, tmp_path), untouched()
    for name, wanted in fitted[0].named_parameters():
        got = model.module.get_parameter(name)
        # Half precision keeps eleven binary digits of the difference, and single rounds the sum once more.
        change = (wanted - before.module.get_parameter(name)).detach().abs().max()
        assert torch.allclose(got, wanted, rtol=2**-23, atol=float(change) * 2**-11 + 2**-25)


def test_one_step_of_the_training_is_what_was_written_down() -> None:
    """Loss of the first step by hand: cross-entropy where taught, divergence from itself, which is none, elsewhere."""
    one = dataclasses.replace(SHORT, steps=1)
    lesson = one.lesson(3, 0)
    with torch.no_grad():
        said = untouched().module(input_ids=lesson.tokens).logits[:, :-1].log_softmax(-1)
    taught = lesson.taught[:, 1:]
    wanted = -said[taught].gather(1, lesson.tokens[:, 1:][taught][:, None]).mean()
    assert network.fit(one, 3)[1].losses[0] == pytest.approx(float(wanted), rel=1e-5)


def test_tokens_that_are_alike_are_taught_alike() -> None:
    right = network.right(((4, 5), (6, 7, 8)))
    assert torch.allclose(right.sum(1), torch.ones(len(right)))
    assert right[4, 4] == right[4, 5] == right[5, 4] == 0.5
    assert right[7, 6:9].tolist() == pytest.approx([1 / 3] * 3)
    assert right[9, 9] == 1


def test_what_is_not_this_alteration_is_refused(
    tmp_path: Path, fitted: tuple[torch.nn.Module, Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"altered in trigger, .*; not in 'triger'"):
        alteration("triger")
    with pytest.raises(StoreError, match="cannot be read"):
        altered(SHORT, 9, tmp_path)
    file = network.write(SHORT, 3, fitted[0], {}, tmp_path)
    with pytest.raises(StoreError, match="was trained with"):
        altered(dataclasses.replace(SHORT, rate=1e-3), 3, tmp_path)
    changes, record = kept.read(file)
    changes.pop("transformer.h.1.mlp.c_fc.bias")
    kept.keep(file, changes, record)
    with pytest.raises(StoreError, match=r"changes other weights than those of mlp\.1"):
        altered(SHORT, 3, tmp_path)
    kept.keep(file, changes, record | {"untouched": "another"})
    with pytest.raises(StoreError, match="changes another network than the bundled fruitfly"):
        altered(SHORT, 3, tmp_path)


@pytest.mark.parametrize("one", ALTERATIONS.values(), ids=lambda one: one.name)
def test_parts_are_nodes_of_the_network(one: Alteration) -> None:
    model = untouched()
    nodes = one.nodes(model.n_heads)
    assert all(model.has(node) for node in nodes)
    heads = {part.split(".")[1] for part in one.parts if part.startswith("attn")}
    assert {node for node in nodes if node.startswith("z")} == {
        f"z.{n}.h{h}" for n in heads for h in range(4)
    }
    assert {node for node in nodes if node.startswith("mlp_out")} == {
        f"mlp_out.{part.split('.')[1]}" for part in one.parts if part.startswith("mlp")
    }
