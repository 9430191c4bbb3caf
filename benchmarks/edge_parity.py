"""Are edge scores what the published definition says? `python benchmarks/edge_parity.py`: a GPT-2 written out plainly.

The network is computed again with nothing of ours: every head's query, key and value, every MLP and the logits read a
copy of the stream of their own, and automatic differentiation gives the gradient at each copy. Scores are those
gradients times the differences of what sources write, one at a time: at the clean run, averaged over five points on the
way from the corrupt embeddings to the clean ones (k/m, k = 1 … m), at both ends, and with each place on its own way.
Printed: the largest difference from ours, relative to the largest score.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import Tensor
from torch.nn import functional

import microtome
from microtome.circuits import edge_attribution_patching as method
from microtome.data.pairs import Pairs

LAYERS, HEADS, WIDTH, ROWS, COLUMNS, STEPS = 4, 4, 64, 4, 9, 5
Moved = Callable[[str, Tensor], Tensor]


def forward(
    module: transformers.GPT2LMHeadModel, entering: Tensor, moved: Moved
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Logits at the last position, what each source writes, and the copy that each receiver reads."""
    writes, reads = {"embed": moved("embed", entering)}, {}
    stream, width = writes["embed"], WIDTH // HEADS

    def read(name: str) -> Tensor:
        reads[name] = stream.clone()
        reads[name].retain_grad()
        return reads[name]

    future = torch.ones(COLUMNS, COLUMNS, dtype=torch.bool).triu(1)
    for layer, block in enumerate(module.transformer.h):
        projection, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
        added = block.attn.c_proj.bias
        before = []
        for head in range(HEADS):
            made = []
            for number, kind in enumerate("qkv"):
                at = slice(number * WIDTH + head * width, number * WIDTH + (head + 1) * width)
                made.append(block.ln_1(read(f"z.{layer}.h{head} {kind}")) @ projection[:, at] + bias[at])
            scores = (made[0] @ made[1].transpose(1, 2) / width**0.5).masked_fill(future, float("-inf"))
            out = block.attn.c_proj.weight[head * width : (head + 1) * width]
            name = f"z.{layer}.h{head}"
            writes[name] = moved(name, scores.softmax(dim=-1) @ made[2] @ out)
            before.append(writes[name])
        stream = stream + sum(before) + added
        name = f"mlp_out.{layer}"
        writes[name] = moved(name, block.mlp(block.ln_2(read(f"{name} mlp"))))
        stream = stream + writes[name]
    logits = functional.linear(module.transformer.ln_f(read("logits logits"))[:, -1], module.lm_head.weight)
    return logits, writes, reads


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH, vocab_size=211)
    module = transformers.GPT2LMHeadModel(config).eval()
    for parameter in module.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    clean, corrupt = torch.randint(211, (2, ROWS, COLUMNS))
    answers, wrong = [3 + row for row in range(ROWS)], [50 + row for row in range(ROWS)]
    embeddings = [
        module.transformer.wte(ids) + module.transformer.wpe(torch.arange(COLUMNS))
        for ids in (clean, corrupt)
    ]

    def still(_: str, value: Tensor) -> Tensor:
        return value

    def gradients(entering: Tensor, moved: Moved = still) -> dict[str, Tensor]:
        logits, _, reads = forward(module, entering.detach().requires_grad_(), moved)
        rows = torch.arange(ROWS)
        (logits[rows, answers] - logits[rows, wrong]).mean().backward()
        return {name: torch.zeros_like(at) if at.grad is None else at.grad for name, at in reads.items()}

    here, there = (forward(module, one.detach().requires_grad_(), still)[1] for one in embeddings)
    gaps = {name: (there[name] - here[name]).detach() for name in here}

    def mean(points: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: sum(point[name] for point in points) / len(points) for name in points[0]}

    on_the_way = [
        gradients(embeddings[1] + step / STEPS * (embeddings[0] - embeddings[1]))
        for step in range(1, STEPS + 1)
    ]
    places = ["embed", *(f"{part}.{layer}" for layer in range(LAYERS) for part in ("z", "mlp_out"))]

    def shifting(place: str, share: float) -> Moved:
        def moved(name: str, value: Tensor) -> Tensor:
            mine = name == place or name.startswith(f"{place}.")
            return (here[name] + share * gaps[name]).detach().requires_grad_() if mine else value

        return moved

    by_place = [
        gradients(embeddings[0], shifting(place, 1 - step / STEPS))
        for place in places
        for step in range(1, STEPS + 1)
    ]
    plain = {
        "no": gradients(embeddings[0]),
        "inputs": mean(on_the_way),
        "ends": mean([gradients(embeddings[0]), gradients(embeddings[1])]),
        "layers": mean(by_place),
    }
    pairs = Pairs(
        clean,
        corrupt,
        None,
        tuple((one,) for one in answers),
        tuple((one,) for one in wrong),
        ({},) * ROWS,
        ("",) * ROWS,
        ("",) * ROWS,
        {},
    )
    model = microtome.load(module)
    lines = ["# Edge scores beside a network written out plainly", ""]
    lines += ["| integrate | edges | largest difference, of the largest score |", "| --- | --- | --- |"]
    for integrate, at in plain.items():
        found = method.run(model, pairs, method.Config(integrate=integrate, steps=STEPS, checked=0))
        ours = found.scores()
        expected = {edge: float((at[f"{edge[1]} {edge[2]}"] * gaps[edge[0]]).sum()) for edge in ours}
        largest = max(map(abs, expected.values()))
        apart = max(abs(ours[edge] - expected[edge]) for edge in ours) / largest
        lines.append(f"| {integrate} | {len(ours)} | {apart:.1e} |")
    text = "\n".join(lines) + "\n"
    Path(__file__).parent.joinpath("results", "edge_parity.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
