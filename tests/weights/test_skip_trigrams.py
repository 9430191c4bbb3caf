"""Where the story must be exact it is; a planted rule is found and holds; positions and depth show as a gap."""

import numpy as np
import pytest
import torch
from torch import Tensor

from microtome.core.errors import InputError
from microtome.models.load import load
from microtome.models.model import Model
from microtome.models.transformer import Transformer, TransformerConfig
from microtome.weights import skip_trigrams
from microtome.weights.token_story import token_story
from models import families

V = 12
SOURCES, DESTINATION, OUTS = (1, 2), 3, (4, 5)
FILLERS = (6, 7, 8, 9, 10, 11)


def one_layer(**changes: object) -> Model:
    config = TransformerConfig(
        **{"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 8,
           "intermediate_size": 0, "positions": "none", "initializer_range": 0.3} | changes,
    )  # fmt: skip
    return load(Transformer(config).eval())


def planted_text(rows: int, seed: int = 0) -> Tensor:
    """`source … destination out`: the source decides the out; everything else is filler."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.tensor(FILLERS)[torch.randint(len(FILLERS), (rows, 12), generator=generator)]
    which = torch.randint(2, (rows,), generator=generator)
    text[:, 2] = torch.tensor(SOURCES)[which]
    text[:, 8] = DESTINATION
    text[:, 9] = torch.tensor(OUTS)[which]
    # Destinations without a source before them.
    text[::3, 0] = DESTINATION
    return text


def planted(heads: int = 1) -> Model:
    """The first head: the destination looks for the two sources, and each source writes its out."""
    model = one_layer(
        vocab_size=V, hidden_size=V, num_attention_heads=heads, head_dim=4, norm="none", bias=False
    )
    module = model.module
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        model.weight("W_E").copy_(torch.eye(V))
        model.weight("W_U").copy_(torch.eye(V))
        q, k, v, o = (model.weight(f"W_{name}.0")[0] for name in "QKVO")
        q[DESTINATION, 0] = 20.0
        for i, (source, out) in enumerate(zip(SOURCES, OUTS, strict=True)):
            k[source, 0] = 1.0
            v[source, i] = 1.0
            o[i, out] = 6.0
    return model


@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
def test_without_positions_one_attention_layer_is_its_skip_trigrams(norm: str) -> None:
    found = skip_trigrams.run(one_layer(norm=norm), families.ids(4)).data
    assert found["divergence"].sel(rung="direct path and all rules") < 1e-5
    assert found["agreement"].sel(rung="direct path and all rules") == 1
    loss = found["loss"]
    assert float(loss.sel(rung="direct path and all rules")) == pytest.approx(
        float(loss.sel(rung="the model")), rel=1e-5
    )
    # The controls: with less than all, the divergence is real.
    assert found["divergence"].sel(rung="direct path") > 0.05
    assert found["divergence"].sel(rung="unigrams, counted") > 0.05


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox", "phi", "bloom"])
def test_with_positions_its_own_patterns_make_up_the_difference(name: str) -> None:
    """Rotations and biases by distance are what the story by token lacks; values and writing it has exactly."""
    module = families.make(name)
    body = getattr(module, "model", None) or getattr(module, "gpt_neox", None) or module.transformer
    blocks = body.layers if hasattr(body, "layers") else body.h
    for _ in range(2):
        del blocks[-1]
    with torch.no_grad():
        for parameter_name, parameter in blocks[0].named_parameters():
            if any(word in parameter_name for word in ("down_proj", "dense_4h_to_h", "fc2")):
                parameter.zero_()
    model = load(module, check=False)
    found = skip_trigrams.run(model, families.ids(4)).data["divergence"]
    assert found.sel(rung="all rules, the model's own patterns") < 1e-4
    assert found.sel(rung="direct path and all rules") > 1e-3


def test_rules_cut_nowhere_are_all_rules() -> None:
    found = skip_trigrams.run(one_layer(), families.ids(4), skip_trigrams.Config(top=61)).data
    for name in ("divergence", "loss"):
        few, every = (
            float(found[name].sel(rung=f"direct path and {which} rules")) for which in ("few", "all")
        )
        assert few == pytest.approx(every, abs=1e-4)


def test_a_planted_rule_is_found_holds_and_explains() -> None:
    found = skip_trigrams.run(planted(), planted_text(60), skip_trigrams.Config(rules=4, top=1)).data
    rules = list(
        zip(*(found[f"rule_{side}"].values for side in ("source", "destination", "out")), strict=True)
    )
    assert set(rules[:2]) == {(" 1", " 3", " 4"), (" 2", " 3", " 5")}
    assert (found["rule_model"].values[:2] > 1).all()
    assert (found["rule_text"].values[:2] > 1).all()
    divergence = found["divergence"]
    assert divergence.sel(rung="direct path and few rules") < 0.2 * divergence.sel(rung="direct path")


def test_a_rule_the_model_does_not_obey_is_shown_as_such() -> None:
    """A second head looks from the destination at the first source and takes back twice what the first writes."""
    model = planted(heads=2)
    with torch.no_grad():
        for name in "QKV":
            model.weight(f"W_{name}.0")[1] = model.weight(f"W_{name}.0")[0]
        model.weight("W_O.0")[1, 0, OUTS[0]] = -12.0
    found = skip_trigrams.run(model, planted_text(60), skip_trigrams.Config(rules=2))
    holds = dict(zip(found.data["rule_source"].values, found.data["rule_model"].values, strict=True))
    assert holds.keys() == {" 1", " 2"}
    assert holds[" 1"] < -1
    assert holds[" 2"] > 1
    assert "does not obey 1" in found.notes[0]
    assert (
        "does not obey 0"
        in skip_trigrams.run(planted(), planted_text(60), skip_trigrams.Config(rules=2)).notes[0]
    )


def test_deeper_models_are_not_explained_and_the_result_says_so() -> None:
    found = skip_trigrams.run(families.model("gpt2"), families.ids(4))
    assert found.data["divergence"].sel(rung="all rules, the model's own patterns") > 0.05
    assert "more than one attention layer" in found.notes[1]
    told = skip_trigrams.run(one_layer(), families.ids(4)).notes
    assert not any("more than one attention layer" in note for note in told)


def test_counted_bigrams_are_what_the_first_half_says() -> None:
    text = torch.tensor([[1, 2, 1, 2, 1, 2], [1, 2, 1, 2, 1, 2], [1, 2, 1, 2, 1, 2], [1, 2, 1, 2, 1, 2]])
    loss = skip_trigrams.run(planted(), text).data["loss"]
    # After 1 always 2 (6 of 6), after 2 always 1 (4 of 4), one part of the unigrams mixed in.
    uni = {1: (4 + 1) / (10 + V), 2: (6 + 1) / (10 + V)}
    expected = -np.mean([np.log((6 + uni[2]) / 7)] * 3 + [np.log((4 + uni[1]) / 5)] * 2)
    assert float(loss.sel(rung="bigrams, counted")) == pytest.approx(expected, rel=1e-5)
    single = -np.mean([np.log(uni[2])] * 3 + [np.log(uni[1])] * 2)
    assert float(loss.sel(rung="unigrams, counted")) == pytest.approx(single, rel=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "llama", "gemma2"])
def test_the_story_takes_its_scores_from_the_model(name: str) -> None:
    model = families.model(name)
    story = token_story(model, range(61), 1)
    found = model.run(torch.arange(61)[:, None], ["scores.0"], mask=torch.ones(61, 1, dtype=torch.long))
    own = found["scores.0"][:, :, 0, 0]
    mine = torch.stack([story.scores(h).diagonal() for h in range(4)], dim=1)
    torch.testing.assert_close(mine, own, rtol=1e-3, atol=1e-3)


def test_it_draws_tables_and_refuses_a_single_row() -> None:
    rungs, rules, bigrams, worst = skip_trigrams.run(planted(), planted_text(8)).shapes()
    assert [row[0] for row in rungs.rows][-1] == "the model"
    assert "held-out" in rungs.caption
    assert len(rules.columns) == len(rules.rows[0]) == 8
    assert bigrams.rows
    assert len(worst.rows) == 10
    with pytest.raises(InputError, match="two rows"):
        skip_trigrams.run(planted(), planted_text(1))
