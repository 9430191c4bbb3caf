"""Which story models are there beside the fruit fly? A family: sizes, depths, with MLPs and without, seed by seed.

1. A member is a name for settings; with a seed, it is one network. All are trained by one command on documents of
   the same kind, so that two members differ in what their names say and in nothing else:

       python -m microtome.testbeds.stories.train --member attention-2-layers --seed 1 --out DIR

2. A trained member is a folder as that command writes it: `training.json`, `model.safetensors`, `checkpoints`. The
   fruit fly's is bundled, those of some tiny members ship beside this file in half precision.
3. Step ``n`` of a training saw the documents ``n·batch … n·batch + batch − 1`` of its seed, which can be written again
   at any time (`batch`), so that a training replays step by step.

The member without superposition is of another make: see `superposition_free`.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from microtome.core.errors import InputError, StoreError
from microtome.models import bundled
from microtome.models.load import load
from microtome.models.model import Model
from microtome.store.whole_file import write_whole
from microtome.testbeds.stories.corpus import Corpus, documents
from microtome.testbeds.stories.network import Settings, differences, new_model
from microtome.testbeds.stories.tokenizer import build

_ONE = Settings(hidden=64, layers=1, steps=1500)
_TWO = Settings(layers=2, steps=4000)
MEMBERS: dict[str, Settings] = {
    "fruitfly": Settings(),
    "fruitfly-narrow": Settings(hidden=48),
    "fruitfly-wide": Settings(width=2.0),
    "fruitfly-attention": Settings(mlp=False),
    "attention-1-layer": _ONE.model_copy(update={"mlp": False}),
    "attention-1-head": _ONE.model_copy(update={"heads": 1, "mlp": False}),
    "attention-2-layers": _TWO.model_copy(update={"mlp": False}),
    "mlp-1-layer": _ONE,
    "mlp-2-layers": _TWO,
}
"""Settings of each member at seed 0."""
BUNDLED = "fruitfly"
WEIGHTS = Path(__file__).parent / "weights"


def settings(name: str, seed: int = 0) -> Settings:
    """What a member is trained with. Raises `InputError` for a name that no member has."""
    if name not in MEMBERS:
        raise InputError(f"expected a member of the family, one of {', '.join(MEMBERS)}; got {name!r}")
    return MEMBERS[name].model_copy(update={"seed": seed})


def shipped() -> tuple[tuple[str, int], ...]:
    """The members, by name and seed, that need no training."""
    homes = [home.parent.name.rpartition("-") for home in sorted(WEIGHTS.glob("*/training.json"))]
    return ((BUNDLED, 0), *((name, int(seed)) for name, _, seed in homes))


def batch(trained: Settings, step: int) -> Corpus:
    """The documents, with their latents, that step `step` (from 0) of a training learnt from.

    Raises `InputError` for a step that the training does not have.
    """
    if not 0 <= step < trained.steps:
        raise InputError(f"expected a step of the training, 0 to {trained.steps - 1}, got {step}")
    return documents(trained.seed, step * trained.batch, trained.batch)


def log(name: str, seed: int = 0, folder: Path | None = None) -> dict[str, Any]:
    """The training log of a member: settings, versions, loss curve, behaviours on held-out stories.

    folder: where the member was trained; by default the member must be shipped.
    Raises `InputError` for an unknown member, `StoreError` where it is not there or is another than it should be.
    """
    wanted, home = settings(name, seed), _home(name, seed, folder)
    try:
        found: dict[str, Any] = json.loads((home / "training.json").read_text(encoding="utf-8"))
        other = differences(found["settings"], wanted)
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{home} holds no finished training ({error}); {_how(name, seed)}") from error
    if other:
        raise StoreError(f"{home} was trained with {', '.join(other)}; {_how(name, seed)}")
    return found


def model(name: str, seed: int = 0, folder: Path | None = None) -> Model:
    """A trained member. Arguments and errors as of `log`."""
    log(name, seed, folder)
    file = _home(name, seed, folder) / "model.safetensors"
    return _filled(settings(name, seed), file, f"{name}-{seed}")


def checkpoints(name: str, seed: int = 0, folder: Path | None = None) -> dict[int, Model]:
    """A member during its training: models by the number of steps done, in order. Arguments and errors as of `log`.

    A member may ship without checkpoints, which is a `StoreError`; the command keeps as many as it is told to.
    """
    log(name, seed, folder)
    files = sorted((_home(name, seed, folder) / "checkpoints").glob("step-*.safetensors"))
    if not files:
        raise StoreError(f"{name} of seed {seed} is here without checkpoints; {_how(name, seed)}")
    steps = {int(file.stem.removeprefix("step-")): file for file in files}
    wanted = settings(name, seed)
    # Not checked one by one: they are the network of the member itself, with other weights.
    return {
        step: _filled(wanted, file, f"{name}-{seed} at step {step}", check=False)
        for step, file in steps.items()
    }


def ship(folder: Path, name: str, seed: int, steps: Collection[int] = (), into: Path | None = None) -> None:
    """Put a member trained in `folder` among the shipped, in half precision, with its checkpoints after `steps`.

    Raises as `log` does, and `StoreError` for a checkpoint that the training did not keep.
    """
    home = (into or WEIGHTS) / f"{name}-{seed}"
    told = json.dumps(log(name, seed, folder), indent=1) + "\n"
    names = ["model.safetensors", *(f"checkpoints/step-{step:06d}.safetensors" for step in steps)]
    halves = {file: {k: t.half() for k, t in _tensors(folder / file).items()} for file in names}
    for file, weights in halves.items():
        write_whole(home / file, save(weights))
    write_whole(home / "training.json", told.encode())


def _home(name: str, seed: int, folder: Path | None) -> Path:
    if folder is not None:
        return folder
    if (name, seed) not in shipped():
        raise StoreError(f"{name} of seed {seed} is not shipped; {_how(name, seed)}")
    return bundled.path() if name == BUNDLED else WEIGHTS / f"{name}-{seed}"


def _how(name: str, seed: int) -> str:
    return (
        f"train it with python -m microtome.testbeds.stories.train --member {name} --seed {seed} --out DIR "
        "and give that folder"
    )


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"{file} cannot be read ({error}); train the model again or restore a copy"
        ) from error


def _filled(trained: Settings, file: Path, name: str, check: bool = True) -> Model:
    module, weights = new_model(trained).eval(), _tensors(file)
    parameters = dict(module.named_parameters())
    unfit = parameters.keys() ^ weights.keys() or {
        key for key, parameter in parameters.items() if parameter.shape != weights[key].shape
    }
    if unfit:
        raise StoreError(
            f"{file} does not hold the weights of {name}: {', '.join(sorted(unfit)[:3])} do not fit"
        )
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(weights[key])
    found = load(module, tokenizer=build(), check=check)
    found.name = name
    return found
