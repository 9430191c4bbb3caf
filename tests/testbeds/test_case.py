import math

import pytest
import torch

import microtome
from microtome.core.draws import generator
from microtome.core.errors import InputError, TruthError
from microtome.core.site import Site
from microtome.models.transformer import Transformer, TransformerConfig
from microtome.testbeds.case import Case, Evidence, Truth, Variable
from microtome.testbeds.training import seeded

TINY = {"vocab_size": 7, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4}


def tiny() -> microtome.Model:
    with seeded(0):
        module = Transformer(TransformerConfig(**TINY, intermediate_size=8))
    return microtome.load(module.eval())


def case(*evidence: Evidence, tokens: torch.Tensor | None = None) -> Case:
    return Case("tiny/one", "Nothing.", tiny(), Truth(), evidence, tokens=tokens)


def test_a_case_is_served_only_as_far_as_its_evidence_holds() -> None:
    held = Evidence("accuracy", 0.99, least=0.99)
    assert case(held).evidence == (held,)
    with pytest.raises(TruthError, match=r"accuracy 0\.98 of 50 \(wanted at least 0\.99\)"):
        case(held, Evidence("accuracy", 0.98, least=0.99, n=50))
    with pytest.raises(TruthError, match="without evidence"):
        case()


@pytest.mark.parametrize(
    ("value", "least", "most", "holds"),
    [
        (0.5, None, None, True),
        (0.5, 0.5, None, True),
        (0.5, None, 0.5, True),
        (0.5, 0.4, 0.6, True),
        (0.5, 0.6, None, False),
        (0.5, None, 0.4, False),
        (math.nan, 0.0, None, False),
        (math.nan, None, 1.0, False),
    ],
)
def test_bounds(value: float, least: float | None, most: float | None, holds: bool) -> None:
    assert Evidence("x", value, least, most).holds is holds


def test_data_is_what_the_method_needs() -> None:
    tokens = torch.tensor([[1, 2, 3]])
    one = case(Evidence("accuracy", 1.0), tokens=tokens)
    assert one.data("weights") is None
    assert one.data("tokens") is tokens
    with pytest.raises(InputError, match="no pairs"):
        one.data("pairs")


def test_the_control_has_the_same_numbers_in_other_places() -> None:
    one = case(Evidence("accuracy", 1.0))
    mine, other = one.model.module.state_dict(), one.control.module.state_dict()
    assert not torch.equal(mine["unembed.weight"], other["unembed.weight"])
    assert torch.equal(
        mine["unembed.weight"].flatten().sort()[0], other["unembed.weight"].flatten().sort()[0]
    )


def test_a_categorical_variable_has_one_direction_for_each_value() -> None:
    assert Variable("number", Site.parse("resid_post.0"), torch.eye(2), (0, 1)).values == (0, 1)
    with pytest.raises(InputError, match="3 values and 2 directions"):
        Variable("number", Site.parse("resid_post.0"), torch.eye(2), (0, 1, 2))


def test_truth_says_which_kinds_it_has() -> None:
    assert Truth().kinds == ()
    assert Truth(roles={"induction": ("z.1.h0",)}, quantities={"dimensionality": 0.4}).kinds == (
        "roles",
        "quantities",
    )


def test_batches_depend_on_seed_and_step_alone() -> None:
    def drawn(*numbers: int) -> list[int]:
        return torch.randint(1 << 30, (8,), generator=generator(*numbers)).tolist()

    assert drawn(0, 3) == drawn(0, 3)
    assert len({tuple(drawn(seed, step)) for seed in range(8) for step in range(8)}) == 64
