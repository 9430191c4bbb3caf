"""Floor 8, the command line: each file parses the words of one command, calls, and prints."""

import os


def main() -> None:
    """The `microtome` command."""
    # Threads that wait for work by spinning take a busy core from those that have some: on small models, beside other
    # jobs, ten times the time. Read once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from microtome.cli.app import app

    app()
