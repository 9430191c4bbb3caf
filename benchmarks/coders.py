"""What do codes that are solved for cost, and what do they gain? `python benchmarks/coders.py`.

Rows are sums of features along random directions, more than dimensions, plus noise of a twentieth of a row's length.

1. With the true directions: each coder at the true number of features a row. The share of variance explained, the
   agreement (F1) of what is on with what is planted, and CPU microseconds a row. «linear» is what an encoder can do at
   best without interaction between units: the k largest products with the directions, fitted anew by least squares.
2. Learning the directions: the mean over true directions of the largest cosine with one found, the same for as many
   random directions, and CPU seconds.
"""

import time

import torch
from torch import Tensor
from torch.nn import functional

from microtome.bases.streams import ArrayStream
from microtome.core.site import Site
from microtome.dictionaries.coders import k_svd, online_dictionary_learning
from microtome.dictionaries.coders.inference_time import refit
from microtome.dictionaries.coders.lasso import Lasso
from microtome.dictionaries.coders.pursuit import GradientPursuit, OrthogonalMatchingPursuit
from microtome.dictionaries.recipe import Recipe
from microtome.dictionaries.trainer import train


def planted(seed: int, features: int, d: int, k: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Directions, which k of them are on and how strongly (0.5 … 1.5), and rows with noise."""
    source = torch.Generator().manual_seed(seed)
    true = functional.normalize(torch.randn(features, d, generator=source), dim=-1)
    chosen = torch.rand(rows, features, generator=source).topk(k, -1).indices
    codes = torch.zeros(rows, features).scatter(-1, chosen, 0.5 + torch.rand(rows, k, generator=source))
    clean = codes @ true
    noise = torch.randn(rows, d, generator=source) * clean.norm(dim=-1).mean() / 20 / d**0.5
    return true, codes, clean + noise


def linear(values: Tensor, directions: Tensor, k: int) -> Tensor:
    """The k largest products, fitted anew."""
    products = (values @ directions.T).relu()
    best = products.topk(k, -1)
    return refit(values, directions, torch.zeros_like(products).scatter(-1, best.indices, best.values))


def lasso_then_refit(values: Tensor, directions: Tensor, k: int, momentum: bool) -> Tensor:
    """The k strongest codes of a lasso whose penalty is a tenth of the largest product, fitted anew."""
    penalty = 0.1 * float((values @ directions.T).amax(-1).mean())
    codes = Lasso(penalty, nonnegative=True, momentum=momentum, steps=500, tolerance=1e-2).codes(
        values, directions
    )
    best = codes.topk(k, -1)
    return refit(values, directions, torch.zeros_like(codes).scatter(-1, best.indices, best.values))


def coding(features: int, d: int, k: int) -> None:
    true, codes, rows = planted(0, features, d, k, 4000)
    ways = {
        "linear, refit": lambda: linear(rows, true, k),
        "gradient pursuit": lambda: GradientPursuit(k, nonnegative=True).codes(rows, true),
        "orthogonal matching pursuit": lambda: OrthogonalMatchingPursuit(k, nonnegative=True).codes(
            rows, true
        ),
        "ISTA, k strongest, refit": lambda: lasso_then_refit(rows, true, k, momentum=False),
        "FISTA, k strongest, refit": lambda: lasso_then_refit(rows, true, k, momentum=True),
    }
    for name, way in ways.items():
        start = time.process_time()
        found = way()
        spent = time.process_time() - start
        left = (rows - found @ true).square().sum() / (rows - rows.mean(0)).square().sum()
        right = ((found != 0) & (codes != 0)).sum()
        f1 = 2 * right / ((found != 0).sum() + (codes != 0).sum())
        print(
            f"| {features} in {d}, {k} on | {name} | {1 - left:.4f} | {f1:.3f} | {1e6 * spent / len(rows):.0f} |"
        )


def learning(features: int, d: int, k: int, rows: int) -> None:
    true, _, values = planted(1, features, d, k, rows)
    site = Site("resid_post", 0)

    def near(found: Tensor) -> float:
        return float((true @ functional.normalize(found, dim=-1).T).amax(-1).mean())

    def encoder() -> Tensor:
        stream = ArrayStream(values, 1024, sites=(site,))
        recipe = Recipe(width=features, l0=k, steps=1500, rate=3e-3, centring="no")
        return train(stream, [recipe])[0].dictionary.directions()

    settings = k_svd.Config(width=features, k=k, rounds=15, centre=False)
    online = online_dictionary_learning.Config(width=features, penalty=0.1, passes=3, batch=512, centre=False)
    ways = {
        "top-k autoencoder, 1500 steps": encoder,
        "K-SVD, 15 rounds": lambda: k_svd.fit(values, site, settings).decoder,
        "online, 3 passes": lambda: online_dictionary_learning.fit(values, site, online).decoder,
    }
    chance = near(torch.randn(features, d, generator=torch.Generator().manual_seed(9)))
    for name, way in ways.items():
        start = time.process_time()
        found = way()
        spent = time.process_time() - start
        print(
            f"| {features} in {d}, {k} on, {rows} rows | {name} | {near(found):.3f} | {chance:.3f} | {spent:.1f} |"
        )


def main() -> None:
    torch.set_num_threads(1)
    print("| planted | coder | explained | F1 | CPU µs a row |\n|---|---|---|---|---|")
    for shape in ((256, 128, 8), (1024, 128, 8), (1024, 128, 24)):
        coding(*shape)
    print("\n| planted | learner | cosine | of random ones | CPU s |\n|---|---|---|---|---|")
    for rows in (2_000, 20_000):
        learning(256, 64, 4, rows)


if __name__ == "__main__":
    main()
