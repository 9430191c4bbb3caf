"""The format of dictionary_learning, with its tensors in safetensors: `ae.safetensors` beside `config.json`.

The library itself writes `ae.pt`, a pickle, which can run code when it is read. It is not read here; the error says how
to turn it into `ae.safetensors`, whose names and shapes are the same:

    AutoEncoder            bias, encoder.weight [unit, d], encoder.bias, decoder.weight [d, unit]   subtracts bias
    AutoEncoderNew         the same, with decoder.bias                                              does not
    AutoEncoderTopK        b_dec, encoder…, decoder.weight, k, threshold                            subtracts b_dec
    BatchTopKSAE           the same; codes are cut at the threshold
    MatryoshkaBatchTopKSAE W_enc [d, unit], W_dec [unit, d], b_enc, b_dec, k, threshold, group_sizes
    GatedAutoEncoder       decoder_bias, encoder.weight, decoder.weight, r_mag, gate_bias, mag_bias
    JumpReluAutoEncoder    W_enc, b_enc, W_dec, b_dec, threshold                                    does not
    CrossCoder             encoder.weight [site, d, unit], encoder.bias, decoder.weight [site, unit, d], decoder.bias

Codes of gated and JumpReLU ones are multiplied by the norms of their directions, as there; these two come back equal to
rounding, all others bit for bit.
"""

import re
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from microtome.core.errors import InputError, StoreError
from microtome.core.site import Site
from microtome.dictionaries.activations import Gated, JumpReLU, ReLU, TopK
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.formats import foreign
from microtome.dictionaries.formats.foreign import Sites

TITLE: Final = "dictionary_learning"
LAYOUT: Final = "dictionary_learning's layout, in safetensors: config.json beside ae.safetensors"
FILES: Final = ("config.json", "ae.safetensors")

_HOW: Final = (
    "in a place where you trust the file, run `import torch, safetensors.torch as s; state = torch.load('ae.pt', "
    "weights_only=True, map_location='cpu'); s.save_file({n: t.contiguous() for n, t in state.items()}, "
    "'ae.safetensors')`"
)
_SHARED: Final = ("encoder.weight", "encoder.bias", "decoder.weight")
_NAMES: Final = {
    "AutoEncoder": (*_SHARED, "bias"),
    "AutoEncoderNew": (*_SHARED, "decoder.bias"),
    "AutoEncoderTopK": (*_SHARED, "b_dec", "k", "threshold"),
    "BatchTopKSAE": (*_SHARED, "b_dec", "k", "threshold"),
    "MatryoshkaBatchTopKSAE": ("W_enc", "W_dec", "b_enc", "b_dec", "k", "threshold", "group_sizes"),
    "GatedAutoEncoder": (
        "encoder.weight",
        "decoder.weight",
        "decoder_bias",
        "r_mag",
        "gate_bias",
        "mag_bias",
    ),
    "JumpReluAutoEncoder": ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"),
    "CrossCoder": (*_SHARED, "decoder.bias"),
}
_SUBTRACT: Final = (
    "AutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
    "GatedAutoEncoder",
)


