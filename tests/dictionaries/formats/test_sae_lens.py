"""What SAELens computes from its own files is what we compute from them, for every architecture and flag."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from microtome.core.errors import InputError, StoreError
from microtome.core.site import Site
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.formats import sae_lens

D, UNITS, OUT = 6, 20, 5


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def stored(folder: Path, architecture: str, out: int = D, **flags: Any) -> Path:
    """Files as SAELens writes them."""
    folder.mkdir(parents=True)
    held = {"W_enc": drawn(D, UNITS), "W_dec": drawn(UNITS, out, seed=1), "b_dec": drawn(out, seed=2)}
    if architecture == "gated":
        held |= {name: drawn(UNITS, seed=n) for n, name in enumerate(("b_gate", "r_mag", "b_mag"))}
    else:
        held["b_enc"] = drawn(UNITS, seed=3)
    if "jumprelu" in architecture:
        held["threshold"] = drawn(UNITS, seed=4).abs()
    if "batchtopk" in architecture:
        held["topk_threshold"] = torch.tensor(1.3, dtype=torch.double)
    if "skip" in architecture:
        held["W_skip"] = drawn(out, D, seed=5)
    told = {
        "d_in": D,
        "d_sae": UNITS,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": "transcoder" not in architecture,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12",
            "hook_name": "blocks.3.hook_resid_pre",
            "hook_name_out": "blocks.3.hook_mlp_out",
        },
        "architecture": architecture,
    } | flags
    save_file(held, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(told))
    return folder


def forward(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and what is rebuilt, in the words of the file, with nothing of ours."""
    t = load_file(folder / "sae_weights.safetensors")
    told = json.loads((folder / "cfg.json").read_text())
    kind, norm = told["architecture"], t["W_dec"].norm(dim=-1)
    inner = x - t["b_dec"] * told["apply_b_dec_to_input"] if told["apply_b_dec_to_input"] else x
    rescales = told.get("rescale_acts_by_decoder_norm", False)
    if kind == "gated":
        open_gates = (inner @ t["W_enc"] + t["b_gate"]) > 0
        codes = open_gates * torch.relu(inner @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"])
    else:
        pre = inner @ t["W_enc"] + t["b_enc"]
        pre = pre * norm if rescales else pre
        if "jumprelu" in kind:
            codes = torch.relu(pre) * (pre > t["threshold"])
        elif "batchtopk" in kind:
            codes = torch.relu(pre) * (pre > t["topk_threshold"])
        elif "topk" in kind:
            ranked = pre.abs() if kind == "abstopk" else pre
            place = ranked.topk(told["k"], -1).indices
            kept = pre.gather(-1, place)
            codes = torch.zeros_like(pre).scatter(-1, place, kept if kind == "abstopk" else kept.relu())
        else:
            codes = torch.relu(pre)
    made = (codes / norm if rescales else codes) @ t["W_dec"] + t["b_dec"]
    return codes, made + x @ t["W_skip"].T if "W_skip" in t else made


def same(found: Dictionary, folder: Path) -> None:
    x = drawn(40, D, seed=9)
    codes, made = forward(folder, x)
    torch.testing.assert_close(found.encode(x), codes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.rebuilt(x, found.encode(x)), made, atol=1e-5, rtol=1e-5)
    assert bool((codes == 0).any())


CASES = [
    ("standard", D, {}),
    ("standard", D, {"apply_b_dec_to_input": False}),
    ("jumprelu", D, {}),
    ("jumprelu", D, {"apply_b_dec_to_input": False}),
    ("topk", D, {"k": 4}),
    ("topk", D, {"k": 17, "rescale_acts_by_decoder_norm": False}),
    ("abstopk", D, {"k": 4}),
    ("transcoder", OUT, {"d_out": OUT}),
    ("skip_transcoder", OUT, {"d_out": OUT}),
    ("jumprelu_transcoder", OUT, {"d_out": OUT}),
    ("jumprelu_skip_transcoder", OUT, {"d_out": OUT}),
]


@pytest.mark.parametrize(("kind", "out", "flags"), CASES)
def test_outputs_are_equal_and_files_come_back_bit_for_bit(
    kind: str, out: int, flags: dict[str, Any], tmp_path: Path
) -> None:
    folder = stored(tmp_path / "theirs", kind, out, **flags)
    found = sae_lens.read(folder)
    same(found, folder)
    assert found.reads == (Site("resid_pre", 3),)
    assert sae_lens.read(folder / "sae_weights.safetensors").reads == found.reads
    assert found.writes == ((Site("mlp_out", 3),) if "transcoder" in kind else found.reads)
    sae_lens.write(found, tmp_path / "back")
    before = load_file(folder / "sae_weights.safetensors")
    after = load_file(tmp_path / "back/sae_weights.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((folder / "cfg.json").read_text()) == json.loads(
        (tmp_path / "back/cfg.json").read_text()
    )


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("gated", {}),
        ("gated", {"apply_b_dec_to_input": False}),
        ("topk", {"k": 4, "rescale_acts_by_decoder_norm": True}),
        ("abstopk", {"k": 4, "rescale_acts_by_decoder_norm": True}),
        ("batchtopk", {"k": 4.0, "rescale_acts_by_decoder_norm": True}),
        ("matryoshka_batchtopk", {"k": 4.0, "rescale_acts_by_decoder_norm": False}),
    ],
)
def test_what_is_held_otherwise_comes_back_with_the_same_outputs(
    kind: str, flags: dict[str, Any], tmp_path: Path
) -> None:
    folder = stored(tmp_path / "theirs", kind, **flags)
    found = sae_lens.read(folder)
    same(found, folder)
    sae_lens.write(found, tmp_path / "back")
    x = drawn(40, D, seed=9)
    for mine, theirs in zip(forward(tmp_path / "back", x), forward(folder, x), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    same(sae_lens.read(tmp_path / "back"), tmp_path / "back")


@pytest.mark.parametrize("kind", ["standard", "gated", "jumprelu", "topk", "batchtopk"])
@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("way", ["expected_average_only_in", "covariance_whitening"])
def test_a_checkpoint_on_scaled_values_is_read_for_own_values(
    kind: str, subtracts: bool, way: str, tmp_path: Path
) -> None:
    flags = {"k": 4, "rescale_acts_by_decoder_norm": True} if "topk" in kind else {}
    folder = stored(
        tmp_path / "theirs", kind, apply_b_dec_to_input=subtracts, normalize_activations=way, **flags
    )
    x, mean = drawn(40, D, seed=9), 3 * drawn(D, seed=7)
    with pytest.raises(StoreError, match=r"scaled before.*activation_scaler.json"):
        sae_lens.read(folder)
    if way == "covariance_whitening":
        axes, sizes = torch.linalg.qr(drawn(D, D, seed=8))[0], drawn(D, seed=6).abs() + 0.5
        matrix, back = axes / sizes, sizes[:, None] * axes.T
        held = {"mean": mean, "matrix": matrix, "inverse_matrix": back}
        save_file(
            {name: tensor.double().contiguous() for name, tensor in held.items()},
            folder / "activation_whitening.safetensors",
        )
        scaled, told = (x - mean) @ matrix, {"scaling_factor": None, "has_whitening": True}
    else:
        scaled, told = x * 0.37, {"scaling_factor": 0.37, "has_whitening": False}
    (folder / "activation_scaler.json").write_text(json.dumps(told))
    found = sae_lens.read(folder)
    codes, made = forward(folder, scaled)
    made = made @ back + mean if way == "covariance_whitening" else made / 0.37
    torch.testing.assert_close(found.encode(x), codes, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.rebuilt(x, found.encode(x)), made, atol=1e-4, rtol=1e-4)
    # What is written takes values as they are, and says so.
    sae_lens.write(found, tmp_path / "back")
    assert json.loads((tmp_path / "back/cfg.json").read_text())["normalize_activations"] == "none"
    for mine, theirs in zip(forward(tmp_path / "back", x), (codes, made), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_half_precision_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = stored(tmp_path / "theirs", "jumprelu")
    held = {name: t.bfloat16() for name, t in load_file(folder / "sae_weights.safetensors").items()}
    save_file(held, folder / "sae_weights.safetensors")
    found = sae_lens.read(folder)
    assert found.encoder.dtype == torch.float32
    sae_lens.write(found, tmp_path / "back")
    after = load_file(tmp_path / "back/sae_weights.safetensors")
    assert all(torch.equal(held[name], after[name]) and after[name].dtype == torch.bfloat16 for name in held)


def test_old_files_keep_their_settings_at_the_top(tmp_path: Path) -> None:
    folder = stored(tmp_path / "theirs", "standard")
    told = {"d_in": D, "d_sae": UNITS, "hook_point": "blocks.2.attn.hook_z", "hook_point_head_index": None}
    told |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "normalize_activations": False}
    (folder / "cfg.json").write_text(json.dumps(told))
    found = sae_lens.read(folder)
    assert found.reads == (Site("z", 2),)
    assert int((found.encode(drawn(10, D)) != 0).sum(-1).max()) == 3


def test_sites_without_a_hook_survive(tmp_path: Path) -> None:
    folder = stored(tmp_path / "theirs", "transcoder", OUT, d_out=OUT)
    told = json.loads((folder / "cfg.json").read_text())
    told["metadata"]["hook_name"] = "blocks.3.ln2.hook_normalized"
    (folder / "cfg.json").write_text(json.dumps(told))
    with pytest.raises(StoreError, match="does not say for certain"):
        sae_lens.read(folder)
    found = sae_lens.read(folder, reads=["mlp_in.3"])
    assert found.reads == (Site("mlp_in", 3),)

    sae_lens.write(replace(found, recipe={}), tmp_path / "new")
    assert sae_lens.read(tmp_path / "new").reads == (Site("mlp_in", 3),)


@pytest.mark.parametrize(
    ("kind", "flags", "words"),
    [
        ("standard", {"normalize_activations": "layer_norm"}, "each row by itself"),
        ("standard", {"normalize_activations": "constant_norm_rescale"}, "each row by itself"),
        ("matching_pursuit", {}, "matching_pursuit"),
        ("temporal", {}, "temporal"),
        ("standard", {"finetuning_scaling_factor": True}, "scales codes"),
        ("standard", {"activation_fn": "tanh-relu"}, "tanh-relu"),
    ],
)
def test_what_is_not_read_is_said(kind: str, flags: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=words):
        sae_lens.read(stored(tmp_path / "theirs", kind, **flags))


def test_corrupt_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"expected SAELens's layout"):
        sae_lens.read(tmp_path)
    folder = stored(tmp_path / "a", "jumprelu")
    whole = (folder / "sae_weights.safetensors").read_bytes()
    for content in (b"", whole[:50], whole[:-9], b"x" * 200):
        (folder / "sae_weights.safetensors").write_bytes(content)
        with pytest.raises(StoreError, match="no safetensors file"):
            sae_lens.read(folder)
    held = load_file(stored(tmp_path / "b", "jumprelu") / "sae_weights.safetensors")
    for broken in (
        {name: t for name, t in held.items() if name != "threshold"},
        held | {"b_enc": drawn(UNITS - 1)},
        held | {"scaling_factor": drawn(UNITS)},
        held | {"W_enc": held["W_enc"] / 0},
    ):
        save_file(broken, folder / "sae_weights.safetensors")
        with pytest.raises(StoreError, match=r"expected SAELens's layout"):
            sae_lens.read(folder)
    for text in ("", "[]", "{", '"a"'):
        (folder / "cfg.json").write_text(text)
        with pytest.raises(StoreError, match=r"expected SAELens's layout"):
            sae_lens.read(folder)


def test_what_saelens_has_no_words_for(tmp_path: Path) -> None:
    found = sae_lens.read(stored(tmp_path / "a", "topk", k=3))

    with pytest.raises(InputError, match="no topk transcoder"):
        sae_lens.write(replace(found, writes=(Site("mlp_out", 3),), centre=found.centre * 0), tmp_path / "b")
    both = replace(found, reads=(Site("z", 0), Site("z", 1)), read_widths=(3, 3))
    with pytest.raises(InputError, match="one site"):
        sae_lens.write(both, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_centre_and_scales_are_folded(tmp_path: Path) -> None:

    found = sae_lens.read(stored(tmp_path / "a", "jumprelu"))
    other = replace(found, centre=drawn(D, seed=7), read_scale=2.5, write_scale=0.5, recipe={})
    sae_lens.write(other, tmp_path / "b")
    x = drawn(30, D, seed=8)
    codes, made = forward(tmp_path / "b", x)
    torch.testing.assert_close(codes, other.encode(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made, other.reconstruct(x), atol=1e-4, rtol=1e-4)
