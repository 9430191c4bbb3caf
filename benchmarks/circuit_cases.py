"""The networks and prompts on which edges are measured, and how public tools are measured on the very same.

GPT-2-small shape with random weights, biases and norms included, 8 × 15 tokens, 32 491 edges; and two attention-only
layers of eight heads, 257 edges. For a tool, weights under the names that TransformerLens gives them and the prompts go
into a folder, and its own Python runs `circuit_tools.py` there (what to install is said in that file).
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.models.transformer import Transformer, TransformerConfig

ROWS, COLUMNS = 8, 15
MACHINE = (
    "Random weights, CPU seconds of one thread on a shared machine. Targets were set on another, where a plain forward "
    "with backward pass of GPT-2 small on 8 × 15 tokens takes 0.71 s: they stand here as ratios to that pass."
)
PLAIN_THERE = 0.71


def gpt2_small() -> transformers.GPT2LMHeadModel:
    """Random weights; biases and norms are not left at zero and one."""
    torch.manual_seed(0)
    module = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    for parameter in module.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return module


def attention_only(vocabulary: int) -> Transformer:
    """Two layers of eight heads, width 256."""
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        num_hidden_layers=2,
        num_attention_heads=8,
        head_dim=32,
        intermediate_size=0,
    )
    return Transformer(config).eval()


def prompts(vocabulary: int) -> Pairs:
    """Random tokens; the metric is the logit difference of two tokens a row."""
    drawn = torch.Generator().manual_seed(0)
    clean, corrupt = torch.randint(min(vocabulary, 50_000), (2, ROWS, COLUMNS), generator=drawn)
    right, wrong = (tuple((row + start,) for row in range(ROWS)) for start in (5, 50))
    empty = ("",) * ROWS
    return Pairs(clean, corrupt, None, right, wrong, ({},) * ROWS, empty, empty, {})


def by_tool(
    python: str, tool: str, work: str, model: Model, pairs: Pairs, **more: Tensor
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a tool needs for some work, and what it finds. python: the interpreter that has the tool."""
    with tempfile.TemporaryDirectory() as folder:
        save_file(_named(model), Path(folder, "weights.safetensors"))
        given = {"clean": pairs.clean, "corrupt": pairs.corrupt, **more}
        given |= {"right": torch.tensor(pairs.answers)[:, 0], "wrong": torch.tensor(pairs.wrong)[:, 0]}
        save_file(
            {name: value.contiguous() for name, value in given.items()}, Path(folder, "case.safetensors")
        )
        script = Path(__file__).with_name("circuit_tools.py")
        run = subprocess.run(
            [python, str(script), folder, tool, work],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            cwd=folder,
        )
        if run.returncode:
            raise SystemExit(f"{tool}, {work}: {run.stderr[-2000:]}")
        figures: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
        return figures, load_file(Path(folder, "found.safetensors"))


@torch.no_grad()
def _named(model: Model) -> dict[str, Tensor]:
    """Weights under the names that TransformerLens gives them."""
    found = {"embed.W_E": model.weight("W_E"), "pos_embed.W_pos": model.weight("W_pos")}
    found |= {"unembed.W_U": model.weight("W_U"), "unembed.b_U": torch.zeros(model.sizes["d_vocab"])}
    norms = {"ln_final": model.anatomy.role("final_norm")}
    for layer in range(model.n_layers):
        block = f"blocks.{layer}"
        norms[f"{block}.ln1"] = model.anatomy.role("attn_norm", layer)
        parts = {"attn": ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")}
        if model.has(f"mlp_out.{layer}"):
            norms[f"{block}.ln2"] = model.anatomy.role("mlp_norm", layer)
            parts["mlp"] = ("W_in", "b_in", "W_out", "b_out")
        found |= {
            f"{block}.{part}.{name}": model.weight(f"{name}.{layer}")
            for part, names in parts.items()
            for name in names
        }
    for name, norm in norms.items():
        found |= {f"{name}.w": norm.weight, f"{name}.b": norm.bias}
    return {name: value.detach().clone().contiguous() for name, value in found.items()}
