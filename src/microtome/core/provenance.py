"""Where does a result come from? The model and data by hash, the versions of everything that touched them.

A hash is SHA-256 over names, dtypes, shapes and bytes in order of name, so that it says the same on every machine
and device, and changes when a single weight does.
"""

import hashlib
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

_CHUNK = 1 << 24
_PACKAGES = ("microtome", "torch", "transformers")


def versions() -> dict[str, str]:
    """Versions of Python, microtome, torch and transformers; nothing is imported to find out."""
    return {"python": platform.python_version()} | {package: _version(package) for package in _PACKAGES}


def _version(package: str) -> str:
    """As the package itself says where it is loaded: of torch that tells the build too, which metadata may not."""
    if isinstance(said := getattr(sys.modules.get(package), "__version__", None), str):
        return str(said)
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Provenance:
    """What a result was computed from and with. The date is kept, and left out of equality.

    model, model_hash: empty where no model was involved. data_hash: empty where no data was.
    """

    model: str = ""
    model_hash: str = ""
    data_hash: str = ""
    versions: Mapping[str, str] = field(default_factory=versions)
    date: str = field(default_factory=_now, compare=False)


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 in hex over names, dtypes, shapes and bytes, one tensor at a time on the CPU.

    Independent of the mapping's order, of strides and of the device; `-0.0` and `0.0` differ.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.reshape(-1)
        for start in range(0, flat.numel(), _CHUNK):
            piece = flat[start : start + _CHUNK].contiguous().view(torch.uint8)
            digest.update(piece.cpu().numpy().data)
    return digest.hexdigest()


def model_hash(state_dict: Mapping[str, object]) -> str:
    """The hash of a model: of all tensors of its state dict (what is not a tensor does not count)."""
    return hash_tensors({name: value for name, value in state_dict.items() if isinstance(value, Tensor)})
