"""What are dictionaries trained on, and what is known of it? A source: batches to train on, and data to score with.

    Source.of_corpus(model, rows, sites)      what a model computes on a corpus; some rows are held out
    Source.of_outputs(model, rows, sites)     the same, to keep what the model does with it
    Source.of_case("superposition/pentagon")  a testbed: the values of its network, and its key

The planted testbeds make rows without end; of other testbeds the values of the case's own data are drawn again and
again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.bases.codes import SparseCodes
from microtome.bases.fitted import values_at
from microtome.bases.harvest import Harvest
from microtome.bases.streams import ActivationStream, ArrayStream, Stream
from microtome.core.errors import InputError
from microtome.core.provenance import Provenance, model_hash
from microtome.core.site import Site, as_site
from microtome.data.corpus import Corpus
from microtome.data.corpus_rows import NO_TOKEN, CorpusRows
from microtome.data.prompts import Prompts
from microtome.data.tokens import token_text
from microtome.dictionaries.end_to_end import ModelLoss, TokenStream
from microtome.dictionaries.scene import OwnUnits, Target, squared_error
from microtome.evaluation.cases import case as case_of
from microtome.evaluation.dictionary_scores import Known
from microtome.evaluation.grader import sites as sites_of
from microtome.models.model import Model
from microtome.testbeds.toys import planted_dictionary, synthetic_benchmark
from microtome.testbeds.toys.network import model_of
from microtome.testbeds.toys.planted_stream import Planted, PlantedStream

HELD_OUT: Final = 0.1
SCORED: Final = 20_000  # tokens at most that scores are taken on
_ROWS: Final = 64  # prompts in a pass


@dataclass(frozen=True, eq=False)
class Source:
    """stream: batches. target: what is learned from them. held_out: rows to measure on while training. model, data,
    known: what scores are taken on.

    tokens: the data's tokens as text, a tuple for each of its rows, where there are any; those of `held_out`, in order.
    notes: what a reader of any score should know of the data.
    """

    name: str
    stream: Stream
    held_out: Float[Tensor, "row d"]
    model: Model
    data: Any
    known: Known = field(default_factory=Known)
    tokens: tuple[tuple[str, ...], ...] = ()
    provenance: Provenance = field(default_factory=Provenance)
    target: Target | OwnUnits = squared_error
    notes: tuple[str, ...] = ()

    @classmethod
    def of_corpus(
        cls,
        model: Model,
        rows: CorpusRows,
        sites: Sequence[Site],
        batch: int,
        span: int,
        steps: int,
        seed: int,
        harvest: type[Harvest] = Harvest,
    ) -> Self:
        """A model on a corpus, read as often as the steps need. harvest: of several processes that share the work,
        `SharedHarvest`. Raises `InputError` for a corpus that is too small."""
        kept, held = _split(rows, seed)
        epochs = max(1, -(-steps * batch // max(1, kept.n_tokens)))
        stream = ActivationStream(
            harvest.of(model, kept, sites),
            batch,
            span=max(2 * batch, min(span, kept.n_tokens)),
            seed=seed,
            epochs=epochs,
        )
        return cls._of_text(model, rows, held, sites, stream)

    @classmethod
    def of_outputs(
        cls,
        model: Model,
        rows: CorpusRows,
        sites: Sequence[Site],
        batch: int,
        seed: int,
        writes: Sequence[Site | str] = (),
        later: Sequence[Site | str] = (),
        **weights: float,
    ) -> Self:
        """A model on the whole rows of a corpus, as many together as make a batch. writes, weights: see `ModelLoss`.

        Raises `InputError` for a corpus that is too small.
        """
        kept, held = _split(rows, seed)
        whole = kept.batch(np.flatnonzero(kept.lengths == kept.room)).ids
        together = max(1, batch // kept.room)
        stream = TokenStream(model, whole, sites, together, seed, also=later, begins=rows.begin is not None)
        target = ModelLoss(stream, writes, later, **weights)
        return replace(cls._of_text(model, rows, held, sites, stream), target=target)

    @classmethod
    def _of_text(
        cls, model: Model, rows: CorpusRows, held: CorpusRows, sites: Sequence[Site], stream: Stream
    ) -> Self:
        """With what is held out to measure and score on."""
        if held.n_tokens > SCORED:
            held = held.first(SCORED)
        found = held.batch(np.arange(len(held)))
        values = Harvest.of(model, held, sites, together=_ROWS)
        rows_held = torch.cat(
            [torch.cat([one.values[s] for s in values.sites], 1) for one in values.passes()]
        )
        prompts = _prompts(found.ids, found.mask, model)
        text = tuple(
            tuple(
                prompts.token_strings[token] for token, there in zip(*both, strict=True) if there != NO_TOKEN
            )
            for both in zip(found.ids.tolist(), found.token.tolist(), strict=True)
        )
        told = Provenance(model.name, model_hash(model.module.state_dict()), rows.corpus.hash)
        return cls(
            model.name,
            stream,
            rows_held.float(),
            model,
            prompts,
            Known(begins=rows.begin is not None),
            text,
            told,
            notes=_strange(model, rows.corpus),
        )

    @classmethod
    def of_case(cls, name: str, site: str, batch: int, seed: int) -> Self:
        """A testbed's case. Raises `InputError` for an unknown one, or one that does not say at which site to look."""
        bed, _, which = name.partition("/")
        planted = _planted(bed, which, seed)
        if planted is not None:
            return cls._of_planted(name, planted, batch)
        case = case_of(name, seed)
        asked = [site] if site else list(sites_of(case.truth))
        if not asked:
            raise InputError(f"{name} knows of no directions; name a site with --site")
        place = as_site(asked[0])
        data = case.data("tokens")
        values, digest = values_at(case.model, data, place, _ROWS)
        count = len(values)
        if count < 2:
            raise InputError(f"{name} has {count} row of data; none can be held out")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        held, kept = order.tensor_split([max(1, round(HELD_OUT * count))])
        flat = _real(values[kept])
        stream = ArrayStream(flat, min(batch, len(flat)), seed, sites=(place,))
        fits = (values.shape[:1], values.shape[:2])
        labels = {
            key: label[held]
            for key, label in case.truth.labels.items()
            if label.shape in fits and (label.dim() == 2 or values.shape[1] == 1)
        }
        hashed = model_hash(case.model.module.state_dict())
        told = Provenance(case.model.name, hashed, digest)
        return cls(
            name, stream, _real(values[held]), case.model, _rows(data, held), Known(labels), provenance=told
        )

    @classmethod
    def _of_planted(cls, name: str, planted: Planted, batch: int) -> Self:
        stream = PlantedStream(planted, batch)
        chunk = stream.held_out(4096)
        features = len(planted.dictionary)
        coefficients = SparseCodes(chunk.row, chunk.feature, chunk.coefficient, 4096, features)
        parents = getattr(planted, "parent", None)
        known = Known(features=planted.dictionary, coefficients=coefficients, parents=parents)
        bias: Tensor = planted.bias  # type: ignore[attr-defined]
        module = planted_dictionary.LinearMap(planted.dictionary, bias)
        model = model_of(module, name)
        data: dict[str, Tensor] = {"coefficients": chunk.coefficients(features)}
        if len(chunk.noise):
            data["noise"] = chunk.noise
        told = Provenance(name, model_hash(module.state_dict()))
        return cls(name, stream, chunk.activations, model, data, known, provenance=told)


