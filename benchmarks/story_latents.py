"""Does a dictionary's best unit tell the latents of stories better than neurons do? Run: `benchmarks/story_latents.py`

The bundled model writes stories whose latents are known (who acts, where, what they feel, whether a name was said
before, …). At one site of it a dictionary is trained; on other stories the best unit for each latent is chosen on one
half of the tokens and scored on the other, by F1. Beside it: single dimensions of the same stream, the neurons of the
same block, principal and independent components, frozen random directions, and a dictionary trained on the model with
its weights shuffled. Everything is drawn anew for each of three seeds: stories, dictionaries, halves.
"""

import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from microtome.bases import independent_components, principal_components
from microtome.bases.basis import Basis
from microtome.bases.fitted import values_at
from microtome.bases.linear import LinearBasis
from microtome.core.site import Site
from microtome.dictionaries import sparse_autoencoder
from microtome.evaluation.dictionary_nulls import random_directions
from microtome.evaluation.known_latents import Probed, binary, known_latents
from microtome.models.load import load
from microtome.models.model import Model
from microtome.models.random_twin import random_twin
from microtome.testbeds.stories.corpus import Corpus, documents
from microtome.testbeds.stories.labels import labels

RESULT = Path(__file__).parent / "results" / "story_latents.md"
SITE, NEURONS = Site.parse("resid_post.2"), Site.parse("mlp_post.2")
TRAINED, SCORED = 900, 120  # stories
SEEDS = (0, 1, 2)
SETTINGS = sparse_autoencoder.Config(width=384, k=16, steps=1500, batch=1024)


def read(model: Model, corpus: Corpus, site: Site) -> Tensor:
    """Values `[token, d]`."""
    return values_at(model, torch.from_numpy(corpus.tokens.astype(np.int64)), site, 64)[0].flatten(0, 1)


def probed(codes: Tensor, corpus: Corpus, seed: int) -> Probed:
    flat = {name: label.flatten() for name, label in labels(corpus).items()}
    return known_latents(codes, binary(flat, most=32), ks=(1, 8), seed=seed)


@torch.no_grad()
def measured(model: Model, seed: int) -> dict[str, Probed]:
    """Every basis, fitted to some stories and held to the latents of others."""
    learnt, held = documents(seed, 0, TRAINED), documents(seed, 0, SCORED, "held-out")
    values, others = read(model, learnt, SITE), read(model, held, SITE)
    settings = SETTINGS.model_copy(update={"seed": seed})
    bases: dict[str, Basis] = {
        "dictionary": sparse_autoencoder.fit(values, SITE, settings),
        "dimensions of the stream": LinearBasis(SITE, torch.eye(values.shape[1])),
        "principal components": principal_components.fit(values, SITE),
        "independent components": independent_components.fit(
            values, SITE, independent_components.Config(seed=seed)
        ),
    }
    bases["random directions"] = random_directions(bases["dictionary"], values, values, 16, seed)
    found = {name: probed(basis.encode(others), held, seed) for name, basis in bases.items()}
    found["neurons of the block"] = probed(read(model, held, NEURONS), held, seed)
    twin = random_twin(model, seed)
    of_twin = sparse_autoencoder.fit(read(twin, learnt, SITE), SITE, settings)
    found["dictionary, weights shuffled"] = probed(of_twin.encode(read(twin, held, SITE)), held, seed)
    return found


def interval(values: list[float]) -> str:
    """Mean with Student's 95 % interval."""
    half = float(student.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {half:.3f}"


def main() -> None:
    torch.set_num_threads(1)
    start = time.process_time()
    model = load("fruitfly")
    runs = []
    for seed in SEEDS:
        runs.append(measured(model, seed))
        means = {name: round(float(found.best_unit.mean()), 3) for name, found in runs[-1].items()}
        sys.stderr.write(f"seed {seed}: {means}, {time.process_time() - start:.0f} CPU seconds\n")
    first = runs[0]["dictionary"]
    lines = [
        "# Latents of stories in the bundled model",
        "",
        f"{len(first.names)} latents of {first.rows:,} tokens at {SITE}; {SETTINGS.width} units, {SETTINGS.k:g} on "
        f"in a row, {SETTINGS.steps} batches of {SETTINGS.batch}; F1 on held-out tokens, mean over latents, with the "
        f"95 % interval over {len(SEEDS)} seeds. Always saying yes: {float(first.chance.mean()):.3f}. "
        f"{time.process_time() - start:.0f} CPU seconds.",
        "",
        "| basis | units | best unit | best eight | dictionary minus this |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in runs[0]:
        own = [float(run[name].best_unit.mean()) for run in runs]
        eight = [float(run[name].best_k[:, -1].mean()) for run in runs]
        gaps = [float(run["dictionary"].best_unit.mean()) - mine for run, mine in zip(runs, own, strict=True)]
        units = {"dictionary": SETTINGS.width}.get(name, "")
        told = "" if name == "dictionary" else interval(gaps)
        lines.append(f"| {name} | {units} | {interval(own)} | {interval(eight)} | {told} |")
    better = [
        (
            run["dictionary"].best_unit
            > torch.stack(
                [found.best_unit for name, found in run.items() if not name.startswith("dictionary")]
            ).amax(0)
        )
        for run in runs
    ]
    lines += [
        "",
        f"Latents that the dictionary's best unit tells better than every other basis here: "
        f"{', '.join(f'{int(one.sum())} of {len(one)}' for one in better)} (by seed).",
        "",
    ]
    lines += [
        "| latent | dictionary | stream | neurons | principal | independent | always yes |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    columns = (
        "dictionary",
        "dimensions of the stream",
        "neurons of the block",
        "principal components",
        "independent components",
    )
    for place in first.best_unit.argsort(descending=True).tolist():
        cells = " | ".join(f"{float(runs[0][name].best_unit[place]):.2f}" for name in columns)
        lines.append(f"| {first.names[place]} | {cells} | {float(first.chance[place]):.2f} |")
    text = "\n".join([*lines, "", "Single latents: seed 0.", ""])
    RESULT.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
