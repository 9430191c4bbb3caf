"""`python -m microtome …` is `microtome …`: for launchers that start a module, as torchrun does."""

from microtome.cli import main

if __name__ == "__main__":
    main()
