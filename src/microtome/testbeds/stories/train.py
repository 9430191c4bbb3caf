"""How is the bundled model trained, and can anybody train it again?

1. An ordinary `GPT2LMHeadModel` is initialised from the seed, its positions as sinusoids, from which attention to
   the token before is soon learnt.
2. Step ``n`` takes the ``n``-th batch of training documents, a pure function of the seed: Muon for the matrices of
   the blocks, AdamW for the rest, both under a warm-up and a cosine.
3. Every `save_every` steps weights, optimizer state and losses go to ``resume.safetensors``, replaced in one
   move. A run that was killed goes on from there and ends with the same weights as one that was not.
4. About a dozen log-spaced checkpoints are kept in half precision.
5. At the end the folder holds the model and tokenizer as Hugging Face saves them, a model card, and
   ``training.json``: the settings, versions, loss curve, and the behaviours on held-out stories.

``python -m microtome.testbeds.stories.train --out DIR --seed 0`` trains the bundled model; ``--width 2`` its
twin, twice as wide; ``--twin DIR`` writes a finished twin's loss beside the model's own.
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Float
from pydantic import Field
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from transformers import GPT2Config, GPT2LMHeadModel

from microtome.core.config import Config
from microtome.core.errors import StoreError
from microtome.testbeds.stories.behaviours import measure
from microtome.testbeds.stories.card import model_card
from microtome.testbeds.stories.corpus import CONTEXT, documents
from microtome.testbeds.stories.grammar import BOS, PAD, VOCABULARY
from microtome.testbeds.stories.muon import Muon
from microtome.testbeds.stories.tokenizer import build

HELD_OUT_DOCUMENTS = 2000
_CURVE_POINT = 50


class Settings(Config):
    """Everything that the trained weights depend on."""

    seed: int = Field(0, description="seeds the weights and the stories")
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


def new_model(settings: Settings) -> GPT2LMHeadModel:
    """The untrained model of these settings, initialised from their seed."""
    width = round(settings.hidden * settings.width)
    config = GPT2Config(
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
    torch.manual_seed(settings.seed)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wpe.weight.copy_(_sinusoids(CONTEXT, width) * (2 / width) ** 0.5)
    return model


def _sinusoids(positions: int, width: int) -> Float[Tensor, "position hidden"]:
    angles = torch.arange(positions)[:, None] * 1000.0 ** -(torch.arange(0, width, 2) / width)
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]


def checkpoint_steps(steps: int, count: int = 12) -> list[int]:
    """Log-spaced steps from 10, or the first, to the last."""
    first = min(10, steps)
    return sorted({round(first * (steps / first) ** (i / (count - 1))) for i in range(count)})


def train(out: Path, settings: Settings, save_every: int = 250, stop_after: int | None = None) -> None:
    """Trains into ``out``, or goes on with what stands there; a finished folder is left as it is.

    Args:
        out: the model's folder, made if need be.
        settings: what to train.
        save_every: steps between two states from which a stopped run goes on.
        stop_after: stop once this many steps are done in all, leaving a run to be resumed.

    Raises:
        StoreError: if ``out`` holds a run with other settings, or an unreadable state.
    """
    if (out / "training.json").exists():
        _refuse_other(json.loads((out / "training.json").read_text())["settings"], settings, out)
        return
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = new_model(settings).to(device).train()
    optimizers = _optimizers(model, settings)
    schedule = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    losses = _resume(out / "resume.safetensors", settings, model, optimizers)
    kept = checkpoint_steps(settings.steps)
    started = time.monotonic()
    for step in track(range(len(losses), min(settings.steps, stop_after or settings.steps)), "training"):
        for group, highest in schedule:
            group["lr"] = highest * _rate_share(step, settings)
        corpus = documents(settings.seed, step * settings.batch, settings.batch)
        tokens = torch.from_numpy(corpus.tokens.astype(np.int64)).to(device)
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
        if len(losses) in kept:
            halves = {name: tensor.half() for name, tensor in _weights(model).items()}
            save_file(halves, out / "checkpoints" / f"step-{len(losses):06d}.safetensors")
        if len(losses) % save_every == 0:
            _save_state(out / "resume.safetensors", settings, model, optimizers, losses)
    if len(losses) == settings.steps:
        _finish(out, settings, model, losses, time.monotonic() - started)


def record_twin(out: Path, twin: Path) -> None:
    """Writes the held-out loss of a finished twin into the log of the model in ``out``.

    Raises:
        StoreError: if either run is not finished, or they differ in more than their width.
    """
    logs = []
    for folder in (out, twin):
        if not (folder / "training.json").exists():
            raise StoreError(f"expected a finished run in {folder}, found no training.json: train it first")
        logs.append(json.loads((folder / "training.json").read_text()))
    log, other = logs
    _refuse_other(
        other["settings"] | {"width": log["settings"]["width"]}, Settings.read(log["settings"]), twin
    )
    log["twin"] = {
        "width": other["settings"]["width"],
        "loss": other["held_out"]["loss"],
        "difference": log["held_out"]["loss"] - other["held_out"]["loss"],
    }
    _write_log(out, log)


def _optimizers(model: GPT2LMHeadModel, settings: Settings) -> tuple[Muon, torch.optim.AdamW]:
    blocks = list(model.transformer.h.parameters())
    matrices = [parameter for parameter in blocks if parameter.ndim == 2]
    fused = [block.attn.c_attn.weight for block in model.transformer.h]
    chosen = {id(parameter) for parameter in matrices}
    groups = [
        {"params": fused, "parts": 3},
        {"params": [m for m in matrices if all(m is not other for other in fused)], "parts": 1},
    ]
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return (
        Muon(groups, lr=settings.matrix_rate, weight_decay=settings.weight_decay),
        torch.optim.AdamW(rest, lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.0),
    )


def _rate_share(step: int, settings: Settings) -> float:
    """The learning rates at a step as a share of their highest."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def _weights(model: GPT2LMHeadModel) -> dict[str, Tensor]:
    """The parameters by name, the tied unembedding once."""
    return {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}


