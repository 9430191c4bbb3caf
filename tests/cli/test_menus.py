"""`methods` and `tasks` list what is there, broken things included."""

from collections.abc import Callable

from typer.testing import Result

from microtome.data import tasks


def test_methods_lists_question_scope_and_paper(command: Callable[..., Result]) -> None:
    shown = " ".join(command("methods").output.split())
    for told in ("weight_norms", "How large is each parameter", "observation, post-hoc, global", "folklore"):
        assert told in shown


def test_a_broken_method_is_listed_as_broken(
    command: Callable[..., Result], offer: Callable[..., None]
) -> None:
    offer("methods", package="another", source="raise RuntimeError('boom')", broken="broken")
    shown = command("methods")
    assert shown.exit_code == 0
    assert "boom" in shown.output
    assert "weight_norms" in shown.output


def test_one_method_in_full(command: Callable[..., Result]) -> None:
    shown = " ".join(command("methods", "weight-norms").output.split())
    for told in ("1. Take the Euclidean norm", "Misleads: A large parameter", "Needs: weights"):
        assert told in shown
    assert command("methods", "nobody").exit_code == 2


def test_a_question_is_answered_with_reasons(command: Callable[..., Result]) -> None:
    shown = command("methods", "--question", "how large are the parameters?")
    assert "weight_norms" in shown.output
    assert "larg" in shown.output
    assert "No method fits" in command("methods", "-q", "zebra").output


def test_tasks_lists_every_task(command: Callable[..., Result]) -> None:
    shown = command("tasks").output
    assert all(name in shown for name in tasks.names())
