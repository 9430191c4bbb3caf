"""What was the model at each step of its training? A folder of weights, read one after another into a copy.

A checkpoint is a safetensors file `step-000300.safetensors`: the parameters after so many steps, under the names of
the module's `named_parameters()`, in any floating-point type.
"""

import copy
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from microtome.core.errors import InputError, StoreError
from microtome.models import bundled
from microtome.models.anatomy import Anatomy
from microtome.models.model import Model

_NAME = re.compile(r"step-(\d+)\.safetensors")


def checkpoint_files(folder: str | Path) -> dict[int, Path]:
    """The files by the number of steps done, in order. Raises `StoreError` for a folder that has none."""
    found = {
        int(match[1]): file for file in Path(folder).glob("step-*") if (match := _NAME.fullmatch(file.name))
    }
    if not found:
        raise StoreError(f"{folder} holds no checkpoints; expected files named like step-000300.safetensors")
    return dict(sorted(found.items()))


def folder_of(model: Model, named: str = "") -> Path:
    """The folder named, or the one that came with a bundled model. Raises `InputError` where there is neither."""
    if named:
        return Path(named)
    if model.name in bundled.names():
        return bundled.path(model.name) / "checkpoints"
    raise InputError(f"{model.name} came without checkpoints; name their folder: Config(checkpoints=…)")


def at_steps(model: Model, folder: str | Path, steps: Collection[int] = ()) -> Iterator[tuple[int, Model]]:
    """The model at each step, in order; at those named, or at all.

    It is one copy, whose weights are replaced from step to step: use it before asking for the next. The model handed
    in is left as it is. Raises `InputError` for a step without a checkpoint, `StoreError` for a file that cannot be
    read or is of another model.
    """
    files = checkpoint_files(folder)
    if missing := sorted(set(steps) - set(files)):
        raise InputError(f"no checkpoint at step {missing[0]}; there are {', '.join(map(str, files))}")
    module = copy.deepcopy(model.module)
    anatomies = {
        stack: Anatomy(module, anatomy.family, anatomy.stack) for stack, anatomy in model.anatomies.items()
    }
    parameters = dict(module.named_parameters())
    for step, file in files.items():
        if steps and step not in steps:
            continue
        try:
            weights = load_file(file)
        except (OSError, SafetensorError) as error:
            raise StoreError(f"{file} cannot be read ({error}); restore it from a copy") from error
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        if shapes != expected:
            name = next(iter(sorted(set(shapes.items()) ^ set(expected.items()))))[0]
            raise StoreError(
                f"{file} is of another model: {name} is {shapes.get(name, 'absent')} there, "
                f"{expected.get(name, 'absent')} in {model.name}"
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(weights[name])
        yield step, Model(module, anatomies, model.tokenizer, f"{model.name}, step {step}")
