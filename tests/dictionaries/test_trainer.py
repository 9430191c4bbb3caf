"""Does training do what it says: alone or together, interrupted or not, on good values and on bad ones?"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from microtome.bases.streams import ArrayStream
from microtome.core.errors import InputError, NotFiniteError, StoreError
from microtome.core.site import Site
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.layout import Layout
from microtome.dictionaries.learner import Taken
from microtome.dictionaries.recipe import Recipe, sweep
from microtome.dictionaries.trainer import Trained, train

KINDS = ("relu", "topk", "batch_topk", "jumprelu", "gated")
SITES = (Site.parse("mlp_in.0"), Site.parse("mlp_out.0"))


def values(rows: int = 2048, d: int = 12, seed: int = 0) -> Tensor:
    """Sums of few of 20 directions, off centre."""
    source = torch.Generator().manual_seed(seed)
    directions = torch.randn(20, d, generator=torch.Generator().manual_seed(99))
    codes = torch.rand(rows, 20, generator=source) * (torch.rand(rows, 20, generator=source) < 0.1)
    return 5 * codes @ directions + 3


def stream(
    rows: int = 2048, d: int = 12, sites: tuple[Site, ...] = (), widths: tuple[int, ...] | None = None
) -> ArrayStream:
    return ArrayStream(values(rows, d), 128, seed=1, sites=sites, widths=widths)


def recipe(**choices: object) -> Recipe:
    return Recipe.read({"width": 24, "l0": 3, "steps": 16, "rate": 3e-3, **choices})


def same(one: Dictionary, other: Dictionary) -> bool:
    left, right = one.tensors(), other.tensors()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_every_kind_learns_on_every_footing() -> None:
    footings = [recipe(steps=60, centring="median"), recipe(steps=60, scaling="whiten")]
    recipes = [*sweep(recipe(steps=60), activation=KINDS[1:]), *footings, recipe(steps=60, initial="data")]
    for one in train(stream(), recipes, held_out=values(seed=5)):
        assert one.final.explained > max(0.25, one.log[0].explained + 0.1), one.recipe
        assert one.dictionary.reads == one.dictionary.writes == (Site.module("values"),)
        assert (one.final.step, len(one.log)) == (60, 61)
    (paying,) = train(stream(), [recipe(activation="relu", l0=None, coefficient=0.5, steps=60)])
    assert paying.final.explained > paying.log[0].explained + 0.2


def test_many_at_once_are_the_same_as_one_by_one() -> None:
    recipes = [recipe(activation=kind, seed=seed, steps=6) for kind in KINDS for seed in (0, 1)]
    together = train(stream(), recipes)
    for one, alone in zip(together, (train(stream(), [each])[0] for each in recipes), strict=True):
        assert same(one.dictionary, alone.dictionary)
        assert one.log == alone.log
        assert one.recipe == alone.recipe
    assert not torch.equal(together[0].dictionary.encoder, together[1].dictionary.encoder)


class Stopped(Exception):
    pass


def stop_at(last: int) -> object:
    def report(step: int, taken: Sequence[Taken | None]) -> None:
        if step == last:
            raise Stopped

    return report


def all_kinds() -> list[Recipe]:
    return [
        recipe(activation=kind, dead_after=300, steps=steps)
        for kind, steps in zip(KINDS, (16, 14, 12, 16, 16), strict=True)
    ] + [
        recipe(activation="topk", dead_after=300, dead_units="resample"),
        recipe(activation="relu", coefficient=0.5, l0=None, penalty="lp", power=0.5, anneal=True),
    ]


@cache
def undisturbed() -> list[Trained]:
    """What comes of all kinds when nothing happens."""
    return train(stream(), all_kinds())


def test_a_stopped_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = undisturbed()
    for last in (5, 9, 15):
        with pytest.raises(Stopped):
            train(stream(), all_kinds(), folder=tmp_path, keep_every=7, report=stop_at(last))  # type: ignore[arg-type]
    resumed = train(stream(), all_kinds(), folder=tmp_path, keep_every=7)
    for one, other in zip(whole, resumed, strict=True):
        assert same(one.dictionary, other.dictionary)
        assert one.log == other.log
    again = train(stream(), all_kinds(), folder=tmp_path, keep_every=7)  # nothing is left to do
    assert all(same(one.dictionary, other.dictionary) for one, other in zip(whole, again, strict=True))


PROGRAM = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from dictionaries import test_trainer as here
def tell(step, taken):
    print(step, flush=True)
here.train(here.stream(), here.all_kinds(), folder=Path(sys.argv[2]), keep_every=5, report=tell)
"""


