"""Where are the models that ship with Microtome?

Each is an ordinary Hugging Face folder beside this file, with its model card, training log and checkpoints.
Nothing here imports torch.
"""

from pathlib import Path

from microtome.core.errors import InputError

_HERE = Path(__file__).parent


def names() -> tuple[str, ...]:
    """The bundled models by name."""
    return tuple(sorted(config.parent.name for config in _HERE.glob("*/config.json")))


def path(name: str = "fruitfly") -> Path:
    """The folder of a bundled model.

    Raises:
        InputError: if no bundled model has this name.
    """
    if name not in names():
        raise InputError(f"expected a bundled model, one of {', '.join(names())}; got {name!r}")
    return _HERE / name


def checkpoints(name: str = "fruitfly") -> dict[int, Path]:
    """The model's weights during training, by the number of steps done, in order.

    Each file holds the parameters in half precision under the names of the model's ``named_parameters()``.

    Raises:
        InputError: if no bundled model has this name.
    """
    files = sorted((path(name) / "checkpoints").glob("step-*.safetensors"))
    return {int(file.stem.removeprefix("step-")): file for file in files}
