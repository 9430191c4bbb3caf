"""Streams: every value once, well mixed, and every batch a function of its number."""

from collections import Counter
from contextlib import suppress
from functools import cache
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from microtome.bases.harvest import Harvest, Pass
from microtome.bases.streams import ActivationStream, ArrayStream, stream
from microtome.core.errors import InputError
from microtome.data.corpus import Corpus
from microtome.data.corpus_rows import CorpusRows
from microtome.models.load import load
from models import families


@cache
def numbered(tokens: int, together: int = 7) -> Harvest:
    """A module that says of each token which one it is: of token t, the row (t, -t)."""
    table = torch.arange(float(tokens))[:, None] * torch.tensor([1.0, -1.0])
    model = load(nn.Sequential(nn.Embedding.from_pretrained(table)))
    rows = CorpusRows(Corpus.of([np.arange(tokens)], tokens), 1)
    return Harvest.of(model, rows, ["path:0"], together=together)


def served(found: ActivationStream | ArrayStream, batches: int | None = None) -> list[list[int]]:
    taken = [batch for _, batch in zip(range(1000 if batches is None else batches), found, strict=False)]
    for batch in taken:
        assert torch.equal(batch[:, 0], -batch[:, 1])
    return [batch[:, 0].long().tolist() for batch in taken]


@settings(max_examples=12)
@given(
    tokens=st.integers(1, 40),
    batch=st.integers(1, 9),
    windows=st.integers(2, 6),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_every_value_once_and_every_batch_by_number(
    tokens: int, batch: int, windows: int, epochs: int, seed: int, data: st.DataObject
) -> None:
    if tokens < batch:
        return
    make = lambda: ActivationStream(numbered(tokens), batch, span=windows * batch, seed=seed, epochs=epochs)
    batches = served(make())
    assert len(batches) == epochs * tokens // batch == make().n_steps
    assert all(len(one) == batch for one in batches)
    counts = Counter(token for one in batches for token in one)
    assert all(count <= epochs for count in counts.values())
    assert sum(counts.values()) == len(batches) * batch
    if (epochs * tokens) % batch == 0:
        assert counts == dict.fromkeys(range(tokens), epochs)
    step = data.draw(st.integers(0, len(batches)))
    again = make()
    served(again, data.draw(st.integers(0, len(batches))))
    again.seek(step)
    assert served(again) == batches[step:]


def test_a_stream_without_end_reads_the_corpus_again_in_another_order() -> None:
    endless = ActivationStream(numbered(12), 4, span=12, epochs=None)
    batches = served(endless, 12)
    epochs = [list(chain(*batches[at : at + 3])) for at in range(0, 12, 3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert endless.n_steps is None


def test_batches_are_mixed_over_the_span() -> None:
    """Of 20 batches of 50, each holds tokens from all over: a mean far from its own place in the corpus's order.

    The mean of 50 of 1000 drawn without replacement has standard deviation 288.7·√(950/999)/√50 = 39.8.
    """
    batches = served(ActivationStream(numbered(1000, 70), 50, span=1000))
    deviations = np.array([np.mean(one) - 499.5 for one in batches]) / 39.8
    assert np.abs(deviations).max() < 4
    assert 0.5 < np.square(deviations).mean() < 2


def test_an_interrupted_harvest_leaves_the_stream_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    make = lambda: ActivationStream(numbered(40), 4, span=16, epochs=2)
    want, run, calls = served(make()), Harvest.one, 0

    def interrupted(self: Harvest, number: int) -> Pass:
        nonlocal calls
        calls += 1
        if calls in (2, 9, 16):
            raise KeyboardInterrupt
        return run(self, number)

    found = make()
    monkeypatch.setattr(Harvest, "one", interrupted)
    got: list[list[int]] = []
    while len(got) < len(want):
        with suppress(KeyboardInterrupt):
            got += served(found, 1)
    assert got == want
    assert calls > 16


def test_seeds_decide_and_nothing_else() -> None:
    state = torch.get_rng_state()
    make = lambda seed: served(ActivationStream(numbered(40), 4, span=16, seed=seed))
    assert make(0) == make(0) != make(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_sites_of_a_model_lie_side_by_side(family: str) -> None:
    model = families.model(family)
    rows = CorpusRows(
        Corpus.of([families.ids(1, 40, seed)[0].numpy() for seed in range(3)], families.VOCABULARY), 8
    )
    found = stream(model, rows, ["resid_post.0", "z.1"], batch_rows=10, span=30, seed=5)
    assert found.widths == (32, 32)
    assert found.n_steps == 12
    want = torch.cat(
        [
            torch.cat([run["resid_post.0"][0], run["z.1"][0].flatten(1)], 1)
            for row in range(len(rows))
            for run in [model.run(rows.batch([row]).ids, ["resid_post.0", "z.1"])]
        ]
    )
    got = torch.cat(list(found))
    apart = (got[:, None] - want).abs().amax(-1)  # a token that begins two rows has one value in both
    assert max(apart.amin(0).max(), apart.amin(1).max()) < 1e-5
    again = stream(model, rows, ["resid_post.0", "z.1"], batch_rows=10, span=30, seed=5)
    again.seek(7)
    assert torch.equal(torch.cat(list(again)), got[70:])
    assert again.identity == found.identity


def test_arrays_in_memory_keep_the_same_contract() -> None:
    values = torch.arange(22.0)[:, None] * torch.tensor([1.0, -1.0])
    batches = served(ArrayStream(values, 5, seed=3, epochs=3))
    assert len(batches) == 12
    assert all(len(set(chain(*batches[at : at + 4]))) == 20 for at in (0, 4, 8))
    again = ArrayStream(values, 5, seed=3, epochs=3)
    again.seek(6)
    assert served(again) == batches[6:]
    assert ArrayStream(values, 5).identity != ArrayStream(values + 1, 5).identity


def test_what_cannot_be_streamed_is_refused() -> None:
    with pytest.raises(InputError, match="batches of 13 rows cannot be taken from a corpus of 12 tokens"):
        ActivationStream(numbered(12), 13, span=99)
    with pytest.raises(InputError, match="a span of 7 mixes nothing"):
        ActivationStream(numbered(12), 4, span=7)
    with pytest.raises(InputError, match="there is no batch 4"):
        ActivationStream(numbered(12), 4, span=8).seek(4)
    values: Tensor = torch.zeros(3, 2)
    with pytest.raises(InputError, match="batches of 4 rows cannot be taken from 3"):
        ArrayStream(values, 4)
    with pytest.raises(InputError, match="do not add up"):
        ArrayStream(values, 1, widths=(1,))
