"""What does a step of training a dictionary cost? `python benchmarks/dictionary_training.py`

512 dimensions, 4096 units, 4096 rows in a batch, 32 units on, one thread; CPU milliseconds, taken in turn. Rows are
sums of 20 of 8192 directions. Every step is a whole one: choosing, both directions, Adam, norms, what is held. Beside
it:

    one product      rows times units in float32, which no exact step goes without
    plain autograd   top-k as anyone would write it in PyTorch, with fused Adam: the same loss
    SAELens, sparsify    where `sae-lens` and `eai-sparsify` can be imported (they are no dependencies)

Targets were set on a faster machine, on which the one product took 169 ms; the ratio to it is what can be compared.
"""

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from clock import interleaved
from microtome.core.site import Site
from microtome.dictionaries.layout import Layout
from microtome.dictionaries.learner import Learner
from microtome.dictionaries.preparation import prepare
from microtome.dictionaries.recipe import Recipe

D, UNITS, ROWS, K, BATCHES = 512, 4096, 4096, 32, 4
THERE = 169.0
RESULT = Path(__file__).parent / "results" / "dictionary_training.md"
# Name, settings, and the target in ms where the product took 169 ms.
OURS: tuple[tuple[str, dict[str, Any], float], ...] = (
    ("TopK", {"activation": "topk"}, 300),
    ("BatchTopK", {"activation": "batch_topk"}, 1408),
    ("Matryoshka of BatchTopK", {"activation": "batch_topk", "prefixes": (256, 512, 1024, 2048, 4096)}, 1493),
    ("JumpReLU", {"activation": "jumprelu"}, 1462),
    ("ReLU, L1, half of all on", {"activation": "relu", "l0": None, "coefficient": 0.0}, 950),
    ("ReLU, L1, 32 on", {"activation": "relu"}, 950),
    ("Gated, 32 on", {"activation": "gated"}, 0),
)  # fmt: skip


def batches() -> list[Tensor]:
    """Four batches, off no centre, with a mean norm of √512."""
    source = torch.Generator().manual_seed(0)
    directions = functional.normalize(torch.randn(8192, D, generator=source), dim=-1)
    often = torch.arange(1, 8193, dtype=torch.float) ** -0.5
    found = []
    for _ in range(BATCHES):
        units = torch.multinomial(often.expand(ROWS, -1), 20, generator=source)
        strength = torch.rand(ROWS, 20, generator=source) + 0.5
        rows = functional.embedding_bag(units, directions, mode="sum", per_sample_weights=strength)
        found.append(rows + 0.02 * torch.randn(ROWS, D, generator=source))
    scale = D**0.5 / torch.cat(found).norm(dim=-1).mean()
    return [rows * scale for rows in found]


def ours(settings: dict[str, Any], rows: list[Tensor]) -> Learner:
    recipe = Recipe.read(
        {
            "width": UNITS,
            "steps": 100_000,
            "warm_up": 0.0,
            "rate": 1e-4,
            "l0": K,
            "dead_after": 10**9,
            **settings,
        }
    )
    foot = prepare(rows[0], (D,), recipe.centring, recipe.scaling)
    made = Learner(
        recipe, Layout.autoencoder(Site.module("rows")), ((D,), (D,)), (foot, foot), (rows[0], rows[0])
    )
    if settings["activation"] in ("relu", "gated") and recipe.controlled:
        # A trained one, without the training: a bias so low that 32 are on; held there.
        x = foot.apply(rows[0])
        pre = x @ made.parameters["encoder"].detach().mT
        level = pre.flatten()[::37].topk(K * ROWS // 37).values.min()
        with torch.no_grad():
            made.parameters["bias"].sub_(float(level))
        made.held |= {"density": K / UNITS, "first": K, "coefficient": 0.1}
    return made


class Plain:
    """Top-k in plain PyTorch, on our footing: the dense products, and autograd for all gradients."""

    def __init__(self, twin: Learner) -> None:
        self.foot, self.step = twin.footing[0], 0
        self.p = {name: value.detach().clone().requires_grad_() for name, value in twin.parameters.items()}
        self.adam = torch.optim.Adam(list(self.p.values()), 1e-4, fused=True)

    def learn(self, rows: Tensor) -> float:
        p, x = self.p, self.foot.apply(rows)
        top = ((x - p["decoder_bias"]) @ p["encoder"].mT + p["bias"]).topk(K, sorted=False)
        codes = torch.zeros(len(x), UNITS).scatter(1, top.indices, top.values.relu())
        loss = (x - codes @ p["decoder"] - p["decoder_bias"]).square().sum(-1).mean()
        self.adam.zero_grad()
        loss.backward()
        decoder = p["decoder"]
        assert decoder.grad is not None
        with torch.no_grad():
            decoder.grad.addcmul_(decoder, (decoder.grad * decoder).sum(-1, keepdim=True), value=-1)
            torch.nn.utils.clip_grad_norm_(p.values(), 1.0)
            self.adam.step()
            decoder.div_(decoder.norm(dim=-1, keepdim=True))
        return float(loss.detach())


def sae_lens(kind: str) -> Callable[[Tensor], object] | None:
    """A whole step of SAELens, as its trainer takes it."""
    try:
        from sae_lens import (
            BatchTopKTrainingSAE,
            BatchTopKTrainingSAEConfig,
            MatryoshkaBatchTopKTrainingSAE,
            MatryoshkaBatchTopKTrainingSAEConfig,
            StandardTrainingSAE,
            StandardTrainingSAEConfig,
            TopKTrainingSAE,
            TopKTrainingSAEConfig,
        )
        from sae_lens.saes.sae import TrainStepInput
    except ImportError:
        return None
    made = {
        "TopK": lambda: TopKTrainingSAE(TopKTrainingSAEConfig(d_in=D, d_sae=UNITS, k=K)),
        "BatchTopK": lambda: BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=D, d_sae=UNITS, k=K)),
        "Matryoshka": lambda: MatryoshkaBatchTopKTrainingSAE(
            MatryoshkaBatchTopKTrainingSAEConfig(
                d_in=D, d_sae=UNITS, k=K, matryoshka_widths=[256, 512, 1024, 2048, 4096]
            )
        ),
        "L1": lambda: StandardTrainingSAE(StandardTrainingSAEConfig(d_in=D, d_sae=UNITS, l1_coefficient=0.0)),
    }[kind]()
    adam = torch.optim.Adam(made.parameters(), 1e-4)
    dead = torch.zeros(UNITS, dtype=torch.bool)
    idle, often = torch.zeros(UNITS), torch.zeros(UNITS)

    def step(rows: Tensor) -> None:
        out = made.training_forward_pass(TrainStepInput(rows, {"l1": 0.0}, dead, 0, False))
        with torch.no_grad():  # its trainer's statistics
            fired = out.feature_acts.bool().float()
            idle.add_(1)
            idle[fired.sum(-2).bool()] = 0
            often.add_(fired.sum(0))
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        adam.step()
        adam.zero_grad()

    return step


