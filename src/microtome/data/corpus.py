"""Which text was read, token by token? A corpus: documents behind each other in one array, kept once.

Every token has a number, its place in that array, so that one number says where a value came from: the document, the
place in it, and what stands around it. On disk (`Corpus.write`) a corpus may be larger than memory:

    tokens.safetensors       tokens U16 or U32 [token]; its metadata tell the hash, the vocabulary and the counts
    documents.safetensors    starts I64 [document + 1]: document d is tokens[starts[d] : starts[d + 1]]
    strings.json             perhaps: how each token reads, by id, so that text is shown without the tokenizer
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from microtome.core.errors import InputError, StoreError
from microtome.core.tensor_file import Appended, mapped
from microtome.core.whole_file import replace_file
from microtome.data.tokens import token_text

TOKENS: Final = "tokens.safetensors"
DOCUMENTS: Final = "documents.safetensors"
STRINGS: Final = "strings.json"
_KIND: Final = "microtome.corpus"
_VERSION: Final = 1
_PIECE: Final = 1 << 22


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents as tokens. tokens: `[token]`. starts: `[document + 1]`. hash: SHA-256 of both, in hex.

    source: where it came from, in plain JSON; kept, and no part of the hash.
    """

    tokens: NDArray[np.unsignedinteger[Any]]
    starts: NDArray[np.int64]
    vocabulary: int
    hash: str
    source: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        documents: Iterable[Sequence[int] | NDArray[Any]],
        vocabulary: int,
        *,
        at_least: int = 0,
        at_most: int | None = None,
    ) -> Self:
        """Gather documents in memory. at_most: stop there, if need be inside a document.

        Raises `InputError` for a token outside the vocabulary, naming the document, and for fewer than `at_least`
        tokens.
        """
        pieces = list(_pieces(documents, vocabulary, at_least, at_most))
        tokens = np.concatenate(pieces) if pieces else np.empty(0, _dtype(vocabulary)[1])
        starts = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
        return cls(tokens, starts, vocabulary, _hash([tokens], starts))

    @classmethod
    def write(
        cls,
        documents: Iterable[Sequence[int] | NDArray[Any]],
        vocabulary: int,
        folder: str | Path,
        *,
        at_least: int = 0,
        at_most: int | None = None,
        source: Mapping[str, Any] | None = None,
    ) -> Self:
        """The same in a folder, one document in memory at a time (and eight bytes for each). Raises as `of`."""
        folder = Path(folder)
        digest = hashlib.sha256()
        lengths = array("q", [0])  # eight bytes for each document
        with Appended(folder / TOKENS, "tokens", _dtype(vocabulary)[0]) as file:
            for piece in _pieces(documents, vocabulary, at_least, at_most):
                file.append(piece)
                digest.update(piece.data)
                lengths.append(len(piece))
            starts = np.cumsum(lengths, dtype=np.int64)
            digest.update(starts.data)
            told = {"kind": _KIND, "version": _VERSION, "hash": digest.hexdigest(), "vocabulary": vocabulary}
            told["source"] = dict(source or {})
            with Appended(folder / DOCUMENTS, "starts", "I64") as documents_file:
                documents_file.metadata = told
                documents_file.append(starts)
            file.metadata = told
        return cls.load(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """A corpus that `write` left, mapped. Raises `StoreError` for files that are damaged or foreign."""
        folder = Path(folder)
        arrays, told = mapped(folder / TOKENS)
        if told.get("kind") != _KIND or told.get("version") != _VERSION:
            raise StoreError(
                f"{folder / TOKENS} is no corpus of version {_VERSION}; give a folder that Corpus.write made"
            )
        starts, told_beside = mapped(folder / DOCUMENTS, {"starts": "I64"})
        found = cls(arrays["tokens"], starts["starts"], told["vocabulary"], told["hash"], told["source"])
        fits = len(found.starts) and found.starts[0] == 0 and found.starts[-1] == len(found.tokens)
        if told != told_beside or not fits or (np.diff(found.starts) < 0).any():
            raise StoreError(
                f"{TOKENS} and {DOCUMENTS} in {folder} do not belong together; make the corpus again"
            )
        return found

    def save(self, folder: str | Path) -> None:
        """Write a corpus in memory to a folder; one that is there already stays.

        Raises `StoreError` where the folder holds another corpus.
        """
        if (Path(folder) / TOKENS).exists():
            if (there := Corpus.load(folder).hash) != self.hash:
                raise StoreError(
                    f"{folder} holds another corpus (hash {there[:12]}…, not {self.hash[:12]}…); give another folder"
                )
            return
        Corpus.write(map(self.document, range(len(self))), self.vocabulary, folder, source=self.source)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    def document(self, number: int) -> NDArray[np.unsignedinteger[Any]]:
        """The tokens of a document."""
        if not 0 <= number < len(self):
            raise InputError(f"the corpus has documents 0 … {len(self) - 1}; got {number}")
        return self.tokens[self.starts[number] : self.starts[number + 1]]

    def place(self, tokens: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For numbers of tokens: their documents, and their places there."""
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < self.n_tokens:
            raise InputError(
                f"the corpus has tokens 0 … {self.n_tokens - 1}; got {tokens.min()} … {tokens.max()}"
            )
        document = np.searchsorted(self.starts, tokens, "right") - 1
        return document, tokens - self.starts[document]

    def check(self) -> None:
        """Read everything and compare it with the hash. Raises `StoreError` where a token has changed."""
        pieces = (self.tokens[at : at + _PIECE] for at in range(0, self.n_tokens, _PIECE))
        if _hash(pieces, self.starts) != self.hash:
            raise StoreError(
                "the corpus is not what was written (its SHA-256 differs); restore it from a copy"
            )


def write_strings(folder: str | Path, tokenizer: Any, vocabulary: int) -> None:
    """Write how each token reads beside a corpus; ids that the tokenizer does not know are empty."""
    known = min(vocabulary, len(tokenizer))
    strings = [token_text(tokenizer, token) for token in range(known)] + [""] * (vocabulary - known)
    path = Path(folder) / STRINGS
    try:
        replace_file(path, json.dumps(strings).encode())
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror}); make room, or give another folder"
        ) from error


def _pieces(
    documents: Iterable[Sequence[int] | NDArray[Any]], vocabulary: int, at_least: int, at_most: int | None
) -> Iterator[NDArray[np.unsignedinteger[Any]]]:
    """Each document as an array, checked, until there are enough."""
    dtype = _dtype(vocabulary)[1]
    found = 0
    for number, document in enumerate(documents):
        if at_most is not None and found >= at_most:
            break
        ids = np.asarray(document)[: None if at_most is None else at_most - found]
        if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
            raise InputError(
                f"document {number} must be a list of token ids; got {ids.dtype} of shape {list(ids.shape)}"
            )
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            raise InputError(
                f"document {number} has tokens {ids.min()} … {ids.max()}, but the model knows 0 … {vocabulary - 1}; "
                "is it the right tokenizer?"
            )
        found += len(ids)
        yield ids.astype(dtype)
    if found < max(at_least, 1):
        raise InputError(
            f"the corpus has {found} tokens where {max(at_least, 1)} were asked for; give more text or ask for fewer"
        )


def _dtype(vocabulary: int) -> tuple[str, type[np.unsignedinteger[Any]]]:
    return ("U16", np.uint16) if vocabulary <= 1 << 16 else ("U32", np.uint32)


def _hash(pieces: Iterable[NDArray[Any]], starts: NDArray[np.int64]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(np.ascontiguousarray(piece).data)
    digest.update(np.ascontiguousarray(starts).data)
    return digest.hexdigest()
