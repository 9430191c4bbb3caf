"""Floor 8, the command line: each file parses the words of one command, calls, and prints."""


def main() -> None:
    """The `microtome` command."""
    from microtome.cli.app import app

    app()
