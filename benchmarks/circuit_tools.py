"""Public tools at work on a network and prompts in a folder: `PYTHON benchmarks/circuit_tools.py FOLDER TOOL WORK`.

Run by an interpreter that has the tools, not this package: a virtual environment with

    pip install torch transformer-lens==2.16.1 ordered-set blobfile plotly attrs matplotlib wandb

(measured with torch 2.13.0 and transformers 5.23.0, later ones of TransformerLens lack names that the tools import)
and, in its site-packages, the folders `auto_circuit` of UFO-101/auto-circuit (98db58c), `eap` of hannamw/EAP-IG
(795f560) and `acdc` of ArthurConmy/Automatic-Circuit-Discovery (bc99ace). They run unchanged, but for what would need a
graphics card, a tokenizer or a drawing: tensors asked for on `cuda` are made here, EAP-IG gets tokens in place of
texts, ACDC draws nothing. Weights want no gradients, those of positions excepted where a tool needs a root for its
graph. Prints figures as JSON, writes what was found into the folder.
"""

import contextlib
import ctypes
import gc
import io
import json
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

STEPS, EDGES, ENOUGH = 5, 2, 5.0
CUTTING = ("acdc", "inputs")
Work = Callable[[], dict[str, Tensor]]


def megabytes(field: str) -> float:
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(field))
    return int(line.split()[1]) / 1024


def hooked(weights: dict[str, Tensor]) -> HookedTransformer:
    vocabulary, width = weights["embed.W_E"].shape
    heads, _, each = weights["blocks.0.attn.W_Q"].shape
    neurons = weights.get("blocks.0.mlp.b_in", torch.zeros(0)).shape[0]
    config = HookedTransformerConfig(
        n_layers=sum(name.endswith("W_Q") for name in weights),
        n_heads=heads,
        d_model=width,
        d_head=each,
        d_mlp=neurons or None,
        d_vocab=vocabulary,
        n_ctx=weights["pos_embed.W_pos"].shape[0],
        act_fn="gelu_new" if neurons else None,
        attn_only=not neurons,
        normalization_type="LN",
        eps=1e-5,
        device="cpu",
        dtype=weights["embed.W_E"].dtype,
    )
    model = HookedTransformer(config)
    model.load_state_dict(weights, strict=False)
    given = {name for name, _ in model.named_parameters()}
    assert given == set(weights), given ^ set(weights)
    return model.eval().requires_grad_(False)


def split(model: HookedTransformer) -> None:
    """Every head's result and inputs by themselves, which the tools ask for."""
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    if not model.cfg.attn_only:
        model.set_use_hook_mlp_in(True)


def difference(logits: Tensor, case: dict[str, Tensor]) -> Tensor:
    last = logits if logits.dim() == 2 else logits[:, -1]
    rows = torch.arange(len(last))
    return last[rows, case["right"]] - last[rows, case["wrong"]]


def plain_of(model: HookedTransformer, case: dict[str, Tensor], backward: bool) -> Callable[[], None]:
    root = model.pos_embed.W_pos

    def plain() -> None:
        with torch.set_grad_enabled(backward):
            found = difference(model(case["clean"]), case).sum()
        if backward:
            torch.autograd.grad(found, [root])

    return plain