def _save_state(
    path: Path,
    settings: Settings,
    model: GPT2LMHeadModel,
    optimizers: Sequence[Optimizer],
    losses: list[float],
) -> None:
    tensors = {f"weight/{name}": tensor for name, tensor in _weights(model).items()}
    for name, parameter in model.named_parameters():
        for optimizer in optimizers:
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value.cpu()
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"settings": settings.model_dump_json()})
    os.replace(partial, path)


def _resume(
    path: Path, settings: Settings, model: GPT2LMHeadModel, optimizers: Sequence[Optimizer]
) -> list[float]:
    if not path.exists():
        return []
    try:
        with safe_open(path, "pt") as file:
            saved = json.loads(file.metadata()["settings"])
        tensors = load_file(path)
    except Exception as error:
        raise StoreError(f"{path} cannot be read ({error}): remove it to train from the start") from error
    _refuse_other(saved, settings, path.parent)
    losses: list[float] = tensors.pop("losses").tolist()
    keys = {name.split("/")[0] for name in tensors} - {"weight"}
    for name, parameter in model.named_parameters():
        parameter.data.copy_(tensors[f"weight/{name}"])
        for optimizer in optimizers:
            if any(parameter is mine for group in optimizer.param_groups for mine in group["params"]):
                found = {key: tensors[f"{key}/{name}"] for key in keys if f"{key}/{name}" in tensors}
                optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device)
                    for key, value in found.items()
                }
    return losses


def _finish(
    out: Path, settings: Settings, model: GPT2LMHeadModel, losses: list[float], seconds: float
) -> None:
    model.eval()
    model.save_pretrained(out)
    build().save_pretrained(out)
    report = measure(model, settings.seed, HELD_OUT_DOCUMENTS)
    log = {
        "settings": settings.model_dump(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(VOCABULARY),
        "tokens": settings.steps * settings.batch * CONTEXT,
        "seconds_since_last_start": round(seconds),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "held_out": {"documents": HELD_OUT_DOCUMENTS, **report.plain()},
        "loss_curve": {
            str(end): round(float(np.mean(losses[max(0, end - _CURVE_POINT) : end])), 4)
            for end in range(_CURVE_POINT, len(losses) + 1, _CURVE_POINT)
        },
    }
    _write_log(out, log)
    (out / "resume.safetensors").unlink(missing_ok=True)


def _refuse_other(saved: dict[str, Any], settings: Settings, folder: Path) -> None:
    wanted = settings.model_dump()
    other = [f"{k} {saved.get(k)} instead of {v}" for k, v in wanted.items() if saved.get(k) != v]
    if other:
        raise StoreError(
            f"{folder} holds a run with {', '.join(other)}: train into another folder, or with its settings"
        )


def _write_log(out: Path, log: dict[str, Any]) -> None:
    """Writes the model card and, last, the log, which marks the run as finished."""
    texts = {"README.md": model_card(log), "training.json": json.dumps(log, indent=1) + "\n"}
    for name, text in texts.items():
        partial = out / f"{name}.partial"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, out / name)


def main() -> None:
    """The command line: one option for each of `Settings`, and where to write."""
    parser = argparse.ArgumentParser(description="Train the bundled model on stories.")
    parser.add_argument("--out", type=Path, required=True, help="the model's folder")
    parser.add_argument("--twin", type=Path, help="folder of a finished twin, to note its loss")
    parser.add_argument("--threads", type=int, default=1, help="processor threads")
    for name, field in Settings.model_fields.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(field.default), default=field.default, help=field.description)
    arguments = vars(parser.parse_args())
    out, twin, threads = (arguments.pop(name) for name in ("out", "twin", "threads"))
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    train(out, Settings.read(arguments))
    if twin is not None:
        record_twin(out, twin)


if __name__ == "__main__":
    main()
