"""What makes a unit respond? The sealed activations of a basis on a corpus, asked without running the model again.

    store = UnitStore.open("harvest/dictionary")
    store.top(7, 20)             its strongest tokens: a slice; `bottom` for the other end
    store.quantiles(7)           tokens from every tenth of its values: not only the strongest
    store.histogram(7)           how its values are distributed
    store.contexts(7, tokens)    what stands around tokens, and the unit's value at each
    store.document(3)            which units are on in a document

Files are mapped: nothing is read but what is asked for. See `unit_files` for how they lie, `unit_pairs` for questions
about two units.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from microtome.core.errors import InputError, StoreError
from microtome.core.tensor_file import mapped
from microtome.store.unit_files import BY_TOKEN, BY_UNIT, UnitsManifest, from_bfloat16, unit_dtype
from microtome.store.unit_writer import file_hash

Numbers = NDArray[np.integer[Any]]
OUTSIDE = -1
"""Stands in a context where the document has ended or not begun."""


@dataclass(frozen=True, eq=False)
class Entries:
    """Where units are on. token: numbers in the corpus. unit: which unit. value: how strongly.

    gradient: of the harvest's metric, where gradients were kept. Each `[entry]`.
    """

    token: Numbers
    unit: Numbers
    value: NDArray[np.float32]
    gradient: NDArray[np.float32] | None = None

    @classmethod
    def joined(cls, parts: Sequence["Entries"]) -> Self:
        """Several, one behind the other."""
        gradients = [part.gradient for part in parts if part.gradient is not None]
        return cls(
            np.concatenate([part.token for part in parts]),
            np.concatenate([part.unit for part in parts]),
            np.concatenate([part.value for part in parts]),
            np.concatenate(gradients) if len(gradients) == len(parts) else None,
        )

    def __len__(self) -> int:
        return len(self.token)

    @property
    def attribution(self) -> NDArray[np.float32]:
        """Gradient times value: to first order, what the metric would lose without the unit there."""
        if self.gradient is None:
            raise InputError(
                "these entries have no gradients; harvest with gradients=True, and ask unit by unit (top, entries …)"
            )
        return self.gradient * self.value


@dataclass(frozen=True, eq=False)
class Contexts:
    """What stands around tokens. ids: `[example, column]`, `OUTSIDE` beyond the document. value: the unit's, likewise.

    document, place: where each example's own token is; it stands in column `before`.
    """

    ids: Numbers
    value: NDArray[np.float32]
    document: Numbers
    place: Numbers
    before: int


@dataclass(frozen=True, eq=False)
class UnitStore:
    """The units of one basis on one corpus."""

    folder: Path
    manifest: UnitsManifest
    by_unit: Mapping[str, NDArray[Any]]
    by_token: Mapping[str, NDArray[Any]]

    @classmethod
    def open(cls, folder: str | Path, *, model_hash: str | None = None) -> Self:
        """Open a sealed folder. model_hash: refuse units of another model.

        Raises `StoreError` for a folder that is not sealed, damaged, or of another model.
        """
        folder = Path(folder)
        manifest = UnitsManifest.read(folder)
        if manifest.sealed is None:
            raise StoreError(
                f"{folder} is not finished ({manifest.batches} batches are there); resume the harvest"
            )
        there = manifest.identity.get("model_hash")
        if model_hash is not None and there != model_hash:
            raise StoreError(
                f"{folder} holds units of another model (hash {str(there)[:12]}…, not {model_hash[:12]}…); harvest anew"
            )
        dtype = unit_dtype(manifest.n_units)[0]
        sums = {"starts": "I64", "sum": "F64", "squares": "F64", "token": "U32", "value": "F16"}
        by_unit, _ = mapped(folder / BY_UNIT, sums | ({"gradient": "BF16"} if manifest.gradients else {}))
        by_token, _ = mapped(folder / BY_TOKEN, {"starts": "I64", "value": "F16", "unit": dtype})
        entries = sum(manifest.shards)
        for arrays, parts, name in (
            (by_unit, manifest.n_units, BY_UNIT),
            (by_token, manifest.n_tokens, BY_TOKEN),
        ):
            starts, lengths = (
                arrays["starts"],
                {len(arrays["value"]), len(arrays.get("token", arrays["value"]))},
            )
            if len(starts) != parts + 1 or starts[0] != 0 or starts[-1] != entries or lengths != {entries}:
                raise StoreError(f"{folder / name} does not belong to its manifest; restore it from a copy")
        return cls(folder, manifest, by_unit, by_token)

    def check(self) -> None:
        """Read everything and compare it with the hashes. Raises `StoreError` where a byte has changed."""
        for name, told in (self.manifest.sealed or {}).items():
            if file_hash(self.folder / name) != told:
                raise StoreError(f"{self.folder / name} is not what was written; restore it from a copy")

    @property
    def identity(self) -> dict[str, Any]:
        return self.manifest.identity

    @property
    def n_units(self) -> int:
        return self.manifest.n_units

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """At how many tokens each unit is on."""
        return np.diff(self.by_unit["starts"])

    @property
    def densities(self) -> NDArray[np.float64]:
        """At which share of the tokens looked at each unit is on."""
        return self.counts / max(self.manifest.seen, 1)

    @cached_property
    def largest(self) -> NDArray[np.float32]:
        """The largest value of each unit; NaN for one that is never on."""
        found, on = np.full(self.n_units, np.nan, np.float32), self.counts > 0
        found[on] = self.by_unit["value"][self.by_unit["starts"][:-1][on]]
        return found

    @property
    def means(self) -> NDArray[np.float64]:
        """Of each unit's values where it is on; NaN for one that is never on."""
        with np.errstate(invalid="ignore"):
            return self.by_unit["sum"] / self.counts

    def entries(self, unit: int) -> Entries:
        """Everywhere a unit is on, largest value first."""
        start, stop = self._span(unit)
        return self._entries(unit, slice(start, stop))

    def top(self, unit: int, k: int = 20) -> Entries:
        """Its k largest values."""
        start, stop = self._span(unit)
        return self._entries(unit, slice(start, min(stop, start + k)))

    def bottom(self, unit: int, k: int = 20) -> Entries:
        """Its k smallest values, the smallest first."""
        start, stop = self._span(unit)
        return self._entries(unit, np.arange(stop - 1, max(start, stop - k) - 1, -1))

    def quantiles(self, unit: int, bins: int = 10, each: int = 5, seed: int = 0) -> list[Entries]:
        """Random entries from each of so many equal parts of its values, the largest values first.

        A part with fewer entries than asked for gives them all.
        """
        start, stop = self._span(unit)
        edges = start + np.arange(bins + 1) * (stop - start) // bins
        random = np.random.default_rng([seed, unit]).random((bins, each))
        parts = []
        for low, high, drawn in zip(edges[:-1], edges[1:], random, strict=True):
            # One from each of `each` strata of the part, so that none is drawn twice.
            strata = low + np.arange(each + 1) * (high - low) // each
            chosen = strata[:-1] + (drawn * np.diff(strata)).astype(np.int64)
            parts.append(self._entries(unit, chosen if high - low > each else np.arange(low, high)))
        return parts

    def histogram(self, unit: int, bins: int = 20) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Counts `[bin]` and edges `[bin + 1]` of its values, from the smallest to the largest; zeros are not counted.

        A unit that is never on, or has one value alone, has one bin or none.
        """
        start, stop = self._span(unit)
        rising = self.by_unit["value"][start:stop][::-1]
        if not len(rising):
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        # Edges in float16, as the values are, so that no value falls on the wrong side of one.
        edges = np.unique(
            np.linspace(np.float32(rising[0]), np.float32(rising[-1]), bins + 1).astype(np.float16)
        )
        if len(edges) == 1:
            return np.array([len(rising)]), edges.astype(np.float32).repeat(2)
        places = np.searchsorted(rising, edges[1:-1], "left")
        return np.diff(np.concatenate([[0], places, [len(rising)]])), edges.astype(np.float32)

    def contexts(self, unit: int, tokens: Numbers, before: int = 16, after: int = 8) -> Contexts:
        """What stands around tokens, within their documents, and the unit's value at each."""
        corpus, starts = self._corpus
        tokens = np.asarray(tokens, np.int64)
        document, place = self.places(tokens)
        low = np.maximum(tokens - before, starts[document])
        high = np.minimum(tokens + after + 1, starts[document + 1])
        columns = tokens[:, None] + np.arange(-before, after + 1)
        inside = (columns >= low[:, None]) & (columns < high[:, None])
        ids = np.where(inside, corpus[np.where(inside, columns, 0)].astype(np.int64), OUTSIDE)
        value = self._around(unit, low, high, low - tokens + before, columns.shape[1])
        return Contexts(ids, value, document, place, before)

    def places(self, tokens: Numbers) -> tuple[Numbers, Numbers]:
        """For numbers of tokens: their documents, and their places there."""
        corpus, starts = self._corpus
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < len(corpus):
            raise InputError(
                f"the corpus has tokens 0 … {len(corpus) - 1}; got {tokens.min()} … {tokens.max()}"
            )
        document = np.searchsorted(starts, tokens, "right") - 1
        return document, tokens - starts[document]

    def at_tokens(self, first: int, stop: int) -> Entries:
        """Which units are on at tokens `[first, stop)`, token by token."""
        if not 0 <= first <= stop <= self.manifest.n_tokens:
            raise InputError(f"there are tokens 0 … {self.manifest.n_tokens - 1}; got {first} … {stop - 1}")
        begins = self.by_token["starts"][first : stop + 1]
        entries = slice(begins[0], begins[-1])
        token = np.repeat(np.arange(first, stop), np.diff(begins))
        return Entries(
            token, self.by_token["unit"][entries], self.by_token["value"][entries].astype(np.float32)
        )

    def document(self, number: int) -> Entries:
        """Which units are on in a document."""
        starts = self._corpus[1]
        if not 0 <= number < len(starts) - 1:
            raise InputError(f"the corpus has documents 0 … {len(starts) - 2}; got {number}")
        return self.at_tokens(int(starts[number]), int(starts[number + 1]))

    def _entries(self, unit: int, where: slice | NDArray[np.int64]) -> Entries:
        arrays = self.by_unit
        token = arrays["token"][where]
        gradient = from_bfloat16(arrays["gradient"][where]) if "gradient" in arrays else None
        return Entries(token, np.full(len(token), unit), arrays["value"][where].astype(np.float32), gradient)

    def _around(
        self, unit: int, low: Numbers, high: Numbers, column: Numbers, width: int
    ) -> NDArray[np.float32]:
        """A unit's values at tokens `[low, high)` of each example, the first of them in `column`."""
        begins, units = self.by_token["starts"], self.by_token["unit"]
        value = np.zeros((len(low), width), np.float32)
        starts, stops = begins[low].tolist(), begins[high].tolist()
        found = [
            (units[start:stop] == unit).nonzero()[0] + start
            for start, stop in zip(starts, stops, strict=True)
        ]
        if found:
            example = np.repeat(np.arange(len(low)), list(map(len, found)))
            entry = np.concatenate(found)
            token = np.searchsorted(begins, entry, "right") - 1
            value[example, token - low[example] + column[example]] = self.by_token["value"][entry]
        return value

    def _span(self, unit: int) -> tuple[int, int]:
        if not 0 <= unit < self.n_units:
            raise InputError(f"there are units 0 … {self.n_units - 1}; got {unit}")
        return int(self.by_unit["starts"][unit]), int(self.by_unit["starts"][unit + 1])

    @cached_property
    def strings(self) -> Sequence[str] | None:
        """How each token reads, by id; None where nobody wrote it beside the corpus."""
        path = self.folder / self.manifest.corpus / "strings.json"
        try:
            strings = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{path} is damaged ({error}); remove it, and tokens are shown by number"
            ) from error
        if not isinstance(strings, list) or not all(isinstance(text, str) for text in strings):
            raise StoreError(f"{path} is no list of strings; remove it, and tokens are shown by number")
        return strings

    @cached_property
    def _corpus(self) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Tokens, and where documents begin; kept once for all bases, see `microtome.data.corpus`."""
        folder = self.folder / self.manifest.corpus
        tokens, told = mapped(folder / "tokens.safetensors")
        starts, _ = mapped(folder / "documents.safetensors", {"starts": "I64"})
        asked = self.identity.get("corpus_hash")
        if len(tokens["tokens"]) != self.manifest.n_tokens or (
            asked is not None and told.get("hash") != asked
        ):
            raise StoreError(f"{folder} is not the corpus of {self.folder}; restore it from a copy")
        return tokens["tokens"], starts["starts"]
