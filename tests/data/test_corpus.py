"""Corpora: every token keeps its place, whatever the documents are; what does not fit is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from microtome.core.errors import InputError, StoreError
from microtome.data.corpus import DOCUMENTS, TOKENS, Corpus
from microtome.data.corpus_rows import NO_TOKEN, CorpusRows
from microtome.data.documents import arrow, fields, json_lines, parquet, text_files, token_arrays, tokenized

DOCUMENT_LISTS = st.lists(st.lists(st.integers(0, 60), max_size=12), min_size=1, max_size=9).filter(any)


@given(DOCUMENT_LISTS)
def test_every_token_knows_its_document_and_its_place_there(documents: list[list[int]]) -> None:
    corpus = Corpus.of(documents, 61)
    document, place = corpus.place(np.arange(corpus.n_tokens))
    found = [documents[d][p] for d, p in zip(document, place, strict=True)]
    assert found == corpus.tokens.tolist() == [token for one in documents for token in one]
    assert [corpus.document(number).tolist() for number in range(len(corpus))] == documents


@given(DOCUMENT_LISTS, st.integers(1, 7), st.sampled_from(["packed", "documents"]), st.booleans())
def test_rows_hold_every_token_once_and_say_which(
    documents: list[list[int]], room: int, layout: str, begins: bool
) -> None:
    corpus = Corpus.of(documents, 61)
    rows = CorpusRows(corpus, room + begins, layout, begin=7 if begins else None)  # type: ignore[arg-type]
    seen: list[int] = []
    for number in range(len(rows)):
        batch = rows.batch([number])
        kept = batch.token[0] != NO_TOKEN
        tokens = batch.token[0][kept]
        assert batch.ids[0][kept].tolist() == corpus.tokens[tokens.numpy()].tolist()
        assert len(tokens) == rows.lengths[number] <= room
        if begins:
            assert batch.ids[0, 0] == 7
            assert not kept[0]
        if layout == "documents":
            assert len(set(corpus.place(tokens.numpy())[0])) == 1
        seen += tokens.tolist()
    assert seen == list(range(corpus.n_tokens))
    assert rows.n_tokens == corpus.n_tokens


def test_a_batch_pads_behind_and_says_so() -> None:
    rows = CorpusRows(Corpus.of([[5, 6, 7], [8]], 61), 4, "documents", begin=1)
    batch = rows.batch([0, 1])
    assert batch.ids.tolist() == [[1, 5, 6, 7], [1, 8, 0, 0]]
    assert batch.mask is not None
    assert batch.mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.token.tolist() == [[-1, 0, 1, 2], [-1, 3, -1, -1]]


def test_a_split_shares_no_row_and_a_shuffle_loses_none() -> None:
    rows = CorpusRows(Corpus.of([np.arange(60)], 61), 3)
    most, held = rows.split(0.25, seed=1)
    tokens = lambda part: {int(t) for n in range(len(part)) for t in part.batch([n]).token.flatten()}
    assert len(held) == 5
    assert tokens(most).isdisjoint(tokens(held))
    assert tokens(most) | tokens(held) == set(range(60))
    shuffled = rows.shuffled(3)
    assert tokens(shuffled) == set(range(60))
    assert not np.array_equal(shuffled.order, np.arange(20))
    assert np.array_equal(shuffled.order, rows.shuffled(3).order)
    assert rows.identity != shuffled.identity
    assert rows.first(7).n_tokens == 9


@pytest.mark.parametrize("vocabulary", [61, 1 << 16, (1 << 16) + 1])
def test_a_written_corpus_is_the_one_in_memory(tmp_path: Path, vocabulary: int) -> None:
    documents = [[1, 2, vocabulary - 1], [], [0] * 7]
    memory, disk = Corpus.of(documents, vocabulary), Corpus.write(iter(documents), vocabulary, tmp_path)
    assert disk.tokens.tolist() == memory.tokens.tolist()
    assert disk.starts.tolist() == memory.starts.tolist()
    assert disk.hash == memory.hash == Corpus.load(tmp_path).hash
    disk.check()
    assert load_file(tmp_path / TOKENS)["tokens"].tolist() == memory.tokens.tolist()  # as anybody reads it
    assert sorted(path.name for path in tmp_path.iterdir()) == [DOCUMENTS, TOKENS]


def test_reading_stops_when_there_is_enough() -> None:
    def endless():
        while True:
            yield [1, 2, 3]

    corpus = Corpus.of(endless(), 9, at_least=8, at_most=8)
    assert corpus.n_tokens == 8
    assert corpus.starts.tolist() == [0, 3, 6, 8]


@pytest.mark.parametrize(
    ("documents", "asked", "message"),
    [
        ([[1], [2, 61]], 0, r"document 1 has tokens 2 … 61, but the model knows 0 … 60"),
        ([[-1]], 0, r"document 0 has tokens -1"),
        ([np.array([0.5])], 0, r"document 0 must be a list of token ids; got float64"),
        ([[1], [2, 3]], 4, r"the corpus has 3 tokens where 4 were asked for"),
        ([], 0, r"the corpus has 0 tokens"),
    ],
)
def test_a_corpus_that_does_not_fit_is_refused(
    tmp_path: Path, documents: list[Any], asked: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Corpus.of(documents, 61, at_least=asked)
    with pytest.raises(InputError, match=message):
        Corpus.write(documents, 61, tmp_path, at_least=asked)
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    Corpus.write([[1, 2, 3], [4]], 61, tmp_path)
    whole = (tmp_path / TOKENS).read_bytes()
    for damaged in (whole[:-1], whole + b"\0", whole[:5], b"", whole.replace(b'"U16"', b'"U99"')):
        (tmp_path / TOKENS).write_bytes(damaged)
        with pytest.raises(StoreError, match=r"tokens\.safetensors is damaged or foreign"):
            Corpus.load(tmp_path)
    (tmp_path / TOKENS).write_bytes(whole[:-2] + b"\7\0")
    with pytest.raises(StoreError, match="SHA-256 differs"):
        Corpus.load(tmp_path).check()
    save_file({"tokens": np.arange(4, dtype=np.uint16)}, tmp_path / TOKENS)
    with pytest.raises(StoreError, match="is no corpus of version 1"):
        Corpus.load(tmp_path)
    (tmp_path / TOKENS).unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        Corpus.load(tmp_path)
    Corpus.write([[1, 2, 3], [5]], 61, tmp_path / "other")
    (tmp_path / TOKENS).write_bytes(whole)
    (tmp_path / DOCUMENTS).write_bytes((tmp_path / "other" / DOCUMENTS).read_bytes())
    with pytest.raises(StoreError, match="do not belong together"):
        Corpus.load(tmp_path)


def test_documents_of_texts_and_records(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("one\ntwo\n\nthree\n<end>\n\n\nfour")
    assert list(text_files([text])) == ["one\ntwo\n", "three\n<end>\n", "four"]
    assert list(text_files([text], "<end>")) == ["one\ntwo\n\nthree\n", "\n\nfour"]
    assert list(text_files([text], None)) == [text.read_text()]
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"body": "one"}\n\n{"body": "two"}\n')
    assert list(json_lines([lines], "body")) == ["one", "two"]
    assert list(fields(iter([{"text": "one", "id": 1}]))) == ["one"]
    for path in (text, lines):  # as some editors begin a file
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert next(text_files([text])) == "one\ntwo\n"
    assert next(json_lines([lines], "body")) == "one"
    with pytest.raises(InputError, match=r"a\.jsonl, line 1, has no text in the field 'text' \(body\)"):
        list(json_lines([lines]))
    with pytest.raises(InputError, match="record 1 has no text"):
        list(fields([{"text": "one"}, {"text": None}]))
    lines.write_text("{")
    with pytest.raises(InputError, match="line 1, is no JSON"):
        list(json_lines([lines]))
    text.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as text"):
        list(text_files([text]))
    with pytest.raises(InputError, match="no tokenizer"):
        list(tokenized(["a"], None))


def test_documents_that_are_tokens_already(tmp_path: Path) -> None:
    matrix = np.arange(6).reshape(2, 3)
    np.save(tmp_path / "a.npy", matrix)
    save_file({"ids": np.arange(4, dtype=np.int32)}, tmp_path / "b.safetensors")
    found = [*token_arrays([tmp_path / "a.npy"]), *token_arrays([tmp_path / "b.safetensors"], "ids")]
    assert [one.tolist() for one in found] == [[0, 1, 2], [3, 4, 5], [0, 1, 2, 3]]
    with pytest.raises(InputError, match="holds ids, no 'tokens'"):
        list(token_arrays([tmp_path / "b.safetensors"]))
    np.save(tmp_path / "c.npy", matrix / 2)
    with pytest.raises(InputError, match="expected integer ids"):
        list(token_arrays([tmp_path / "c.npy"]))
    (tmp_path / "d.npy").write_text(json.dumps([1]))
    with pytest.raises(InputError, match="is no array"):
        list(token_arrays([tmp_path / "d.npy"]))


def test_tokenized_texts_end_where_asked() -> None:
    class Words:
        def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
            return {"input_ids": [[len(word) for word in text.split()] for text in texts]}

    assert list(tokenized(["a bb", "ccc"], Words(), end=0)) == [[1, 2, 0], [3, 0]]


def test_rows_that_cannot_be_are_refused() -> None:
    corpus = Corpus.of([[1, 2, 3]], 61)
    with pytest.raises(InputError, match="leave no room"):
        CorpusRows(corpus, 1, begin=0)
    with pytest.raises(InputError, match="begin=61"):
        CorpusRows(corpus, 4, begin=61)
    with pytest.raises(InputError, match="order names rows"):
        CorpusRows(corpus, 2, order=np.array([2]))
    with pytest.raises(InputError, match="leaves one part empty"):
        CorpusRows(corpus, 2).split(0.01)
    with pytest.raises(InputError, match="hold 3 tokens, 4 were asked"):
        CorpusRows(corpus, 2).first(4)
    assert torch.equal(CorpusRows(corpus, 2).batch([1]).ids, torch.tensor([[3]]))


def test_parquet_is_read_as_json_lines_are(tmp_path: Path) -> None:
    library = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    texts = [f"story {number}\nends" for number in range(600)]  # more than are read at a time
    lines, table = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    lines.write_text("".join(json.dumps({"said": text, "n": 1}) + "\n" for text in texts))
    library.parquet.write_table(library.table({"n": [1] * 600, "said": texts}), table, row_group_size=100)
    assert list(parquet([table, table], "said")) == list(json_lines([lines, lines], "said"))
    with pytest.raises(InputError, match=r"a\.parquet has no column 'text' \(n, said\)"):
        list(parquet([table]))
    with pytest.raises(InputError, match=r"row 0, has no text in the field 'n'"):
        list(parquet([table], "n"))
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        list(parquet([lines]))
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        list(parquet([tmp_path / "absent.parquet"]))


def test_a_saved_data_set_is_read_as_json_lines_are(tmp_path: Path) -> None:
    library = pytest.importorskip("pyarrow")
    texts = [f"story {number}\nends" for number in range(600)]
    saved = tmp_path / "data-00000-of-00001.arrow"
    table = library.table({"n": [1] * 600, "said": texts})
    with library.OSFile(str(saved), "wb") as sink, library.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    assert list(arrow([saved, saved], "said")) == texts * 2
    with pytest.raises(InputError, match=r"arrow has no column 'text' \(n, said\)"):
        list(arrow([saved]))
    with pytest.raises(InputError, match=r"row 0, has no text in the field 'n'"):
        list(arrow([saved], "n"))
    (tmp_path / "other.arrow").write_text("{}")
    for other in ("other.arrow", "absent.arrow"):
        with pytest.raises(InputError, match="cannot be read as an Arrow stream"):
            list(arrow([tmp_path / other]))


def test_parquet_without_pyarrow_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'microtome\[parquet\]'"):
        list(parquet(["a.parquet"]))
    with pytest.raises(InputError, match=r"pip install 'microtome\[parquet\]'"):
        list(arrow(["a.arrow"]))
