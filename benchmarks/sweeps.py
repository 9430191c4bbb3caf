"""How much faster is a sweep than one plain pass for each cell? `python benchmarks/sweeps.py`

GPT-2-small shape, random weights, 16 tokens, CPU seconds on one thread. The plain side is the untouched Hugging Face
forward, once for each cell, its own helper's price; the sweep's includes its base pass. Both directions cost the same.
"""

import statistics
from pathlib import Path

import torch
import transformers

import microtome
from clock import interleaved
from microtome.core.edits import Set
from microtome.core.site import Site
from microtome.data.metrics import LogitDifference
from microtome.models.sweep import Variant, sweep

SHAPES = {
    "12 layers, width 768 (GPT-2 small)": {},
    "4 layers, width 128": {"n_layer": 4, "n_embd": 128, "n_head": 4, "vocab_size": 1000},
}


def measure(name: str, changes: dict[str, int], repetitions: int) -> list[str]:
    torch.manual_seed(0)
    module = transformers.GPT2LMHeadModel(transformers.GPT2Config(**changes)).eval()
    model = microtome.load(module)
    layers, heads, vocabulary = model.n_layers, model.n_heads, model.sizes["d_vocab"]
    clean, corrupt = torch.randint(1, vocabulary, (2, 1, 16))
    metric = LogitDifference(((3,),), ((4,),))
    sites = [Site(part, layer) for layer in range(layers) for part in ("resid_pre", "z")]
    other = model.run(clean, read=sites)
    stream = [
        Variant((Set(site.at(p), value=other[site][:, p : p + 1]),))
        for site in sites if site.part == "resid_pre" for p in range(16)
    ]  # fmt: skip
    head = [
        Variant((Set(site.head(h), value=other[site][:, :, h : h + 1]),))
        for site in sites if site.part == "z" for h in range(heads)
    ]  # fmt: skip

    def plain() -> None:
        with torch.no_grad():
            module(corrupt)

    work = {
        "plain": plain,
        "stream": lambda: sweep(model, corrupt, stream, metric),
        "head": lambda: sweep(model, corrupt, head, metric),
    }
    spent = {key: statistics.median(values) for key, values in interleaved(work, repetitions).items()}
    lines = []
    for kind, variants, target in (("stream", stream, "≥ 8"), ("head", head, "≥ 6")):
        fast = sweep(model, corrupt, variants, metric)
        slow = sweep(model, corrupt, variants[::7], metric, incremental=False)
        gap = float((fast.metric[::7] - slow.metric).abs().max())
        ratio = len(variants) * spent["plain"] / spent[kind]
        lines.append(
            f"| {name} | {kind} | {len(variants)} | {1000 * spent['plain']:.1f} | {1000 * spent[kind]:.0f} | "
            f"{ratio:.1f} × | {target} | {gap:.1e} |"
        )
    return lines


def main() -> None:
    lines = [
        "# Sweeps against one plain pass for each cell",
        "",
        "CPU milliseconds on one thread, medians of interleaved repetitions on a shared machine; the difference is the",
        "largest to plain passes over every seventh cell.",
        "",
        "| shape | sweep | cells | one plain pass | whole sweep | faster | target (first shape) | difference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (name, changes), repetitions in zip(SHAPES.items(), (5, 9), strict=True):
        lines += measure(name, changes, repetitions)
    lines.append(f"\ntorch {torch.__version__}, transformers {transformers.__version__}")
    Path(__file__).parent.joinpath("results", "sweeps.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
