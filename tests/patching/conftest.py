"""Four kinds of transformer with random weights, one that is linear, and pairs of random prompts."""

from collections.abc import Callable, Sequence

import pytest
import torch
import transformers
from torch import nn

from microtome.data.pairs import Pairs
from microtome.models.load import load
from microtome.models.model import Model

VOCABULARY = 61
LLAMA_SIZES = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "pad_token_id": 0,
}


def _gpt2(activation: str = "gelu_new") -> transformers.PreTrainedModel:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=32,
        n_layer=3,
        n_head=4,
        activation_function=activation,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


def _llama() -> transformers.PreTrainedModel:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA_SIZES))


def _gpt_neox() -> transformers.PreTrainedModel:
    config = transformers.GPTNeoXConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=32,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
    )
    return transformers.GPTNeoXForCausalLM(config)


def _gemma2() -> transformers.PreTrainedModel:
    config = transformers.Gemma2Config(**LLAMA_SIZES, head_dim=8, sliding_window=4, query_pre_attn_scalar=8)
    return transformers.Gemma2ForCausalLM(config)


BUILDERS = {"gpt2": _gpt2, "llama": _llama, "gpt_neox": _gpt_neox, "gemma2": _gemma2}
FAMILIES = tuple(BUILDERS)


def _random(module: nn.Module) -> nn.Module:
    """Weights large enough that every part matters, biases and norms that are not trivial."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.mul_(6)
    return module.eval()


def make_model(name: str) -> Model:
    torch.manual_seed(0)
    return load(_random(BUILDERS[name]()))


def make_linear() -> Model:
    """A transformer in which the logits are a linear function of the embeddings: no norms, no queries, no curves."""
    torch.manual_seed(0)
    module = _random(_gpt2("linear"))
    with torch.no_grad():
        module.transformer.wte.weight.mul_(4)
        for block in module.transformer.h:
            block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
            block.attn.c_attn.weight[:, :32] = 0
            block.attn.c_attn.bias[:32] = 0
    module.transformer.ln_f = nn.Identity()
    # Unchecked, because without norms the sites of their scales are not there; nothing here uses them.
    return load(module, check=False)


def make_pairs(lengths: Sequence[int], seed: int = 0) -> Pairs:
    """Prompts of these lengths; clean and corrupt differ in the slot `subject` (two tokens from 1 or 2 on)."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    clean = torch.randint(1, VOCABULARY, (len(lengths), longest), generator=generator)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    clean = clean * mask
    corrupt = clean.clone()
    slots = []
    for row, length in enumerate(lengths):
        start = 1 if len(set(lengths)) == 1 else 1 + row % 2
        corrupt[row, start : start + 2] = 1 + (clean[row, start : start + 2] + 6) % (VOCABULARY - 1)
        slots.append({"subject": (start, start + 2), "place": (length - 2, length - 1)})
    targets = torch.randperm(VOCABULARY, generator=generator)[: 2 * len(lengths)].tolist()
    return Pairs(
        clean=clean,
        corrupt=corrupt,
        mask=None if bool(mask.all()) else mask.long(),
        answers=tuple((t,) for t in targets[::2]),
        wrong=tuple((t,) for t in targets[1::2]),
        slots=tuple(slots),
        texts=tuple(map(str, range(len(lengths)))),
        corrupt_texts=tuple(map(str, range(len(lengths)))),
        token_strings={token: f" w{token}" for token in range(VOCABULARY)},
        task="random",
        seed=seed,
    )


@pytest.fixture(scope="session")
def models() -> Callable[[str], Model]:
    """A model by name, made once; `linear` is the linear one. Not to be written to."""
    made: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in made:
            made[name] = make_linear() if name == "linear" else make_model(name)
        return made[name]

    return get


@pytest.fixture(scope="session")
def fresh() -> Callable[[str], Model]:
    """A model of one's own, to write to."""
    return make_model


@pytest.fixture(scope="session", params=FAMILIES)
def model(request: pytest.FixtureRequest, models: Callable[[str], Model]) -> Model:
    """Each family in turn."""
    return models(request.param)


@pytest.fixture(scope="session")
def linear(models: Callable[[str], Model]) -> Model:
    return models("linear")


@pytest.fixture(scope="session")
def pairs() -> Pairs:
    """Six pairs of seven tokens."""
    return make_pairs([7] * 6)


@pytest.fixture(scope="session")
def uneven() -> Pairs:
    """Pairs of different lengths."""
    return make_pairs([6, 8, 7, 8])
