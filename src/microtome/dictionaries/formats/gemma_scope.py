"""The formats of Gemma Scope, always JumpReLU, matrices input × output: numpy arrays; in its second edition tensors.

    params.npz            W_enc [d_in, unit]  W_dec [unit, d_out]  b_enc  b_dec  threshold
    params.safetensors    w_enc  w_dec  b_enc  b_dec  threshold  affine_skip_connection [d_in, d_out]

Nothing is subtracted first. The path says the layer (`layer_12`), and the kind of what is rebuilt (`-res`, `-mlp`,
`-att`; `resid_post`); where it does not, as for transcoders, name the sites.
"""

import re
from pathlib import Path
from typing import Final

import torch

from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.dictionaries.activations import JumpReLU, ReLU
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.formats import foreign
from microtome.dictionaries.formats.foreign import Sites

TITLE: Final = "gemma_scope"
LAYOUT: Final = (
    "Gemma Scope's layout: params.npz or params.safetensors with W_enc, W_dec, b_enc, b_dec, threshold"
)
FILES: Final = ("params.npz", "params.safetensors")

_NAMES: Final = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
_SKIP: Final = "affine_skip_connection"
_PARTS: Final = {"res": "resid_post", "mlp": "mlp_out", "att": "z"}


def read(path: str | Path, reads: Sites | None = None, writes: Sites | None = None) -> Dictionary:
    """A dictionary from a folder, or its file. Raises `StoreError`."""
    path = Path(path)
    file = path
    if path.suffix not in (".npz", ".safetensors"):
        file = path / FILES[1] if (path / FILES[1]).exists() else path / FILES[0]
    opened = foreign.arrays if file.suffix == ".npz" else foreign.tensors
    held, stored = foreign.whole(opened(file, LAYOUT))
    with foreign.expecting(file, LAYOUT):
        spelled = {name.lower(): name for name in held}
        own = {name: spelled.get(name.lower(), name) for name in _NAMES}
        encoder, decoder, encoder_bias, bias, threshold = (held[own[name]] for name in _NAMES)
        foreign.nothing_else(held, (*own.values(), _SKIP), file, LAYOUT)
        reads_here = foreign.named(reads, [_site(file)], file, "reads")
        return Dictionary(
            name=TITLE,
            reads=reads_here,
            writes=reads_here if writes is None else foreign.named(writes, [], file, "writes"),
            read_widths=(encoder.shape[0],),
            write_widths=(decoder.shape[1],),
            activation=JumpReLU(threshold),
            encoder=encoder.T.contiguous(),
            encoder_bias=encoder_bias,
            decoder=decoder,
            decoder_bias=bias,
            centre=torch.zeros_like(encoder[:, 0]),
            skip=held[_SKIP].T.contiguous() if _SKIP in held else None,
            recipe={
                "format": TITLE,
                "settings": {"spelled": own, "order": list(held), "file": file.name},
                "stored": stored,
            },
        )


def _site(file: Path) -> Site | None:
    """What the path says, if it says both the layer and the kind."""
    told = str(file.resolve())
    layer = re.search(r"layer_(\d+)[_/]", told)
    kind = re.search(r"gemma-scope[\w.-]*-(res|mlp|att)\b", told)
    if layer and kind:
        return Site(_PARTS[kind[1]], int(layer[1]))
    return Site("resid_post", int(layer[1])) if layer and "/resid_post/" in told else None


def write(dictionary: Dictionary, path: str | Path) -> None:
    """Write a file into a folder: `params.npz`, or tensors for what has a skip and what was read from there.

    Raises `InputError` for what is neither JumpReLU nor ReLU at one site.
    """
    foreign.one_site(dictionary, "Gemma Scope")
    if not isinstance(dictionary.activation, (JumpReLU, ReLU)):
        raise InputError(f"Gemma Scope's dictionaries are JumpReLU; {dictionary.name} is not")
    found, _ = foreign.arranged(dictionary, False)
    zeros = torch.zeros_like(found.encoder_bias)
    threshold = found.activation.threshold if isinstance(found.activation, JumpReLU) else zeros
    parts = (found.encoder.T, found.decoder, found.encoder_bias, found.decoder_bias, threshold)
    kept = foreign.origin(dictionary, TITLE)
    second = found.skip is not None or kept.get("file") == FILES[1]
    spelled = kept.get("spelled", {name: name.lower() if second else name for name in _NAMES})
    held = {spelled[name]: part for name, part in zip(_NAMES, parts, strict=True)}
    if found.skip is not None:
        held[_SKIP] = found.skip.T
    order = [name for name in kept.get("order", ()) if name in held]
    ordered = {name: held[name] for name in (*order, *(name for name in held if name not in order))}
    held = foreign.stored_as(dictionary, TITLE, ordered)
    if second:
        foreign.write_tensors(Path(path) / FILES[1], held)
    else:
        foreign.write_arrays(Path(path) / FILES[0], held)
