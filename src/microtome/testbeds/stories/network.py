"""Which network do the settings of a training describe, and how are its weights stepped?

1. With MLPs it is an ordinary `GPT2LMHeadModel`; without, our own `Transformer`, since GPT-2 always has them. Either
   is initialised from the seed, its positions as sinusoids, from which attention to the token before is soon learnt.
2. Muon steps the matrices of the blocks; AdamW the embeddings, biases and norms.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.optim import AdamW
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from microtome.core.config import Config, Seed
from microtome.models.transformer import Transformer, TransformerConfig
from microtome.testbeds.stories.corpus import CONTEXT
from microtome.testbeds.stories.grammar import BOS, PAD, VOCABULARY
from microtome.testbeds.stories.muon import Muon
from microtome.testbeds.training import seeded


class Settings(Config):
    """Everything that the trained weights depend on."""

    seed: Seed = Field(0, description="seeds the weights and the stories")
    width: float = Field(1.0, gt=0, description="multiplies the hidden size; 2 makes the twin")
    hidden: int = Field(96, gt=0, description="hidden size at width 1")
    layers: int = Field(4, gt=0, description="blocks")
    heads: int = Field(4, gt=0, description="attention heads in each block")
    steps: int = Field(8000, gt=0, description="optimizer steps")
    batch: int = Field(16, gt=0, description="documents of 128 tokens in a step")
    matrix_rate: float = Field(0.02, gt=0, description="highest learning rate of Muon")
    rate: float = Field(3e-3, gt=0, description="highest learning rate of AdamW")
    warmup: int = Field(50, ge=0, description="steps over which the learning rates rise")
    weight_decay: float = Field(0.05, ge=0, description="Muon's decay of matrices")
    mlp: bool = Field(True, description="whether blocks have MLPs, of four times the hidden size in neurons")


def differences(saved: Mapping[str, Any], wanted: Settings) -> list[str]:
    """In what a saved training's settings differ from those wanted, in words; none for the same training.

    A log may be older than a setting: it was trained with what is the default now.
    """
    known = Settings().model_dump() | dict(saved)
    return [f"{k} {known[k]} instead of {v}" for k, v in wanted.model_dump().items() if known[k] != v]


def new_model(settings: Settings) -> PreTrainedModel:
    """The untrained model of these settings, initialised from their seed."""
    width = round(settings.hidden * settings.width)
    with seeded(settings.seed):
        model = (_gpt2 if settings.mlp else _attention_only)(settings, width)
    positions = model.transformer.wpe if settings.mlp else model.pos_embed
    with torch.no_grad():
        positions.weight.copy_(_sinusoids(CONTEXT, width) * (2 / width) ** 0.5)
    return model


def optimizers(model: PreTrainedModel, settings: Settings) -> tuple[Muon, AdamW]:
    """Both optimizers of a model that `new_model` made, each with its own parameters at their highest rates."""
    blocks: Any = model.transformer.h if settings.mlp else model.blocks
    matrices = [parameter for parameter in blocks.parameters() if parameter.ndim == 2]
    fused = [block.attn.c_attn.weight for block in blocks] if settings.mlp else []
    apart = {id(parameter) for parameter in fused}
    groups = [
        {"params": fused, "parts": 3},
        {"params": [m for m in matrices if id(m) not in apart], "parts": 1},
    ]
    chosen = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return (
        Muon(
            [group | {"transposed": not settings.mlp} for group in groups if group["params"]],
            lr=settings.matrix_rate,
            weight_decay=settings.weight_decay,
        ),
        AdamW(rest, lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.0),
    )


def _gpt2(settings: Settings, width: int) -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(VOCABULARY),
            n_positions=CONTEXT,
            n_embd=width,
            n_layer=settings.layers,
            n_head=settings.heads,
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            initializer_range=width**-0.5,
            bos_token_id=BOS,
            eos_token_id=BOS,
            pad_token_id=PAD,
        )
    )


def _attention_only(settings: Settings, width: int) -> PreTrainedModel:
    return Transformer(
        TransformerConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=width,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            head_dim=width // settings.heads,
            intermediate_size=0,
            max_position_embeddings=CONTEXT,
            initializer_range=width**-0.5,
            tie_word_embeddings=True,
            bos_token_id=BOS,
            eos_token_id=BOS,
            pad_token_id=PAD,
        )
    )


def _sinusoids(positions: int, width: int) -> Float[Tensor, "position hidden"]:
    angles = torch.arange(positions)[:, None] * 1000.0 ** -(torch.arange(0, width, 2) / width)
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]
