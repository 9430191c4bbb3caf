"""The format of Gemma Scope: one `params.npz` of numpy arrays, always JumpReLU, in matrices input × output.

    W_enc [d_in, unit]  W_dec [unit, d_out]  b_enc  b_dec  threshold

Nothing is subtracted first. The path says the layer (`layer_12`), and the kind of what is rebuilt (`-res`, `-mlp`,
`-att`); where it does not, as for transcoders, name the sites.
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
LAYOUT: Final = "Gemma Scope's layout: params.npz with W_enc, W_dec, b_enc, b_dec, threshold"
FILES: Final = ("params.npz",)

_PARTS: Final = {"res": "resid_post", "mlp": "mlp_out", "att": "z"}


def read(path: str | Path, reads: Sites | None = None, writes: Sites | None = None) -> Dictionary:
    """A dictionary from a folder, or its file. Raises `StoreError`."""
    path = Path(path)
    file = path if path.suffix == ".npz" else path / FILES[0]
    held, stored = foreign.whole(foreign.arrays(file, LAYOUT))
    with foreign.expecting(file, LAYOUT):
        spelled = {name.lower(): name for name in held}
        known = ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"]
        named = {name: held[spelled.get(name.lower(), name)] for name in known}
        foreign.nothing_else(
            {name: held[name] for name in held}, [spelled[n.lower()] for n in known], file, LAYOUT
        )
        reads_here = foreign.named(reads, [_site(file)], file, "reads")
        encoder = named["W_enc"].T
        return Dictionary(
            name="gemma_scope",
            reads=reads_here,
            writes=reads_here if writes is None else foreign.named(writes, [], file, "writes"),
            read_widths=(encoder.shape[1],),
            write_widths=(named["W_dec"].shape[1],),
            activation=JumpReLU(named["threshold"]),
            encoder=encoder.contiguous(),
            encoder_bias=named["b_enc"],
            decoder=named["W_dec"],
            decoder_bias=named["b_dec"],
            centre=torch.zeros_like(encoder[0]),
            recipe={
                "format": TITLE,
                "settings": {"spelled": {name: spelled[name.lower()] for name in known}, "order": list(held)},
                "stored": stored,
            },
        )


def _site(file: Path) -> Site | None:
    """What the path says, if it says both the layer and the kind."""
    told = str(file.resolve())
    layer = re.search(r"layer_(\d+)/", told)
    kind = re.search(r"gemma-scope[\w.-]*-(res|mlp|att)\b", told)
    return Site(_PARTS[kind[1]], int(layer[1])) if layer and kind else None


def write(dictionary: Dictionary, path: str | Path) -> None:
    """Write `params.npz` into a folder. Raises `InputError` for what is neither JumpReLU nor ReLU at one site."""
    foreign.one_site(dictionary, "Gemma Scope")
    if dictionary.skip is not None or not isinstance(dictionary.activation, (JumpReLU, ReLU)):
        raise InputError(f"Gemma Scope's dictionaries are JumpReLU without a skip; {dictionary.name} is not")
    found, _ = foreign.arranged(dictionary, False)
    zeros = torch.zeros_like(found.encoder_bias)
    held = {
        "W_enc": found.encoder.T,
        "W_dec": found.decoder,
        "b_enc": found.encoder_bias,
        "b_dec": found.decoder_bias,
        "threshold": found.activation.threshold if isinstance(found.activation, JumpReLU) else zeros,
    }
    kept = foreign.origin(dictionary, TITLE)
    spelled = kept.get("spelled", {name: name for name in held})
    ordered = {spelled[name]: tensor for name, tensor in held.items()}
    ordered = {name: ordered[name] for name in kept.get("order", ordered)}
    foreign.write_arrays(Path(path) / FILES[0], foreign.stored_as(dictionary, TITLE, ordered))
