"""What does a language model look like that has no superposition? One in which every feature has its own dimension.

Here no superposition means: each known feature of the residual stream has a direction orthogonal to those of all
others, so that its dimensionality ‖W_i‖² / Σ_j (Ŵ_i · W_j)² is 1 and reading one along its direction meets nothing of
the others. The known features are all that an attention-only model of one layer can hold there:

1. "this token is i": dimension i of the embedding, which is one-hot;
2. "this position is p": a dimension for each, one-hot likewise;
3. "the head attends to token i, by so much": a dimension for each, where the head writes without mixing.

The price is a stream as wide as its features, 1400 dimensions where an ordinary member has 64. What is learnt is how
the head attends (queries and keys of `RANK` dimensions, so that *they* do compress) and what each feature says of the
next token. Because the stream is one-hot, training needs only tables that are looked up (`Tables`); `assemble` writes
them out as an ordinary `Transformer` with the same logits.

``python -m microtome.testbeds.stories.superposition_free --out FILE`` trains it.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from microtome.core.config import Config, Seed
from microtome.models.load import load
from microtome.models.model import Model
from microtome.models.transformer import Transformer, TransformerConfig
from microtome.testbeds import kept
from microtome.testbeds.stories.behaviours import measure
from microtome.testbeds.stories.corpus import CONTEXT, documents
from microtome.testbeds.stories.grammar import BOS, PAD, VOCABULARY
from microtome.testbeds.stories.tokenizer import build
from microtome.testbeds.training import Training, seeded
from microtome.testbeds.training import train as train_module

TOKENS, RANK = len(VOCABULARY), 32
STREAM = TOKENS + CONTEXT + TOKENS
"""Features of the stream, and its width: tokens, positions, tokens attended to."""
WEIGHTS = Path(__file__).parent / "weights"
HELD_OUT_DOCUMENTS = 500


class Settings(Config):
    """Everything that the trained weights depend on."""

    seed: Seed = Field(0, description="seeds the weights and the stories")
    steps: int = Field(1500, gt=0, description="optimizer steps")
    batch: int = Field(16, gt=0, description="documents of 128 tokens in a step")
    rate: float = Field(0.08, gt=0, description="highest learning rate of AdamW")
    warmup: int = Field(50, ge=0, description="steps over which the learning rate rises")


class Tables(nn.Module):
    """The same function, looked up: what each feature says of the next token, and how tokens and positions attend."""

    def __init__(self) -> None:
        super().__init__()
        self.direct = nn.Parameter(torch.zeros(TOKENS, TOKENS))
        self.attended = nn.Parameter(torch.zeros(TOKENS, TOKENS))
        self.q = nn.Parameter(torch.randn(TOKENS + CONTEXT, RANK) * RANK**-0.25)
        self.k = nn.Parameter(torch.randn(TOKENS + CONTEXT, RANK) * RANK**-0.25)

    def forward(self, tokens: Int[Tensor, "row column"]) -> Float[Tensor, "row column token"]:
        length = tokens.shape[1]
        q, k = (table[tokens] + table[TOKENS : TOKENS + length] for table in (self.q, self.k))
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        pattern = (q @ k.transpose(1, 2) * RANK**-0.5).masked_fill(later, -math.inf).softmax(-1)
        return self.direct[tokens] + pattern @ self.attended[tokens]


def train(settings: Settings, *, keep: tuple[int, ...] = (), title: str = "") -> tuple[Tables, Training]:
    """Tables trained on the documents of the settings' seed, step by step."""
    with seeded(settings.seed):
        tables = Tables()
    log = train_module(
        tables,
        torch.optim.AdamW(tables.parameters(), lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.0),
        lambda step: _tokens(settings, step),
        _loss,
        settings.steps,
        rate=lambda step: _rate_share(step, settings),
        keep=keep,
        title=title,
    )
    return tables, log


@torch.no_grad()
def assemble(tables: Tables) -> Transformer:
    """The tables as weights of an ordinary one-layer attention-only model without norms, with the same logits."""
    model = Transformer(
        TransformerConfig(
            vocab_size=TOKENS,
            hidden_size=STREAM,
            num_hidden_layers=1,
            num_attention_heads=1,
            head_dim=TOKENS,
            intermediate_size=0,
            max_position_embeddings=CONTEXT,
            norm="none",
            bias=False,
            bos_token_id=BOS,
            eos_token_id=BOS,
            pad_token_id=PAD,
        )
    ).eval()
    for parameter in model.parameters():
        parameter.zero_()
    attention, said = model.blocks[0].attn, TOKENS + CONTEXT
    model.embed.weight[:, :TOKENS] = torch.eye(TOKENS)
    model.pos_embed.weight[:, TOKENS:said] = torch.eye(CONTEXT)
    attention.v.weight[:, :TOKENS] = torch.eye(TOKENS)
    attention.o.weight[said:] = torch.eye(TOKENS)
    attention.q.weight[:RANK, :said] = tables.q.T * (TOKENS / RANK) ** 0.5  # the model divides by √head_dim
    attention.k.weight[:RANK, :said] = tables.k.T
    model.unembed.weight[:, :TOKENS] = tables.direct.T
    model.unembed.weight[:, said:] = tables.attended.T
    return model