def test_a_killed_process_loses_little_and_changes_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(Path(__file__).parents[1]), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    with process:
        assert process.stdout is not None
        last = next(int(line) for line in process.stdout if int(line) >= 8)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    first, resumed = resumed_from(tmp_path)
    assert first > last - 5
    whole = undisturbed()
    assert all(same(one.dictionary, other.dictionary) for one, other in zip(resumed, whole, strict=True))


def resumed_from(folder: Path) -> tuple[int, list[Trained]]:
    """The first step that was still to be taken, and what came of all."""
    steps: list[int] = []

    def begun(step: int, taken: Sequence[Taken | None]) -> None:
        steps.append(step)

    done = train(stream(), all_kinds(), folder=folder, report=begun)
    return steps[0], done


def test_an_interruption_waits_for_the_step_and_keeps_it(tmp_path: Path) -> None:
    def interrupt(step: int, taken: Sequence[Taken | None]) -> None:
        if step == 8:
            signal.raise_signal(signal.SIGINT)

    # What a shell runs in the background begins without it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(stream(), all_kinds(), folder=tmp_path, report=interrupt)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    first, resumed = resumed_from(tmp_path)
    assert first == 9
    whole = undisturbed()
    assert all(same(one.dictionary, other.dictionary) for one, other in zip(resumed, whole, strict=True))


def test_another_training_or_a_damaged_file_is_not_taken_up(tmp_path: Path) -> None:
    train(stream(), [recipe(steps=5)], folder=tmp_path)
    path = tmp_path / "training.safetensors"
    content = path.read_bytes()
    with pytest.raises(StoreError, match="recipes differ"):
        train(stream(), [recipe(steps=6)], folder=tmp_path)
    with pytest.raises(StoreError, match="stream differ"):
        train(stream(rows=1024), [recipe(steps=5)], folder=tmp_path)
    assert path.read_bytes() == content
    path.write_bytes(content[:-9])
    with pytest.raises(StoreError, match="damaged"):
        train(stream(), [recipe(steps=5)], folder=tmp_path)
    path.write_bytes(b"something else")
    with pytest.raises(StoreError, match="damaged or no training"):
        train(stream(), [recipe(steps=5)], folder=tmp_path)


def absolute_error(rebuilt: Tensor, wanted: Tensor) -> Tensor:
    return (rebuilt - wanted).abs().sum(-1).mean(-1)


def test_another_target_or_other_rows_held_out_are_another_training(tmp_path: Path) -> None:
    def go_on(rows: int | None = 64, folder: Path = tmp_path, **target: Any) -> Trained:
        held_out = None if rows is None else values(rows, seed=5)
        return train(stream(), [recipe(steps=4)], folder=folder, held_out=held_out, **target)[0]

    first = go_on()
    content = (tmp_path / "training.safetensors").read_bytes()
    with pytest.raises(StoreError, match="its target differ"):
        go_on(target=absolute_error)
    for rows in (None, 63):
        with pytest.raises(StoreError, match="its rows held out differ"):
            go_on(rows)
    with pytest.raises(InputError, match="partial has no name"):
        go_on(target=partial(absolute_error), folder=tmp_path / "other")
    assert (tmp_path / "training.safetensors").read_bytes() == content
    assert same(go_on().dictionary, first.dictionary)


def test_a_full_disk_says_so_and_the_last_state_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stopped):
        train(stream(), [recipe()], folder=tmp_path, keep_every=5, report=stop_at(12))  # type: ignore[arg-type]
    content = (tmp_path / "training.safetensors").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left"):
            train(stream(), [recipe()], folder=tmp_path, keep_every=5)
    assert (tmp_path / "training.safetensors").read_bytes() == content
    assert same(
        train(stream(), [recipe()], folder=tmp_path)[0].dictionary, train(stream(), [recipe()])[0].dictionary
    )


def test_not_a_number_stops_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    spoiled = values(128 * 20)
    spoiled[700] = torch.nan
    bad = ArrayStream(spoiled, 128, seed=1, epochs=3)
    where = next(step for step, batch in enumerate(bad) if batch.isnan().any())
    bad.seek(0)
    assert where >= 4  # the first four say the footing
    with pytest.raises(NotFiniteError, match=rf"at step {where}: the batch holds NaN.*training\.safetensors"):
        train(bad, [recipe()], folder=tmp_path, keep_every=1)
    from microtome.dictionaries.checkpoint import Checkpoint

    told = Checkpoint(tmp_path, {})
    kept = told.read()
    assert kept is not None
    assert kept.step == where
    assert all(tensor.isfinite().all() for tensor in kept.tensors[0].values())
    bad.seek(0)
    with pytest.raises(NotFiniteError) as error:  # nothing is said of a state that was never kept
        train(bad, [recipe()], folder=tmp_path / "none", keep_every=1000)
    assert "training.safetensors" not in str(error.value)
    with pytest.raises(NotFiniteError, match="hold NaN"):
        train(ArrayStream(torch.full((256, 4), torch.nan), 128), [recipe()])
    with pytest.raises(NotFiniteError, match="it grew without bound"):
        train(
            stream(),
            [recipe(activation="relu", rate=1e30, clip=None, decoder="free", warm_up=0.0)],
        )


