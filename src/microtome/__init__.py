"""Microtome: a decompiler with a proof-reader for neural networks.

The names below are the whole waist; each is imported when first asked for, so that `import microtome` stays
cheap and brings in no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Site": "microtome.core.site",
    "Weight": "microtome.core.weight",
    "Model": "microtome.models.model",
    "Run": "microtome.models.run",
    "load": "microtome.models.load",
    "Result": "microtome.core.result",
    "Circuit": "microtome.core.circuit",
    "Claim": "microtome.core.claim",
    "edits": "microtome.core.edits",
    "metrics": "microtome.data.metrics",
    "tasks": "microtome.data.tasks",
}
_MODULES = {"edits", "metrics", "tasks"}

__all__ = [
    "Circuit",
    "Claim",
    "Model",
    "Result",
    "Run",
    "Site",
    "Weight",
    "edits",
    "load",
    "metrics",
    "tasks",
]

if TYPE_CHECKING:
    from microtome.core import edits as edits
    from microtome.core.circuit import Circuit as Circuit
    from microtome.core.claim import Claim as Claim
    from microtome.core.result import Result as Result
    from microtome.core.site import Site as Site
    from microtome.core.weight import Weight as Weight
    from microtome.data import metrics as metrics
    from microtome.data import tasks as tasks
    from microtome.models.load import load as load
    from microtome.models.model import Model as Model
    from microtome.models.run import Run as Run


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(
            f"module 'microtome' has no attribute {name!r}; it offers {', '.join(sorted(_HOME))}"
        )
    home = import_module(_HOME[name])
    return home if name in _MODULES else getattr(home, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