def read(path: str | Path, reads: Sites | None = None, writes: Sites | None = None) -> Dictionary:
    """A dictionary of any of these classes. reads, writes: sites, where `config.json` does not say; of a crosscoder it
    never does. Raises `StoreError`."""
    folder = foreign.folder_of(path, FILES)
    if not (folder / FILES[1]).exists() and (folder / "ae.pt").exists():
        raise StoreError(f"{folder}/ae.pt is a pickle, which can run code, and is not read; {_HOW}")
    told = foreign.settings(folder / FILES[0], LAYOUT)
    held, stored = foreign.whole(foreign.tensors(folder / FILES[1], LAYOUT))
    with foreign.expecting(folder, LAYOUT):
        trainer = told["trainer"]
        kind = trainer["dict_class"]
        if kind not in _NAMES:
            raise StoreError(f"{folder} holds a {kind}; read are {', '.join(_NAMES)}")
        foreign.nothing_else(held, _NAMES[kind], folder, LAYOUT)
        encoder, decoder = _matrices(kind, held)
        encoder_bias, bias = _biases(kind, held)
        reads_here = foreign.named(reads, [_site(trainer)], folder, "reads")
        writes_here = reads_here if writes is None else foreign.named(writes, [], folder, "writes")
        found = Dictionary(
            name="dictionary_learning",
            reads=reads_here,
            writes=writes_here,
            read_widths=(encoder.shape[1] // len(reads_here),) * len(reads_here),
            write_widths=(decoder.shape[1] // len(writes_here),) * len(writes_here),
            activation=_activation(kind, held, encoder_bias),
            encoder=encoder.contiguous(),
            encoder_bias=encoder_bias,
            decoder=decoder.contiguous(),
            decoder_bias=bias,
            centre=bias if kind in _SUBTRACT else torch.zeros_like(encoder[0]),
            recipe={"format": TITLE, "settings": told, "stored": stored, "numbers": _numbers(held)},
        )
        return found.unit_norms() if kind in ("GatedAutoEncoder", "JumpReluAutoEncoder") else found


def _matrices(kind: str, held: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    if kind == "CrossCoder":
        return held["encoder.weight"].flatten(0, 1).T, held["decoder.weight"].movedim(0, 1).flatten(1)
    if "W_enc" in _NAMES[kind]:
        return held["W_enc"].T, held["W_dec"]
    return held["encoder.weight"], held["decoder.weight"].T


def _biases(kind: str, held: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The encoder's, and what is added last."""
    ours = next(name for name in ("b_enc", "gate_bias", "encoder.bias") if name in held)
    last = next(name for name in ("b_dec", "decoder_bias", "bias", "decoder.bias") if name in held)
    return held[ours], held[last].flatten()


def _activation(kind: str, held: dict[str, Tensor], like: Tensor) -> ReLU | TopK | JumpReLU | Gated:
    if kind == "AutoEncoderTopK":
        return TopK(int(held["k"]))
    if kind == "JumpReluAutoEncoder":
        return JumpReLU(held["threshold"])
    if "threshold" in _NAMES[kind]:
        return JumpReLU(torch.full_like(like, float(held["threshold"])))
    if kind == "GatedAutoEncoder":
        scale = held["r_mag"].exp()
        return Gated(scale, held["mag_bias"] - scale * held["gate_bias"])
    return ReLU()


def _numbers(held: dict[str, Tensor]) -> dict[str, Any]:
    """What the library keeps beside weights, for the way back."""
    kept = {name: held[name] for name in ("k", "threshold", "group_sizes") if name in held}
    return {name: t.tolist() for name, t in kept.items() if name == "group_sizes" or t.dim() == 0}


def _site(trainer: dict[str, Any]) -> Site | None:
    match = re.fullmatch(r"resid_post_layer_(\d+)", str(trainer.get("submodule_name")))
    return Site("resid_post", int(match[1])) if match else None


def write(dictionary: Dictionary, path: str | Path) -> None:
    """Write both files into a folder. Raises `InputError` for what the library has no class for."""
    kept = foreign.origin(dictionary, TITLE)
    kind = kept["trainer"]["dict_class"] if kept else _class_for(dictionary)
    if dictionary.skip is not None or (not dictionary.in_place and kind != "AutoEncoderNew"):
        raise InputError(
            f"dictionary_learning has no {kind} that writes elsewhere than it reads; got {dictionary.name}"
        )
    found, _ = foreign.arranged(dictionary, kind in _SUBTRACT)
    numbers = dictionary.recipe.get("numbers", {}) if kept else {}
    held = _held(kind, found, numbers)
    stored = foreign.stored_as(dictionary, TITLE, held)
    if not kept:
        site = found.reads[0]
        trainer = {"dict_class": kind, "activation_dim": sum(found.read_widths), "dict_size": found.n_units}
        if site.part == "resid_post":
            trainer |= {"layer": site.layer, "submodule_name": f"resid_post_layer_{site.layer}"}
        if isinstance(found.activation, TopK):
            trainer["k"] = found.activation.k
        kept = {"trainer": trainer, "buffer": {}}
    folder = Path(path)
    foreign.write_tensors(folder / FILES[1], stored)
    foreign.write_settings(folder / FILES[0], kept)


def _class_for(dictionary: Dictionary) -> str:
    if (
        len(dictionary.reads) > 1
        and isinstance(dictionary.activation, ReLU)
        and len(set(dictionary.read_widths)) == 1
    ):
        return "CrossCoder"
    foreign.one_site(dictionary, "dictionary_learning")
    activation = dictionary.activation
    if isinstance(activation, TopK):
        if activation.signed or activation.weight is not None:
            raise InputError(f"dictionary_learning knows plain top-k; {dictionary.name} has another")
        return "AutoEncoderTopK"
    if isinstance(activation, JumpReLU):
        return "JumpReluAutoEncoder"
    return "GatedAutoEncoder" if isinstance(activation, Gated) else "AutoEncoderNew"


def _held(kind: str, found: Dictionary, numbers: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a class, by its names."""
    activation, sites = found.activation, len(found.reads)
    if kind == "CrossCoder":
        return {
            "encoder.weight": found.encoder.T.unflatten(0, (sites, -1)),
            "encoder.bias": found.encoder_bias,
            "decoder.weight": found.decoder.unflatten(1, (sites, -1)).movedim(1, 0),
            "decoder.bias": found.decoder_bias.view(sites, -1),
        }
    square = {
        "W_enc": found.encoder.T,
        "W_dec": found.decoder,
        "b_enc": found.encoder_bias,
        "b_dec": found.decoder_bias,
    }
    linear = {
        "encoder.weight": found.encoder,
        "encoder.bias": found.encoder_bias,
        "decoder.weight": found.decoder.T,
    }
    if kind == "JumpReluAutoEncoder" and isinstance(activation, JumpReLU):
        return square | {"threshold": activation.threshold}
    if kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE") and isinstance(activation, JumpReLU):
        held = square if kind.startswith("M") else linear | {"b_dec": found.decoder_bias}
        sizes = {"group_sizes": torch.tensor(numbers["group_sizes"])} if "group_sizes" in numbers else {}
        return held | {"k": torch.tensor(numbers["k"]), "threshold": activation.threshold[0]} | sizes
    if kind == "AutoEncoderTopK" and isinstance(activation, TopK):
        least = torch.tensor(numbers.get("threshold", -1.0))
        return linear | {
            "b_dec": found.decoder_bias,
            "k": torch.tensor(activation.k, dtype=torch.int32),
            "threshold": least,
        }
    if kind == "GatedAutoEncoder" and isinstance(activation, Gated):
        if not bool((activation.scale > 0).all()):
            raise InputError("dictionary_learning's gated units have scales above zero")
        return {
            "encoder.weight": found.encoder,
            "decoder.weight": found.decoder.T,
            "decoder_bias": found.decoder_bias,
            "r_mag": activation.scale.log(),
            "gate_bias": found.encoder_bias,
            "mag_bias": activation.shift + activation.scale * found.encoder_bias,
        }
    if kind in ("AutoEncoder", "AutoEncoderNew") and isinstance(activation, ReLU):
        return linear | {"bias" if kind == "AutoEncoder" else "decoder.bias": found.decoder_bias}
    raise InputError(
        f"{found.name} was read as {kind} and has another activation by now; name it anew with recipe={{}}"
    )
