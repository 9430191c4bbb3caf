"""How is a dictionary kept? One safetensors file, whose header says all that the numbers alone do not.

The tensors are those of `Dictionary.tensors`. Under `microtome.dictionary` the header holds JSON:

    format, version         which file this is
    orientation             encoder [unit, d_read], decoder [unit, d_write]
    function                what is computed, as written in `microtome.dictionaries.dictionary`: where the centre is
                            subtracted and the bias added, what a threshold is compared with
    folded, unit_norms      whether centre and scales are gone; whether all directions have norm 1
    activation              its word and settings; its tensors are among the tensors
    name, sites, widths, scales, provenance, recipe

Written whole or not at all. What is read is checked: header, names, shapes, finiteness.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from microtome.core.errors import MicrotomeError, StoreError
from microtome.core.provenance import Provenance
from microtome.core.site import Site
from microtome.dictionaries.activations import ACTIVATIONS
from microtome.dictionaries.dictionary import Dictionary
from microtome.store.whole_file import write_whole

_KEY: Final = "microtome.dictionary"
_VERSION: Final = 1
_FUNCTION: Final = {
    "pre": "encoder · (values − centre) · read_scale + encoder_bias",
    "codes": "activation(pre)",
    "back": "decoderᵀ · codes / write_scale + decoder_bias + skip · values",
    "jumprelu": "pre where pre > threshold and pre > 0",
    "topk": "the k largest pre (× weight) of a row, where positive",
    "gated": "relu(scale · pre + shift) where pre > 0",
}


def save(dictionary: Dictionary, path: str | Path) -> None:
    """Write to `path`, in the place of what is there. Raises `StoreError` where the disk refuses."""
    norms = dictionary.directions().norm(dim=-1)
    header = {
        "format": _KEY,
        "version": _VERSION,
        "orientation": {"encoder": ["unit", "d_read"], "decoder": ["unit", "d_write"]},
        "function": _FUNCTION,
        "folded": bool((dictionary.centre == 0).all())
        and dictionary.read_scale == dictionary.write_scale == 1,
        "unit_norms": bool(((norms - 1).abs() < 1e-4).all()),
        "activation": {"word": dictionary.activation.word, "settings": dictionary.activation.settings()},
        "name": dictionary.name,
        "reads": [str(site) for site in dictionary.reads],
        "writes": [str(site) for site in dictionary.writes],
        "read_widths": dictionary.read_widths,
        "write_widths": dictionary.write_widths,
        "read_scale": dictionary.read_scale,
        "write_scale": dictionary.write_scale,
        "provenance": asdict(dictionary.provenance),
        "recipe": dict(dictionary.recipe),
    }
    # Copies, for a file holds tensors apart that may share their memory here: an encoder tied to its decoder.
    tensors = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in dictionary.tensors().items()
    }
    content = safetensors.torch.save(tensors, {_KEY: json.dumps(header, ensure_ascii=False)})
    write_whole(Path(path), content)


def load(path: str | Path) -> Dictionary:
    """Read what `save` wrote. Raises `StoreError` for a file that is absent, corrupt, foreign or of a later format."""
    path = Path(path)
    if not path.is_file():
        raise StoreError(f"there is no file {path}; give a dictionary's, as `microtome train` writes them")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"{path} is not a safetensors file that can be read ({error}); restore it from a copy"
        ) from error
    if text is None:
        raise StoreError(
            f"{path} was not written by microtome: its header has no {_KEY}. Dictionaries of other libraries are "
            "converted first, by `microtome convert`"
        )
    try:
        header = json.loads(text)
        if header["version"] != _VERSION:
            raise StoreError(
                f"{path} has format version {header['version']}, this microtome reads {_VERSION}; update microtome"
            )
        return _built(header, tensors)
    except StoreError:
        raise
    except (MicrotomeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f"{path} is damaged ({type(error).__name__}: {error}); restore it from a copy"
        ) from error


def _built(header: Mapping[str, Any], tensors: dict[str, Tensor]) -> Dictionary:
    told = header["activation"]
    inner = {
        name.removeprefix("activation."): tensors.pop(name)
        for name in sorted(tensors)
        if name.startswith("activation.")
    }
    activation = ACTIVATIONS[told["word"]](**told["settings"], **inner)
    return Dictionary(
        name=header["name"],
        reads=tuple(map(Site.parse, header["reads"])),
        writes=tuple(map(Site.parse, header["writes"])),
        read_widths=tuple(header["read_widths"]),
        write_widths=tuple(header["write_widths"]),
        read_scale=header["read_scale"],
        write_scale=header["write_scale"],
        activation=activation,
        provenance=Provenance(**header["provenance"]),
        recipe=header["recipe"],
        **tensors,
    )
