"""What does access cost? `python benchmarks/access.py`: Model.run against the untouched module's own forward.

GPT-2-small shape and a tiny shape where overhead shows, random weights, CPU seconds on one thread. Reading holds
references to values that the pass computes anyway; the least it can cost is the hooks. Scores, patterns and results are
not computed by the untouched pass, so reading every site has to do that arithmetic in addition.
"""

from pathlib import Path

import torch
import transformers

import microtome
from clock import interleaved, row

SHAPES = {
    "GPT-2 small, 1 × 64 tokens": ({}, (1, 64), 7, ("≤ 1.03", "≤ 1.05")),
    "tiny (4 layers, width 128), 8 × 32 tokens": (
        {"n_layer": 4, "n_embd": 128, "n_head": 4, "vocab_size": 1000},
        (8, 32),
        60,
        ("≤ 1.1", "≤ 1.2"),
    ),
}


def main() -> None:
    lines = ["# Access against the untouched forward", "", "CPU milliseconds on one thread, interleaved.", ""]
    for name, (changes, shape, repetitions, targets) in SHAPES.items():
        torch.manual_seed(0)
        module = transformers.GPT2LMHeadModel(transformers.GPT2Config(**changes)).eval()
        model = microtome.load(module)
        ids = torch.randint(1, model.sizes["d_vocab"], shape)
        streams = [
            f"{part}.{layer}" for layer in range(model.n_layers) for part in ("resid_pre", "resid_post")
        ]
        inside = ("scores", "pattern", "result", "logits")
        kept = [site for site in model.sites() if site.part not in inside]

        def untouched(module: torch.nn.Module = module, ids: torch.Tensor = ids) -> None:
            with torch.no_grad():
                module(ids)

        work = {
            "untouched forward": untouched,
            "run": lambda model=model, ids=ids: model.run(ids),
            "run, all residual reads": lambda m=model, i=ids, s=streams: m.run(i, read=s, logits=True),
            "run, every site the pass computes": lambda m=model, i=ids, s=kept: m.run(i, read=s, logits=True),
            "run, every site": lambda m=model, i=ids: m.run(i, read=m.sites()[:-1], logits=True),
        }
        spent = interleaved(work, repetitions)
        per = sorted(spent["untouched forward"])[repetitions // 2]
        lines += [
            f"## {name}",
            "",
            "| what | median | range | ratio | target |",
            "| --- | --- | --- | --- | --- |",
        ]
        told = ("", *targets, "", "")
        lines += [
            row(what, seconds, per, target)
            for (what, seconds), target in zip(spent.items(), told, strict=True)
        ]
        lines.append("")
    lines.append(
        f"torch {torch.__version__}, transformers {transformers.__version__}. Peers: not measured here."
    )
    Path(__file__).parent.joinpath("results", "access.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
