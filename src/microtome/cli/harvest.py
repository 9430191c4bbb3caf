"""`microtome harvest MODEL CORPUS…`: run a model over a corpus once and keep what it computes at some sites."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from microtome.bases.basis import Basis
    from microtome.data.corpus import Corpus
    from microtome.data.corpus_rows import CorpusRows
    from microtome.models.model import Model


def harvest(
    model: Annotated[str, typer.Argument(help="Bundled model, folder or hub id.")],
    corpus: Annotated[
        list[Path],
        typer.Argument(
            help="Text (.txt …), JSON lines (.jsonl), Parquet, a data set saved by `datasets` (its folder), or tokens "
            "(.npy, .safetensors)."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the harvest; begun before, it goes on.")
    ],
    site: Annotated[
        list[str] | None,
        typer.Option("--site", help="Keep the values here, such as resid_post.3 or grad:z.1; repeat."),
    ] = None,
    neurons: Annotated[
        list[str] | None,
        typer.Option("--neurons", help="Keep the units of this site, sorted, for `units`; repeat."),
    ] = None,
    dictionary: Annotated[
        list[Path] | None, typer.Option("--dictionary", help="Keep the units of a dictionary's file; repeat.")
    ] = None,
    gradients: Annotated[
        bool, typer.Option("--gradients", help="With units: the loss's slope along each.")
    ] = False,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="How many tokens of the corpus; default all.")
    ] = None,
    columns: Annotated[int, typer.Option(min=1, help="How many tokens the model reads at once.")] = 128,
    layout: Annotated[str, typer.Option(help="packed: no padding; documents: each by itself.")] = "packed",
    separator: Annotated[
        str, typer.Option(help="Line between documents of a text; default an empty one.")
    ] = "",
    field: Annotated[
        str, typer.Option(help="Which field of JSON lines, column or tensor holds the text.")
    ] = "text",
    dtype: Annotated[str, typer.Option(help="Of the values kept: float32, float16 or bfloat16.")] = "float32",
    together: Annotated[int, typer.Option(min=1, help="Rows a pass.")] = 16,
) -> None:
    """Keep what a model computes on a corpus: values at sites, or which units are on."""
    import torch
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from microtome.bases.harvest import Harvest
    from microtome.bases.harvest_units import harvest_units
    from microtome.bases.harvest_values import harvest_values
    from microtome.core.errors import InputError
    from microtome.models.load import load

    if not (site or neurons or dictionary):
        raise InputError(
            "there is nothing to keep; give --site for values, --neurons or --dictionary for units"
        )
    if dtype not in ("float32", "float16", "bfloat16"):
        raise InputError(f"values are kept in float32, float16 or bfloat16, not {dtype}")
    console = Console()
    loaded = load(model)
    console.print(f"{loaded!r}", highlight=False)
    found = read_corpus(loaded, corpus, out / "corpus", separator, field, tokens)
    rows = rows_of(loaded, found, columns, layout)
    console.print(f"{found.n_tokens} tokens in {len(found)} documents, {len(rows)} rows", highlight=False)
    unknown = getattr(loaded.tokenizer, "unk_token_id", None)
    share = 0.0 if unknown is None else float((found.tokens == unknown).mean())
    if share > 0.01:
        console.print(
            f"{share:.0%} of the tokens are unknown to the tokenizer: the model reads another text than you"
        )
    bases = read_bases(loaded, rows, neurons or [], dictionary or [])
    form = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    try:
        with Progress(*form, console=console, transient=True) as bar:
            if site:
                shown = bar.add_task("values")
                values = Harvest.of(loaded, rows, site, together=together, dtype=getattr(torch, dtype))
                harvest_values(
                    values, out, progress=lambda done, of: bar.update(shown, completed=done, total=of)
                )
            if bases:
                shown = bar.add_task("units")
                harvest_units(
                    loaded, rows, bases, out, gradients=gradients, together=together,
                    progress=lambda done, of: bar.update(shown, completed=done, total=of),
                )  # fmt: skip
    except KeyboardInterrupt:
        console.print(f"interrupted; what is done is in {out}, and the same command goes on from there")
        raise typer.Exit(130) from None
    for kept in (*(site or []), *(f"{out / basis.name} (microtome units)" for basis in bases)):
        console.print(f"kept: {kept}", highlight=False, soft_wrap=True)


def read_corpus(
    model: "Model", paths: list[Path], folder: Path, separator: str, field: str, tokens: int | None
) -> "Corpus":
    """The corpus of a harvest: the one in its folder if it is the one asked for, else made there.

    Raises `StoreError` where the folder holds another one.
    """
    from microtome.core.errors import InputError, StoreError
    from microtome.data import documents
    from microtome.data.corpus import TOKENS, Corpus, write_strings
    from microtome.store.manifest import differences

    # A Hugging Face data set is a folder of Arrow files.
    parts = [sorted(path.glob("*.arrow")) or [path] if path.is_dir() else [path] for path in paths]
    paths = [path for some in parts for path in some]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise InputError(f"{', '.join(missing)} cannot be found; give files")
    files = [[str(path.resolve()), path.stat().st_size] for path in paths]
    source = {"files": files, "separator": separator, "field": field, "tokens": tokens, "model": model.name}
    if (folder / TOKENS).exists():
        there = Corpus.load(folder)
        if found := differences(dict(there.source), source):
            raise StoreError(f"{folder} holds another corpus: {'; '.join(found)}. Give another --out")
        return there
    vocabulary = model.sizes["d_vocab"]

    def read() -> Iterable[Any]:
        for path in paths:
            if path.suffix in (".npy", ".safetensors"):
                yield from documents.token_arrays([path], "tokens" if field == "text" else field)
                continue
            if path.suffix in (".jsonl", ".json"):
                texts = documents.json_lines([path], field)
            elif path.suffix == ".parquet":
                texts = documents.parquet([path], field)
            elif path.suffix == ".arrow":
                texts = documents.arrow([path], field)
            else:
                texts = documents.text_files([path], separator)
            yield from documents.tokenized(texts, model.tokenizer)

    if model.tokenizer is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_strings(folder, model.tokenizer, vocabulary)
    return Corpus.write(read(), vocabulary, folder, at_least=tokens or 0, at_most=tokens, source=source)


def rows_of(model: "Model", corpus: "Corpus", columns: int, layout: str) -> "CorpusRows":
    """The corpus in rows that fit the model, each begun as its tokenizer begins a text."""
    from microtome.core.errors import InputError
    from microtome.data.corpus_rows import CorpusRows

    begin = None
    if model.tokenizer is not None and model.tokenizer.bos_token_id is not None:
        first = model.tokenizer("a")["input_ids"][:1]
        begin = first[0] if first == [model.tokenizer.bos_token_id] else None
    if layout not in ("packed", "documents"):
        raise InputError(f"--layout is packed or documents, not {layout}")
    return CorpusRows(corpus, min(columns, model.sizes["n_positions"] or columns), layout, begin)  # type: ignore[arg-type]


def read_bases(
    model: "Model", rows: "CorpusRows", neurons: list[str], dictionaries: list[Path]
) -> "list[Basis]":
    """Neurons of sites, named after them, and dictionaries from their files."""
    from microtome.bases import neurons as standard
    from microtome.bases.harvest import Harvest
    from microtome.core.site import as_site
    from microtome.dictionaries import files

    found: list[Basis] = []
    if neurons:
        widths = Harvest.of(model, rows, neurons, together=1).one(0).values
        for name in neurons:
            found.append(standard.Neurons(name, widths[as_site(name)].shape[1], name))
    return [*found, *map(files.load, dictionaries)]
