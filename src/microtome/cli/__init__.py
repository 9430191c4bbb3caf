"""Floor 8, the command line: each file parses the words of one command, calls, and prints."""

import os


def main() -> None:
    """The `microtome` command."""
    # How often a thread of GNU's OpenMP looks for work before it sleeps. By default so long that beside other jobs the
    # many small operations of small models take ten times as long; this costs a tenth where cores are free.
    # Read once, when torch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    from microtome.cli.app import app

    app()
