"""sparsify, dictionary_learning, Gemma Scope, circuit-tracer: outputs equal theirs, files come back as they were."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from microtome.core.errors import InputError, StoreError
from microtome.core.site import Site
from microtome.dictionaries.activations import JumpReLU, ReLU, TopK
from microtome.dictionaries.convert import READERS, convert, read
from microtome.dictionaries.cross_layer_transcoder import CrossLayerTranscoder
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.files import save
from microtome.dictionaries.formats import circuit_tracer, dictionary_learning, gemma_scope, sparsify

D, UNITS = 6, 20


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


X = drawn(40, D, seed=9)


def same(found: Dictionary, codes: Tensor, made: Tensor) -> None:
    torch.testing.assert_close(found.encode(X), codes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.rebuilt(X, found.encode(X)), made, atol=1e-5, rtol=1e-5)
    assert bool((codes == 0).any())
    assert bool((codes != 0).any())


def equal_files(one: Path, other: Path) -> bool:
    before, after = load_file(one), load_file(other)
    return before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before
    )


def top_k(pre: Tensor, k: int) -> Tensor:
    values, place = pre.relu().topk(k, -1)
    return torch.zeros_like(pre).scatter(-1, place, values)


# sparsify ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_sparsify(transcode: bool, skip: bool, tmp_path: Path) -> None:
    folder = tmp_path / "layers.5"
    folder.mkdir()
    t = {
        "encoder.weight": drawn(UNITS, D),
        "encoder.bias": drawn(UNITS),
        "W_dec": drawn(UNITS, D, seed=1),
        "b_dec": drawn(D, seed=2),
    }
    if skip:
        t["W_skip"] = drawn(D, D)
    save_file(t, folder / "sae.safetensors")
    told = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": 0, "k": 3}
    told |= {"multi_topk": False, "skip_connection": skip, "transcode": transcode, "d_in": D}
    (folder / "cfg.json").write_text(json.dumps(told))
    where = {"reads": ["mlp_in.5"], "writes": ["mlp_out.5"]} if transcode else {}
    found = sparsify.read(folder, **where)
    inner = X if transcode else X - t["b_dec"]
    codes = top_k(inner @ t["encoder.weight"].T + t["encoder.bias"], 3)
    same(found, codes, codes @ t["W_dec"] + t["b_dec"] + (X @ t["W_skip"].T if skip else 0))
    assert found.reads == (Site("mlp_in", 5) if transcode else Site("resid_post", 5),)
    sparsify.write(found, tmp_path / "back")
    assert equal_files(folder / "sae.safetensors", tmp_path / "back/sae.safetensors")
    assert json.loads((tmp_path / "back/cfg.json").read_text()) == told
    if transcode:
        with pytest.raises(StoreError, match="does not say for certain where it reads"):
            sparsify.read(folder)


def test_sparsify_refuses(tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text(json.dumps({"activation": "groupmax", "k": 3}))
    save_file({"b_dec": drawn(D)}, tmp_path / "sae.safetensors")
    with pytest.raises(StoreError, match="groupmax"):
        sparsify.read(tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps({"k": 3}))
    with pytest.raises(StoreError, match=r"lacks 'encoder.weight'; expected sparsify's layout"):
        sparsify.read(tmp_path, reads=["z.0"])
    with pytest.raises(InputError, match="plain top-k"):
        sparsify.write(plain(ReLU()), tmp_path / "b")


# dictionary_learning -------------------------------------------------------------------------------------------------


def linear() -> dict[str, Tensor]:
    return {
        "encoder.weight": drawn(UNITS, D),
        "encoder.bias": drawn(UNITS),
        "decoder.weight": drawn(D, UNITS, seed=1),
    }


def square() -> dict[str, Tensor]:
    return {
        "W_enc": drawn(D, UNITS),
        "b_enc": drawn(UNITS),
        "W_dec": drawn(UNITS, D, seed=1),
        "b_dec": drawn(D, seed=2),
    }


Forward = Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]]


def autoencoder(t: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    codes = ((X - t["bias"]) @ t["encoder.weight"].T + t["encoder.bias"]).relu()
    return codes, codes @ t["decoder.weight"].T + t["bias"]


def autoencoder_new(t: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    codes = (X @ t["encoder.weight"].T + t["encoder.bias"]).relu()
    return codes, codes @ t["decoder.weight"].T + t["decoder.bias"]


def top_k_autoencoder(t: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    codes = top_k((X - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"], int(t["k"]))
    return codes, codes @ t["decoder.weight"].T + t["b_dec"]


def batch_top_k(t: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    on = ((X - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]).relu()
    codes = on * (on > t["threshold"])
    return codes, codes @ t["decoder.weight"].T + t["b_dec"]


def matryoshka(t: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    on = ((X - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
    codes = on * (on > t["threshold"])
    return codes, codes @ t["W_dec"] + t["b_dec"]


def gated(t: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    pre = (X - t["decoder_bias"]) @ t["encoder.weight"].T
    norm = t["decoder.weight"].norm(dim=0)
    codes = (pre + t["gate_bias"] > 0) * (t["r_mag"].exp() * pre + t["mag_bias"]).relu() * norm
    return codes, codes / norm @ t["decoder.weight"].T + t["decoder_bias"]


def jump(t: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    pre = X @ t["W_enc"] + t["b_enc"]
    norm = t["W_dec"].norm(dim=1)
    codes = (pre * (pre > t["threshold"])).relu() * norm
    return codes, codes / norm @ t["W_dec"] + t["b_dec"]


k, threshold = torch.tensor(4, dtype=torch.int32), torch.tensor(1.2)
CLASSES: dict[str, tuple[dict[str, Tensor], Forward, bool]] = {
    "AutoEncoder": (linear() | {"bias": drawn(D)}, autoencoder, True),
    "AutoEncoderNew": (linear() | {"decoder.bias": drawn(D)}, autoencoder_new, True),
    "AutoEncoderTopK": (
        linear() | {"b_dec": drawn(D), "k": k, "threshold": threshold},
        top_k_autoencoder,
        True,
    ),
    "BatchTopKSAE": (linear() | {"b_dec": drawn(D), "k": k, "threshold": threshold}, batch_top_k, True),
    "MatryoshkaBatchTopKSAE": (
        square() | {"k": k, "threshold": threshold, "group_sizes": torch.tensor([8, 12])},
        matryoshka,
        True,
    ),
    "GatedAutoEncoder": (
        {
            "encoder.weight": drawn(UNITS, D),
            "decoder.weight": drawn(D, UNITS, seed=1),
            "decoder_bias": drawn(D),
            "r_mag": drawn(UNITS, seed=3),
            "gate_bias": drawn(UNITS, seed=4),
            "mag_bias": drawn(UNITS, seed=5),
        },
        gated,
        False,
    ),
    "JumpReluAutoEncoder": (square() | {"threshold": drawn(UNITS, seed=6).abs()}, jump, False),
}


def learned(folder: Path, kind: str, held: dict[str, Tensor]) -> dict[str, object]:
    folder.mkdir(exist_ok=True)
    save_file({name: t.clone() for name, t in held.items()}, folder / "ae.safetensors")
    told: dict[str, object] = {
        "trainer": {"dict_class": kind, "submodule_name": "resid_post_layer_2", "lr": 1e-4, "layer": 2},
        "buffer": {"d_submodule": D, "ctx_len": 128},
    }
    (folder / "config.json").write_text(json.dumps(told))
    return told


@pytest.mark.parametrize("kind", CLASSES)
def test_dictionary_learning(kind: str, tmp_path: Path) -> None:
    held, forward, exact = CLASSES[kind]
    told = learned(tmp_path / "theirs", kind, held)
    found = dictionary_learning.read(tmp_path / "theirs")
    assert found.reads == (Site("resid_post", 2),)
    codes, made = forward(held)
    same(found, codes, made)
    dictionary_learning.write(found, tmp_path / "back")
    assert json.loads((tmp_path / "back/config.json").read_text()) == told
    after = load_file(tmp_path / "back/ae.safetensors")
    assert after.keys() == held.keys()
    if exact:
        assert all(torch.equal(after[name], held[name]) for name in held)
        assert all(after[name].dtype == held[name].dtype for name in held)
    for mine, theirs in zip(forward(after), (codes, made), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_crosscoder_of_dictionary_learning(tmp_path: Path) -> None:
    held = {
        "encoder.weight": drawn(2, 3, UNITS),
        "encoder.bias": drawn(UNITS),
        "decoder.weight": drawn(2, UNITS, 3, seed=1),
        "decoder.bias": drawn(2, 3),
    }
    told = learned(tmp_path / "a", "CrossCoder", held)
    found = dictionary_learning.read(tmp_path / "a", reads=["resid_post.1", "resid_post.2"])
    x = X.unflatten(-1, (2, 3))
    codes = (torch.einsum("bld,ldu->bu", x, held["encoder.weight"]) + held["encoder.bias"]).relu()
    made = torch.einsum("bu,lud->bld", codes, held["decoder.weight"]) + held["decoder.bias"]
    same(found, codes, made.flatten(1))
    dictionary_learning.write(found, tmp_path / "b")
    assert equal_files(tmp_path / "a/ae.safetensors", tmp_path / "b/ae.safetensors")
    assert json.loads((tmp_path / "b/config.json").read_text()) == told


def test_pickles_are_refused_with_a_way_out(tmp_path: Path) -> None:
    learned(tmp_path, "AutoEncoder", CLASSES["AutoEncoder"][0])
    (tmp_path / "ae.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, tmp_path / "ae.pt")
    with pytest.raises(StoreError, match=r"pickle, which can run code.*weights_only=True"):
        dictionary_learning.read(tmp_path)


@pytest.mark.parametrize("activation", [ReLU(), TopK(3), JumpReLU(torch.full((UNITS,), 0.5))])
def test_ours_is_written_for_dictionary_learning(activation: ReLU | TopK | JumpReLU, tmp_path: Path) -> None:
    ours = plain(activation)
    dictionary_learning.write(ours, tmp_path)
    back = dictionary_learning.read(tmp_path)
    torch.testing.assert_close(back.reconstruct(X), ours.reconstruct(X), atol=1e-4, rtol=1e-4)
    held = load_file(tmp_path / "ae.safetensors")
    forward = {
        "AutoEncoderNew": autoencoder_new,
        "AutoEncoderTopK": top_k_autoencoder,
        "JumpReluAutoEncoder": jump,
    }
    kind = json.loads((tmp_path / "config.json").read_text())["trainer"]["dict_class"]
    torch.testing.assert_close(forward[kind](held)[1], ours.reconstruct(X), atol=1e-4, rtol=1e-4)


# Gemma Scope ---------------------------------------------------------------------------------------------------------


def scope(folder: Path) -> dict[str, Tensor]:
    folder.mkdir(parents=True)
    held = square() | {"threshold": drawn(UNITS, seed=6).abs()}
    np.savez(folder / "params.npz", **{name: t.numpy() for name, t in held.items()})
    return held


def test_gemma_scope(tmp_path: Path) -> None:
    folder = tmp_path / "gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
    held = scope(folder)
    found = gemma_scope.read(folder)
    assert found.reads == found.writes == (Site("resid_post", 12),)
    pre = X @ held["W_enc"] + held["b_enc"]
    codes = (pre > held["threshold"]) * pre.relu()
    same(found, codes, codes @ held["W_dec"] + held["b_dec"])
    gemma_scope.write(found, tmp_path / "back")
    with np.load(folder / "params.npz") as before, np.load(tmp_path / "back/params.npz") as after:
        assert before.files == after.files
        assert all(np.array_equal(before[name], after[name]) for name in before.files)
    named = gemma_scope.read(tmp_path / "back", reads=["mlp_in.3"], writes=["mlp_out.3"])
    assert named.writes == (Site("mlp_out", 3),)


@pytest.mark.parametrize("skip", [False, True])
def test_second_gemma_scope(skip: bool, tmp_path: Path) -> None:
    folder = tmp_path / "resid_post/layer_9_width_16k_l0_small"
    folder.mkdir(parents=True)
    held = {name.lower(): t for name, t in square().items()} | {"threshold": drawn(UNITS, seed=6).abs()}
    if skip:
        held["affine_skip_connection"] = drawn(D, D)
    save_file(held, folder / "params.safetensors")
    found = gemma_scope.read(folder)
    assert found.reads == (Site("resid_post", 9),)
    pre = X @ held["w_enc"] + held["b_enc"]
    codes = (pre > held["threshold"]) * pre.relu()
    made = codes @ held["w_dec"] + held["b_dec"]
    same(found, codes, made + X @ held["affine_skip_connection"] if skip else made)
    gemma_scope.write(found, tmp_path / "back")
    assert equal_files(folder / "params.safetensors", tmp_path / "back/params.safetensors")
    gemma_scope.write(replace(found, recipe={}), tmp_path / "new")
    assert (tmp_path / "new" / ("params.safetensors" if skip else "params.npz")).exists()
    again = gemma_scope.read(tmp_path / "new", reads=["resid_post.9"])
    torch.testing.assert_close(again.rebuilt(X, again.encode(X)), found.rebuilt(X, found.encode(X)))


def test_gemma_scope_refuses(tmp_path: Path) -> None:
    scope(tmp_path / "a")
    with pytest.raises(StoreError, match="does not say for certain"):
        gemma_scope.read(tmp_path / "a")
    file = tmp_path / "b/params.npz"
    file.parent.mkdir()
    for content in (b"", b"PK\x03\x04 not really", (tmp_path / "a/params.npz").read_bytes()[:-40]):
        file.write_bytes(content)
        with pytest.raises(StoreError, match="expected Gemma Scope's layout"):
            gemma_scope.read(tmp_path / "b", reads=["z.0"])
    np.savez(file, W_enc=np.array([{}], dtype=object))
    with pytest.raises(StoreError, match="no archive of numpy arrays"):
        gemma_scope.read(tmp_path / "b", reads=["z.0"])
    np.savez(file, W_enc=np.zeros((D, UNITS), np.float32))
    with pytest.raises(StoreError, match="lacks 'W_dec'"):
        gemma_scope.read(tmp_path / "b", reads=["z.0"])
    with pytest.raises(InputError, match="JumpReLU"):
        gemma_scope.write(plain(TopK(3)), tmp_path / "c")


# circuit-tracer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jumps", [False, True])
def test_circuit_tracer(jumps: bool, tmp_path: Path) -> None:
    t = {
        "W_enc": drawn(UNITS, D),
        "W_dec": drawn(UNITS, D, seed=1),
        "b_enc": drawn(UNITS),
        "b_dec": drawn(D),
        "W_skip": drawn(D, D),
    }
    if jumps:
        t["activation_function.threshold"] = drawn(UNITS, seed=5).abs()
    file = tmp_path / "layer_3.safetensors"
    save_file(t, file)
    (tmp_path / "config.yaml").write_text(
        'model_name: "x"\nfeature_input_hook: "hook_resid_mid"\nfeature_output_hook: hook_mlp_out\n'
    )
    found = circuit_tracer.read(file)
    assert (found.reads, found.writes) == ((Site("resid_mid", 3),), (Site("mlp_out", 3),))
    pre = X @ t["W_enc"].T + t["b_enc"]
    codes = pre * (pre > t["activation_function.threshold"]) if jumps else pre.relu()
    same(found, codes, codes @ t["W_dec"] + t["b_dec"] + X @ t["W_skip"].T)
    circuit_tracer.write(found, tmp_path / "back.safetensors")
    assert equal_files(file, tmp_path / "back.safetensors")
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(StoreError, match="give reads="):
        circuit_tracer.read(file)
    save_file(t | {"k": torch.tensor(3)}, file)
    with pytest.raises(StoreError, match="also holds k"):
        circuit_tracer.read(file)
    save_file(t | {"activation_function.threshold": -torch.ones(UNITS)}, file)
    with pytest.raises(StoreError, match="below zero"):
        circuit_tracer.read(file)


def cross_layer(folder: Path, layers: int = 3) -> list[dict[str, Tensor]]:
    folder.mkdir()
    found = []
    for n in range(layers):
        held = {
            f"W_enc_{n}": drawn(UNITS, D, seed=n),
            f"b_enc_{n}": drawn(UNITS, seed=n),
            f"b_dec_{n}": drawn(D, seed=n),
            f"threshold_{n}": drawn(UNITS, seed=n + 7).abs(),
        }
        rows = {f"W_dec_{n}": drawn(UNITS, layers - n, D, seed=n)}
        save_file(held, folder / f"W_enc_{n}.safetensors")
        save_file(rows, folder / f"W_dec_{n}.safetensors")
        found.append(held | rows)
    (folder / "config.yaml").write_text(
        "feature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n"
    )
    return found


def test_cross_layer_circuit_tracer(tmp_path: Path) -> None:
    held = cross_layer(tmp_path / "theirs")
    found = circuit_tracer.read_cross_layer(tmp_path / "theirs")
    assert found.reads == tuple(Site("mlp_in", n) for n in range(3))
    x = drawn(30, 3 * D)
    codes, made = [], [t[f"b_dec_{n}"].expand(30, -1).clone() for n, t in enumerate(held)]
    for n, t in enumerate(held):
        pre = x[:, n * D : (n + 1) * D] @ t[f"W_enc_{n}"].T + t[f"b_enc_{n}"]
        codes.append(pre * (pre > t[f"threshold_{n}"]))
        for m in range(n, 3):
            made[m] += codes[-1] @ t[f"W_dec_{n}"][:, m - n]
    torch.testing.assert_close(found.encode(x), torch.cat(codes, -1))
    torch.testing.assert_close(found.decode(found.encode(x)), torch.cat(made, -1), atol=1e-5, rtol=1e-5)
    circuit_tracer.write_cross_layer(found, tmp_path / "back")
    for n in range(3):
        for part in ("enc", "dec"):
            name = f"W_{part}_{n}.safetensors"
            assert equal_files(tmp_path / "theirs" / name, tmp_path / "back" / name)
    (tmp_path / "theirs/W_dec_1.safetensors").unlink()
    with pytest.raises(StoreError, match=r"no W_dec_1.safetensors; expected circuit-tracer's cross-layer"):
        circuit_tracer.read_cross_layer(tmp_path / "theirs")
    with pytest.raises(StoreError, match=r"no W_enc_0"):
        circuit_tracer.read_cross_layer(tmp_path)
    save_file({"W_dec_1": drawn(UNITS, 1, D)}, tmp_path / "theirs/W_dec_1.safetensors")
    with pytest.raises(StoreError, match="expected \\(20, 2, 6\\)"):
        circuit_tracer.read_cross_layer(tmp_path / "theirs")


# all -----------------------------------------------------------------------------------------------------------------


def plain(activation: ReLU | TopK | JumpReLU) -> Dictionary:
    site = Site("resid_post", 1)
    return Dictionary(
        "ours",
        (site,),
        (site,),
        (D,),
        (D,),
        activation,
        drawn(UNITS, D),
        drawn(UNITS),
        drawn(UNITS, D, seed=1),
        drawn(D),
        drawn(D, seed=3),
        2.0,
        0.5,
    )


@pytest.mark.parametrize("target", ["sae_lens", "dictionary_learning", "gemma_scope"])
def test_converting_keeps_the_function(target: str, tmp_path: Path) -> None:
    ours = plain(JumpReLU(drawn(UNITS, seed=4).abs()))

    save(ours, tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", "microtome", target, tmp_path / "theirs")
    where = {"reads": ["resid_post.1"]} if target == "gemma_scope" else {}
    convert(tmp_path / "theirs", target, "microtome", tmp_path / "back.safetensors", **where)
    back = read(tmp_path / "back.safetensors", "microtome")
    assert isinstance(back, Dictionary)
    assert back.reads == ours.reads
    torch.testing.assert_close(back.reconstruct(X), ours.reconstruct(X), atol=1e-4, rtol=1e-4)


def test_cross_layer_to_ours_and_back(tmp_path: Path) -> None:
    cross_layer(tmp_path / "theirs")
    convert(tmp_path / "theirs", "circuit_tracer_cross_layer", "microtome", tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", "microtome", "circuit_tracer_cross_layer", tmp_path / "back")
    for n in range(3):
        assert equal_files(
            tmp_path / f"theirs/W_dec_{n}.safetensors", tmp_path / f"back/W_dec_{n}.safetensors"
        )
        assert equal_files(
            tmp_path / f"theirs/W_enc_{n}.safetensors", tmp_path / f"back/W_enc_{n}.safetensors"
        )
    assert isinstance(read(tmp_path / "theirs", "circuit_tracer_cross_layer"), CrossLayerTranscoder)


@pytest.mark.parametrize("source", READERS)
def test_each_format_names_itself_when_another_comes(source: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("nothing")
    with pytest.raises(StoreError, match="expected"):
        read(tmp_path, source)


def test_unknown_formats(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no format 'saelens'; there are microtome, sae_lens"):
        read(tmp_path, "saelens")
    with pytest.raises(InputError, match="no format 'x'"):
        convert(tmp_path, "sae_lens", "x", tmp_path)
    with pytest.raises(InputError, match="says itself"):
        read(tmp_path, "microtome", reads=["z.0"])
    with pytest.raises(InputError, match="not cross-layer"):
        CrossLayerTranscoder.of(plain(ReLU()))
