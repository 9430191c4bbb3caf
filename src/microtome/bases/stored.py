"""Which basis is in this file? Bases on disk as a user names them: `PATH`, or `FORMAT:PATH` for another library's.

Formats come in through entry points (`microtome.basis_files`), as functions from a path to a basis.
"""

from microtome.bases.basis import Basis
from microtome.core import plugins
from microtome.core.errors import StoreError


def stored_basis(text: str) -> Basis:
    """The basis that `PATH` or `FORMAT:PATH` names. Raises `StoreError` for a file that holds none."""
    known = plugins.names("basis_files")
    word, colon, path = text.partition(":")
    source = word if colon and word.replace("-", "_") in known else "microtome"
    found = plugins.load("basis_files", source)(
        path if source != "microtome" or word == "microtome" else text
    )
    if not isinstance(found, Basis):
        raise StoreError(f"{text} holds {type(found).__name__}, not a basis")
    return found
