"""Where do the documents of a corpus come from? Text, JSON lines, tables, data sets, arrays of tokens: one at a time.

    texts = text_files(["stories.txt"], separator="<|endoftext|>")
    texts = json_lines(["part-0.jsonl", "part-1.jsonl"], field="text")
    texts = parquet(["part-0.parquet"], field="text")                 # with the extra microtome[parquet]
    texts = arrow(["saved/data-00000-of-00001.arrow"], field="text")  # likewise
    texts = fields(datasets.load_dataset(…), field="text")            # or any iterable of records
    corpus = Corpus.of(tokenized(texts, model.tokenizer), model.sizes["d_vocab"])
    corpus = Corpus.of(token_arrays(["tokens.npy"]), vocabulary)

Nothing here holds more than one document, or the few that are tokenized together.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from microtome.core.errors import InputError
from microtome.core.parquet import pyarrow
from microtome.core.tensor_file import mapped

_TOGETHER: Final = 256


def text_files(paths: Iterable[str | Path], separator: str | None = "") -> Iterator[str]:
    """Documents of text files: what stands between lines that say `separator` alone, by default empty lines.

    separator: `None` makes each file one document. Raises `InputError` for a file that is no UTF-8 text.
    """
    for path in paths:
        gathered: list[str] = []
        for line in _lines(Path(path)):
            if separator is not None and line.strip() == separator:
                if gathered:
                    yield "".join(gathered)
                gathered = []
            else:
                gathered.append(line)
        if gathered:
            yield "".join(gathered)


def json_lines(paths: Iterable[str | Path], field: str = "text") -> Iterator[str]:
    """One document a line: the text in a field of its JSON object. Raises `InputError` naming file and line."""
    for path in paths:
        for number, line in enumerate(_lines(Path(path)), 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number}, is no JSON ({error}); mend or remove it") from error
            yield _text(record, field, f"{path}, line {number},")


def parquet(paths: Iterable[str | Path], field: str = "text") -> Iterator[str]:
    """One document a row: the text in a column of Parquet files, of which a few rows are read at a time.

    Raises `InputError` without pyarrow (the extra `parquet`), for another file, for a column that is not there, and for
    a row without text, naming file and row.
    """
    library = pyarrow()
    for path in paths:
        try:
            with library.parquet.ParquetFile(path) as file:
                _check_column(path, field, file.schema_arrow.names)
                yield from _rows(path, field, file.iter_batches(_TOGETHER, columns=[field]))
        except (OSError, library.ArrowException) as error:
            raise InputError(f"{path} cannot be read as Parquet ({error}); give Parquet files") from error


def arrow(paths: Iterable[str | Path], field: str = "text") -> Iterator[str]:
    """The same of Arrow streams, the files `data-….arrow` of which a Hugging Face data set on the disk consists."""
    library = pyarrow()
    for path in paths:
        try:
            with library.memory_map(str(path)) as mapping, library.ipc.open_stream(mapping) as file:
                _check_column(path, field, file.schema.names)
                yield from _rows(path, field, (batch.select([field]) for batch in file))
        except (OSError, library.ArrowException) as error:
            raise InputError(
                f"{path} cannot be read as an Arrow stream ({error}); give files that save_to_disk made"
            ) from error


def fields(records: Iterable[Mapping[str, Any]], field: str = "text") -> Iterator[str]:
    """The text in a field of each record: of a Hugging Face data set, streamed or not, or of any iterable."""
    for number, record in enumerate(records):
        yield _text(record, field, f"record {number}")


def token_arrays(paths: Iterable[str | Path], name: str = "tokens") -> Iterator[NDArray[Any]]:
    """Documents that are tokens already: rows of a matrix, or one list, in `.npy` or `.safetensors` files, mapped.

    name: which tensor of a safetensors file. Raises `InputError` for another file or array.
    """
    for path in map(Path, paths):
        if path.suffix == ".safetensors":
            arrays, _ = mapped(path)
            if name not in arrays:
                raise InputError(f"{path} holds {', '.join(arrays)}, no {name!r}; name the tensor of tokens")
            array = arrays[name]
        else:
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise InputError(f"{path} is no array ({error}); give .npy or .safetensors") from error
        if array.ndim not in (1, 2) or array.dtype.kind not in "iu":
            raise InputError(
                f"{path} holds {array.dtype} of shape {list(array.shape)}; expected integer ids [token] or [row, token]"
            )
        yield from array if array.ndim == 2 else array[None]


def tokenized(texts: Iterable[str], tokenizer: Any, end: int | None = None) -> Iterator[Sequence[int]]:
    """The tokens of each text, without the tokenizer's own special tokens.

    end: a token put behind each document, such as the one that ended documents in training.
    Raises `InputError` without a tokenizer.
    """
    if tokenizer is None:
        raise InputError("the model has no tokenizer to read text with; give arrays of token ids")
    remaining = iter(texts)
    while together := list(islice(remaining, _TOGETHER)):
        for ids in tokenizer(together, add_special_tokens=False, verbose=False)["input_ids"]:
            yield ids if end is None else [*ids, end]


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:  # some editors begin a file with a mark
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({error}); give UTF-8 files") from error


def _check_column(path: str | Path, field: str, there: Sequence[str]) -> None:
    if field not in there:
        raise InputError(
            f"{path} has no column {field!r} ({', '.join(there)}); name the one that holds the text"
        )


def _rows(path: str | Path, field: str, batches: Iterable[Any]) -> Iterator[str]:
    number = 0
    for batch in batches:
        for record in batch.to_pylist():
            yield _text(record, field, f"{path}, row {number},")
            number += 1


def _text(record: Any, field: str, where: str) -> str:
    text = record.get(field) if isinstance(record, Mapping) else None
    if not isinstance(text, str):
        there = ", ".join(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
        raise InputError(
            f"{where} has no text in the field {field!r} ({there}); name the field that holds it"
        )
    return text
