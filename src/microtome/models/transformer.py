"""What is a transformer? A small one to read, to train on a laptop, and to take apart.

1. Each token becomes a vector (`embed`), to which its position may add another: the residual stream.
2. In each block, attention reads the stream and adds to it: every head mixes values of earlier positions by a softmax
   of query–key products. Then, unless the model is attention-only, an MLP reads the stream and adds to it.
3. A last norm and the unembedding turn the stream into logits of the next token.

It is an ordinary Hugging Face model: `save_pretrained`, `from_pretrained` and `generate` work, and its attention goes
through the same interface as everyone's, so everything in Microtome works on it as on any other model.

    model = microtome.load(Transformer(TransformerConfig(intermediate_size=0, positions="rotary")).eval())
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Stream = Float[Tensor, "batch position d_model"]
Heads = Float[Tensor, "batch head position d_head"]


@strict
class TransformerConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes and choices.

    intermediate_size: neurons of each MLP; 0 for an attention-only model.
    positions: a learned vector for each, rotation of queries and keys, or none at all.
    norm: before attention, before the MLP and at the end: LayerNorm, RMSNorm, or none at all.
    hidden_act: gelu, relu, solu (x · softmax(x)); with a gate: bilinear (gate · x), silu (silu(gate) · x).
    bias: whether the linear layers inside the blocks have one.
    causal: whether a position sees no later one. Without, it reads whole texts and does not generate.
    """

    model_type = "microtome"
    __no_type_check__ = True  # `strict` checks the fields itself, and takes more than its signature says

    vocab_size: int = 1024
    hidden_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    head_dim: int = 32
    intermediate_size: int = 512
    max_position_embeddings: int = 256
    positions: Literal["learned", "rotary", "none"] = "learned"
    norm: Literal["layer", "rms", "none"] = "layer"
    hidden_act: Literal["gelu", "relu", "solu", "bilinear", "silu"] = "gelu"
    bias: bool = True
    causal: bool = True
    rope_theta: float = 10000.0
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def validate_architecture(self) -> None:
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(
                f"rotary positions turn pairs of units; head_dim {self.head_dim} is odd, make it even"
            )


def make_norm(config: TransformerConfig) -> nn.Module:
    match config.norm:
        case "layer":
            return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        case "rms":
            return nn.RMSNorm(config.hidden_size, eps=config.layer_norm_eps)
    return nn.Identity()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "solu": lambda x: x * torch.softmax(x, dim=-1),
    "bilinear": lambda gate: gate,
    "silu": functional.silu,
}
GATED = ("bilinear", "silu")


def rotate(x: Heads, positions: Int[Tensor, "#batch position"], theta: float) -> Heads:
    """Turn each pair (i, i + d_head/2) by an angle proportional to the position, slower for larger i."""
    half = x.shape[-1] // 2
    speed = theta ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = positions[:, None, :, None].float() * speed
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    one, two = x[..., :half], x[..., half:]
    return torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1)


def eager_attention_forward(
    module: nn.Module, q: Heads, k: Heads, v: Heads, mask: Tensor | None, *, scaling: float, **_: Any
) -> tuple[Float[Tensor, "batch position head d_head"], Float[Tensor, "batch head query key"]]:
    """Attention written out. The mask is 0 where a query may look and very negative elsewhere."""
    scores = q @ k.transpose(-1, -2) * scaling
    pattern = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    return (pattern @ v).transpose(1, 2), pattern


class Attention(nn.Module):
    """Every head moves what it finds at earlier positions to this one."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer, self.is_causal = config, layer, config.causal
        width = config.num_attention_heads * config.head_dim
        self.q = nn.Linear(config.hidden_size, width, bias=config.bias)
        self.k = nn.Linear(config.hidden_size, width, bias=config.bias)
        self.v = nn.Linear(config.hidden_size, width, bias=config.bias)
        self.o = nn.Linear(width, config.hidden_size, bias=config.bias)

    def forward(
        self, x: Stream, mask: Tensor | None, positions: Int[Tensor, "#batch position"], cache: Cache | None
    ) -> Stream:
        q, k, v = (
            project(x).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        if self.config.positions == "rotary":
            q, k = (rotate(vectors, positions, self.config.rope_theta) for vectors in (q, k))
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        z, _ = attend(self, q, k, v, mask, scaling=self.config.head_dim**-0.5)
        written: Tensor = self.o(z.flatten(2))
        return written


class MLP(nn.Module):
    """Neurons: each reads one direction of the stream and writes another."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.bias)
        self.gate = (
            nn.Linear(config.hidden_size, config.intermediate_size, bias=config.bias)
            if config.hidden_act in GATED
            else None
        )
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.bias)

    def forward(self, x: Stream) -> Stream:
        neurons = (
            self.activation(self.up(x)) if self.gate is None else self.activation(self.gate(x)) * self.up(x)
        )
        written: Tensor = self.down(neurons)
        return written


class Block(nn.Module):
    """Attention adds to the stream, then the MLP does."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.attn_norm = make_norm(config)
        self.attn = Attention(config, layer)
        self.mlp_norm = make_norm(config) if config.intermediate_size else None
        self.mlp = MLP(config) if config.intermediate_size else None

    def forward(
        self,
        stream: Stream,
        attention_mask: Tensor | None,
        position_ids: Int[Tensor, "#batch position"],
        past_key_values: Cache | None = None,
    ) -> Stream:
        stream = stream + self.attn(self.attn_norm(stream), attention_mask, position_ids, past_key_values)
        if self.mlp is not None and self.mlp_norm is not None:
            stream = stream + self.mlp(self.mlp_norm(stream))
        return stream


class Transformer(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The whole model: ids in, logits of the next token out."""

    config_class = TransformerConfig
    _no_split_modules = ("Block",)
    _supports_sdpa = True
    _supports_attention_backend = True
    _tied_weights_keys = {"unembed.weight": "embed.weight"}  # noqa: RUF012

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.pos_embed = (
            nn.Embedding(config.max_position_embeddings, config.hidden_size)
            if config.positions == "learned"
            else None
        )
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.final_norm = make_norm(config)
        self.unembed = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed

    def get_output_embeddings(self) -> nn.Linear:
        return self.unembed

    def forward(
        self,
        input_ids: Int[Tensor, "batch position"],
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#batch position"] | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        labels: Int[Tensor, "batch position"] | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits `[batch, position, token]` (of the last `logits_to_keep` positions; 0 = all), and the mean loss of
        `labels`, which are the ids themselves (-100: not counted)."""
        caches = self.config.use_cache if use_cache is None else use_cache
        if past_key_values is None and caches and self.config.causal:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(seen, seen + input_ids.shape[1], device=input_ids.device)[None]
        stream = self.embed(input_ids)
        if self.pos_embed is not None:
            stream = stream + self.pos_embed(position_ids)
        if self.config.causal:
            mask = create_causal_mask(self.config, stream, attention_mask, past_key_values, position_ids)
        else:
            mask = create_bidirectional_mask(self.config, stream, attention_mask)
        for block in self.blocks:
            stream = block(stream, mask, position_ids, past_key_values)
        logits = self.unembed(self.final_norm(stream[:, -logits_to_keep:]))
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)


AutoConfig.register("microtome", TransformerConfig, exist_ok=True)
AutoModelForCausalLM.register(TransformerConfig, Transformer, exist_ok=True)
