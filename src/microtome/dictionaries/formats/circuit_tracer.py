"""The formats of circuit-tracer: a transcoder a layer in one file each, or a cross-layer one in two files a layer.

    layer_3.safetensors    W_enc [unit, d]  W_dec [unit, d]  b_enc  b_dec  W_skip [d, d]  activation_function.threshold
    W_enc_3.safetensors    W_enc_3 [unit, d]  b_enc_3  b_dec_3  threshold_3
    W_dec_3.safetensors    W_dec_3 [unit, layer − 3, d]: what layer 3's units write in layers 3, 4, …

The rows of cross-layer decoders stay on disk until they are asked for. Sites are told by `config.yaml`, whose two lines
`feature_input_hook` and `feature_output_hook` are read, where their names mean the same in every model; else name them.

Not read: top-k (which there lets negative codes through where fewer than k are positive), and thresholds below zero.
"""

import re
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from microtome.core.errors import InputError, StoreError
from microtome.core.site import Site
from microtome.dictionaries.activations import Activation, JumpReLU, ReLU
from microtome.dictionaries.cross_layer_transcoder import CrossLayerTranscoder, FileRows
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.formats import foreign
from microtome.dictionaries.formats.foreign import Sites
from microtome.dictionaries.formats.hook_names import site_of

TITLE: Final = "circuit_tracer"
LAYOUT: Final = "circuit-tracer's layout: layer_N.safetensors with W_enc, W_dec, b_enc, b_dec"
CROSS_LAYER: Final = (
    "circuit-tracer's cross-layer layout: W_enc_N.safetensors and W_dec_N.safetensors for each layer"
)

_THRESHOLD: Final = "activation_function.threshold"


def read(path: str | Path, reads: Sites | None = None, writes: Sites | None = None) -> Dictionary:
    """The transcoder of one layer, from its file. Raises `StoreError`."""
    file = Path(path)
    held, stored = foreign.whole(foreign.tensors(file, LAYOUT))
    with foreign.expecting(file, LAYOUT):
        foreign.nothing_else(held, ("W_enc", "W_dec", "b_enc", "b_dec", "W_skip", _THRESHOLD), file, LAYOUT)
        layer = re.fullmatch(r"layer_(\d+)\.safetensors", file.name)
        told = [_site(file.parent, side, int(layer[1])) if layer else None for side in ("input", "output")]
        activation = _activation(held.get(_THRESHOLD), file)
        encoder = held["W_enc"]
        return Dictionary(
            name="circuit_tracer",
            reads=foreign.named(reads, told[:1], file, "reads"),
            writes=foreign.named(writes, told[1:], file, "writes"),
            read_widths=(encoder.shape[1],),
            write_widths=(held["W_dec"].shape[1],),
            activation=activation,
            encoder=encoder,
            encoder_bias=held["b_enc"],
            decoder=held["W_dec"],
            decoder_bias=held["b_dec"],
            centre=torch.zeros_like(encoder[0]),
            skip=held.get("W_skip"),
            recipe={"format": TITLE, "settings": {}, "stored": stored},
        )


def _activation(threshold: Tensor | None, path: Path) -> Activation:
    if threshold is None:
        return ReLU()
    if bool((threshold < 0).any()):
        raise StoreError(
            f"{path} has thresholds below zero, which there let negative codes through; they are not read"
        )
    return JumpReLU(threshold.flatten())


def _site(folder: Path, side: str, layer: int) -> Site | None:
    """The site of a layer's hook, as `config.yaml` names it."""
    file = folder / "config.yaml"
    text = file.read_text() if file.exists() else ""
    match = re.search(rf"^feature_{side}_hook:\s*[\"']?([\w.]+)", text, re.MULTILINE)
    if match and match[1] == "mlp.hook_in":
        return Site("mlp_in", layer)
    return site_of(f"blocks.{layer}.{match[1]}") if match else None