def dimensionality(directions: Float[Tensor, "feature d"]) -> Float[Tensor, " feature"]:
    """How much of a dimension each feature has for itself: 1 for one orthogonal to all others, 0 for a zero row."""
    lengths = directions.norm(dim=1, keepdim=True)
    overlaps = (directions / lengths.clamp_min(1e-30)) @ directions.T
    return lengths[:, 0] ** 2 / (overlaps**2).sum(1).clamp_min(1e-30)


def features(model: Model) -> dict[str, Float[Tensor, "feature d_model"]]:
    """What each known feature adds to the stream of a one-layer model: tokens, positions, and for each head the
    tokens attended to (by embedding and OV, without the norm before attention, where there is one)."""
    addresses = ("W_E", "W_pos", "W_V.0", "W_O.0")
    embedded, placed, values, written = (model.weight(address).detach() for address in addresses)
    heads = {f"attended by head {h}": embedded @ values[h] @ written[h] for h in range(model.n_heads)}
    return {"token": embedded, "position": placed, **heads}


def misreading(model: Model, tokens: Int[Tensor, "row column"]) -> float:
    """The largest error of a feature's value, read from the stream of this model along the feature's own direction."""
    known = torch.cat(list(features(model).values()))
    seen = model.run(tokens, read=["resid_post.0", "pattern.0"])
    read = seen["resid_post.0"] @ known.T / known.square().sum(1)
    present = nn.functional.one_hot(tokens, TOKENS).float()
    where = torch.eye(CONTEXT)[: tokens.shape[1]].expand(len(tokens), -1, -1)
    attended = seen["pattern.0"][:, 0] @ present
    return float((read - torch.cat([present, where, attended], dim=-1)).abs().max())


def _tokens(settings: Settings, step: int) -> Int[Tensor, "row column"]:
    corpus = documents(settings.seed, step * settings.batch, settings.batch)
    return torch.from_numpy(corpus.tokens.astype(np.int64))


def _loss(tables: nn.Module, tokens: Int[Tensor, "row column"]) -> Float[Tensor, ""]:
    return nn.functional.cross_entropy(tables(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def _rate_share(step: int, settings: Settings) -> float:
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - settings.warmup) / (settings.steps - settings.warmup)))


def keep(file: Path, settings: Settings, title: str = "") -> None:
    """Train, measure on held-out stories, and write the tables in half precision with the log of the training."""
    tables, log = train(settings, title=title)
    halves = {name: table.detach().half() for name, table in tables.named_parameters()}
    with torch.no_grad():
        for name, parameter in tables.named_parameters():
            parameter.copy_(halves[name])
    curve = {str(end): float(np.mean(log.losses[end - 50 : end])) for end in range(50, log.steps + 1, 50)}
    held_out = measure(assemble(tables), settings.seed, HELD_OUT_DOCUMENTS).plain()
    record = {"settings": settings.model_dump(), "loss_curve": curve, "held_out": held_out}
    kept.keep(file, halves, record)


def model(settings: Settings | None = None, file: Path | None = None) -> tuple[Model, dict[str, Any]]:
    """The trained model and the log of its training, by default as shipped. Raises as `kept.restore` does."""
    settings = settings or Settings()
    with seeded(settings.seed):
        tables = Tables()
    file = file or WEIGHTS / f"superposition-free-{settings.seed}.safetensors"
    record = kept.restore(file, tables, settings.model_dump())
    found = load(assemble(tables), tokenizer=build())
    found.name = f"superposition-free-{settings.seed}"
    return found, record


def main() -> None:
    """The command line: one option for each of `Settings`, and where to write."""
    parser = argparse.ArgumentParser(description="Train the story model without superposition.")
    parser.add_argument("--out", type=Path, help="the file; by default among those that ship")
    for name, field in Settings.model_fields.items():
        parser.add_argument(
            f"--{name}", type=type(field.default), default=field.default, help=field.description
        )
    arguments = vars(parser.parse_args())
    out = arguments.pop("out") or WEIGHTS / f"superposition-free-{arguments['seed']}.safetensors"
    torch.set_num_threads(1)
    keep(out, Settings.read(arguments), "training")


if __name__ == "__main__":
    main()
