"""`microtome train MODEL CORPUS…`: train dictionaries on what a model computes, or on a testbed, and tell how good."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from microtome.studies.dictionary_sources import Source
    from microtome.studies.dictionary_training import Plan


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
    site: Annotated[str, typer.Option("--site", help="Site to take apart, such as resid_post.2.")] = "",
    write: Annotated[str, typer.Option("--write", help="Site to rebuild, for a transcoder.")] = "",
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
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other field of a recipe, as name=value; repeat.")
    ] = None,
) -> None:
    """Train dictionaries, every combination of what is asked for in one pass over the data."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from microtome.cli.run import read_settings
    from microtome.store.whole_file import write_whole
    from microtome.studies.dictionary_page import report, summary
    from microtome.studies.dictionary_training import Plan, claim, train_dictionaries
    from microtome.view.terminal import terminal

    console = Console()
    given: dict[str, Any] = {
        "model": model,
        "corpus": [str(path) for path in corpus or ()],
        "testbed": testbed,
        "site": site,
        "write": write,
        "width": _several(width),
        "k": _several(k),
        "activation": _several(activation),
        "seeds": _several(seeds),
        "steps": steps,
        "batch": batch,
        "tokens": tokens,
        "recipe": read_settings(settings or []),
    }
    said = {name: value for name, value in given.items() if value not in ("", [], {}, None)}
    plan = Plan.of_file(config, said) if config is not None else Plan.read(said)
    claim(out, plan)
    source = read_source(plan, out, console)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} of {task.total}"))
    try:
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            shown = bar.add_task("training", total=plan.steps)
            training = train_dictionaries(
                plan,
                source,
                out,
                lambda what, done, of: bar.update(shown, description=what, completed=done, total=of),
            )
    except KeyboardInterrupt:
        console.print(f"interrupted; what is done is in {out}, and the same command goes on from there")
        raise typer.Exit(130) from None
    page = out / "report.html"
    write_whole(page, report(training).encode())
    console.print(terminal(summary(training)))
    for path in training.paths:
        console.print(f"kept: {path}", highlight=False, soft_wrap=True)
    console.print(f"The report: {page}", highlight=False, soft_wrap=True)


def _several(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def read_source(plan: "Plan", out: Path, console: "Console") -> "Source":
    """What the plan is trained on. Raises `InputError` for neither or both of a model with a corpus and a testbed."""
    from microtome.cli.harvest import read_corpus, rows_of
    from microtome.core.errors import InputError
    from microtome.core.site import Site, as_site
    from microtome.models.load import load
    from microtome.studies.dictionary_sources import Source

    plan.recipes()  # what does not fit is told before anything is read
    if bool(plan.testbed) == bool(plan.model):
        raise InputError("give a model and a corpus, or a --testbed, and not both")
    if plan.testbed:
        return Source.of_case(plan.testbed, plan.site, plan.batch, plan.seed)
    if not plan.corpus:
        raise InputError("there is nothing to read; give files of text, JSON lines or tokens after the model")
    loaded = load(plan.model)
    console.print(f"{loaded!r}", highlight=False)
    found = read_corpus(loaded, [Path(path) for path in plan.corpus], out / "corpus", "", "text", plan.tokens)
    rows = rows_of(loaded, found, plan.columns, "packed")
    site = as_site(plan.site) if plan.site else Site("resid_post", loaded.n_layers // 2)
    sites = [site, *([as_site(plan.write)] if plan.write and as_site(plan.write) != site else [])]
    unknown = getattr(loaded.tokenizer, "unk_token_id", None)
    if unknown is not None and (share := float((found.tokens == unknown).mean())) > 0.01:
        console.print(
            f"{share:.0%} of the tokens are unknown to the tokenizer: it reads another text than you"
        )
    console.print(f"{found.n_tokens} tokens in {len(found)} documents, {len(rows)} rows", highlight=False)
    return Source.of_corpus(loaded, rows, sites, plan.batch, plan.span, plan.steps, plan.seed)
