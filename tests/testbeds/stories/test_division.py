"""A part that does nothing is worth nothing, one that does everything is worth all of it."""

import pytest
import torch

from microtome.testbeds.stories.division import worth
from microtome.testbeds.stories.family import model as member


def test_a_silent_part_is_worth_nothing() -> None:
    model = member("mlp-1-layer")
    with torch.no_grad():
        model.module.transformer.h[0].mlp.c_proj.weight.zero_()
    found = worth(model, 0, 20)
    assert found["mlp_out.0"] == pytest.approx({"chants": 0, "stories": 0}, abs=1e-6)
    assert abs(found["attn_out.0"]["stories"]) > 0.1


def test_in_the_shipped_model_attention_serves_chants_and_the_mlp_stories() -> None:
    found = worth(member("mlp-1-layer"), 1, 30)
    attention, mlp = found["attn_out.0"], found["mlp_out.0"]
    assert attention["chants"] > mlp["chants"]
    assert mlp["stories"] > attention["stories"]
