"""Hand-set heads get the scores they must: copying 1, its negative -1; shuffled weights get none."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from microtome.core.errors import InputError
from microtome.models.head_circuits import token_embeddings, token_ov, token_qk
from microtome.models.load import load
from microtome.models.model import Model
from microtome.models.readout import readout
from microtome.weights import qk_ov
from models import families

V, D = 40, 64


def copier() -> Model:
    """One layer, two heads: 0.0 copies half of the stream's directions, 0.1 writes the other half negated."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    module = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        module.model.embed_tokens.weight.copy_(torch.randn(V, D))
        attention = module.model.layers[0].self_attn
        attention.v_proj.weight.copy_(torch.linalg.qr(torch.randn(D, D)).Q)
        attention.o_proj.weight.copy_(attention.v_proj.weight.T)
        attention.o_proj.weight[:, D // 2 :] *= -1
        attention.q_proj.weight.copy_(torch.eye(D))
        attention.k_proj.weight.copy_(torch.eye(D))
    return load(module)


def test_a_copying_head_scores_one_its_negative_minus_one_a_twin_neither() -> None:
    found = qk_ov.run(copier(), None, qk_ov.Config(sample=V))
    np.testing.assert_allclose(found.data["copying"].values, [[1.0, -1.0]], atol=1e-4)
    assert found.data["writes_itself"].values[0, 0] == 1.0
    assert found.data["writes_itself"].values[0, 1] == 0.0
    assert np.abs(found.data["twin_copying"].values).max() < 0.6
    assert found.data["twin_writes_itself"].values.max() < 0.3


def test_the_strongest_pairs_are_the_largest_entries() -> None:
    model = copier()
    found = qk_ov.run(model, None, qk_ov.Config(pairs=5, heads=("0.1",), control=False))
    embeddings, head = token_embeddings(model), readout(model)
    for name, rows, columns, circuit in (
        ("ov", "source", "out", list(token_ov(model, 0, head, embeddings))[1].dense()),
        ("qk", "query", "key", list(token_qk(model, 0, embeddings))[1].dense()),
    ):
        values = found.data[f"{name}_value"].values[0]
        np.testing.assert_allclose(values, circuit.flatten().topk(5).values, rtol=1e-4)
        row, column = (found.data[f"{name}_{side}"].values[0, 0] for side in (rows, columns))
        assert circuit[int(row), int(column)].item() == pytest.approx(values[0], rel=1e-4)
    assert "twin_copying" not in found.data


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_eigenvalues_are_those_of_the_matrix_over_the_vocabulary(name: str) -> None:
    model = families.model(name)
    found = qk_ov.run(model, None, qk_ov.Config(pairs=0, control=False))
    dense = list(token_ov(model, 1, readout(model), token_embeddings(model)))[2].dense().double()
    every = torch.linalg.eigvals(dense)
    told = torch.tensor(found.data["eigenvalue"].values[1, 2], dtype=torch.float64)
    size = float(every.abs().max())
    assert told[:, 0].sum().item() == pytest.approx(float(dense.trace()), rel=1e-3, abs=1e-3 * size)
    largest = every.abs().sort(descending=True).values[: len(told)]
    torch.testing.assert_close(told.norm(dim=1), largest, rtol=1e-2, atol=1e-2 * size)


def test_it_draws_itself_and_refuses_an_unknown_head() -> None:
    model = copier()
    shapes = qk_ov.run(model, None, qk_ov.Config(pairs=3)).shapes()
    assert [shape.title for shape in shapes[2:]] == [f"Strongest pairs of head 0.{h}" for h in (0, 1)]
    assert "twin" in shapes[0].caption
    with pytest.raises(InputError, match=r"0\.7 is no head"):
        qk_ov.run(model, None, qk_ov.Config(heads=("0.7",)))
