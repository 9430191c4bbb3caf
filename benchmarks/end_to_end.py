"""How many units does the same divergence need? `python benchmarks/end_to_end.py`: local against end-to-end training.

On the bundled model, at the residual stream after block 1: top-k dictionaries of one width, trained on the same batches
in the same order, (a) to rebuild the values, (b) to keep the outputs, and the values after block 2. Each is then put in
the place of the values (error dropped) on held-out stories: the divergence KL(own ‖ with dictionary), in nats a token,
and the share of variance explained. The last column is the number of units on at which local training, interpolated
between its points on logarithmic axes, reaches the same divergence.
"""

import math
import time
from itertools import pairwise

import torch
from torch import Tensor

from microtome.bases.splice import splice
from microtome.core.site import Site
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.end_to_end import ModelLoss, TokenStream, divergence, unexplained
from microtome.dictionaries.recipe import Recipe, sweep
from microtome.dictionaries.trainer import train
from microtome.models.load import load
from microtome.models.model import Model
from microtome.testbeds.stories.corpus import documents

SITE, LATER = "resid_post.1", "resid_post.2"
ON, SEEDS, STEPS = (2, 4, 8, 16), (0, 1), 300


def tokens(split: str, count: int) -> Tensor:
    return torch.from_numpy(documents(0, 0, count, split).tokens).long()  # type: ignore[arg-type]


@torch.no_grad()
def kept(model: Model, found: Dictionary, held_out: Tensor) -> tuple[float, float]:
    """Divergence in nats a token, and the share of variance explained."""
    own = model.run(held_out, [SITE], logits=True)
    run = model.run(held_out, edit=splice(found, error="drop"), logits=True)
    assert own.logits is not None
    assert run.logits is not None
    values = own[Site.parse(SITE)].flatten(0, 1)
    return float(divergence(own.logits, run.logits)), 1 - float(
        unexplained(found.reconstruct(values), values)
    )


def needed(curve: dict[int, float], target: float) -> str:
    """Units on at which a curve reaches a divergence."""
    points = sorted(curve.items())
    for (k0, d0), (k1, d1) in pairwise(points):
        if d1 <= target <= d0:
            share = math.log(d0 / target) / math.log(d0 / d1)
            return f"{math.exp(math.log(k0) + share * math.log(k1 / k0)):.1f}"
    return f"< {points[0][0]}" if target > points[0][1] else f"> {points[-1][0]}"


def main() -> None:
    torch.set_num_threads(1)
    model = load("fruitfly")
    rows, held_out = tokens("train", 2400), tokens("held-out", 64)
    recipes = sweep(Recipe(width=384, steps=STEPS, rate=3e-3), l0=ON, seed=SEEDS)
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    spent = {}
    for name in ("local", "end-to-end"):
        stream = TokenStream(model, rows, [SITE], together=8, also=[LATER])
        target = {"target": ModelLoss(stream, later=[LATER])} if name == "end-to-end" else {}
        start = time.process_time()
        trained = train(stream, recipes, **target)  # type: ignore[arg-type]
        spent[name] = (time.process_time() - start) / (len(recipes) * STEPS)
        found[name] = {k: [] for k in ON}
        for one in trained:
            found[name][int(one.recipe.on)].append(kept(model, one.dictionary, held_out))
    local = {k: sum(d for d, _ in each) / len(each) for k, each in found["local"].items()}
    print("| training | units on | KL, nats (each seed) | explained (each seed) | local needs |")
    print("|---" * 5 + "|")
    for name, each in found.items():
        for k, scores in each.items():
            kl = sum(d for d, _ in scores) / len(scores)
            told = ", ".join(f"{d:.4f}" for d, _ in scores)
            shares = ", ".join(f"{e:.3f}" for _, e in scores)
            print(f"| {name} | {k} | {kl:.4f} ({told}) | {shares} | {needed(local, kl)} |")
    told = ", ".join(f"{name} {1000 * each:.0f}" for name, each in spent.items())
    print(f"\nCPU milliseconds a step and dictionary: {told}")


if __name__ == "__main__":
    main()
