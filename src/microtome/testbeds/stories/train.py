"""How is the bundled model trained, and can anybody train it again?

1. The network that the settings describe is initialised from their seed.
2. Step ``n`` takes the ``n``-th batch of training documents, a pure function of the seed: Muon for the matrices of
   the blocks, AdamW for the rest, both under a warm-up and a cosine.
3. Every `save_every` steps weights, optimizer state and losses go to ``resume.safetensors``, replaced in one
   move. A run that was killed goes on from there and ends with the same weights as one that was not.
4. About a dozen log-spaced checkpoints are kept in half precision.
5. At the end the folder holds the model and tokenizer as Hugging Face saves them, a model card, and
   ``training.json``: the settings, versions, loss curve, and the behaviours on held-out stories.

``python -m microtome.testbeds.stories.train --out DIR --seed 0`` trains the bundled model; ``--width 2`` its
twin, twice as wide; ``--twin DIR`` writes a finished twin's loss beside the model's own; ``--member NAME`` any other
member of the `family`.
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
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from microtome.core.errors import StoreError
from microtome.testbeds.stories import family
from microtome.testbeds.stories.behaviours import measure
from microtome.testbeds.stories.card import model_card
from microtome.testbeds.stories.corpus import CONTEXT, documents
from microtome.testbeds.stories.grammar import VOCABULARY
from microtome.testbeds.stories.network import Settings, differences, new_model, optimizers
from microtome.testbeds.stories.tokenizer import build
from microtome.testbeds.training import tiny_as_zero

HELD_OUT_DOCUMENTS = 2000
_CURVE_POINT = 50


def checkpoint_steps(steps: int, count: int = 12) -> list[int]:
    """Log-spaced steps from 10, or the first, to the last."""
    first = min(10, steps)
    return sorted({round(first * (steps / first) ** (i / (count - 1))) for i in range(count)})


def train(
    out: Path,
    settings: Settings,
    save_every: int = 250,
    stop_after: int | None = None,
    checkpoints: int = 12,
) -> None:
    """Trains into ``out``, or goes on with what stands there; a finished folder is left as it is.

    Args:
        out: the model's folder, made if need be.
        settings: what to train.
        save_every: steps between two states from which a stopped run goes on.
        stop_after: stop once this many steps are done in all, leaving a run to be resumed.
        checkpoints: how many to keep, log-spaced.

    Raises:
        StoreError: if ``out`` holds a run with other settings, or an unreadable state.
    """
    if (out / "training.json").exists():
        _refuse_other(json.loads((out / "training.json").read_text())["settings"], settings, out)
        return
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = new_model(settings).to(device).train()
    steppers = optimizers(model, settings)
    schedule = [(group, group["lr"]) for optimizer in steppers for group in optimizer.param_groups]
    losses = _resume(out / "resume.safetensors", settings, model, steppers)
    kept = checkpoint_steps(settings.steps, checkpoints)
    started = time.monotonic()
    for step in track(range(len(losses), min(settings.steps, stop_after or settings.steps)), "training"):
        for group, highest in schedule:
            group["lr"] = highest * _rate_share(step, settings)
        corpus = documents(settings.seed, step * settings.batch, settings.batch)
        tokens = torch.from_numpy(corpus.tokens.astype(np.int64)).to(device)
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        model.zero_grad()
        loss.backward()
        for optimizer in steppers:
            optimizer.step()
        losses.append(float(loss.detach()))
        if len(losses) in kept:
            halves = {name: tensor.half() for name, tensor in _weights(model).items()}
            save_file(halves, out / "checkpoints" / f"step-{len(losses):06d}.safetensors")
        if len(losses) % save_every == 0:
            _save_state(out / "resume.safetensors", settings, model, steppers, losses)
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


def _rate_share(step: int, settings: Settings) -> float:
    """The learning rates at a step as a share of their highest."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def _weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The parameters by name, the tied unembedding once."""
    return {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}


def _save_state(
    path: Path,
    settings: Settings,
    model: PreTrainedModel,
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
    path: Path, settings: Settings, model: PreTrainedModel, optimizers: Sequence[Optimizer]
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
    out: Path, settings: Settings, model: PreTrainedModel, losses: list[float], seconds: float
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
    other = differences(saved, settings)
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
    """The command line: a member of the family, one option for each of `Settings`, and where to write."""
    parser = argparse.ArgumentParser(description="Train a model on stories.")
    parser.add_argument("--out", type=Path, required=True, help="the model's folder")
    parser.add_argument(
        "--member", choices=family.MEMBERS, default=family.BUNDLED, help="whose settings to take"
    )
    parser.add_argument("--checkpoints", type=int, default=12, help="how many to keep, log-spaced")
    parser.add_argument("--twin", type=Path, help="folder of a finished twin, to note its loss")
    parser.add_argument("--threads", type=int, default=1, help="processor threads")
    parser.add_argument(
        "--ship", type=int, nargs="*", help="ship the member, with its checkpoints after these steps"
    )
    for name, field in Settings.model_fields.items():
        kind: dict[str, Any] = {"type": type(field.default)}
        if isinstance(field.default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(f"--{name.replace('_', '-')}", help=field.description, **kind)
    arguments = parser.parse_args()
    given = {name: getattr(arguments, name) for name in Settings.model_fields}
    chosen = family.settings(arguments.member).model_dump()
    settings = Settings.read(chosen | {name: value for name, value in given.items() if value is not None})
    torch.set_num_threads(arguments.threads)
    with tiny_as_zero():
        train(arguments.out, settings, checkpoints=arguments.checkpoints)
    if arguments.twin is not None:
        record_twin(arguments.out, arguments.twin)
    if arguments.ship is not None:
        family.ship(arguments.out, arguments.member, settings.seed, arguments.ship)


if __name__ == "__main__":
    main()
