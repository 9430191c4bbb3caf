"""Does a dictionary's best unit tell the latents of stories better than neurons do? Run: `benchmarks/story_latents.py`

The bundled model writes stories whose latents are known (who acts, where, what they feel, whether a name was said
before, …). At one site of it dictionaries are trained; on half of other stories the best unit for each latent is
chosen, and on their other half it is scored, by F1, with any cut between two values of a unit, either way. Beside them:
single dimensions of the same stream, the neurons of the same block, principal and independent components, frozen random
directions, and a dictionary trained on the model with its weights shuffled. Everything is drawn anew for each of three
seeds: stories, dictionaries, halves. Penalty, width and units on were chosen on the stories of a fourth seed, 10.
"""

import math
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from microtome.bases import independent_components, principal_components
from microtome.bases.basis import Basis
from microtome.bases.fitted import values_at
from microtome.bases.neurons import Neurons
from microtome.bases.streams import ArrayStream
from microtome.core.draws import generator
from microtome.core.site import Site
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.recipe import Recipe
from microtome.dictionaries.trainer import train
from microtome.evaluation.dictionary_nulls import random_directions
from microtome.evaluation.known_latents import Probed, binary, known_latents
from microtome.models.load import load
from microtome.models.model import Model
from microtome.models.random_twin import random_twin
from microtome.testbeds.stories.corpus import Corpus, documents
from microtome.testbeds.stories.labels import labels

RESULT = Path(__file__).parent / "results" / "story_latents.md"
SITE, NEURONS = Site.parse("resid_post.2"), Site.parse("mlp_post.2")
TRAINED, SCORED = 1500, 400  # stories
COMPONENTS = 50_000  # tokens that independent components are fitted to
STEPS, BATCH = 1200, 1024
SEEDS = (0, 1, 2)
MAIN = "dictionary, L1 in nested prefixes"
L1: dict[str, Any] = {"width": 384, "activation": "relu", "l0": 32}
RECIPES: dict[str, dict[str, Any]] = {
    MAIN: L1 | {"prefixes": (64, 128, 256, 384)},
    "dictionary, L1": L1,
    "dictionary, L1, as many units as components have ends": L1 | {"width": 192},
    "dictionary, TopK": {"width": 384, "activation": "topk", "l0": 16},
}
CHOSEN = """\
Chosen on 120 stories of seed 10, their tokens dealt into halves one by one, 800 batches, one run each, F1 of the best
unit (independent components 0.491):
L1 of 384 units, 32 on in a row 0.514, 20 on 0.409, 48 on 0.485; of 768, 32 on 0.501; TopK of 384, 32 on 0.413, 48 on
0.386; of 192, 32 on 0.381; Matryoshka (BatchTopK) of 384, 32 on 0.363. On more of its stories (independent components
0.466): TopK of 384, 16 on 0.418; of 768, 8 on 0.331; BatchTopK of 384, 8 on 0.328; Matryoshka of 768, 8 on 0.308.
On 400 of its stories, chosen on half of them and scored on the others, 1200 batches (independent components 0.560):
L1 of 384 units, 32 on 0.584; in nested prefixes of 24, 48, 96, 192 and 384 units 0.590 (24 on 0.574, 40 on 0.586); of
64, 128, 256 and 384 units 0.595, which is what stands first above. The former had been run on seeds 0 to 2 before
that choice: 0.600 ± 0.025."""


def read(model: Model, corpus: Corpus, site: Site) -> Tensor:
    """Values `[token, d]`."""
    return values_at(model, torch.from_numpy(corpus.tokens.astype(np.int64)), site, 64)[0].flatten(0, 1)


def probed(codes: Tensor, corpus: Corpus, seed: int) -> Probed:
    flat = {name: label.flatten() for name, label in labels(corpus).items()}
    text = torch.arange(len(corpus.tokens)).repeat_interleave(corpus.tokens.shape[1])
    return known_latents(codes, binary(flat, most=32), ks=(1, 8), seed=seed, text=text)


def trained(values: Tensor, names: list[str], seed: int) -> dict[str, Dictionary]:
    recipes = [Recipe.read({"steps": STEPS, "seed": seed, **RECIPES[name]}) for name in names]
    found = train(ArrayStream(values, BATCH, seed, sites=(SITE,)), recipes)
    return {name: one.dictionary for name, one in zip(names, found, strict=True)}