def eap_ig(work: str, model: HookedTransformer, case: dict[str, Tensor]) -> Work:
    from eap import attribute, evaluate
    from eap.graph import Graph

    def tokenized(_: object, tokens: Tensor, max_length: int | None = None) -> tuple[object, ...]:
        mask = torch.ones_like(tokens)
        return tokens, mask, mask.sum(1), tokens.shape[1]

    made = torch.zeros

    def zeros(*shape: object, device: object = None, **options: object) -> Tensor:
        return made(*shape, device="cpu" if device == "cuda" else device, **options)

    torch.zeros = zeros
    attribute.tokenize_plus = evaluate.tokenize_plus = tokenized
    split(model)
    graph = Graph.from_model(model)
    clean, corrupt, rows = case["clean"], case["corrupt"], len(case["clean"])

    def total(logits: Tensor, *_: object) -> Tensor:
        return difference(logits, case).sum()

    def attribution() -> dict[str, Tensor]:
        found = attribute.get_scores_eap(model, graph, [(clean, corrupt, None)], total, quiet=True)
        return {"scores": rows * found.T}

    def along_inputs() -> dict[str, Tensor]:
        """It takes k/m, k = 0 … m - 1, from the corrupt side, where the paper says 1 … m: the sides are exchanged."""
        data = [(corrupt, clean, None)]
        found = attribute.get_scores_eap_ig(model, graph, data, total, steps=STEPS, quiet=True)
        return {"scores": -rows * found.T}

    def scored(kept: Tensor) -> Tensor:
        graph.in_graph[:] = kept.T & graph.real_edge_mask
        graph.nodes_in_graph[:] = True
        data = [(clean, corrupt, None)]
        return evaluate.evaluate_graph(
            model, graph, data, lambda logits, *_: difference(logits, case), quiet=True, skip_clean=True
        )

    def circuits() -> dict[str, Tensor]:
        return {"values": torch.stack([scored(kept.bool()) for kept in case["circuits"]])}

    def edges() -> dict[str, Tensor]:
        """The first of the edges, one at a time: as `get_scores_exact` takes them all."""
        found = []
        for row, column in case["edges"][:EDGES].tolist():
            kept = graph.real_edge_mask.T.clone()
            kept[row, column] = False
            found.append(scored(kept))
        return {"values": torch.stack(found)}

    if work in ("attribution", "steps"):
        model.pos_embed.W_pos.requires_grad_()
    return {"attribution": attribution, "steps": along_inputs, "circuits": circuits, "edges": edges}[work]


