"""Which behaviours are there prompts for?"""


def tasks() -> None:
    """List the tasks: behaviours with clean and corrupt prompts."""
    from rich.console import Console

    from microtome.cli import display
    from microtome.data import tasks as registry

    known = [registry.get(name) for name in registry.names()]
    Console().print(display.tasks((task.name, task.question, task.reference) for task in known))
