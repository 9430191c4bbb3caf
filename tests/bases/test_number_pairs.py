"""All pairs are made of a few prompts; the table is what the model says; prompts of no pattern are refused."""

import pytest
import torch

import microtome
from microtome.bases.number_pairs import number_pairs, table
from microtome.core.errors import InputError
from microtome.core.site import Site
from models import families


def test_every_pair_once_and_where_the_given_stand() -> None:
    prompts = torch.tensor([[9, 4, 7, 5], [9, 2, 7, 4], [9, 5, 7, 2]])
    pairs = number_pairs(prompts, (1, 3))
    assert pairs.numbers.tolist() == [2, 4, 5]
    assert pairs.p == 3
    assert len({tuple(row) for row in pairs.tokens.tolist()}) == 9
    assert torch.equal(pairs.tokens[pairs.given], prompts)
    assert pairs.is_given.int().tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    # the order of the numbers may be another than that of their ids
    assert torch.equal(
        number_pairs(prompts, (1, 3), (5, 4, 2)).tokens[:3, 1:4:2], torch.tensor([[5, 5], [5, 4], [5, 2]])
    )


@pytest.mark.parametrize(
    ("prompts", "columns", "numbers", "told"),
    [
        ([[1, 2, 0]], (0, 3), (), "columns of 3"),
        ([[1, 2, 0]], (1, 1), (), "different columns"),
        ([[1, 2, 0], [2, 1, 5]], (0, 1), (), "differ outside"),
        ([[1, 2, 0]], (0, 1), (1, 3), "id 2 stands in a column"),
        ([[1, 2, 0]], (0, 1), (1, 2, 2), "two numbers"),
    ],
)
def test_prompts_of_no_pattern_are_refused(
    prompts: list[list[int]], columns: tuple[int, int], numbers: tuple[int, ...], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        number_pairs(torch.tensor(prompts), columns, numbers)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_the_table_is_what_the_model_says(name: str) -> None:
    model: microtome.Model = families.model(name)
    pairs = number_pairs(torch.tensor([[3, 5, 1], [5, 8, 1]]))
    site = Site("mlp_post", 0)
    logits, values = table(model, pairs, (site,))
    plain = model.module(pairs.tokens).logits.detach()[:, -1]
    assert torch.allclose(logits.flatten(0, 1), plain[:, pairs.numbers], atol=1e-5)
    assert values[site].shape == (3, 3, model.sizes["d_mlp"])
    read = model.run(pairs.tokens, [site])[site][:, -1]
    assert torch.allclose(values[site].flatten(0, 1), read, atol=1e-6)
