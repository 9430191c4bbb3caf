"""What is to be trained, on what, and how often? The settings of `microtome train`, in a TOML file or as typed.

    site = "resid_post.2"                                    an autoencoder
    site = ["resid_post.1", "resid_post.2"]                  a crosscoder: one code for both
    site = "mlp_in.2", write = "mlp_out.2"                   a transcoder; skip = true: with a linear way past the units
    site = "mlp_in.0,mlp_in.1", write = "mlp_out.0,mlp_out.1", cross_layer = true
                                                             each unit reads one site, and writes that and later ones
    end_to_end = true, later = "resid_post.3"                keeps the model's outputs, and what it computes later

Every combination of width, units on, activation and seed is a recipe. Whatever else a recipe knows stands in `recipe`.
"""

import json
import tomllib
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final, Self

from pydantic import Field, PositiveFloat, field_validator, model_validator

from microtome.core import config as base
from microtome.core.errors import InputError, StoreError
from microtome.core.site import Site, as_site
from microtome.dictionaries.layout import Layout
from microtome.dictionaries.multi_site import staggered
from microtome.dictionaries.recipe import Kind, Recipe
from microtome.store.whole_file import PARTIAL, write_whole

PLAN: Final = "plan.json"
CORPUS: Final = "corpus"
_OWN: Final = {"l0": "k", "seed": "seeds"} | {
    name: name for name in ("width", "coefficient", "activation", "steps", "name")
}


