"""A network in which a direction carries a variable by an illusion (after Makelov, Lange and Nanda 2023).

Of three neurons, the first holds the number and is read; the second holds it and nothing reads it; the third is always
zero, and would be read. Half the second and half the third is a direction that moves the answer, through the third.
"""

import torch

import microtome
from microtome.data.causal_model import TOKENS, CausalModel, Variable
from microtome.data.hypothesis import Hypothesis, Location
from microtome.models.model import Model
from microtome.models.transformer import Transformer, TransformerConfig

SITE = "mlp_post.0"
HONEST = torch.tensor([[1.0, 0.0, 0.0]])
ILLUSION = torch.tensor([[0.0, 0.5**0.5, 0.5**0.5]])


def network() -> Model:
    sizes = {
        "vocab_size": 4,
        "hidden_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "head_dim": 4,
    }
    config = TransformerConfig(
        **sizes, intermediate_size=3, positions="none", norm="none", hidden_act="relu", bias=False
    )
    with torch.random.fork_rng():
        module = Transformer(config).eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.zero_()
    (block,) = module.blocks
    module.embed.weight[:2] = torch.tensor([[1.0, 0.0, 1.0, 0.0], [2.0, 0.0, 1.0, 0.0]])
    block.mlp.up.weight[:2, 0] = 1.0
    block.mlp.down.weight[1, 0] = block.mlp.down.weight[3, 2] = 1.0
    module.unembed.weight[2, 2], module.unembed.weight[3, 1], module.unembed.weight[3, 3] = 15.0, 10.0, 25.0
    return microtome.load(module)


def hypothesis(directions: torch.Tensor) -> Hypothesis:
    model = CausalModel(
        (
            Variable("large", (TOKENS,), lambda tokens: (tokens == 1).long()),
            Variable("answer", ("large",), lambda large: large + 2),
        )
    )
    return Hypothesis(model, {"large": Location(SITE, directions)}, torch.tensor([[0], [1]]))
