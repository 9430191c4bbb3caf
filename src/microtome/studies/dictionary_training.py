"""What does `microtome train` do? Many dictionaries trained on one pass over a source, scored, kept, told on a page.

1. Every combination of width, units on, activation and seed is a recipe; all of them see the same batches.
2. The training is kept in the folder every so often; the same plan in the same folder goes on where it stopped, with
   the same result as if it had not.
3. Each dictionary is written to `dictionaries/NAME.safetensors`, and scored beside its nulls.
4. `report.html`, one self-contained page: `microtome.studies.dictionary_page`.

A folder that holds another plan is refused. Whoever changes only what is not part of the training (scores, page) gets
them anew from what was trained.
"""

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final, Self

import torch
from pydantic import Field

from microtome.core import config as base
from microtome.core.errors import InputError, StoreError
from microtome.core.site import as_site
from microtome.dictionaries import files
from microtome.dictionaries.layout import Layout
from microtome.dictionaries.recipe import Kind, Recipe
from microtome.dictionaries.trainer import Trained, train
from microtome.evaluation import dictionary_scores
from microtome.evaluation.matching_tree import MatchingTree, matching_tree
from microtome.store.whole_file import write_whole
from microtome.studies.dictionary_sources import Source

Progress = Callable[[str, int, int], None]
PLAN: Final = "plan.json"


class Plan(base.Config):
    """What is trained, on what, and how often. A file of these in TOML is read by `Plan.of_file`."""

    model: str = Field("", description="Bundled model, folder or hub name; empty with a testbed.")
    corpus: tuple[str, ...] = Field((), description="Files of text, JSON lines or tokens.")
    testbed: str = Field("", description="Instead of model and corpus: a case, as TESTBED/CASE.")
    site: str = Field(
        "", description="Site that is read; of a testbed, by default where its key knows directions."
    )
    write: str = Field(
        "", description="Site that is written, for a transcoder; by default the site that is read."
    )
    width: tuple[int, ...] = Field((1024,), description="Units.")
    k: tuple[float, ...] = Field((32.0,), description="Units on in a row.")
    activation: tuple[Kind, ...] = Field(("topk",), description="Which units are on.")
    seeds: tuple[int, ...] = Field((0,), description="Of first directions.")
    steps: int = Field(2000, ge=1, description="Batches to train on.")
    batch: int = Field(1024, ge=1, description="Rows in a batch.")
    span: int = Field(1 << 17, ge=2, description="Rows in the buffer that is shuffled.")
    tokens: int | None = Field(None, ge=1, description="How many tokens of the corpus; by default all.")
    columns: int = Field(128, ge=2, description="How many tokens the model reads at once.")
    keep_every: int = Field(500, ge=1, description="Steps between two times of keeping the training.")
    nulls: bool = Field(True, description="Whether to score what has learned nothing, too.")
    recipe: dict[str, Any] = Field(default_factory=dict, description="Any other field of a recipe.")
    seed: base.Seed = Field(0, ge=0, description="Of what is held out, the order of rows, and the testbed.")

    @classmethod
    def of_file(cls, path: str | Path, over: dict[str, Any] | None = None) -> Self:
        """Read TOML; `over` replaces single fields. Raises `InputError` for no file, no TOML, or unknown fields."""
        try:
            given = tomllib.loads(Path(path).read_text("utf-8"))
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); give a TOML file") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is no TOML: {error}") from error
        return cls.read({**given, **(over or {})})

    def recipes(self) -> dict[str, Recipe]:
        """By name, in the order of widths, units on, activations, seeds. Raises `InputError` for what does not fit."""
        found = {}
        for width, k, activation, seed in product(self.width, self.k, self.activation, self.seeds):
            parts = [activation, f"w{width}", f"k{k:g}", *([f"s{seed}"] if len(self.seeds) > 1 else [])]
            name = "-".join(parts)
            given = {"name": name, "width": width, "l0": k, "activation": activation, "seed": seed}
            found[name] = Recipe.read({"steps": self.steps, **self.recipe, **given})
        if not found:
            raise InputError("there is nothing to train; give a width, k, activation and seed at least once")
        return found

    def layout(self, source: Source) -> Layout:
        """What is read and written, of what the source brings."""
        sites = source.stream.sites
        write = as_site(self.write) if self.write else sites[0]
        return Layout((sites[0],), (write,))


@dataclass(frozen=True, eq=False)
class Training:
    """What came of a plan. scores, paths: in the order of `trained`. tree: where there are several dictionaries."""

    plan: Plan
    source: Source
    trained: tuple[Trained, ...]
    scores: tuple[dictionary_scores.Result, ...]
    paths: tuple[Path, ...]
    tree: MatchingTree | None


def train_dictionaries(
    plan: Plan, source: Source, folder: str | Path, progress: Progress | None = None
) -> Training:
    """Train, score and keep. progress: called with what is done, and how far.

    Raises `StoreError` for a folder that holds another plan, and what `train` raises.
    """
    folder = Path(folder)
    tell = progress or (lambda what, done, of: None)
    recipes = plan.recipes()
    claim(folder, plan)
    layout = plan.layout(source)
    trained = train(
        source.stream,
        list(recipes.values()),
        layout=layout,
        held_out=source.held_out,
        folder=folder,
        keep_every=plan.keep_every,
        provenance=source.provenance,
        report=lambda step, _: tell("training", step, plan.steps),
        device="cuda" if torch.cuda.is_available() else None,
    )
    scores, paths = [], []
    for number, one in enumerate(trained):
        tell(f"scoring {one.recipe.name}", number, len(trained))
        dictionary = one.dictionary.mapped(lambda tensor: tensor.cpu())
        path = folder / "dictionaries" / f"{one.recipe.name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        files.save(dictionary, path)
        config = dictionary_scores.Config(dictionary=str(path), nulls=plan.nulls, seed=plan.seed)
        result = dictionary_scores.report(source.model, source.data, dictionary, config, source.known)
        result.save(folder / "scores" / one.recipe.name)
        scores.append(result)
        paths.append(path)
    tree = matching_tree([one.dictionary for one in trained]) if len(trained) > 1 else None
    return Training(plan, source, tuple(trained), tuple(scores), tuple(paths), tree)


def claim(folder: Path, plan: Plan) -> None:
    """Make the folder this plan's, or see that it is."""
    path = folder / PLAN
    told = plan.model_dump(mode="json")
    if path.exists():
        try:
            there = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read ({error}); give another folder") from error
        differs = [name for name in told if not isinstance(there, dict) or there.get(name) != told[name]]
        if differs:
            raise StoreError(
                f"{folder} holds another plan (other {', '.join(differs)}); give another folder, or the same plan"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise StoreError(f"{folder} holds something else than a training; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(told, indent=1).encode())
