"""`microtome testbeds`: which networks are understood, and what is known of one?"""

from typing import Annotated

import typer


def testbeds(
    name: Annotated[
        str | None, typer.Argument(help="A testbed, to list its cases, or TESTBED/CASE, to see one.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", "-s", help="Seed of the case.")] = 0,
) -> None:
    """List networks with answer keys, or tell what is known of one."""
    from rich.console import Console

    from microtome.evaluation import cases
    from microtome.view.terminal import terminal

    console = Console()
    if name is None:
        console.print(terminal(cases.menu()))
    elif "/" in name:
        for shape in cases.described(cases.case(name, seed)):
            console.print(terminal(shape))
    else:
        module = cases.testbed(name)
        console.print(f"{module.card.title}. {module.card.question}", highlight=False)
        for case in module.cases():
            console.print(f"  {name}/{case}", highlight=False)
        console.print(f"It misleads: {module.card.misleads}", highlight=False)
