"""Circuits of features: edges add up to what a unit does, effects to what a site does, and a planted unit is found."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.circuits.planted import pairs_of, random_pairs
from tests.models.families import make

import microtome
from microtome.bases.basis import Basis
from microtome.bases.neurons import Neurons
from microtome.bases.stored import stored_basis
from microtome.circuits import sparse_feature_circuits as method
from microtome.circuits.feature_nodes import FeatureNodes
from microtome.circuits.sparse_feature_circuits import Config, neurons
from microtome.core.edits import Set, Zero
from microtome.core.errors import InputError, StoreError
from microtome.core.site import Site
from microtome.data import metrics
from microtome.dictionaries import files
from microtome.dictionaries.activations import ReLU
from microtome.dictionaries.dictionary import Dictionary
from microtome.testbeds.hand_set import testbed


def dictionary(site: str, width: int, seed: int, written: str = "", units: int = 20) -> Dictionary:
    """Random, of one site, or from one to another."""
    draw = torch.Generator().manual_seed(seed)
    return Dictionary(
        name=f"features.{seed}",
        reads=(Site.parse(site),),
        writes=(Site.parse(written or site),),
        read_widths=(width,),
        write_widths=(width,),
        activation=ReLU(),
        encoder=torch.randn(units, width, generator=draw),
        encoder_bias=torch.zeros(units),
        decoder=0.3 * torch.randn(units, width, generator=draw),
        decoder_bias=torch.zeros(width),
        centre=torch.zeros(width),
    )


def bases(width: int) -> list[Basis]:
    """A basis of each kind: of a head's values, a transcoder, and of the stream."""
    return [
        dictionary("z.0", width, 1),
        dictionary("mlp_in.1", width, 2, "mlp_out.1"),
        dictionary("resid_pre.2", width, 3),
        dictionary("attn_out.2", width, 4),
    ]


def nodes(name: str = "gpt2") -> FeatureNodes:
    model = microtome.load(make(name))
    pairs = random_pairs()
    metric = metrics.build("logit-difference", pairs)
    return FeatureNodes.of(model, bases(model.sizes["d_model"]), pairs.clean, pairs.corrupt, metric)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_what_a_unit_does_is_what_it_does_directly_and_through_all_others(name: str) -> None:
    found = nodes(name)
    slopes = found.slopes()
    every = [(index, unit) for index, basis in enumerate(found.bases) for unit in range(basis.n_units)]
    incoming = found.edges(every, slopes)
    for index in range(len(found.bases)):
        whole = (slopes[index] * found.delta(index)).sum((0, 1)) / len(found.tokens)
        by_edges = torch.stack([one.units[index] for one in incoming]).sum(0)
        assert float(whole.abs().max()) > 1e-3
        torch.testing.assert_close(by_edges, whole, rtol=1e-3, atol=1e-5)
    through = [one.units[0].abs().max() for one in incoming[:-1]]
    assert max(map(float, through)) > 1e-4, "some of it goes through others"


def test_effects_of_a_site_add_up_to_what_its_corrupt_value_does() -> None:
    found = nodes()
    effects = found.effects(steps=16)
    plain = found.model.run(found.tokens, metric=found.metric).metric
    assert plain is not None
    for index, basis in enumerate(found.bases):
        (site,) = basis.writes
        corrupt = found._shaped(site, found._written(basis, found.corrupt[index])[0])
        there = found.model.run(found.tokens, edit=[Set(site, value=corrupt)], metric=found.metric).metric
        assert there is not None
        told = float(effects[index].units.sum()) + effects[index].errors[site]
        assert told == pytest.approx(float((there - plain).mean()), rel=0.02, abs=2e-3)


def test_the_unit_that_was_planted_is_found() -> None:
    """Pairs in which the first of two tokens differs: one neuron says the out, and without it nothing does."""
    case = testbed.build("ngram_facts")
    for first, second, out in sorted(case.truth.rules["ngram"])[:3]:
        other = next(
            token for token in range(1, 24) if all(token != fact[0] for fact in case.truth.rules["ngram"])
        )
        clean, corrupt = torch.tensor([[0, first, second]]), torch.tensor([[0, other, second]])
        found = method.run(case.model, pairs_of(clean, corrupt, [out], [1 + out % 23]), Config(nodes=1))
        (name,) = found.data["name"].values.tolist()
        logits = case.model.run(clean, edit=[Zero(Site.parse(name))], logits=True).logits
        assert logits is not None
        assert int(logits[0, -1].argmax()) != out
        assert found.circuit().weight(name) < 0
        assert float(found.data["share"].sel(score="leftover, errors kept")) < 0.5


def test_everything_kept_is_the_model_and_nothing_kept_is_nothing() -> None:
    model = microtome.load(make("llama"))
    width = model.sizes["d_model"]
    chosen = [dictionary("mlp_out.1", width, 1, units=6), dictionary("resid_pre.2", width, 2, units=6)]
    found = method.run(model, random_pairs(), Config(nodes=1000, random_circuits=2), chosen)
    share = {str(name): float(found.data["share"].sel(score=name)) for name in found.data["score"].values}
    assert share["faithfulness, errors of the circuit"] == pytest.approx(1.0)
    assert share["leftover, errors kept"] == pytest.approx(share["errors alone"])
    assert {shape.title for shape in found.shapes()} >= {"Sparse feature circuit", "Scores of the circuit"}
    again = method.run(model, random_pairs(), Config(nodes=1000, random_circuits=2), chosen)
    assert found.data.equals(again.data)


def test_dictionaries_come_from_files(tmp_path: Path) -> None:
    model = microtome.load(make("gpt2"))
    one = dictionary("mlp_out.1", model.sizes["d_model"], 5)
    files.save(replace(one, encoder=one.decoder), tmp_path / "tied")  # two tensors, one memory
    files.save(one, tmp_path / "one")
    assert torch.equal(stored_basis(f"microtome:{tmp_path / 'one'}").directions(), one.directions())
    found = method.run(model, random_pairs(), Config(dictionaries=(str(tmp_path / "one"),), nodes=3))
    assert all(
        "features.5" in name or name.startswith("error:") for name in found.data["name"].values.tolist()
    )
    with pytest.raises(StoreError):
        stored_basis(str(tmp_path / "two"))


def test_what_does_not_fit_is_refused() -> None:
    model = microtome.load(make("gpt2"))
    pairs = random_pairs()
    one = dictionary("mlp_out.1", model.sizes["d_model"], 1)
    with pytest.raises(InputError, match=r"write mlp_out\.1"):
        method.run(model, pairs, bases=[one, dictionary("mlp_out.1", model.sizes["d_model"], 2)])
    with pytest.raises(InputError, match="are called features"):
        method.run(model, pairs, bases=[one, dictionary("mlp_out.0", model.sizes["d_model"], 1)])
    same = pairs_of(pairs.clean, pairs.clean, [3] * 4, [5] * 4)
    with pytest.raises(InputError, match="changes the metric by"):
        method.run(model, same, bases=[one])
    with pytest.raises(InputError, match="no neurons"):
        neurons(microtome.load(make("microtome_attention_only")))
    assert isinstance(neurons(model)[0], Neurons)
