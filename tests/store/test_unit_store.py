"""Unit stores: every answer is what a plain loop over the entries gives; damage and strangers are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file

from microtome.core.errors import InputError, StoreError
from microtome.data.corpus import Corpus
from microtome.store import unit_files
from microtome.store.unit_pairs import pairs
from microtome.store.unit_store import OUTSIDE, UnitStore
from microtome.store.unit_writer import UnitWriter

IDENTITY = {"basis": "toy", "model_hash": "ab" * 32}


def write(
    folder: Path, dense: NDArray[np.float32], *, batch: int = 7, at_once: int = 20, gradients: bool = False
) -> None:
    """The entries of a matrix [token, unit]; the gradient of each is a thousandth of its token plus its unit."""
    n_tokens, n_units = dense.shape
    with UnitWriter.open(
        folder, IDENTITY, n_units=n_units, n_tokens=n_tokens, gradients=gradients, at_once=at_once
    ) as writer:
        for number in range(writer.batches, -(-n_tokens // batch)):
            rows = dense[number * batch : (number + 1) * batch]
            token, unit = np.nonzero(rows)
            value = rows[token, unit]
            token = token + number * batch
            gradient = ((token + unit) / 1000).astype(np.float32) if gradients else None
            writer.append(token, unit, value, gradient, seen=len(rows))
        writer.seal()


def random_matrix(n_tokens: int, n_units: int, seed: int = 0, share: float = 0.3) -> NDArray[np.float32]:
    """Values of both signs with many ties, some units never on and one almost always."""
    random = np.random.default_rng(seed)
    dense = np.round(random.normal(size=(n_tokens, n_units)) * 3, 1).astype(np.float16).astype(np.float32)
    dense[random.random(dense.shape) > share * random.random(n_units)] = 0
    dense[:, 0] = np.arange(n_tokens) % 5
    return dense


@settings(max_examples=8)
@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 20), st.integers(1, 60), st.integers(0, 99))
def test_both_orders_are_the_matrix(
    tmp_path_factory: pytest.TempPathFactory, n_tokens: int, n_units: int, batch: int, at_once: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("units")
    dense = random_matrix(n_tokens, n_units, seed)
    write(folder, dense, batch=batch, at_once=at_once, gradients=True)
    store = UnitStore.open(folder)
    for unit in range(n_units):
        tokens = np.flatnonzero(dense[:, unit])
        order = np.lexsort([tokens, -dense[tokens, unit]])
        found = store.entries(unit)
        assert found.token.tolist() == tokens[order].tolist()
        assert found.value.tolist() == dense[tokens[order], unit].tolist()
        want = (tokens[order] + unit) / 1000
        assert np.all(np.abs(found.gradient - want) <= want * 2.0**-8)
    everywhere = store.at_tokens(0, n_tokens)
    back = np.zeros_like(dense)
    back[everywhere.token, everywhere.unit] = everywhere.value
    assert np.array_equal(back, dense)
    assert store.counts.tolist() == (dense != 0).sum(0).tolist()
    assert np.allclose(store.by_unit["sum"], dense.sum(0, dtype=np.float64))
    assert np.allclose(store.by_unit["squares"], np.square(dense, dtype=np.float64).sum(0))
    assert {path.name for path in folder.iterdir()} == {
        "units.json", "by_unit.safetensors", "by_token.safetensors", "study.lock"
    }  # fmt: skip


@settings(max_examples=8)
@given(
    st.integers(1, 80), st.integers(1, 5), st.integers(1, 20), st.sampled_from([1, 9, 40]), st.integers(0, 99)
)
def test_the_bytes_do_not_depend_on_how_much_was_in_memory(
    tmp_path_factory: pytest.TempPathFactory, n_tokens: int, n_units: int, batch: int, at_once: int, seed: int
) -> None:
    """Values of every size, whose sum depends on the order in which it is taken."""
    random = np.random.default_rng(seed)
    dense = random.normal(size=(n_tokens, n_units)) * 2.0 ** random.integers(-20, 14, (n_tokens, n_units))
    found = []
    for limit in (at_once, 10_000):
        folder = tmp_path_factory.mktemp("units")
        write(folder, dense.astype(np.float32), batch=batch, at_once=limit, gradients=True)
        found.append([(folder / name).read_bytes() for name in (unit_files.BY_UNIT, unit_files.BY_TOKEN)])
    assert found[0] == found[1]


@given(st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=1))
def test_packing_keeps_everything_and_sorts(values: list[float]) -> None:
    value = np.array(values, np.float16)
    token = np.arange(len(value), dtype=np.uint32) + np.uint32((1 << 32) - len(value))
    gradient = np.arange(len(value), dtype=np.uint16)
    key = np.sort(unit_files.packed(value, token, gradient))
    back, tokens, gradients = unit_files.unpacked(key)
    assert (np.diff(back.astype(np.float32)) <= 0).all()
    assert np.array_equal(value[gradients], back)
    assert np.array_equal(token[gradients], tokens)


@given(
    st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**126), max_value=2.0**126)
    )
)
def test_gradients_keep_eight_bits_whatever_their_size(values: list[float]) -> None:
    value = np.array(values, np.float32)
    back = unit_files.from_bfloat16(unit_files.as_bfloat16(value))
    smallest = np.finfo(np.float32).tiny
    assert np.all(np.abs(back - value) <= np.maximum(np.abs(value), smallest) * 2.0**-8)


@pytest.fixture(scope="module")
def dense() -> NDArray[np.float32]:
    return random_matrix(400, 6)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, dense: NDArray[np.float32]) -> UnitStore:
    folder = tmp_path_factory.mktemp("study")
    Corpus.write([np.arange(at, at + 40) % 61 for at in range(0, 400, 40)], 61, folder / "corpus")
    write(folder / "toy", dense, batch=30, at_once=100)
    return UnitStore.open(folder / "toy", model_hash=IDENTITY["model_hash"])


def test_top_and_quantiles_are_ranks(store: UnitStore, dense: NDArray[np.float32]) -> None:
    for unit in range(6):
        values = np.sort(dense[:, unit][dense[:, unit] != 0])[::-1]
        assert store.top(unit, 9).value.tolist() == values[:9].tolist()
        parts = store.quantiles(unit, bins=4, each=3, seed=2)
        edges = np.arange(5) * len(values) // 4
        for part, low, high in zip(parts, edges[:-1], edges[1:], strict=True):
            assert len(part) == min(3, high - low) == len(set(part.token.tolist()))
            assert values[high - 1] <= part.value.min() <= part.value.max() <= values[low]
            assert (dense[part.token, unit] == part.value).all()
    assert [p.token.tolist() for p in store.quantiles(0, seed=1)] == [
        p.token.tolist() for p in store.quantiles(0, seed=1)
    ]
    assert [p.token.tolist() for p in store.quantiles(0, seed=1)] != [
        p.token.tolist() for p in store.quantiles(0, seed=2)
    ]


def test_quantile_samples_are_spread_evenly(store: UnitStore) -> None:
    """Over many seeds every entry of a part is drawn about as often as any other.

    Unit 0 is on at 320 tokens, a part of 10 holds 32, of which 4 are drawn: each entry 400/8 = 50 times in 400 seeds,
    with a standard deviation below √50; 5 of them are never passed by chance in 320 entries.
    """
    drawn = np.zeros(400)
    for seed in range(400):
        for part in store.quantiles(0, 10, 4, seed):
            drawn[part.token] += 1
    drawn = drawn[store.entries(0).token]
    assert abs(drawn - 50).max() < 5 * np.sqrt(50)


@pytest.mark.parametrize("bins", [1, 7, 20])
def test_histograms_count_every_value_once(store: UnitStore, dense: NDArray[np.float32], bins: int) -> None:
    for unit in range(6):
        counts, edges = store.histogram(unit, bins)
        values = dense[:, unit][dense[:, unit] != 0]
        want = np.histogram(values, edges)[0] if len(values) else np.zeros(0)
        assert counts.tolist() == want.tolist()
        assert counts.sum() == len(values)


def test_contexts_stay_in_their_document_and_carry_the_units_values(
    store: UnitStore, dense: NDArray[np.float32]
) -> None:
    tokens = np.array([0, 39, 40, 57, 399])
    found = store.contexts(1, tokens, before=4, after=2)
    for example, token in enumerate(tokens):
        for column in range(7):
            there = token + column - 4
            if there // 40 == token // 40 and there >= 0:
                assert found.ids[example, column] == there % 61
                assert found.value[example, column] == dense[there, 1]
            else:
                assert found.ids[example, column] == OUTSIDE
                assert found.value[example, column] == 0
    assert found.document.tolist() == (tokens // 40).tolist()
    assert found.place.tolist() == (tokens % 40).tolist()
    found = store.document(3)
    assert np.array_equal(dense[found.token, found.unit], found.value)
    assert len(found) == (dense[120:160] != 0).sum()


@settings(max_examples=10)
@given(st.integers(2, 60), st.integers(1, 5), st.integers(1, 5), st.integers(1, 70), st.integers(0, 99))
def test_pairs_are_counts_and_pearsons_correlation(
    tmp_path_factory: pytest.TempPathFactory, n_tokens: int, mine: int, other: int, stretch: int, seed: int
) -> None:
    """Within a basis and between two, in one stretch of tokens or in many, rare and constant units included."""
    folder = tmp_path_factory.mktemp("units")
    dense = [random_matrix(n_tokens, units, seed + units, 0.6) for units in (mine, other)]
    dense[1][:, -1] = 0.1  # always the same
    dense[0][:, 0] *= 1e-8  # on, and so little that float16 keeps nothing of it
    for name, matrix in zip("ab", dense, strict=True):
        write(folder / name, matrix)
    one, two = (UnitStore.open(folder / name) for name in "ab")
    chosen = np.random.default_rng(seed).permutation(mine)
    kept = [matrix.astype(np.float16).astype(np.float64) for matrix in dense]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("microtome.store.unit_pairs._ENTRIES", stretch)
        for theirs, there, values in ((None, dense[0], kept[0]), (two, dense[1], kept[1])):
            found = pairs(one, chosen, theirs)
            assert np.array_equal(found.together, ((dense[0] != 0).T.astype(int) @ (there != 0))[chosen])
            with np.errstate(invalid="ignore", divide="ignore"):
                want = np.corrcoef(kept[0].T, values.T)[:mine, mine:][chosen]
            constant = (kept[0][:, chosen].std(0) == 0)[:, None] | (np.ptp(values, 0) == 0)
            want[constant] = np.nan
            assert np.allclose(found.correlation, want, atol=1e-9, equal_nan=True)


def test_pairs_of_units_that_are_not_there_and_of_other_tokens_are_refused(
    store: UnitStore, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"units 0 … 5; got 6"):
        pairs(store, [6])
    write(tmp_path, random_matrix(399, 2))
    with pytest.raises(StoreError, match="harvested on different tokens"):
        pairs(store, [0], UnitStore.open(tmp_path))


def test_a_third_party_reads_the_files(store: UnitStore) -> None:
    arrays = load_file(store.folder / "by_unit.safetensors")
    assert arrays["value"].tolist() == store.by_unit["value"].tolist()


@pytest.mark.parametrize("question", ["entries", "top", "quantiles", "histogram"])
def test_a_unit_that_is_not_there_is_refused(store: UnitStore, question: str) -> None:
    for unit in (-1, 6):
        with pytest.raises(InputError, match=r"units 0 … 5; got"):
            getattr(store, question)(unit)


def test_other_questions_about_nothing_are_refused(store: UnitStore) -> None:
    with pytest.raises(InputError, match=r"documents 0 … 9; got 10"):
        store.document(10)
    with pytest.raises(InputError, match=r"tokens 0 … 399"):
        store.contexts(0, np.array([400]))
    with pytest.raises(InputError, match=r"tokens 0 … 399"):
        store.at_tokens(3, 401)
    with pytest.raises(InputError, match="these entries have no gradients"):
        _ = store.top(0).attribution


def test_damage_and_strangers_are_refused(store: UnitStore, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        shutil.copytree(store.folder.parent, tmp_path / name)
        return tmp_path / name / "toy"

    with pytest.raises(StoreError, match=r"units of another model \(hash abababababab…, not cdcd"):
        UnitStore.open(store.folder, model_hash="cd" * 32)
    with pytest.raises(StoreError, match="holds no units"):
        UnitStore.open(tmp_path)
    for name in ("by_unit", "by_token"):
        folder = copy(f"cut-{name}")
        file = folder / f"{name}.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(StoreError, match=f"{name}.safetensors is damaged or foreign"):
            UnitStore.open(folder)
    folder = copy("rotten")
    content = bytearray((folder / "by_unit.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "by_unit.safetensors").write_bytes(content)
    with pytest.raises(StoreError, match="is not what was written"):
        UnitStore.open(folder).check()
    store.check()
    folder = copy("shorter")
    told = json.loads((folder / "units.json").read_text())
    for change, message in (
        ({"n_units": 5}, "does not belong to its manifest"),
        ({"version": 2}, "has format version 2"),
        ({"format": "x"}, "is not the manifest of units"),
        ({"seen": -1}, "is damaged"),
        ({"shards": None}, "is damaged"),
        ({"surprise": 1}, "is damaged"),
        ({"sealed": None}, "is not finished"),
    ):
        (folder / "units.json").write_text(json.dumps(told | change))
        with pytest.raises(StoreError, match=message):
            UnitStore.open(folder)
    (folder / "units.json").write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        UnitStore.open(folder)
    folder = copy("other-corpus")
    Corpus.write([np.zeros(399, int)], 61, folder.parent / "corpus")
    with pytest.raises(StoreError, match="is not the corpus of"):
        UnitStore.open(folder).contexts(0, np.array([1]))


def test_what_a_writer_refuses(tmp_path: Path) -> None:
    one = np.array([3])
    value = np.array([1.0], np.float32)
    with UnitWriter.open(tmp_path, IDENTITY, n_units=4, n_tokens=9) as writer:
        writer.append(one, one, value, seen=1)
        for token, unit, strength, message in (
            (one, one, value, "tokens must ascend from 4"),
            (one + 6, one, value, "tokens must ascend from 4, up to 8"),
            (one + 1, one + 1, value, r"units 0 … 3; got 4"),
            (one + 1, one, value * np.float32("nan"), "cannot be kept in float16"),
            (one + 1, one, value * np.float32(1e5), "a value of 100000 cannot be kept in float16"),
            (np.array([4, 4]), np.array([2, 2]), value.repeat(2), "each unit once"),
            (np.array([4, 4]), np.array([2, 1]), value.repeat(2), "each unit once"),
        ):
            with pytest.raises(InputError, match=message):
                writer.append(token, unit, strength, seen=1)
        with pytest.raises(InputError, match="gradients if they were announced"):
            writer.append(one + 1, one, value, value, seen=1)
        with pytest.raises(StoreError, match="is being written by process"):
            UnitWriter.open(tmp_path, IDENTITY, n_units=4, n_tokens=9)
        writer.commit()
    with pytest.raises(StoreError, match='units of something else: basis is "toy" there and "other" here'):
        UnitWriter.open(tmp_path, IDENTITY | {"basis": "other"}, n_units=4, n_tokens=9)
    with pytest.raises(StoreError, match="has n_units 4, not 5"):
        UnitWriter.open(tmp_path, IDENTITY, n_units=5, n_tokens=9)
    with UnitWriter.open(tmp_path, IDENTITY, n_units=4, n_tokens=9) as writer:
        assert writer.batches == 1
        with pytest.raises(InputError, match="tokens must ascend from 4"):
            writer.append(one, one, value, seen=1)
        writer.seal()
        writer.seal()
        with pytest.raises(StoreError, match="is sealed"):
            writer.append(one + 1, one, value, seen=1)
    with pytest.raises(InputError, match="harvest parts of the corpus"):
        UnitWriter.open(tmp_path / "b", IDENTITY, n_units=4, n_tokens=(1 << 32) + 1)
    with pytest.raises(InputError, match="at least one unit"):
        UnitWriter.open(tmp_path / "b", IDENTITY, n_units=0, n_tokens=9)