def measured(model: Model, seed: int) -> tuple[dict[str, Probed], dict[str, int]]:
    """Every basis, fitted to some stories and held to the latents of others; and how many units it has."""
    learnt, held = documents(seed, 0, TRAINED), documents(seed, 0, SCORED, "held-out")
    twin = random_twin(model, seed)
    with torch.no_grad():
        values, others = read(model, learnt, SITE), read(model, held, SITE)
        shuffled, shuffled_others = read(twin, learnt, SITE), read(twin, held, SITE)
    some = values[torch.randperm(len(values), generator=generator(seed))[:COMPONENTS]]
    components = independent_components.fit(some, SITE, independent_components.Config(seed=seed))
    dictionaries = trained(values, list(RECIPES), seed)
    bases: dict[str, tuple[Basis, Tensor]] = {name: (one, others) for name, one in dictionaries.items()}
    bases |= {
        "independent components": (components, others),
        "principal components": (principal_components.fit(values, SITE), others),
        "dimensions of the stream": (Neurons(SITE, values.shape[1]), others),
        "random directions": (random_directions(dictionaries[MAIN], values, values, 32, seed), others),
        f"{MAIN}, weights shuffled": (trained(shuffled, [MAIN], seed)[MAIN], shuffled_others),
    }
    with torch.no_grad():
        own = read(model, held, NEURONS)
        bases["neurons of the block"] = (Neurons(NEURONS, own.shape[1]), own)
        found = {name: probed(basis.encode(rows), held, seed) for name, (basis, rows) in bases.items()}
    return found, {name: basis.n_units for name, (basis, _) in bases.items()}


def interval(values: list[float]) -> str:
    """Mean with Student's 95 % interval."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    half = float(student.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {half:.3f}"


def page(runs: list[dict[str, Probed]], units: dict[str, int], seconds: float) -> str:
    """The report of as many seeds as there are."""
    chance = float(np.mean([float(run[MAIN].chance.mean()) for run in runs]))
    counts = ", ".join(str(len(run[MAIN].names)) for run in runs)
    lines = [
        "# Latents of stories in the bundled model",
        "",
        f"{counts} latents (by seed) of {runs[0][MAIN].rows:,} tokens at {SITE}; dictionaries of {STEPS} batches of "
        f"{BATCH}; L1 with 32 units on in a row, TopK with 16. F1 on stories that nothing was chosen on, "
        f"mean over latents, with the 95 % interval over {len(runs)} seeds. Always saying yes: {chance:.3f}. "
        f"{seconds:.0f} CPU seconds.",
        "",
        "| basis | units | best unit | best eight | the first minus this | latents it tells best |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    rivals = [name for name in runs[0] if "shuffled" not in name]
    wins = {name: [0] * len(runs) for name in rivals}
    for number, run in enumerate(runs):
        for best in torch.stack([run[name].best_unit for name in rivals]).argmax(0).tolist():
            wins[rivals[best]][number] += 1
    for name in runs[0]:
        own = [float(run[name].best_unit.mean()) for run in runs]
        eight = [float(run[name].best_k[:, -1].mean()) for run in runs]
        gaps = [float(run[MAIN].best_unit.mean()) - mine for run, mine in zip(runs, own, strict=True)]
        told = "" if name == MAIN else interval(gaps)
        won = ", ".join(map(str, wins[name])) if name in wins else ""
        lines.append(f"| {name} | {units[name]} | {interval(own)} | {interval(eight)} | {told} | {won} |")
    columns = [
        MAIN,
        "dictionary, TopK",
        "independent components",
        "principal components",
        "neurons of the block",
    ]
    lines += ["", f"| kind of latent | how many | {' | '.join(columns)} | always yes |"]
    lines += ["| --- " * (len(columns) + 3) + "|"]
    kinds: dict[str, list[list[float]]] = defaultdict(list)
    for run in runs:
        for at, name in enumerate(run[MAIN].names):
            kind = name.split("=")[0].removesuffix(" above its median")
            kinds[kind].append([float(run[c].best_unit[at]) for c in columns] + [float(run[MAIN].chance[at])])
    ordered = sorted(kinds.items(), key=lambda pair: -float(np.mean([row[0] for row in pair[1]])))
    for kind, rows in ordered:
        means = " | ".join(f"{value:.2f}" for value in np.mean(rows, 0))
        lines.append(f"| {kind} | {len(rows) / len(runs):.3g} | {means} |")
    return "\n".join([*lines, "", "Means over latents and seeds.", "", CHOSEN, ""])


def main() -> None:
    torch.set_num_threads(1)
    start = time.process_time()
    model = load("fruitfly")
    runs: list[dict[str, Probed]] = []
    for seed in SEEDS:
        found, units = measured(model, seed)
        runs.append(found)
        text = page(runs, units, time.process_time() - start)
        RESULT.write_text(text)
        means = {name: round(float(one.best_unit.mean()), 3) for name, one in found.items()}
        sys.stderr.write(f"seed {seed}: {means}, {time.process_time() - start:.0f} CPU seconds\n")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
