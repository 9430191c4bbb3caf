"""What does an attribution graph cost? GPT-2 small's shape, a transcoder of top 32 at each layer, ranking included.

`OMP_NUM_THREADS=1 python benchmarks/attribution_graphs.py`. Ratio: to a plain forward with backward pass of the same
network on 8 × 15 tokens, in the same run. circuit-tracer is not run: of such a graph it needed 11.8 s for 512 targets
and 35.7 s for 2 048 where that plain pass takes 0.71 s.

Twelve layers of width 768, random weights, 15 tokens. Rows are the contributions to units; ranked: in batches by
influence so far. The plain way is autograd: backward passes through the same frozen network written out, for 64 targets
at a time, as the public tool does it, the targets given.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import microtome
from circuit_cases import MACHINE, PLAIN_THERE, gpt2_small, prompts
from clock import interleaved
from edges import megabytes
from microtome.bases.basis import Basis
from microtome.circuits.frozen_stream import FrozenStream
from microtome.circuits.graph_influence import prune
from microtome.circuits.graph_tracing import likeliest, trace
from microtome.circuits.replaced_mlps import ReplacedMlps, replaced_mlps
from microtome.core.site import Site
from microtome.dictionaries.activations import TopK
from microtome.dictionaries.dictionary import Dictionary

LAYERS, WIDTH, UNITS, ON, TOKENS = 12, 768, 4096, 32, 15
PLAIN, AIM = "plain forward and backward", 5.0
TRACER = {512: 11.8, 2048: 35.7}


def transcoder(layer: int) -> Dictionary:
    """Random, as wide as need be for the cost of rows; encoding is counted apart."""
    draw = torch.Generator().manual_seed(layer)
    return Dictionary(
        name=f"transcoder.{layer}",
        reads=(Site("mlp_in", layer),),
        writes=(Site("mlp_out", layer),),
        read_widths=(WIDTH,),
        write_widths=(WIDTH,),
        activation=TopK(ON),
        encoder=torch.randn(UNITS, WIDTH, generator=draw) * WIDTH**-0.5,
        encoder_bias=torch.zeros(UNITS),
        decoder=torch.randn(UNITS, WIDTH, generator=draw) * WIDTH**-0.5,
        decoder_bias=torch.zeros(WIDTH),
        centre=torch.zeros(WIDTH),
    )


def by_autograd(model: microtome.Model, made: ReplacedMlps, columns: Tensor, copies: int) -> Tensor:
    """The same rows of units, by backward passes through a frozen GPT-2 written out: so many of them at a time."""
    directions, _, _ = made.driven(columns)
    layer_of = torch.zeros(len(columns), dtype=torch.long)
    vector = torch.zeros(len(columns), WIDTH)
    for layer, (which, vectors) in directions.reads.items():
        layer_of[which], vector[which] = layer, vectors
    module, stream = model.module.transformer, made.stream
    rows = []

    def norm(gain: Tensor, at: Tensor, x: Tensor) -> Tensor:
        spread = (at.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return (x - x.mean(-1, keepdim=True)) / spread * gain

    for some in torch.arange(len(columns)).split(copies):
        n = len(some)
        embedding = stream.embedding.expand(n, -1, -1).clone().requires_grad_()
        wrote = [
            stream.at("mlp_out", layer).expand(n, -1, -1).clone().requires_grad_() for layer in range(LAYERS)
        ]
        x, total = embedding, torch.zeros(())
        for layer, block in enumerate(module.h):
            normed = norm(block.ln_1.weight.detach(), stream.at("resid_pre", layer), x)
            value = (normed @ block.attn.c_attn.weight.detach()[:, 2 * WIDTH :]).unflatten(-1, (12, 64))
            z = torch.einsum("hqk,nkhd->nqhd", stream.blocks[layer].pattern, value).flatten(2)
            x = x + z @ block.attn.c_proj.weight.detach()
            here = (layer_of[some] == layer).nonzero()[:, 0]
            if len(here):
                read = norm(block.ln_2.weight.detach(), stream.at("resid_mid", layer), x)
                at = read[here, directions.position[some[here]]]
                total = total + (at * vector[some[here]]).sum()
            x = x + wrote[layer]
        slopes = torch.autograd.grad(total, [*wrote, embedding], allow_unused=True)
        found = torch.zeros(n, made.columns + made.stream.n_positions)
        for layer, slope in enumerate(slopes[:-1]):
            if slope is None:
                continue
            for one in made.written[layer]:
                for position in range(made.stream.n_positions):
                    first, last = one.start[position], one.start[position + 1]
                    found[:, one.column + first : one.column + last] += (
                        slope[:, position] @ one.vectors[first:last].T
                    )
        found[:, made.columns :] = torch.einsum("npm,pm->np", slopes[-1], stream.embedding)
        rows.append(found)
    return torch.cat(rows)


def main() -> None:
    torch.set_num_threads(1)
    module = gpt2_small()
    model = microtome.load(module)
    ids = torch.randint(50_000, (1, TOKENS))
    bases: list[Basis] = [transcoder(layer) for layer in range(LAYERS)]
    Path("/proc/self/clear_refs").write_text("5")
    before = megabytes("VmRSS")

    def parts() -> ReplacedMlps:
        return replaced_mlps(FrozenStream(model, ids), bases)

    made = parts()
    answers, probability = likeliest(made.stream, 0.95, 10)

    def plain() -> None:
        logits = module(prompts(50_000).clean, use_cache=False).logits
        torch.autograd.grad(logits[:, -1, 5].sum(), [module.transformer.wpe.weight])

    work: dict[str, Callable[[], object]] = {PLAIN: plain, "run, encode, take apart": parts}
    for units in (512, 2048):
        work[f"{units} targets, ranked in batches of 256"] = lambda units=units: trace(
            made, answers, probability, units, 256
        )
        work[f"{units} targets, ranked in batches of 512"] = lambda units=units: trace(
            made, answers, probability, units, 512
        )
    traced = trace(made, answers, probability, 2048, 512)
    grown = megabytes("VmHWM") - before
    columns = traced.found.target[traced.found.target >= 0]
    mine = traced.found.rows[traced.found.target >= 0]
    start = time.process_time()
    gap = float((by_autograd(model, made, columns, 64) - mine).abs().max() / mine.abs().max())
    slow = time.process_time() - start
    work["pruning 2048 targets"] = lambda: prune(traced.found, 0.8, 0.98)
    spent = interleaved(work, 3) | {"2048 targets, given, by autograd, 64 at a time, once": [slow]}
    one = statistics.median(spent[PLAIN])
    lines = ["# Attribution graphs", "", MACHINE, ""]
    lines += [
        f"{LAYERS} layers of width {WIDTH}, {TOKENS} tokens, top {ON} of {UNITS} units a layer: {made.n_units} active "
        "units.",
        "Median and least of three; circuit-tracer as measured elsewhere, as a ratio to the same pass there.",
        "",
        "| what | CPU s | least | ratio | circuit-tracer | target |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, times in spent.items():
        units = name.split()[0]
        ranked = "ranked" in name
        tracer = f"{TRACER[int(units)] / PLAIN_THERE:.1f}" if ranked else ""
        target = f"ratio ≤ {AIM / PLAIN_THERE:.1f}" if ranked and units == "2048" else ""
        middle = statistics.median(times)
        lines.append(
            f"| {name} | {middle:.2f} | {min(times):.2f} | {middle / one:.2f} | {tracer} | {target} |"
        )
    lines += [
        "",
        f"Rows differ from those by autograd by {gap:.1e} of the largest (target 1e-6). Sums differ from what drives "
        f"each target by {traced.error:.1e} of the largest. Peak memory above the model and the transcoders: "
        f"{grown:.0f} MB.",
        "",
        f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}.",
    ]
    text = "\n".join(lines) + "\n"
    Path(__file__).parent.joinpath("results", "attribution_graphs.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
