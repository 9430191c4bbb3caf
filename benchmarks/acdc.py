"""What does ACDC cost? `python benchmarks/acdc.py`: two attention-only layers of eight heads, 257 edges, on one thread.

Width 256, random weights, 8 × 15 tokens; CPU seconds (median and least) at a threshold that keeps every edge, which is
the worst case, and at one that keeps fewer. With the vocabulary of GPT-2 more than half of the time goes into the
unembedding of eight rows, once a test; the peers' vocabulary is not on record, so a smaller one is beside it.

Ratio: to 257 plain forward passes of the module with all its logits, measured in turn, which is the least that one
whole pass for each edge costs. Peers for 257 edges of such a shape, measured elsewhere on one thread: auto-circuit
13.4 s, the original 53.7 s.
"""

import statistics
import time
from pathlib import Path

import torch

import microtome
from microtome.circuits import acdc
from microtome.data.pairs import Pairs
from microtome.models.transformer import Transformer, TransformerConfig

ROWS, COLUMNS, REPETITIONS, EDGES = 8, 15, 2, 257
CASES = ((50257, 1e-9), (50257, 1e-5), (8192, 1e-9))


def network(vocabulary: int) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        num_hidden_layers=2,
        num_attention_heads=8,
        head_dim=32,
        intermediate_size=0,
    )
    return Transformer(config).eval()


def prompts(vocabulary: int) -> Pairs:
    clean, corrupt = torch.randint(vocabulary, (2, ROWS, COLUMNS), generator=torch.Generator().manual_seed(0))
    answers = tuple((row,) for row in range(ROWS))
    wrong = tuple((row + ROWS,) for row in range(ROWS))
    return Pairs(clean, corrupt, None, answers, wrong, ({},) * ROWS, ("",) * ROWS, ("",) * ROWS, {})


def forwards(module: Transformer, pairs: Pairs, count: int) -> float:
    """CPU seconds of plain passes."""
    start = time.process_time()
    for _ in range(count):
        module(pairs.clean)
    return time.process_time() - start


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    lines = [
        "# ACDC",
        "",
        "| vocabulary | threshold | edges kept | tests | passes | CPU s | least "
        f"| {EDGES} plain forwards | ratio | target |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for vocabulary, threshold in CASES:
        module, pairs = network(vocabulary), prompts(vocabulary)
        model = microtome.load(module)
        acdc.run(model, pairs, acdc.Config(threshold=1e9))
        spent, plain, found = [], [], []
        for _ in range(REPETITIONS):
            plain.append(EDGES / 4 * forwards(module, pairs, 4))
            start = time.process_time()
            found.append(acdc.run(model, pairs, acdc.Config(threshold=threshold)))
            spent.append(time.process_time() - start)
        work, whole = statistics.median(spent), statistics.median(plain)
        lines.append(
            f"| {vocabulary} | {threshold:g} | {len(found[0].circuit().edges)} of {len(found[0].graph)} | "
            f"{found[0].data.sizes['test']} | {found[0].cost.passes} | {work:.2f} | {min(spent):.2f} | {whole:.2f} | "
            f"{work / whole:.2f} | ≤ 3.2 s |"
        )
    text = "\n".join(lines) + "\n"
    Path(__file__).parent.joinpath("results", "acdc.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
