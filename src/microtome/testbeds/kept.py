"""Where does a trained network with an answer key lie, and is it the one it says it is? One safetensors file each.

The file holds the weights; its header holds a record (JSON): the settings, seed and log of the training, and what was
measured. Whoever asks for a network names the settings, and a file trained with others is refused.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from microtome.core.errors import StoreError
from microtome.store.whole_file import write_whole

_FORMAT = "microtome.network"
_VERSION = "1"


def keep(path: Path, weights: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write weights and record as one file, whole or not at all."""
    told = {"format": _FORMAT, "version": _VERSION, "record": json.dumps(record)}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, save(contiguous, told))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the record. Raises `StoreError` for a file that is absent, corrupt, or not of this format."""
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            if told.get("format") != _FORMAT or told.get("version") != _VERSION:
                raise StoreError(f"{path} is no network of a testbed; give a file that a testbed wrote")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(told["record"])  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"{path} cannot be read ({error}); train it again or restore it from a copy"
        ) from error


def same_settings(path: Path, record: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raises `StoreError` where the record of a file names other settings than these."""
    if record.get("settings") != json.loads(json.dumps(settings)):
        raise StoreError(
            f"{path} was trained with {record.get('settings')}, asked for {settings}; train it again"
        )


def restore(path: Path, module: nn.Module, settings: dict[str, Any]) -> dict[str, Any]:
    """Load the weights into `module` and return the record, whose `settings` must be these.

    Raises `StoreError` for a file that cannot be read, was trained with other settings, or does not fit the module.
    """
    weights, record = read(path)
    same_settings(path, record, settings)
    try:
        with torch.no_grad():
            module.load_state_dict(weights)
    except RuntimeError as error:
        raise StoreError(f"{path} does not fit {type(module).__name__}: {error}") from error
    module.eval()
    return record