def auto_circuit(work: str, model: HookedTransformer, case: dict[str, Tensor]) -> Work:
    from auto_circuit.data import PromptDataLoader, PromptDataset
    from auto_circuit.prune import run_circuits
    from auto_circuit.prune_algos.ACDC import acdc_prune_scores
    from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
    from auto_circuit.types import Edge, PatchType
    from auto_circuit.utils.graph_utils import patchable_model

    split(model)
    answers = [list(case[side][:, None]) for side in ("right", "wrong")]
    data = PromptDataset(case["clean"], case["corrupt"], *answers)
    rows = len(case["clean"])
    loader = PromptDataLoader(data, seq_len=None, diverge_idx=0, batch_size=rows)
    wrapped = patchable_model(
        model, factorized=True, slice_output="last_seq", separate_qkv=True, device=torch.device("cpu")
    )

    def matrix(scores: dict[str, Tensor]) -> Tensor:
        """[receiver, source], receivers in the order of a pass."""
        parts = [torch.atleast_2d(scores[name]) for name in names]
        width = max(part.shape[1] for part in parts)
        return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])

    receivers = ("q_input", "k_input", "v_input", *(() if model.cfg.attn_only else ("mlp_in",)))
    names = [f"blocks.{n}.hook_{kind}" for n in range(model.cfg.n_layers) for kind in receivers]
    names.append(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post")

    def attribution() -> dict[str, Tensor]:
        """Its loss is the negative mean."""
        found = mask_gradient_prune_scores(
            wrapped, loader, None, grad_function="logit", answer_function="avg_diff", mask_val=0.0
        )
        return {"scores": -rows * matrix(found)}

    def circuits() -> dict[str, Tensor]:
        """One lies in the other; an edge weighs as much as there are circuits that keep it."""
        kept = case["circuits"]
        weights, start = wrapped.new_prune_scores(), 0
        for name in names:
            height, width = torch.atleast_2d(weights[name]).shape
            part = kept.sum(0)[start : start + height, :width].float()
            weights[name] = part.view_as(weights[name])
            start += height
        counts = kept.flatten(1).sum(1).tolist()
        found = run_circuits(wrapped, loader, counts, weights, PatchType.TREE_PATCH)
        logits = [next(iter(found[count].values())) for count in counts]
        return {"values": torch.stack([difference(one, case) for one in logits])}

    def from_the_back(edge: Edge) -> tuple[int, ...]:
        kind = edge.dest.module_name.rsplit("hook_")[-1]
        here = receivers.index(kind) if kind in receivers else len(receivers)
        return here, edge.dest.head_idx or 0, edge.src.src_idx

    def acdc() -> dict[str, Tensor]:
        """One threshold: digits times ten to a power. Edges of a layer stand in a set; here they have an order."""
        wrapped.edges = sorted(wrapped.edges, key=from_the_back, reverse=True)
        digits, power = f"{float(case['threshold']):.0e}".split("e")
        found = acdc_prune_scores(wrapped, loader, None, [int(power)], [int(digits)])
        return {"kept": matrix({name: torch.isinf(score) for name, score in found.items()}).bool()}

    return {"attribution": attribution, "circuits": circuits, "acdc": acdc}[work]


def original_acdc(work: str, model: HookedTransformer, case: dict[str, Tensor]) -> Work:
    """Sources of a layer are tried from the last head on (`indices_mode`), as this package tries them.

    It also tests whether a head's query, key or value is needed at all, and then the edges into it once more, which an
    edge can fail that passed. Work `inputs`: without these tests.
    """
    for drawing in ("pygraphviz", "cmapy"):
        sys.modules[drawing] = types.ModuleType(drawing)
    sys.modules["pygraphviz"].AGraph = object
    from acdc.acdc_utils import kl_divergence

    from acdc import TLACDCExperiment as acdc

    acdc.show = lambda *_, **__: None
    split(model)
    layers, heads = model.cfg.n_layers, model.cfg.n_heads

    def discovered() -> dict[str, Tensor]:
        model.reset_hooks()
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            uncut = torch.log_softmax(model(case["clean"])[:, -1], dim=-1)
            found = acdc.TLACDCExperiment(
                model=model,
                ds=case["clean"],
                ref_ds=case["corrupt"],
                threshold=float(case["threshold"]),
                metric=lambda logits: kl_divergence(logits, uncut),
                indices_mode="normal",
            )
            if work == "inputs":
                for part in (*found.corr.all_edges().values(), *found.corr.nodes()):
                    field = "edge_type" if hasattr(part, "edge_type") else "incoming_edge_type"
                    if getattr(part, field) == acdc.EdgeType.DIRECT_COMPUTATION:
                        setattr(part, field, acdc.EdgeType.PLACEHOLDER)
            while found.current_node is not None:
                found.step()
        kept = torch.zeros(3 * layers * heads + 1, 1 + layers * heads, dtype=torch.bool)
        for (to, into, source, out), edge in found.corr.all_edges().items():
            if edge.edge_type != acdc.EdgeType.ADDITION or not edge.present:
                continue
            parts = to.split(".")
            row = 3 * layers * heads
            if to.endswith("_input"):
                row = (3 * int(parts[1]) + "qkv".index(parts[2][5])) * heads + into.hashable_tuple[2]
            column = 0
            if source.endswith("hook_result"):
                column = 1 + int(source.split(".")[1]) * heads + out.hashable_tuple[2]
            kept[row, column] = True
        model.reset_hooks()
        return {"kept": kept}

    return discovered


TOOLS = {"eap-ig": eap_ig, "auto-circuit": auto_circuit, "acdc": original_acdc}


def main(folder: str, tool: str, work: str) -> None:
    """Short work is repeated."""
    sys.path.pop(0)  # this folder, which has an acdc.py of its own
    torch.set_num_threads(1)
    case = load_file(Path(folder, "case.safetensors"))
    model = hooked(load_file(Path(folder, "weights.safetensors")))
    plain = plain_of(model, case, backward=work not in CUTTING)
    if work not in CUTTING:
        model.pos_embed.W_pos.requires_grad_()
    seconds: dict[str, list[float]] = {"plain": [], "work": []}

    def timed(name: str, run: Callable[[], object]) -> object:
        start = time.process_time()
        found = run()
        seconds[name].append(time.process_time() - start)
        return found

    plain()
    for _ in range(3):
        timed("plain", plain)
    model.requires_grad_(False)
    ready = TOOLS[tool](work, model, case)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = megabytes("VmRSS")
    found = timed("work", ready)
    peak = megabytes("VmHWM") - before
    while sum(seconds["work"]) < ENOUGH:
        timed("work", ready)
    save_file({name: value.contiguous() for name, value in found.items()}, Path(folder, "found.safetensors"))
    print(json.dumps({"peak": peak, **seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
