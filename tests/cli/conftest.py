"""A model in a folder, a method of a stranger, and a way to type a command."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from microtome.cli.app import app


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary Hugging Face folder: a tiny, untrained GPT-2 with a word-level tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "tiny-model"
    words = "<unk> <bos> a the dog cat sat ran on mat".split() + [f"{a}{b}" for a in "klmnp" for b in "aeiou"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", pad_token="<bos>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = GPT2Config(
        vocab_size=len(words), n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1
    )
    GPT2LMHeadModel(sizes).save_pretrained(folder)
    return folder


@pytest.fixture
def command(offer: Callable[..., None]) -> Callable[..., Result]:
    """Runs `microtome` with these words; the method `weight_norms` is installed. Output is wide and colourless."""
    offer("methods", weight_norms="weight_norms")

    def run(*words: str | Path) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200", "NO_COLOR": "1"})

    return run