def sparsify() -> Callable[[Tensor], object] | None:
    """A whole step of EleutherAI's sparsify, as its trainer takes it."""
    try:
        from sparsify import SparseCoder, SparseCoderConfig
    except ImportError:
        return None
    made = SparseCoder(D, SparseCoderConfig(num_latents=UNITS, k=K))
    adam = torch.optim.Adam(made.parameters(), 1e-4)

    def step(rows: Tensor) -> None:
        made.set_decoder_norm_to_unit_norm()
        made(rows).fvu.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        made.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()

    return step


def turning(step: Callable[[Tensor], object], rows: list[Tensor]) -> Callable[[], object]:
    """Each call a step on the next batch."""
    done = [0]

    def run() -> object:
        done[0] += 1
        return step(rows[done[0] % BATCHES])

    return run


def peak_of_a_step(rows: list[Tensor]) -> float:
    """Memory of a TopK step beyond what was there before, gradients and moments included; in batch × units matrices."""
    made = ours({"activation": "topk"}, rows)
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    made.learn(rows[0], rows[0])
    return (_memory("VmHWM") - before) / (4 * ROWS * UNITS)


def _memory(which: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) * 1024


def main(repetitions: int) -> None:
    torch.set_num_threads(1)
    rows = batches()
    peak = peak_of_a_step(rows)
    one = ours({"activation": "topk"}, rows)
    plain = Plain(one)
    apart = 0.0
    for number in range(8):
        batch = rows[number % BATCHES]
        loss, twin = one.learn(batch, batch).loss, plain.learn(batch)
        apart = max(apart, abs(loss - twin) / twin)
    encoder = functional.normalize(torch.randn(UNITS, D), dim=-1)
    work: dict[str, Callable[[], object]] = {"one product": lambda: rows[0] @ encoder.mT}
    targets = {}
    for name, settings, target in OURS:
        made = ours(settings, rows)
        work[name] = turning(lambda batch, made=made: made.learn(batch, batch), rows)  # type: ignore[misc]
        targets[name] = target
    work["plain autograd, TopK"] = turning(plain.learn, rows)
    for kind in ("TopK", "BatchTopK", "Matryoshka", "L1"):
        if (step := sae_lens(kind)) is not None:
            work[f"SAELens, {kind}"] = turning(step, rows)
    if (step := sparsify()) is not None:
        work["sparsify, TopK"] = turning(step, rows)
    spent = interleaved(work, repetitions)
    product = statistics.median(spent["one product"])
    lines = [
        f"# A step of training a dictionary\n\n{(__doc__ or '').split(chr(10) * 2, 1)[1].strip()}\n",
        f"{repetitions} repetitions. Torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}.\n",
        "| step | CPU ms, median | least – most | products | target, in products |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, seconds in spent.items():
        middle = statistics.median(seconds)
        target = f"≤ {targets[name] / THERE:.2f}" if targets.get(name) else ""
        lines.append(
            f"| {name} | {1000 * middle:.0f} | {1000 * min(seconds):.0f} – {1000 * max(seconds):.0f} "
            f"| {middle / product:.2f} | {target} |"
        )
    lines += [
        f"\nPeak memory of a TopK step, gradients and moments included: {peak:.2f} batch × units matrices (≤ 2).",
        f"\nLoss beside plain autograd, 8 steps: apart by {apart:.1e} at most.\n",
    ]
    RESULT.write_text("\n".join(lines))
    sys.stdout.write("\n".join(lines))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
