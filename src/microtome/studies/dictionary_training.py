"""What does `microtome train` do? Many dictionaries trained on one pass over a source, scored, kept, told on a page.

1. Every combination of width, units on, activation and seed is a recipe; all of them see the same batches.
2. The training is kept in the folder every so often; the same plan in the same folder goes on where it stopped, with
   the same result as if it had not.
3. Each dictionary is written to `dictionaries/NAME.safetensors`, and scored beside its nulls.
4. `report.html`, one self-contained page: `microtome.studies.dictionary_page`.

A folder that holds another plan is refused. Whoever changes only what is not part of the training (scores, page) gets
them anew from what was trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from microtome.bases.harvest import Harvest
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.data.corpus_rows import CorpusRows
from microtome.dictionaries import files
from microtome.dictionaries.learner import Learner
from microtome.dictionaries.processes import alone, in_turn
from microtome.dictionaries.shared_rows import SharedHarvest, ShareOfRows
from microtome.dictionaries.trainer import Trained, train
from microtome.evaluation import dictionary_scores
from microtome.models.model import Model
from microtome.studies.dictionary_plan import Plan, claim
from microtome.studies.dictionary_sources import Source

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Training:
    """What came of a plan. scores, paths: in the order of `trained`."""

    plan: Plan
    source: Source
    trained: tuple[Trained, ...]
    scores: tuple[dictionary_scores.Result, ...]
    paths: tuple[Path, ...]


def train_dictionaries(
    plan: Plan, source: Source, folder: str | Path, progress: Progress | None = None
) -> Training:
    """Train, score and keep. progress: called with what is done, and how far.

    Raises `StoreError` for a folder that holds another plan, and what `train` raises.
    """
    return scored(plan, source, Path(folder), trained(plan, source, Path(folder), progress), progress)


def source_of(
    plan: Plan, model: Model | None = None, rows: CorpusRows | None = None, share: str = "rows"
) -> Source:
    """What a plan is trained on: a model on rows of a corpus, or its testbed.

    share: where several processes share the work, whether each takes a share of the rows, or of the units. Raises
    `InputError` for what cannot be shared so, and for a corpus that is too small.
    """
    rows_shared = share == "rows" and not alone()
    if model is None or rows is None:
        if len(plan.site) > 1:
            raise InputError(f"a testbed is read at one site, not at {', '.join(plan.site)}")
        source = Source.of_case(plan.testbed, "".join(plan.site), plan.batch, plan.seed)
    elif plan.end_to_end:
        if rows_shared:
            raise InputError("end to end every process needs all rows; let them share units: --share units")
        sites = plan.sites or (Site("resid_post", model.n_layers // 2),)
        layout = plan.layout(sites)
        weights = {name: getattr(plan, name) for name in ("divergence", "downstream", "local")}
        source = Source.of_outputs(
            model, rows, sites, plan.batch, plan.seed, layout.writes, plan.later, **weights
        )
    else:
        harvest = Harvest if alone() else SharedHarvest
        sites = plan.sites or (Site("resid_post", model.n_layers // 2),)
        source = Source.of_corpus(model, rows, sites, plan.batch, plan.span, plan.steps, plan.seed, harvest)
    return replace(source, stream=ShareOfRows(source.stream)) if rows_shared else source


def trained(
    plan: Plan,
    source: Source,
    folder: Path,
    progress: Progress | None = None,
    learner: type[Learner] = Learner,
) -> list[Trained]:
    """Train and keep. learner: of several processes that share the work, see `microtome.dictionaries.parallel`."""
    tell = progress or _silently
    recipes = plan.recipes()
    with in_turn():
        claim(folder, plan)
    return train(
        source.stream,
        list(recipes.values()),
        layout=plan.layout(source.stream.sites),
        held_out=source.held_out,
        folder=folder,
        keep_every=plan.keep_every,
        provenance=source.provenance,
        target=source.target,
        learner=learner,
        report=lambda step, _: tell("training", step, plan.steps),
        # End to end, what is rebuilt goes back into the model, and stays where that is.
        device="cuda" if torch.cuda.is_available() and not plan.end_to_end else None,
    )


def scored(
    plan: Plan, source: Source, folder: Path, made: Sequence[Trained], progress: Progress | None = None
) -> Training:
    """Score what was trained, and write it."""
    tell = progress or _silently
    scores, paths = [], []
    for number, one in enumerate(made):
        tell(f"scoring {one.recipe.name}", number, len(made))
        dictionary = one.dictionary.mapped(lambda tensor: tensor.cpu())
        path = folder / "dictionaries" / f"{one.recipe.name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        files.save(dictionary, path)
        config = dictionary_scores.Config(dictionary=str(path), nulls=plan.nulls, seed=plan.seed)
        result = dictionary_scores.report(source.model, source.data, dictionary, config, source.known)
        result.save(folder / "scores" / one.recipe.name)
        scores.append(result)
        paths.append(path)
    return Training(plan, source, tuple(made), tuple(scores), tuple(paths))


def _silently(what: str, done: int, of: int) -> None:
    """Tell nobody."""
