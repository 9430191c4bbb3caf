"""The format of EleutherAI's sparsify: a folder called by its hook, with `cfg.json` and `sae.safetensors`.

    encoder.weight [unit, d]  encoder.bias  W_dec [unit, d]  b_dec  W_skip [d, d]

Always top-k of what is positive. Autoencoders subtract b_dec first, transcoders do not. Only hooks on whole blocks
(`layers.5`, `h.5`) say for certain which site they are; for others, name it.
"""

import re
from pathlib import Path
from typing import Final

import torch

from microtome.core.errors import InputError, StoreError
from microtome.core.site import Site
from microtome.dictionaries.activations import TopK
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.formats import foreign
from microtome.dictionaries.formats.foreign import Sites

TITLE: Final = "sparsify"
LAYOUT: Final = "sparsify's layout: cfg.json beside sae.safetensors"
FILES: Final = ("cfg.json", "sae.safetensors")


def read(path: str | Path, reads: Sites | None = None, writes: Sites | None = None) -> Dictionary:
    """A sparse coder. reads, writes: sites, where the folder's name does not say. Raises `StoreError`."""
    folder = foreign.folder_of(path, FILES)
    told = foreign.settings(folder / FILES[0], LAYOUT)
    held, stored = foreign.whole(foreign.tensors(folder / FILES[1], LAYOUT))
    with foreign.expecting(folder, LAYOUT):
        if (kind := told.get("activation", "topk")) != "topk":
            raise StoreError(f"{folder} uses the activation {kind!r}; of sparsify's, topk is read")
        known = ["encoder.weight", "encoder.bias", "W_dec", "b_dec", "W_skip"]
        foreign.nothing_else(held, known, folder, LAYOUT)
        transcodes = bool(told.get("transcode", False))
        match = re.fullmatch(r"(?:layers|h)\.(\d+)", folder.resolve().name)
        block = Site("resid_post", int(match[1])) if match and not transcodes else None
        reads_here = foreign.named(reads, [block], folder, "reads")
        writes_here = foreign.named(writes, [None], folder, "writes") if transcodes else reads_here
        encoder, bias = held["encoder.weight"], held["b_dec"]
        return Dictionary(
            name="sparsify",
            reads=reads_here,
            writes=writes_here,
            read_widths=(encoder.shape[1],),
            write_widths=(held["W_dec"].shape[1],),
            activation=TopK(int(told["k"])),
            encoder=encoder,
            encoder_bias=held["encoder.bias"],
            decoder=held["W_dec"],
            decoder_bias=bias,
            centre=torch.zeros_like(encoder[0]) if transcodes else bias,
            skip=held["W_skip"] if told.get("skip_connection") else None,
            recipe={"format": TITLE, "settings": told, "stored": stored},
        )


def write(dictionary: Dictionary, path: str | Path) -> None:
    """Write both files into a folder. Raises `InputError` for what is not top-k at one site."""
    foreign.one_site(dictionary, "sparsify")
    activation = dictionary.activation
    if not isinstance(activation, TopK) or activation.signed or activation.weight is not None:
        raise InputError(f"sparsify knows plain top-k; {dictionary.name} has another activation")
    if dictionary.read_widths != dictionary.write_widths:
        raise InputError(f"sparsify writes as many numbers as it reads; got {dictionary.write_widths}")
    found, _ = foreign.arranged(dictionary, dictionary.in_place)
    kept = foreign.origin(dictionary, TITLE)
    told = kept | {
        "activation": "topk",
        # Nought means: as the expansion factor says.
        "num_latents": found.n_units if kept.get("num_latents", 1) else 0,
        "k": activation.k,
        "skip_connection": found.skip is not None,
        "transcode": not found.in_place,
        "d_in": found.read_widths[0],
    }
    held = {
        "encoder.weight": found.encoder,
        "encoder.bias": found.encoder_bias,
        "W_dec": found.decoder,
        "b_dec": found.decoder_bias,
    }
    if found.skip is not None:
        held["W_skip"] = found.skip
    folder = Path(path)
    foreign.write_tensors(folder / FILES[1], foreign.stored_as(dictionary, TITLE, held))
    foreign.write_settings(folder / FILES[0], told)
