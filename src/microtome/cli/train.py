"""`microtome train MODEL CORPUS…`: train dictionaries on what a model computes, or on a testbed, and tell how good."""

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from microtome.studies.dictionary_plan import Plan
    from microtome.studies.dictionary_sources import Source
    from microtome.studies.dictionary_training import Progress


def train(
    model: Annotated[
        str, typer.Argument(help="Bundled model, folder or hub name; none with --testbed.")
    ] = "",
    corpus: Annotated[
        list[Path] | None, typer.Argument(help="Text (.txt …), JSON lines (.jsonl), or tokens (.npy, …).")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; begun before, it goes on.")] = Path(
        "dictionaries"
    ),
    config: Annotated[
        Path | None, typer.Option("--config", help="A TOML file of all this; options win.")
    ] = None,
    testbed: Annotated[
        str, typer.Option("--testbed", "-t", help="A case, as planted_dictionary/sparse.")
    ] = "",
    site: Annotated[
        str, typer.Option("--site", help="Site to take apart, such as resid_post.2; several: together.")
    ] = "",
    write: Annotated[
        str, typer.Option("--write", help="Site to rebuild, for a transcoder; several with commas.")
    ] = "",
    width: Annotated[str, typer.Option("--width", help="Units; several as 1024,2048.")] = "",
    k: Annotated[str, typer.Option("--k", help="Units on in a row; several as 8,16,32.")] = "",
    activation: Annotated[
        str,
        typer.Option(
            "--activation",
            help="topk, batch_topk, jumprelu, relu, gated, matching_pursuit; several with commas.",
        ),
    ] = "",
    seeds: Annotated[str, typer.Option("--seeds", help="Of first directions; several as 0,1,2.")] = "",
    steps: Annotated[int | None, typer.Option("--steps", help="Batches to train on.", min=1)] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Rows in a batch.", min=1)] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", help="Tokens of the corpus; default all.", min=1)
    ] = None,
    share: Annotated[
        str, typer.Option("--share", help="rows or units: what processes share, if torchrun started several.")
    ] = "rows",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other field of a plan or a recipe, as name=value; repeat."),
    ] = None,
) -> None:
    """Train dictionaries, every combination of what is asked for in one pass over the data.

    Several processes share the work: torchrun --nproc-per-node 2 -m microtome train …
    """
    from rich.console import Console

    from microtome.core.errors import InputError
    from microtome.dictionaries.parallel import learner
    from microtome.dictionaries.processes import joined, leave
    from microtome.store.whole_file import write_whole
    from microtome.studies.dictionary_page import report, summary
    from microtome.studies.dictionary_plan import Plan
    from microtome.studies.dictionary_training import scored, trained
    from microtome.view.terminal import terminal

    given: dict[str, Any] = {
        "model": model,
        "corpus": [str(path) for path in corpus or ()],
        "testbed": testbed,
        "site": site,
        "write": write,
        "width": width,
        "k": k,
        "activation": activation,
        "seeds": seeds,
        "steps": steps,
        "batch": batch,
        "tokens": tokens,
    }
    said = other(settings or []) | {name: one for name, one in given.items() if one not in ("", [], None)}
    plan = Plan.of_file(config, said) if config is not None else Plan.read(said)
    if share not in ("rows", "units"):
        raise InputError(f"processes share rows or units, not {share}")
    console = Console()
    try:
        with joined() as first:
            console.quiet = not first
            source = read_source(plan, out, console, share)
            with progress(console) as tell:
                made = trained(plan, source, out, tell, learner(share))
        if not first:
            leave()
        with progress(console) as tell:
            training = scored(plan, source, out, made, tell)
    except KeyboardInterrupt:
        console.print(f"interrupted; what is done is in {out}, and the same command goes on from there")
        raise typer.Exit(130) from None
    page = out / "report.html"
    write_whole(page, report(training).encode())
    console.print(terminal(summary(training)))
    kept = training.paths[0] if len(training.paths) == 1 else training.paths[0].parent
    console.print(f"kept: {kept}", highlight=False, soft_wrap=True)
    console.print(f"The report: {page}", highlight=False, soft_wrap=True)


def other(pairs: list[str]) -> dict[str, Any]:
    """What `--set` says of a plan, and under `recipe` what is no field of a plan."""
    from microtome.cli.run import read_settings
    from microtome.studies.dictionary_plan import Plan

    said = read_settings(pairs)
    rest = {name: said.pop(name) for name in [*said] if name not in Plan.model_fields}
    return said | ({"recipe": rest} if rest else {})


@contextmanager
def progress(console: "Console") -> "Iterator[Progress]":
    """A bar that is told what is done, how much of it, and of how much; in a file, a line for each tenth."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    if not console.is_terminal:
        yield tenths(console)
        return
    form = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} of {task.total}"))
    with Progress(*form, TimeRemainingColumn(), console=console, transient=True) as bar:
        shown = bar.add_task("", total=None)
        yield lambda what, done, of: bar.update(shown, description=what, completed=done, total=of)


def tenths(console: "Console") -> "Progress":
    """Says what is done where a further tenth of it is."""
    last = ("", 0)

    def tell(what: str, done: int, of: int) -> None:
        nonlocal last
        now = (what, 10 * done // max(1, of))
        if now != last:
            console.print(f"{what}: {done} of {of}", highlight=False)
        last = now

    return tell


def read_source(plan: "Plan", out: Path, console: "Console", share: str = "rows") -> "Source":
    """What the plan is trained on. Raises `InputError` for neither or both of a model with a corpus and a testbed."""
    from microtome.cli.harvest import read_corpus, rows_of
    from microtome.core.errors import InputError
    from microtome.dictionaries.processes import in_turn
    from microtome.models.load import load
    from microtome.studies.dictionary_plan import CORPUS, check
    from microtome.studies.dictionary_training import source_of

    plan.recipes()  # what does not fit is told before anything is read
    if bool(plan.testbed) == bool(plan.model):
        raise InputError("give a model and a corpus, or a --testbed, and not both")
    check(out, plan)
    if plan.testbed:
        return source_of(plan, share=share)
    if not plan.corpus:
        raise InputError("there is nothing to read; give files of text, JSON lines or tokens after the model")
    loaded = load(plan.model)
    console.print(f"{loaded!r}", highlight=False)
    with in_turn():  # the first writes it, the others find it there
        paths = [Path(path) for path in plan.corpus]
        found = read_corpus(loaded, paths, out / CORPUS, "", "text", plan.tokens)
    rows = rows_of(loaded, found, plan.columns, "packed")
    console.print(f"{found.n_tokens} tokens in {len(found)} documents, {len(rows)} rows", highlight=False)
    source = source_of(plan, loaded, rows, share)
    for note in source.notes:
        console.print(note, highlight=False, style="yellow")
    return source
