"""A neuron that fires for a pair is found, named and predicted; a model that only adds has no facts."""

import numpy as np
import pytest
import torch
from torch import Tensor

from microtome.core.errors import FamilyError, InputError
from microtome.models.load import load
from microtome.models.model import Model
from microtome.models.transformer import Transformer, TransformerConfig
from microtome.weights import ngram_facts
from models import families

V = 10
NOBEL, PEACE, PRIZE, OTHER = 1, 2, 3, 4


def text(rows: int = 40) -> Tensor:
    """Fillers, and at fixed places `NOBEL PEACE`, `OTHER PEACE` and `NOBEL OTHER`."""
    generator = torch.Generator().manual_seed(0)
    made = torch.randint(5, V, (rows, 12), generator=generator)
    for place, pair in ((2, (NOBEL, PEACE)), (5, (OTHER, PEACE)), (8, (NOBEL, OTHER))):
        made[:, place], made[:, place + 1] = pair
    return made


def memory(threshold: float) -> Model:
    """One head that mixes the text so far into a second block of the stream; one neuron that adds NOBEL there to PEACE.
    With a threshold it fires for the pair only; without one it adds the two up."""
    config = TransformerConfig(
        vocab_size=V, hidden_size=2 * V, num_hidden_layers=1, num_attention_heads=1, head_dim=V,
        intermediate_size=6, positions="none", norm="none", hidden_act="relu",
    )  # fmt: skip
    module = Transformer(config).eval()
    model = load(module, check=False)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        model.weight("W_E")[:, :V] = torch.eye(V)
        model.weight("W_U")[:V] = torch.eye(V)
        model.weight("W_V.0")[0, :V] = torch.eye(V)
        model.weight("W_O.0")[0, :, V:] = torch.eye(V)
        model.weight("W_in.0")[PEACE, 2] = 1.0
        model.weight("W_in.0")[V + NOBEL, 2] = 2.0
        model.weight("b_in.0")[2] = -threshold
        model.weight("W_out.0")[2, PRIZE] = 10.0
    return model


def test_a_pair_neuron_is_a_fact_predicted_and_measured_alike() -> None:
    found = ngram_facts.run(memory(1.0), text(), ngram_facts.Config(neurons=1, pairs=12)).data
    best = {name: found[name].values[0] for name in found.data_vars if name != "cases"}
    assert (best["first"], best["second"], best["out"], best["neurons"]) == (" 1", " 2", " 3", "u2")
    assert best["predicted"] == pytest.approx(best["interaction"], rel=1e-4)
    # There is no norm here, so freezing it costs nothing.
    assert best["measured"] == pytest.approx(best["predicted"], rel=1e-4)
    assert best["at_pair"] < -0.5
    assert best["random"] == pytest.approx(0, abs=1e-6)
    assert best["at_pair"] < best["at_second"]


def test_a_neuron_that_only_adds_is_no_fact() -> None:
    """Negative control: the same weights without the threshold say the same of either token alone."""
    pair = ngram_facts.run(memory(1.0), text(), ngram_facts.Config(pairs=12)).data["interaction"].values[0]
    added = ngram_facts.run(memory(-5.0), text(), ngram_facts.Config(pairs=12)).data["interaction"].values
    assert pair > 1
    assert np.abs(added).max() < 1e-4


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_what_is_predicted_is_what_the_first_mlp_writes(name: str) -> None:
    """The interactions of all neurons, written out, are the interaction of the MLP's own output."""
    model = families.model(name)
    pairs = [(a, b) for a, b in zip(range(3, 8), range(20, 25), strict=True)]
    grid = ngram_facts.interactions(model, pairs)
    ids = torch.cartesian_prod(torch.tensor(grid.firsts), torch.tensor(grid.seconds))
    neurons = model.run(ids, ["mlp_post.0@-1"])["mlp_post.0@-1"].view(5, 5, -1)
    torch.testing.assert_close(grid.value, neurons)
    assert grid.interaction.mean(0).abs().max() < 1e-4
    assert grid.interaction.mean(1).abs().max() < 1e-4
    found = ngram_facts.run(model, families.ids(6), ngram_facts.Config(pairs=8, facts=2)).data
    assert (found["interaction"].values > 0).all()
    assert np.isfinite(found["measured"].values).all()


def test_a_one_layer_model_is_predicted_well_through_its_norms() -> None:
    torch.manual_seed(1)
    config = TransformerConfig(
        vocab_size=30, hidden_size=64, num_hidden_layers=1, intermediate_size=64, initializer_range=0.2
    )
    ids = torch.randint(30, (12, 12), generator=torch.Generator().manual_seed(1))
    found = ngram_facts.run(load(Transformer(config).eval()), ids, ngram_facts.Config(facts=16)).data
    assert np.corrcoef(found["predicted"], found["measured"])[0, 1] > 0.9


def test_models_and_texts_it_cannot_take_are_refused() -> None:
    with pytest.raises(InputError, match="no neurons"):
        ngram_facts.run(families.model("mixtral"), families.ids(4))
    with pytest.raises(InputError, match="at least two pairs"):
        ngram_facts.run(families.model("gpt2"), families.ids(1))
    with pytest.raises(FamilyError, match="not the sum"):
        ngram_facts.run(families.model("bert"), families.ids(4))


def test_it_draws_its_predictions_beside_what_came() -> None:
    (table,) = ngram_facts.run(memory(1.0), text(), ngram_facts.Config(pairs=12, facts=3)).shapes()
    assert len(table.rows) == 3
    assert len(table.columns) == len(table.rows[0]) == 10
