"""How are other people's files read without trusting them, and their settings kept for the way back?

Numbers come from safetensors and numpy arrays only, never from pickles. Half precision is held in single precision,
exactly; a dictionary's `recipe` remembers the format, its settings and what was stored otherwise, so that what is
written back in the same format is what was read.
"""

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from microtome.core.errors import InputError, MicrotomeError, StoreError
from microtome.core.site import Site, as_site
from microtome.dictionaries.activations import MatchingPursuit
from microtome.dictionaries.dictionary import Dictionary
from microtome.store.whole_file import write_whole

Sites = Sequence[Site | str]


@contextmanager
def expecting(path: Path, layout: str) -> Iterator[None]:
    """Whatever does not fit in here is told as a `StoreError` that names the layout expected."""
    try:
        yield
    except StoreError:
        raise
    except KeyError as error:
        raise StoreError(f"{path} lacks {error}; expected {layout}") from error
    except (MicrotomeError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise StoreError(f"{path} does not fit together ({error}); expected {layout}") from error


def folder_of(path: str | Path, files: Sequence[str]) -> Path:
    """The folder meant, of which one of its files may be named."""
    path = Path(path)
    return path.parent if path.name in files and path.is_file() else path


def settings(path: Path, layout: str) -> dict[str, Any]:
    """A JSON object. Raises `StoreError`."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}); expected {layout}") from error
    except ValueError as error:
        raise StoreError(f"{path} is no JSON ({error}); expected {layout}") from error
    if not isinstance(found, dict):
        raise StoreError(f"{path} holds no settings by name; expected {layout}")
    return found


def tensors(path: Path, layout: str) -> dict[str, Tensor]:
    """All tensors of a safetensors file, as stored. Raises `StoreError`."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except FileNotFoundError:
        raise StoreError(f"{path.parent} holds no {path.name}; expected {layout}") from None
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path} is no safetensors file ({error}); expected {layout}") from error


def arrays(path: Path, layout: str) -> dict[str, Tensor]:
    """All arrays of a numpy archive, objects refused. Raises `StoreError`."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    except FileNotFoundError:
        raise StoreError(f"{path.parent} holds no {path.name}; expected {layout}") from None
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path} is no archive of numpy arrays ({error}); expected {layout}") from error


def whole(held: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Half precision as single precision, and what each tensor was that is not in single precision."""
    stored = {
        name: str(tensor.dtype).removeprefix("torch.")
        for name, tensor in held.items()
        if tensor.dtype != torch.float32
    }
    half = (torch.float16, torch.bfloat16)
    return {name: t.float() if t.dtype in half else t for name, t in held.items()}, stored


def named(asked: Sites | None, told: Sequence[Site | None], path: Path, what: str) -> tuple[Site, ...]:
    """The sites asked for, or those that the file tells. Raises `StoreError` where neither says."""
    if asked is not None:
        return tuple(as_site(site) for site in asked)
    if not told or any(site is None for site in told):
        raise StoreError(
            f"{path} does not say for certain where it {what}; give {what}=[SITE], as a command's --{what} SITE"
        )
    return tuple(site for site in told if site is not None)


def nothing_else(held: Mapping[str, Tensor], known: Sequence[str], path: Path, layout: str) -> None:
    """Refuse tensors whose meaning is not known: they may change what is computed."""
    if unknown := sorted(set(held) - set(known)):
        raise StoreError(
            f"{path} also holds {', '.join(unknown)}, whose meaning is not known; expected {layout}"
        )


def arranged(dictionary: Dictionary, subtract: bool | None) -> tuple[Dictionary, bool]:
    """The same function without scales, and with a centre that is zero, or the decoder's bias; and whether it is that.

    subtract: whether the bias has to be subtracted first; None: as it is, where one of the two holds already.
    """
    unscaled = dictionary.read_scale == dictionary.write_scale == 1
    centred = bool(dictionary.centre.any())
    tied = dictionary.in_place and torch.equal(dictionary.centre, dictionary.decoder_bias)
    if unscaled and subtract is not True and not centred:
        return dictionary, False
    if unscaled and subtract is not False and tied:
        return dictionary, True
    folded = dictionary.folded()
    if not subtract:
        return folded, False
    if not dictionary.in_place:
        raise InputError(
            f"{dictionary.name} writes elsewhere than it reads, so its bias cannot be subtracted first"
        )
    bias = folded.decoder_bias
    return replace(folded, centre=bias, encoder_bias=folded.encoder_bias + folded.encoder @ bias), True


def origin(dictionary: Dictionary, format: str) -> dict[str, Any]:
    """The settings with which it was read in this format; nothing for one from elsewhere."""
    return dict(dictionary.recipe["settings"]) if dictionary.recipe.get("format") == format else {}


def stored_as(dictionary: Dictionary, format: str, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in the precision in which this format had them."""
    was = dictionary.recipe.get("stored", {}) if dictionary.recipe.get("format") == format else {}
    return {
        name: tensor.detach()
        .cpu()
        .to(getattr(torch, was[name]) if name in was else tensor.dtype)
        .contiguous()
        for name, tensor in held.items()
    }


def one_site(dictionary: Dictionary, title: str) -> None:
    """Refuse what reads or writes several sites, for a format that knows one, and units chosen one after the other."""
    if isinstance(dictionary.activation, MatchingPursuit):
        raise InputError(f"{title} has no matching pursuit that does the same as that of {dictionary.name}")
    if len(dictionary.reads) != 1 or len(dictionary.writes) != 1:
        raise InputError(
            f"{title} knows one site read and one written; {dictionary.name} reads {len(dictionary.reads)} and writes "
            f"{len(dictionary.writes)}"
        )


def write_tensors(path: Path, held: Mapping[str, Tensor]) -> None:
    """A safetensors file, whole or not at all. Tensors that share memory are written apart."""
    write_whole(path, safetensors.torch.save({name: tensor.clone() for name, tensor in held.items()}))


def write_arrays(path: Path, held: Mapping[str, Tensor]) -> None:
    """A numpy archive, whole or not at all."""
    content = io.BytesIO()
    found: dict[str, Any] = {name: tensor.numpy() for name, tensor in held.items()}
    np.savez(content, **found)
    write_whole(path, content.getvalue())


def write_settings(path: Path, found: Mapping[str, Any]) -> None:
    """A JSON object, whole or not at all."""
    write_whole(path, json.dumps(found).encode())
