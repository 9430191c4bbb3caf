"""Which tasks are there? Behaviours with known prompts, for any tokenizer; each file below holds one.

Tasks of other packages enter through the entry-point group `microtome.tasks`, which names a `Task`; a task in a
file needs no package (`Task.from_file`).
"""

from importlib import import_module
from typing import Final

from microtome.core import plugins
from microtome.core.errors import PluginError
from microtome.data.tasks.task import Split as Split
from microtome.data.tasks.task import Task as Task

_BUILT_IN: Final = {
    "indirect-object": "indirect_object:TASK",
    "indirect-object-abc": "indirect_object:ABC",
    "induction": "induction:TASK",
    "agreement": "agreement:TASK",
    "greater-than": "greater_than:TASK",
    "factual-recall": "factual_recall:TASK",
    "gendered-pronoun": "gendered_pronoun:TASK",
    "gendered-pronoun-story": "gendered_pronoun:STORY",
    "argument-copying": "argument_copying:TASK",
}


def names() -> tuple[str, ...]:
    """The names that `get` knows: the built-in tasks, then those of installed packages."""
    return (*_BUILT_IN, *(name.replace("_", "-") for name in plugins.names("tasks")))


def get(name: str) -> Task:
    """The task of that name (`-` and `_` are the same). Raises `PluginError` for a name nobody registered."""
    name = name.replace("_", "-")
    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name].split(":")
        task = getattr(import_module(f"{__name__}.{module}"), attribute)
    elif name in names():
        task = plugins.load("tasks", name)
    else:
        raise PluginError(f"no task is called {name!r}; there are {', '.join(names())}")
    if not isinstance(task, Task):
        raise PluginError(f"expected the entry point of the task {name} to name a Task, got {task!r}")
    return task
