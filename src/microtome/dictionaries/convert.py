"""How is a dictionary of one library used in another? Read in one format, written in another.

    convert("gpt2-small/layers.5", "sparsify", "sae_lens", "out")

microtome, sae_lens, sparsify, dictionary_learning, gemma_scope, circuit_tracer (a transcoder of one layer), and
circuit_tracer_cross_layer, which goes to and from itself and microtome only. What a format cannot say is an error.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from microtome.core.errors import InputError
from microtome.dictionaries import files
from microtome.dictionaries.cross_layer_transcoder import CrossLayerTranscoder
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.formats import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    sae_lens,
    sparsify,
)
from microtome.dictionaries.formats.foreign import Sites

_CROSS: Final = "circuit_tracer_cross_layer"
READERS: Final[Mapping[str, Callable[..., Any]]] = {
    "sae_lens": sae_lens.read,
    "sparsify": sparsify.read,
    "dictionary_learning": dictionary_learning.read,
    "gemma_scope": gemma_scope.read,
    "circuit_tracer": circuit_tracer.read,
    _CROSS: circuit_tracer.read_cross_layer,
}
WRITERS: Final[Mapping[str, Callable[[Dictionary, str | Path], None]]] = {
    "microtome": files.save,
    "sae_lens": sae_lens.write,
    "sparsify": sparsify.write,
    "dictionary_learning": dictionary_learning.write,
    "gemma_scope": gemma_scope.write,
    "circuit_tracer": circuit_tracer.write,
}


def read(
    path: str | Path, source: str, reads: Sites | None = None, writes: Sites | None = None
) -> Dictionary | CrossLayerTranscoder:
    """A dictionary in any of the formats. reads, writes: sites, where the file does not say. Raises `StoreError`."""
    if source == "microtome":
        if reads is not None or writes is not None:
            raise InputError("a file of microtome's says itself where it stands; leave out reads and writes")
        return files.load(path)
    if source not in READERS:
        raise InputError(f"there is no format {source!r}; there are microtome, {', '.join(READERS)}")
    found: Dictionary | CrossLayerTranscoder = READERS[source](path, reads, writes)
    return found


def convert(
    path: str | Path,
    source: str,
    target: str,
    into: str | Path,
    reads: Sites | None = None,
    writes: Sites | None = None,
) -> None:
    """Read in the format `source`, write in `target`.

    Raises `StoreError` for what cannot be read, `InputError` for what the target has no words for.
    """
    if target not in WRITERS and target != _CROSS:
        raise InputError(f"there is no format {target!r}; there are {', '.join(WRITERS)}, {_CROSS}")
    found = read(path, source, reads, writes)
    if target == _CROSS:
        blocks = found if isinstance(found, CrossLayerTranscoder) else CrossLayerTranscoder.of(found)
        circuit_tracer.write_cross_layer(blocks, into)
    else:
        WRITERS[target](found.dictionary() if isinstance(found, CrossLayerTranscoder) else found, into)
