"""Where does a training stand, so that a kill at any moment loses little and changes nothing?

One file, `training.safetensors`: the tensors of every learner; in its header JSON: what makes it this training and no
other, the number of the next step, what variants hold, the logs. It is written whole, so it is always of one step.
"""

import json
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from microtome.core.errors import StoreError
from microtome.store.whole_file import write_whole

_KEY: Final = "microtome.training"
_VERSION: Final = 1


@dataclass(frozen=True, eq=False)
class Kept:
    """What a file says. step: the next one. tensors, held, log: of each learner, in the order of recipes."""

    step: int
    tensors: list[dict[str, Tensor]]
    held: list[dict[str, float]]
    log: list[list[dict[str, Any]]]


class Checkpoint:
    """The file of a training in `folder`. identity: plain values that make it this training."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.path = folder / "training.safetensors"
        self._identity = json.loads(json.dumps(identity))

    def write(
        self,
        step: int,
        states: Sequence[Mapping[str, Tensor]],
        held: Sequence[Mapping[str, float]],
        log: Sequence[Sequence[Mapping[str, Any]]],
    ) -> None:
        """Put this state in the place of the one kept before. Raises `StoreError` where the disk refuses."""
        header = {"version": _VERSION, "identity": self._identity, "step": step, "held": held, "log": log}
        tensors = {
            f"{number}.{name}": tensor.detach().cpu().contiguous()
            for number, state in enumerate(states)
            for name, tensor in state.items()
        }
        write_whole(self.path, safetensors.torch.save(tensors, {_KEY: json.dumps(header)}))

    def read(self) -> Kept | None:
        """What was kept; None where nothing was. Raises `StoreError` for a damaged file and for another training."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                header = json.loads((file.metadata() or {})[_KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            if header["version"] != _VERSION:
                raise StoreError(
                    f"{self.path} has format version {header['version']}, this microtome reads {_VERSION}; update it"
                )
            there = header["identity"]
            states: list[dict[str, Tensor]] = [{} for _ in header["held"]]
            for name, tensor in tensors.items():
                number, _, rest = name.partition(".")
                states[int(number)][rest] = tensor
            found = Kept(header["step"], states, header["held"], header["log"])
        except StoreError:
            raise
        except (OSError, SafetensorError, LookupError, ValueError, TypeError) as error:
            raise StoreError(
                f"{self.path} is damaged or no training ({type(error).__name__}: {error}); restore it from a copy, "
                "or give another folder"
            ) from error
        if differing := [part for part in self._identity if there.get(part) != self._identity[part]]:
            raise StoreError(
                f"{self.path} is of another training (its {' and '.join(differing)} differ); nothing in it was "
                "changed. Give another folder, or the same as before"
            )
        return found


class Interruption:
    """Ctrl-C, kept until it suits: the first one is remembered as `asked`; a second one is not held back.

    Only where Ctrl-C has its usual meaning and this is the main thread; elsewhere nothing is changed.
    """

    def __init__(self, active: bool) -> None:
        main = threading.current_thread() is threading.main_thread()
        self._active = active and main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        self.asked = False

    def __enter__(self) -> Self:
        if self._active:
            signal.signal(signal.SIGINT, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._active:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
