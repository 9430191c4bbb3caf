"""The format of SAELens: `cfg.json` beside `sae_weights.safetensors`; matrices stand as input × output.

    W_enc [d_in, unit]  W_dec [unit, d_out]  b_enc  b_dec          threshold | b_gate r_mag b_mag | W_skip [d_out, d_in]

What is written of a dictionary that was read here is what was read, bit for bit. Two kinds come back equal to rounding
only: gated ones, whose r_mag stands in an exponent, and top-k ones whose units are ranked by decoder norm
(`rescale_acts_by_decoder_norm`), which are held with the norms in the encoder.

A checkpoint of a training whose values were scaled or whitened says so, and `activation_scaler.json` and
`activation_whitening.safetensors` beside it say how: what is read takes values as the model has them, and so does what
is written. Without these files it is refused.

Not read: normalisation by each row's own norm (`layer_norm`, `constant_norm_rescale`), since what is decoded then
depends on more than the codes; matching pursuit and temporal ones.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from microtome.core.errors import InputError, StoreError
from microtome.core.site import Site
from microtome.dictionaries.activations import Activation, Gated, JumpReLU, ReLU, TopK
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.formats import foreign
from microtome.dictionaries.formats.foreign import Sites
from microtome.dictionaries.formats.hook_names import hook_of, site_of

TITLE: Final = "sae_lens"
LAYOUT: Final = "SAELens's layout: cfg.json beside sae_weights.safetensors"
FILES: Final = ("cfg.json", "sae_weights.safetensors")
SCALER: Final = ("activation_scaler.json", "activation_whitening.safetensors")

_TRANSCODERS: Final = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
_KNOWN: Final = (
    "standard",
    "gated",
    "jumprelu",
    "topk",
    "abstopk",
    "batchtopk",
    "matryoshka_batchtopk",
    *_TRANSCODERS,
)
_NORMS: Final = (None, "none", False, True, "expected_average_only_in", "covariance_whitening")


def read(path: str | Path, reads: Sites | None = None, writes: Sites | None = None) -> Dictionary:
    """A dictionary. reads, writes: sites, where the file's hook is none of ours.

    Raises `StoreError` for a file that is corrupt, foreign, or of a kind that is not read.
    """
    folder = foreign.folder_of(path, FILES)
    told = foreign.settings(folder / FILES[0], LAYOUT)
    held, stored = foreign.whole(foreign.tensors(folder / FILES[1], LAYOUT))
    with foreign.expecting(folder, LAYOUT):
        kind = _kind(told, folder)
        transcodes = kind in _TRANSCODERS
        metadata = told.get("metadata", told)
        hook = metadata.get("hook_name", told.get("hook_point"))
        hook_out = metadata.get("hook_name_out") if transcodes else hook
        mine = metadata.get("microtome_sites", {})
        sites = [
            [Site.parse(mine[what])] if what in mine else [site_of(name)]
            for what, name in (("reads", hook), ("writes", hook_out))
        ]
        reads_here = foreign.named(reads, sites[0], folder, "reads")
        writes_here = (
            reads_here
            if not transcodes and writes is None
            else foreign.named(writes, sites[1], folder, "writes")
        )
        known = [
            "W_enc",
            "W_dec",
            "b_enc",
            "b_dec",
            "threshold",
            "topk_threshold",
            "b_gate",
            "r_mag",
            "b_mag",
            "W_skip",
        ]
        foreign.nothing_else(held, known, folder, LAYOUT)
        encoder, decoder, bias = held["W_enc"].T, held["W_dec"], held["b_dec"]
        activation, encoder_bias = _activation(kind, told, held)
        subtracts = bool(told.get("apply_b_dec_to_input", not transcodes))
        if transcodes and subtracts:
            raise StoreError(f"{folder} is a transcoder that subtracts what it adds; expected {LAYOUT}")
        found = Dictionary(
            name="sae_lens",
            reads=reads_here,
            writes=writes_here,
            read_widths=(encoder.shape[1],),
            write_widths=(decoder.shape[1],),
            activation=activation,
            encoder=encoder.contiguous(),
            encoder_bias=encoder_bias,
            decoder=decoder,
            decoder_bias=bias,
            centre=bias if subtracts else torch.zeros_like(encoder[0]),
            skip=held["W_skip"] if "skip" in kind else None,
            recipe={"format": TITLE, "settings": told, "stored": stored},
        )
        if told.get("rescale_acts_by_decoder_norm") and kind not in ("standard", "gated", "jumprelu"):
            found = found.unit_norms()
            # Ranked by the norms that have just gone into the encoder.
            if isinstance(found.activation, TopK):
                found = replace(found, activation=TopK(found.activation.k, found.activation.signed))
            elif "topk_threshold" in held:
                found = replace(found, activation=activation)
        return _for_own_values(found, told.get("normalize_activations"), folder)


def _for_own_values(found: Dictionary, normalised: str | bool | None, folder: Path) -> Dictionary:
    """The same for values as the model has them, where it was trained on values scaled, or whitened."""
    if normalised in (None, "none", False):
        return found
    if not (folder / SCALER[0]).exists():
        raise StoreError(
            f"{folder} was trained on values that were scaled before ({normalised}), and {SCALER[0]}, which says by "
            'how much, is not there; put it beside, or {"scaling_factor": …} of your own in a file of this name'
        )
    scaler = foreign.settings(folder / SCALER[0], LAYOUT)
    if normalised == "covariance_whitening":
        held, _ = foreign.whole(foreign.tensors(folder / SCALER[1], LAYOUT))
        mean, matrix, back = (held[name].double() for name in ("mean", "matrix", "inverse_matrix"))
        return replace(
            found,
            encoder=(found.encoder.double() @ matrix.T).float(),
            centre=(found.centre.double() @ back + mean).float(),
            decoder=(found.decoder.double() @ back).float(),
            decoder_bias=(found.decoder_bias.double() @ back + mean).float(),
        )
    factor = float(scaler["scaling_factor"])
    return replace(
        found,
        read_scale=factor,
        write_scale=factor,
        centre=found.centre / factor,
        decoder_bias=found.decoder_bias / factor,
    )


def _kind(told: dict[str, Any], folder: Path) -> str:
    """The architecture. Raises `StoreError` for what is not read."""
    kind = told.get("architecture", "standard")
    function = told.get("activation_fn", told.get("activation_fn_str", "relu"))
    if kind == "standard" and function == "topk":
        kind = "topk"
    elif function not in ("relu", "topk"):
        raise StoreError(f"{folder} uses the activation {function!r}; relu and top-k are read")
    if kind not in _KNOWN:
        raise StoreError(f"{folder} is of SAELens's architecture {kind!r}; read are {', '.join(_KNOWN)}")
    if told.get("normalize_activations") not in _NORMS:
        raise StoreError(
            f"{folder} normalises each row by itself ({told['normalize_activations']}), so that codes alone do not say "
            "what is rebuilt; it is no basis"
        )
    head = told.get("metadata", told).get("hook_head_index", told.get("hook_point_head_index"))
    if head is not None or told.get("finetuning_scaling_factor"):
        raise StoreError(f"{folder} stands at a single head, or scales codes afterwards; such are not read")
    return str(kind)


def _activation(kind: str, told: dict[str, Any], held: dict[str, Tensor]) -> tuple[Activation, Tensor]:
    """And the bias of the encoder that goes with it."""
    if kind == "gated":
        scale = held["r_mag"].exp()
        return Gated(scale, held["b_mag"] - scale * held["b_gate"]), held["b_gate"]
    bias = held["b_enc"]
    if "jumprelu" in kind:
        return JumpReLU(held["threshold"]), bias
    if "batchtopk" in kind:
        return JumpReLU(torch.full_like(bias, float(held["topk_threshold"]))), bias
    if "topk" in kind:
        k = told["k"] if "k" in told else told["activation_fn_kwargs"]["k"]
        return TopK(int(k), signed=kind == "abstopk"), bias
    return ReLU(), bias


def write(dictionary: Dictionary, path: str | Path) -> None:
    """Write both files into a folder. Raises `InputError` for what SAELens has no architecture for."""
    foreign.one_site(dictionary, "SAELens")
    kept = foreign.origin(dictionary, TITLE)
    found, subtracts = foreign.arranged(dictionary, None)
    if isinstance(found.activation, TopK) and found.activation.weight is not None:
        weight = found.activation.weight
        found = replace(
            found,
            encoder=found.encoder * weight[:, None],
            encoder_bias=found.encoder_bias * weight,
            decoder=found.decoder / weight[:, None],
            activation=TopK(found.activation.k, found.activation.signed),
        )
    held = {"W_enc": found.encoder.T, "W_dec": found.decoder, "b_dec": found.decoder_bias}
    kind, extra = _described(found)
    held |= extra
    folder = Path(path)
    told = (
        {"normalize_activations": "none"}
        | kept
        | {
            "d_in": sum(found.read_widths),
            "d_sae": found.n_units,
            "architecture": kind,
            # A bias of zero is the same subtracted or not.
            "apply_b_dec_to_input": bool(kept.get("apply_b_dec_to_input", False))
            if not bool(found.decoder_bias.any())
            else subtracts,
        }
    )
    if not kept:
        told |= {
            "dtype": "float32",
            "device": "cpu",
            "reshape_activations": "none",
        }
        told["metadata"] = _metadata(found)
        if found.reads[0].part == "z":
            told["reshape_activations"] = "hook_z"
    if kind in _TRANSCODERS:
        told["d_out"] = sum(found.write_widths)
    if isinstance(found.activation, TopK):
        told["k"] = found.activation.k
    if told["normalize_activations"] not in (None, False):
        told["normalize_activations"] = "none"
    if "rescale_acts_by_decoder_norm" in told:
        told["rescale_acts_by_decoder_norm"] = False
    foreign.write_tensors(folder / FILES[1], foreign.stored_as(dictionary, TITLE, held))
    foreign.write_settings(folder / FILES[0], told)


def _described(found: Dictionary) -> tuple[str, dict[str, Tensor]]:
    """The architecture of SAELens, and the tensors that it has beside the others."""
    activation, bias = found.activation, found.encoder_bias
    if isinstance(activation, Gated):
        if not bool((activation.scale > 0).all()):
            raise InputError("SAELens's gated units have scales above zero")
        magnitude = activation.shift + activation.scale * bias
        kind, held = "gated", {"b_gate": bias, "r_mag": activation.scale.log(), "b_mag": magnitude}
    elif isinstance(activation, JumpReLU):
        kind, held = "jumprelu", {"b_enc": bias, "threshold": activation.threshold}
    elif isinstance(activation, TopK):
        kind, held = "abstopk" if activation.signed else "topk", {"b_enc": bias}
    else:
        kind, held = "standard", {"b_enc": bias}
    if found.in_place and found.skip is None:
        return kind, held
    words = {"standard": "", "jumprelu": "jumprelu_"}
    if kind not in words or found.in_place:
        raise InputError(
            f"SAELens has no {kind} transcoder, nor an autoencoder with a skip; {found.name} is one"
        )
    if found.skip is not None:
        held["W_skip"] = found.skip
    return f"{words[kind]}{'skip_' if found.skip is not None else ''}transcoder", held


def _metadata(found: Dictionary) -> dict[str, Any]:
    """Where it stands, in SAELens's words, and in ours where it has none."""
    hooks = {"hook_name": hook_of(found.reads[0])}
    if not found.in_place:
        hooks["hook_name_out"] = hook_of(found.writes[0])
    told: dict[str, Any] = {"sae_lens_version": "6.0.0", "model_name": found.provenance.model, **hooks}
    if None in hooks.values():
        told["microtome_sites"] = {"reads": str(found.reads[0]), "writes": str(found.writes[0])}
    return told