def test_all_units_dead_is_an_error() -> None:
    with pytest.raises(
        InputError, match=r"all 24 units of dictionary are dead at step .*[Ll]ower the coefficient"
    ):
        train(
            stream(),
            [
                recipe(
                    activation="relu",
                    l0=None,
                    coefficient=1e4,
                    dead_after=128,
                    centring="no",
                    rate=0.3,
                    warm_up=0.0,
                    dead_units="no",
                    tied=False,
                )
            ],
        )


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="there is no recipe"):
        train(stream(), [])
    with pytest.raises(InputError, match=r"has 8 batches of 128 rows, the recipes ask for 16"):
        train(ArrayStream(values(1024), 128, epochs=1), [recipe()])
    with pytest.raises(InputError, match=r"brings mlp_in\.0, mlp_out\.0, not mlp_in\.3"):
        train(stream(sites=SITES, widths=(8, 4)), [recipe()], layout=Layout.autoencoder("mlp_in.3"))
    with pytest.raises(InputError, match="rows of 12 numbers"):
        train(stream(), [recipe()], held_out=torch.zeros(4, 11))
    with pytest.raises(InputError, match="are the same in all rows"):
        train(ArrayStream(torch.ones(256, 4), 128), [recipe()])
    with pytest.raises(InputError, match="subtracted first only where"):
        train(stream(sites=SITES, widths=(8, 4)), [recipe(tied=True)], layout=Layout(SITES[:1], SITES[1:]))


def test_a_layout_says_what_is_read_and_what_is_written() -> None:
    def made(layout: Layout, **choices: object) -> Trained:
        return train(stream(sites=SITES, widths=(8, 4)), [recipe(**choices)], layout=layout)[0]

    transcoder = made(Layout(SITES[:1], SITES[1:], skip=True)).dictionary
    assert (transcoder.encoder.shape, transcoder.decoder.shape) == ((24, 8), (24, 4))
    assert transcoder.skip is not None
    assert bool(transcoder.skip.abs().sum() > 0)
    alone = made(Layout.autoencoder("mlp_out.0")).dictionary
    assert alone.reads == alone.writes == SITES[1:]
    blocks = Layout(
        SITES, SITES, reads_of=((True, False), (False, True)), writes_of=((True, True), (False, True))
    )
    cross = made(blocks).dictionary
    assert not cross.encoder[:12, 8:].any()
    assert not cross.encoder[12:, :8].any()
    assert not cross.decoder[12:, :8].any()
    assert bool(cross.decoder[:12].abs().sum(0).all())
    assert cross.n_parameters < made(Layout(SITES, SITES)).dictionary.n_parameters
    with pytest.raises(InputError, match="cannot be dealt out"):
        made(blocks, width=25)


def test_a_sweep_is_every_combination() -> None:
    recipes = sweep(recipe(), l0=[2, 4], seed=[0, 1, 2])
    assert [(each.l0, each.seed) for each in recipes] == [(2, 0), (2, 1), (2, 2), (4, 0), (4, 1), (4, 2)]
    frontier = train(stream(), [each.model_copy(update={"steps": 4}) for each in recipes])
    assert [one.final.on for one in frontier[3:]] > [one.final.on for one in frontier[:3]]
    with pytest.raises(InputError, match="gradient_of"):
        sweep(recipe(), gradient_of=[1])


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({"l0": 3, "coefficient": 1.0, "activation": "relu"}, "give one of them"),
        ({"l0": None, "coefficient": 1.0}, "topk has no penalty"),
        ({"l0": 2.5}, "whole number of units"),
        ({"l0": 30}, "of 24; ask for fewer"),
        ({"prefixes": (8, 16)}, "end with the width 24"),
        ({"prefixes": (16, 8, 24)}, "prefixes rise"),
        ({"multi": 4, "activation": "relu"}, "multi goes with topk"),
        ({"penalty": "lp", "activation": "relu"}, "power below 1"),
        ({"anneal": True}, "only the power"),
        ({"widht": 3}, "The fields are"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(choices: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        recipe(**choices)
