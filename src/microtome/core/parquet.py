"""Who reads and writes Parquet and Arrow? pyarrow, if it is installed: an extra, since most need none of it."""

from typing import Any

from microtome.core.errors import InputError


def pyarrow() -> Any:
    """The package, with `parquet` in it. Raises `InputError` where it is not installed, naming the extra."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise InputError(
            "Parquet and Arrow files need pyarrow, which is not installed; pip install 'microtome[parquet]'"
        ) from error
    return pyarrow