class Plan(base.Config):
    """What is trained. A file of these in TOML is read by `Plan.of_file`. Lists may be one word, with commas."""

    model: str = Field("", description="Bundled model, folder or hub name; empty with a testbed.")
    corpus: tuple[str, ...] = Field((), description="Files of text, JSON lines or tokens.")
    testbed: str = Field("", description="Instead of model and corpus: a case, as TESTBED/CASE.")
    site: tuple[str, ...] = Field(
        (),
        description="Sites that are read; by default the middle of the model, or where a testbed's key is.",
    )
    write: tuple[str, ...] = Field((), description="Sites that are written; by default those that are read.")
    skip: bool = Field(False, description="Of a transcoder: whether what is linear goes past the units.")
    cross_layer: bool = Field(
        False, description="Whether each unit reads one of the sites, and writes that one and all later ones."
    )
    end_to_end: bool = Field(
        False, description="Whether the model's outputs are to be kept, instead of values."
    )
    later: tuple[str, ...] = Field((), description="End to end: sites whose values are to be kept as well.")
    divergence: float = Field(1.0, ge=0, description="End to end: weight of the KL of the outputs.")
    downstream: float = Field(1.0, ge=0, description="End to end: weight of the error at later sites.")
    local: float = Field(0.0, ge=0, description="End to end: weight of the error at the sites written.")
    width: tuple[int, ...] = Field((1024,), description="Units.")
    k: tuple[PositiveFloat, ...] = Field((), description="Units on in a row; by default 32.")
    coefficient: tuple[float, ...] = Field((), description="Weights of a penalty, instead of units on.")
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
    seed: base.Seed = Field(0, description="Of what is held out, the order of rows, and the testbed.")

    @field_validator(
        "site", "write", "later", "width", "k", "coefficient", "activation", "seeds", mode="before"
    )
    @classmethod
    def _several(cls, given: Any) -> Any:
        """One word with commas, or one number, as a list."""
        if isinstance(given, str):
            return [part.strip() for part in given.split(",") if part.strip()]
        return given if isinstance(given, list | tuple) else [given]

    @field_validator("recipe", mode="before")
    @classmethod
    def _lists(cls, given: Any) -> Any:
        """Words with commas as lists, as for the fields above."""
        if not isinstance(given, dict):
            return given
        return {
            name: one.split(",") if isinstance(one, str) and "," in one else one
            for name, one in given.items()
        }

    @model_validator(mode="after")
    def _fits(self) -> "Plan":
        if told := [name for name in _OWN if name in self.recipe]:
            raise ValueError(f"{told[0]} of all recipes is said by {_OWN[told[0]]}, not among the rest")
        if self.write and not self.site:
            raise ValueError("write says where to; say by site where from, as mlp_in.2 for mlp_out.2")
        for what, sites in (("read", self.site), ("written", self.write)):
            if len(set(sites)) < len(sites):
                raise ValueError(f"each site is {what} once; got {', '.join(sites)}")
        if self.skip and self.write in ((), self.site):
            raise ValueError("with a skip past the units a dictionary writes elsewhere than it reads")
        if self.cross_layer and len(self.site) != len(self.write or self.site):
            raise ValueError(
                f"cross-layer: {len(self.site)} sites read, {len(self.write)} written; say pairs"
            )
        if self.cross_layer and len(self.site) < 2:
            raise ValueError("cross-layer units want two sites at least")
        if self.end_to_end and self.testbed:
            raise ValueError("end to end is trained on a model and a corpus, not on a testbed")
        if self.later and not self.end_to_end:
            raise ValueError("later sites are kept where a dictionary is trained end to end")
        return self

    @classmethod
    def of_file(cls, path: str | Path, over: dict[str, Any] | None = None) -> Self:
        """Read TOML; `over` replaces single fields. Raises `InputError` for no file, no TOML, or unknown fields."""
        try:
            given = tomllib.loads(Path(path).read_text("utf-8"))
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); give a TOML file") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is no TOML: {error}") from error
        over = over or {}
        rest = {**given.get("recipe", {}), **over.get("recipe", {})}
        return cls.read({**given, **over, "recipe": rest})

    def recipes(self) -> dict[str, Recipe]:
        """By name, in the order of widths, units on, activations, seeds. Raises `InputError` for what does not fit."""
        asked = [("l0", "k", k) for k in self.k or ((32.0,) if not self.coefficient else ())]
        asked += [("coefficient", "c", number) for number in self.coefficient]
        found = {}
        for width, (field, letter, on), activation, seed in product(
            self.width, asked, self.activation, self.seeds
        ):
            parts = [
                activation,
                f"w{width}",
                f"{letter}{on:g}",
                *([f"s{seed}"] if len(self.seeds) > 1 else []),
            ]
            name = "-".join(parts)
            given = {"name": name, "width": width, field: on, "activation": activation, "seed": seed}
            found[name] = Recipe.read({"steps": self.steps, **self.recipe, **given})
        if not found:
            raise InputError("there is nothing to train; give a width, k, activation and seed at least once")
        return found

    @property
    def sites(self) -> tuple[Site, ...]:
        """All that is read or written, what is read before what is only written; none, where nothing is said."""
        return tuple(dict.fromkeys(map(as_site, (*self.site, *self.write))))

    def layout(self, sites: Sequence[Site]) -> Layout:
        """What is read and written, of the sites that a source brings: the first one, where nothing is said."""
        reads = tuple(map(as_site, self.site)) or (sites[0],)
        writes = tuple(map(as_site, self.write)) or reads
        return staggered(reads, writes) if self.cross_layer else Layout(reads, writes, self.skip)


def claim(folder: Path, plan: Plan) -> None:
    """Make the folder this plan's. Raises `StoreError` for one that holds anything else."""
    check(folder, plan)
    if not (folder / PLAN).exists():
        write_whole(folder / PLAN, json.dumps(plan.model_dump(mode="json"), indent=1).encode())


def check(folder: Path, plan: Plan) -> None:
    """Raise `StoreError` for a folder that holds anything but this plan, or a corpus that was read for it."""
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
    elif folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file; give a folder")
    elif folder.exists() and any(
        one.name != CORPUS and not PARTIAL.fullmatch(one.name) for one in folder.iterdir()
    ):
        raise StoreError(f"{folder} holds something else than a training; give another folder")
