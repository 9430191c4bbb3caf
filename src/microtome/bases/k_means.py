"""Of which few kinds are the values? Nearest centroids, and several of them together.

    nearest    one of `units` centroids (L0 = 1)
    residual   one of the first `units / l0`, then one of the next for what is left, and so on
    product    the dimensions in `l0` blocks, each block one of its own `units / l0`

1. Start from rows that are far apart (k-means++), several times over.
2. Each row goes to the nearest centroid, each centroid to the mean of its rows, until none moves; a centroid without
   rows takes the row that is furthest from its own. With `batch`, centroids move after every so many rows instead.
3. A code is 1 for the centroid chosen; a direction is a centroid minus the mean of all rows.

Lloyd (1982); Arthur and Vassilvitskii (2007), k-means++; Sculley (2010), for batches; Jégou et al. (2011), Product
quantization. Misleads: it finds k clusters in anything, also where values are sums of factors that vary freely. For
centroids with strengths of their own, solve for codes on these directions (`CodedDictionary.of`).
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from microtome.bases import fitted
from microtome.bases.additive import AdditiveBasis
from microtome.bases.fitted import Result
from microtome.bases.rows import Rows, chunks, moments, sample
from microtome.core.card import Card
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.models.model import Model

__all__ = ["Centroids", "Config", "Result", "card", "fit", "grading", "run"]

grading = ({"control": False, "codes": True},)  # the grader has controls of its own

card = Card(
    name="k_means",
    title="k-means clustering",
    question="Of which few kinds are the values at a site?",
    steps=(
        "Read the values at the site and put some aside.",
        "Cluster the others: k-means++ starts, Lloyd steps; on request in stages or in blocks of dimensions.",
        "Measure on those put aside, and on shuffled values.",
    ),
    reference="Lloyd (1982), Least squares quantization in PCM; Arthur and Vassilvitskii (2007), k-means++",
    misleads="It finds as many clusters as it is asked for in anything, also where factors vary freely.",
    needs="tokens",
    causal="observation",
    locality="global",
    comprehensiveness="comprehensive",
    claims=("directions", "latents"),
)


class Config(fitted.Config):
    """Settings of k-means."""

    units: int | None = Field(
        None, ge=1, description="How many centroids in all; by default twice the dimensions."
    )
    kind: Literal["nearest", "residual", "product"] = Field("nearest", description="See the module.")
    l0: int = Field(1, ge=1, description="Centroids chosen for a row, for residual and product.")
    starts: int = Field(3, ge=1, description="Starts, of which the one with the smallest error is kept.")
    steps: int = Field(50, ge=1, description="Goes through all rows at most.")
    batch: int | None = Field(None, ge=1, description="Rows after which centroids move; by default all.")


class Centroids(AdditiveBasis):
    """stages: which units each choice is made among, first to last; each for what the ones before have left."""

    name = "k_means"

    def __init__(
        self,
        site: Site | str,
        directions: Float[Tensor, "unit d"],
        centre: Float[Tensor, " d"],
        stages: tuple[range, ...],
    ) -> None:
        super().__init__((site,), (directions.shape[1],), directions, centre)
        self.n_parameters = int((directions != 0).sum()) + len(centre)
        self.stages = stages

    def encode(self, values: Float[Tensor, "*rows d_read"]) -> Float[Tensor, "*rows unit"]:
        left = values - self.centre
        codes = left.new_zeros(*left.shape[:-1], self.n_units)
        for stage in self.stages:
            among = self.decoder[stage.start : stage.stop]
            chosen = nearest(left.reshape(-1, left.shape[-1]), among).reshape(left.shape[:-1])
            codes.scatter_(-1, chosen[..., None] + stage.start, 1.0)
            left = left - among[chosen]
        return codes


def nearest(rows: Float[Tensor, "row d"], centroids: Float[Tensor, "centroid d"]) -> Int[Tensor, " row"]:
    """The centroid with the smallest distance to each row."""
    return (rows @ centroids.mT - centroids.square().sum(-1) / 2).argmax(-1)


def fit(values: Rows, site: Site | str, config: Config | None = None) -> Centroids:
    """Raises `InputError` for fewer rows than centroids, and for units or dimensions that do not divide into `l0`."""
    config = config or Config()
    count, exact, _ = moments(values)
    mean, width = exact.float(), len(exact)
    units, l0 = config.units or 2 * width, config.l0
    if config.kind == "nearest" and l0 != 1:
        raise InputError(f"kind='nearest' chooses one centroid a row; for l0={l0} take residual or product")
    if units % l0 or (config.kind == "product" and width % l0):
        raise InputError(
            f"{units} units and {width} dimensions do not divide into {l0} stages; choose others"
        )
    each, block = units // l0, width // l0
    if count < each:
        raise InputError(f"{each} centroids need at least as many rows; got {count}")
    found: list[Tensor] = []
    stages = tuple(range(stage * each, (stage + 1) * each) for stage in range(l0))
    for stage in range(l0):
        before = Centroids(site, torch.cat(found), mean, stages[:stage]) if found else None
        mask = torch.ones(width)
        if config.kind == "product":
            mask = torch.zeros(width)
            mask[stage * block : (stage + 1) * block] = 1.0
        found.append(clusters(_left(values, mean, before, mask), each, config, config.seed + stage))
    return Centroids(site, torch.cat(found), mean, stages)


def _left(
    values: Rows, mean: Float[Tensor, " d"], before: Centroids | None, mask: Float[Tensor, " d"]
) -> Rows:
    """What earlier stages leave of the values, on the dimensions of this one."""

    def of(chunk: Tensor) -> Tensor:
        rows = chunk.float()
        made = mean if before is None else before.decode(before.encode(rows))
        return (rows - made) * mask

    return of(values) if isinstance(values, Tensor) else lambda: (of(chunk) for chunk in chunks(values))


def clusters(rows: Rows, count: int, config: Config, seed: int) -> Float[Tensor, "centroid d"]:
    """Centroids of the best of several starts."""
    best: tuple[float, Tensor] | None = None
    for start in range(config.starts):
        draw = torch.Generator().manual_seed(seed * 1_000_003 + start)
        some = sample(rows, max(10 * count, 4096), seed * 1_000_003 + start)
        error, centroids = _lloyd(rows, far_apart(some, count, draw), config)
        if best is None or error < best[0]:
            best = (error, centroids)
    assert best is not None
    return best[1]


def far_apart(rows: Float[Tensor, "row d"], count: int, draw: torch.Generator) -> Float[Tensor, "centroid d"]:
    """Rows drawn one after the other, with a chance that grows with the square of the distance to those drawn."""
    chosen = [int(torch.randint(len(rows), (1,), generator=draw))]
    distance = (rows - rows[chosen[0]]).square().sum(-1)
    for _ in range(count - 1):
        some = distance if bool(distance.any()) else torch.ones_like(distance)
        chosen.append(int(torch.multinomial(some, 1, generator=draw)))
        distance = torch.minimum(distance, (rows - rows[chosen[-1]]).square().sum(-1))
    return rows[chosen].clone()


def _lloyd(
    rows: Rows, centroids: Float[Tensor, "centroid d"], config: Config
) -> tuple[float, Float[Tensor, "centroid d"]]:
    """The error of the last assignment, and the centroids."""
    before = float("inf")
    met = torch.zeros(len(centroids))
    for _ in range(config.steps):
        sums, counts = torch.zeros_like(centroids), torch.zeros(len(centroids))
        error, furthest, lonely = 0.0, -1.0, centroids[0]
        for chunk in chunks(rows, config.batch or 1 << 14):
            chosen = nearest(chunk, centroids)
            distance = (chunk - centroids[chosen]).square().sum(-1)
            error += float(distance.sum())
            if float(distance.max()) > furthest:
                furthest, lonely = float(distance.max()), chunk[int(distance.argmax())]
            sums.index_add_(0, chosen, chunk)
            counts += torch.bincount(chosen, minlength=len(counts))
            if config.batch is not None:
                met += counts
                centroids = centroids + (sums - counts[:, None] * centroids) / met.clamp_min(1)[:, None]
                sums, counts = torch.zeros_like(sums), torch.zeros_like(counts)
        if config.batch is None:
            there = counts > 0
            centroids = torch.where(there[:, None], sums / counts.clamp_min(1)[:, None], centroids)
            if bool((~there).any()) and furthest > 0:
                centroids[int((~there).nonzero()[0])] = lonely
            elif not error < before:
                break
        before = error
    return error, centroids


def run(model: Model, data: Any, config: Config | None = None) -> Result:
    """Fit and measure; see `microtome.bases.fitted`."""
    return fitted.run(card, fit, model, data, config or Config())