def _split(rows: CorpusRows, seed: int) -> tuple[CorpusRows, CorpusRows]:
    """What is learned from, and a tenth that is held out; one row at least."""
    if len(rows) < 2:
        raise InputError(
            f"the corpus has {rows.n_tokens} tokens, which fill one row of {rows.room}; rows are held out to measure "
            "on, so give more text, or fewer columns"
        )
    return rows.split(max(HELD_OUT, 1 / len(rows)), seed)


def _real(values: Float[Tensor, "row position d"]) -> Float[Tensor, "place d"]:
    """One row of numbers for each token that is no padding."""
    flat = values.flatten(0, 1)
    return flat[~flat.isnan().any(-1)]


def _rows(data: Any, rows: Int[Tensor, " row"]) -> Any:
    """Some rows of what methods are run on."""
    if isinstance(data, Mapping):
        return {name: one[rows] if isinstance(one, Tensor) else one for name, one in data.items()}
    return data[rows]


def _planted(bed: str, which: str, seed: int) -> Planted | None:
    """What makes rows of this case, if any does."""
    bed = bed.replace("-", "_")
    if bed == "planted_dictionary" and which in planted_dictionary.CASES:
        return planted_dictionary.PlantedDictionary(planted_dictionary.CASES[which], seed)
    settings = {**synthetic_benchmark.CASES, "full": synthetic_benchmark.FULL}
    if bed == "synthetic_benchmark" and which in settings:
        return synthetic_benchmark.SyntheticBenchmark(settings[which], seed)
    return None


def _strange(model: Model, corpus: Corpus) -> tuple[str, ...]:
    """A note, where more than one in a hundred tokens is none that the tokenizer knows."""
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    share = 0.0 if unknown is None else float((corpus.tokens == unknown).mean())
    if share <= 0.01:
        return ()
    return (
        f"{share:.0%} of the tokens are unknown to the tokenizer: {model.name} reads another text than you.",
    )


def _prompts(ids: Int[Tensor, "row column"], mask: Tensor | None, model: Model) -> Prompts:
    used = ids.unique().tolist()
    strings = {
        token: f" {token}" if model.tokenizer is None else token_text(model.tokenizer, token)
        for token in used
    }
    texts = tuple("".join(strings[token] for token in row) for row in ids.tolist())
    return Prompts(ids, mask, texts, strings)
