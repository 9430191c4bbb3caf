"""The settings say which network is trained, and the two optimizers share its parameters without loss or overlap."""

import pytest
import torch
from transformers import GPT2LMHeadModel

from microtome.core.errors import InputError
from microtome.models.transformer import Transformer
from microtome.testbeds.stories.muon import Muon
from microtome.testbeds.stories.network import Settings, differences, new_model, optimizers

SMALL = Settings(hidden=16, layers=2, heads=2)


@pytest.mark.parametrize("mlp", [True, False])
def test_a_network_is_what_its_settings_say(mlp: bool) -> None:
    model = new_model(SMALL.model_copy(update={"mlp": mlp, "width": 1.5}))
    assert isinstance(model, GPT2LMHeadModel if mlp else Transformer)
    assert model.get_input_embeddings().weight.shape[1] == 24
    assert any("mlp" in name for name, _ in model.named_parameters()) == mlp
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


@pytest.mark.parametrize("mlp", [True, False])
def test_the_seed_alone_decides_the_weights(mlp: bool) -> None:
    chosen = SMALL.model_copy(update={"mlp": mlp})
    torch.manual_seed(1)
    one = new_model(chosen).state_dict()
    expected = torch.rand(2)
    torch.manual_seed(1)
    two = new_model(chosen).state_dict()
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = new_model(chosen.model_copy(update={"seed": 1})).state_dict()
    name = next(name for name in one if name.endswith(("wte.weight", "embed.weight")))
    assert not torch.equal(one[name], other[name])


@pytest.mark.parametrize("mlp", [True, False])
def test_every_parameter_is_stepped_once_the_matrices_of_blocks_by_muon(mlp: bool) -> None:
    chosen = SMALL.model_copy(update={"mlp": mlp})
    model = new_model(chosen)
    muon, adam = ([p for g in o.param_groups for p in g["params"]] for o in optimizers(model, chosen))
    assert len({id(p) for p in muon + adam}) == len(muon + adam) == len(list(model.parameters()))
    names = {id(p): name for name, p in model.named_parameters()}
    blocks = {n for n, p in model.named_parameters() if p.ndim == 2 and (".h." in n or "blocks." in n)}
    assert {names[id(p)] for p in muon} == blocks


def test_without_mlps_a_step_is_that_of_the_same_matrix_the_other_way_round() -> None:
    # A linear layer of ours holds [out, in], GPT-2's [in, out]; Muon's step must not depend on that.
    ours, chosen = (
        new_model(SMALL.model_copy(update={"mlp": False, "heads": 1, "weight_decay": 0.0})),
        SMALL.model_copy(update={"mlp": False, "weight_decay": 0.0}),
    )
    muon, _ = optimizers(ours, chosen)
    weight = ours.blocks[0].attn.q.weight
    weight.data = torch.zeros(8, 16)  # a wide and a tall matrix are stepped by different lengths
    weight.grad = torch.randn(8, 16)
    muon.step()
    turned = torch.nn.Parameter(torch.zeros(16, 8))
    turned.grad = weight.grad.T.clone()
    Muon([{"params": [turned]}], lr=chosen.matrix_rate, weight_decay=0.0).step()
    assert torch.equal(weight.detach().T, turned.detach())
    assert weight.detach().abs().max() > 0


def test_a_log_older_than_a_setting_was_trained_with_its_default() -> None:
    old = {name: value for name, value in SMALL.model_dump().items() if name != "mlp"}
    assert not differences(old, SMALL)
    assert differences(old, SMALL.model_copy(update={"mlp": False})) == ["mlp True instead of False"]
    assert differences(old, SMALL.model_copy(update={"seed": 3})) == ["seed 0 instead of 3"]


@pytest.mark.parametrize("bad", [{"layers": 0}, {"hidden": -1}, {"depth": 3}, {"batch": "many"}])
def test_impossible_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        Settings.read(bad)