def write(dictionary: Dictionary, path: str | Path) -> None:
    """Write a layer's file, at this path. Raises `InputError` for what is neither ReLU nor JumpReLU at one site."""
    foreign.one_site(dictionary, "circuit-tracer")
    if not isinstance(dictionary.activation, (ReLU, JumpReLU)):
        raise InputError(f"circuit-tracer's transcoders are ReLU or JumpReLU; {dictionary.name} is not")
    found, _ = foreign.arranged(dictionary, False)
    held = {
        "W_enc": found.encoder,
        "W_dec": found.decoder,
        "b_enc": found.encoder_bias,
        "b_dec": found.decoder_bias,
    }
    if isinstance(found.activation, JumpReLU):
        held[_THRESHOLD] = found.activation.threshold
    if found.skip is not None:
        held["W_skip"] = found.skip
    foreign.write_tensors(Path(path), foreign.stored_as(dictionary, TITLE, held))


def read_cross_layer(
    path: str | Path, reads: Sites | None = None, writes: Sites | None = None
) -> CrossLayerTranscoder:
    """A cross-layer transcoder from its folder; decoders stay on disk. Raises `StoreError`."""
    folder = Path(path)
    count = len(list(folder.glob("W_enc_*.safetensors")))
    if not count:
        raise StoreError(f"{folder} holds no W_enc_0.safetensors; expected {CROSS_LAYER}")
    layers = [
        foreign.whole(foreign.tensors(folder / f"W_enc_{layer}.safetensors", CROSS_LAYER))[0]
        for layer in range(count)
    ]
    with foreign.expecting(folder, CROSS_LAYER):
        for layer, held in enumerate(layers):
            known = [f"{name}_{layer}" for name in ("W_enc", "b_enc", "b_dec", "threshold")]
            foreign.nothing_else(held, known, folder, CROSS_LAYER)
            if not (folder / f"W_dec_{layer}.safetensors").exists():
                raise StoreError(f"{folder} holds no W_dec_{layer}.safetensors; expected {CROSS_LAYER}")
        return CrossLayerTranscoder(
            foreign.named(reads, [_site(folder, "input", layer) for layer in range(count)], folder, "reads"),
            foreign.named(
                writes, [_site(folder, "output", layer) for layer in range(count)], folder, "writes"
            ),
            [held[f"W_enc_{layer}"] for layer, held in enumerate(layers)],
            [held[f"b_enc_{layer}"] for layer, held in enumerate(layers)],
            [_activation(held.get(f"threshold_{layer}"), folder) for layer, held in enumerate(layers)],
            [FileRows(folder / f"W_dec_{layer}.safetensors", f"W_dec_{layer}") for layer in range(count)],
            [held[f"b_dec_{layer}"] for layer, held in enumerate(layers)],
            TITLE,
        )


def write_cross_layer(transcoder: CrossLayerTranscoder, path: str | Path) -> None:
    """Write two files a layer into a folder, in single precision. Raises `InputError` for activations it lacks."""
    folder = Path(path)
    if not all(isinstance(activation, (ReLU, JumpReLU)) for activation in transcoder.activations):
        raise InputError(f"circuit-tracer's transcoders are ReLU or JumpReLU; {transcoder.name} is not")
    for layer, activation in enumerate(transcoder.activations):
        held = {
            f"W_enc_{layer}": transcoder.encoders[layer],
            f"b_enc_{layer}": transcoder.encoder_biases[layer],
            f"b_dec_{layer}": transcoder.decoder_biases[layer],
        }
        if isinstance(activation, JumpReLU):
            held[f"threshold_{layer}"] = activation.threshold
        rows = transcoder.decoders[layer].read(torch.arange(transcoder.units[layer]))
        foreign.write_tensors(folder / f"W_dec_{layer}.safetensors", {f"W_dec_{layer}": rows.contiguous()})
        foreign.write_tensors(
            folder / f"W_enc_{layer}.safetensors",
            {name: tensor.detach().cpu().contiguous() for name, tensor in held.items()},
        )
