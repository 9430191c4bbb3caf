"""One method on one model: what does it say?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from microtome.core.card import Card
    from microtome.data.pairs import Pairs
    from microtome.data.prompts import Prompts
    from microtome.models.model import Model


def run(
    method: Annotated[str, typer.Argument(help="A method; `microtome methods` lists them.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Bundled model, folder or hub id. Default: fruitfly."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", "-t", help="A task, or a file that describes one. Default: indirect-object."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="A file with one prompt a line, in place of a task.")
    ] = None,
    testbed: Annotated[
        str | None,
        typer.Option("--testbed", help="A network with an answer key, such as programs/sort, and its data."),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="How many prompts.", min=1)] = 32,
    seed: Annotated[int, typer.Option("--seed", "-s", help="Of the prompts and of the method.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the method, as name=value; repeat for more."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A folder to save the result in.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write it as one self-contained page.")] = None,
) -> None:
    """Run one method and show its result."""
    from microtome.cli.show import tell
    from microtome.core import plugins

    module = plugins.method(method)
    given = read_settings(settings or [])
    if "seed" in module.Config.model_fields:
        given = {"seed": seed} | given
    config = module.Config.read(given)

    from microtome.core.result import check_vacant
    from microtome.models.load import load

    if out is not None:
        check_vacant(out, module.card.name)
    if testbed is None:
        loaded = load(model or "fruitfly")
        data: Any = read_data(module.card, loaded.tokenizer, task, text, n, seed)
    else:
        loaded, data = read_case(module.card, testbed, seed, model or task or text)
    result = module.run(loaded, data, config)
    if out is not None:
        result.save(out)
    tell(result, html)


def read_settings(pairs: list[str]) -> dict[str, Any]:
    """`name=value` words as plain values: JSON where it is JSON, else the text itself."""
    import json

    from microtome.core.errors import InputError

    given: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--set {pair} is no setting; write --set name=value")
        if name in given:
            raise InputError(f"--set gives {name} twice; give it once")
        try:
            given[name] = json.loads(value)
        except ValueError:
            given[name] = value
    return given


def read_case(card: "Card", name: str, seed: int, other: str | Path | None) -> "tuple[Model, Any]":
    """The network of a case and what a method needs of its data."""
    from microtome.core.errors import InputError
    from microtome.evaluation.cases import case

    if other is not None:
        raise InputError(f"--testbed brings its own network and data; leave out {other}, or --testbed")
    found = case(name, seed)
    return found.model, found.data(card.needs)


def read_data(
    card: "Card", tokenizer: Any, task: str | None, text: Path | None, n: int, seed: int
) -> "Pairs | Prompts | None":
    """The data a method needs: pairs of a task, prompts of a file or a task, or nothing."""
    from microtome.core.errors import InputError
    from microtome.data import tasks
    from microtome.data.prompts import Prompts

    if task is not None and text is not None:
        raise InputError("--task and --text are two kinds of data; give one of them")
    if card.needs == "hypothesis":
        raise InputError(
            f"{card.name} tries a hypothesis, whose causal model is Python: call its run(model, hypothesis) there, or "
            "give --testbed with a network that brings one, such as programs/sort"
        )
    if card.needs == "weights":
        if task is not None or text is not None:
            raise InputError(f"{card.name} reads the weights alone; leave out --task and --text")
        return None
    if tokenizer is None:
        raise InputError(
            "this model has no tokenizer to read prompts with; call the method from Python with token ids"
        )
    if text is not None:
        if card.needs == "pairs":
            raise InputError(f"{card.name} compares pairs of prompts, which a text is not; give --task")
        try:
            lines = [line for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{text} cannot be read as text ({error}); give a file with one prompt a line"
            ) from error
        return Prompts.of(lines[:n], tokenizer)
    name = task or "indirect-object"
    found = tasks.Task.from_file(name) if Path(name).is_file() else tasks.get(name)
    pairs = found.pairs(tokenizer, n, seed)
    return pairs if card.needs == "pairs" else Prompts.clean(pairs)
