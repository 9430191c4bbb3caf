"""A harvest is what `Model.run` gives, row by row, with each value's token; what cannot be harvested is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from microtome.bases import neurons
from microtome.bases.harvest import Harvest, next_token_loss
from microtome.bases.harvest_units import basis_identity, harvest_units
from microtome.bases.harvest_values import HarvestFolder, harvest_values
from microtome.bases.linear import LinearBasis
from microtome.core.errors import InputError, NotFiniteError, SiteError, StoreError
from microtome.core.site import Site, as_site
from microtome.data.corpus import Corpus
from microtome.data.corpus_rows import CorpusRows
from microtome.data.metrics import next_tokens
from microtome.data.next_token_loss import NextTokenLoss
from microtome.models.load import load
from microtome.store.registry import Registry
from models import families

LENGTHS = (7, 1, 12, 3)


def corpus_rows(layout: str = "packed", begin: int | None = None, columns: int = 6) -> CorpusRows:
    documents = [families.ids(1, n, seed)[0].numpy() for seed, n in enumerate(LENGTHS)]
    return CorpusRows(Corpus.of(documents, families.VOCABULARY), columns, layout, begin)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("family", "layout"),
    [("gpt2", "packed"), ("llama", "documents"), ("gpt_neox", "packed"), ("gemma2", "documents")],
)
def test_values_and_gradients_are_those_of_one_row_alone(family: str, layout: str) -> None:
    model = families.model(family)
    rows = corpus_rows(layout, begin=2)
    sites = ["resid_post.1", "z.0.h1", "grad:resid_post.1", "mlp_post.2.u0,3"]
    found = list(Harvest.of(model, rows, sites, together=3).passes())
    tokens = torch.cat([one.token for one in found]).tolist()
    assert tokens == list(range(sum(LENGTHS)))
    alone = []
    for row in range(len(rows)):
        ids = rows.batch([row]).ids
        alone.append(model.run(ids, sites, metric=NextTokenLoss(next_tokens(ids))))
    for site in map(as_site, sites):
        got = torch.cat([one.values[site] for one in found])
        want = torch.cat([run[site][0, 1:].flatten(1) for run in alone])
        assert torch.allclose(got, want, atol=1e-5)


def test_a_pass_made_again_alone_is_the_same_bit_for_bit() -> None:
    harvest = Harvest.of(families.model("llama"), corpus_rows(), ["resid_post.2"], together=2)
    whole = list(harvest.passes())
    assert [one.number for one in whole] == list(range(harvest.n_passes))
    for one in harvest.passes(1):
        assert torch.equal(one.values[Site("resid_post", 2)], whole[one.number].values[Site("resid_post", 2)])
    assert np.array_equal(np.diff(harvest.tokens_before()), [len(one.token) for one in whole])
    site = harvest.sites[0]
    assert torch.equal(torch.cat(list(harvest.values())), torch.cat([one.values[site] for one in whole]))


def test_the_pass_ends_at_the_last_layer_needed() -> None:
    model = load(families.make("gpt2"))
    reached: list[int] = []
    for number, block in enumerate(model.module.transformer.h):
        block.ln_1.register_forward_hook(lambda *_, number=number: reached.append(number))
    Harvest.of(model, corpus_rows(), ["mlp_out.0", "embed"], together=99).one(0)
    assert reached == [0]


def test_of_an_encoder_and_a_decoder_the_corpus_is_the_encoders_text() -> None:
    model, rows = families.model("t5"), corpus_rows("documents")
    site = as_site("encoder/resid_post.1")
    got = torch.cat([one.values[site] for one in Harvest.of(model, rows, [site], together=3).passes()])
    alone = []
    for row in range(len(rows)):
        ids = rows.batch([row]).ids
        run = model.run({"input_ids": ids, "decoder_input_ids": families.ids(1, 2)}, [site])
        alone.append(run[site][0])
    assert torch.allclose(got, torch.cat(alone), atol=1e-5)
    for sites in ([site, "resid_post.1"], [site.grad]):
        with pytest.raises(SiteError, match="text of its encoder alone"):
            Harvest.of(model, rows, sites)


def test_a_model_that_sees_the_next_token_is_not_asked_for_its_loss() -> None:
    model, rows = families.model("bert"), corpus_rows("documents")
    with pytest.raises(InputError, match="sees the token that comes next"):
        Harvest.of(model, rows, ["grad:resid_post.1"])
    sites = ["resid_post.1", "grad:resid_post.1"]
    own = Harvest.of(model, rows, sites, metric=lambda rows: next_token_loss(rows))
    assert bool(own.one(0).values[as_site(sites[1])].any())


def test_the_loss_of_a_row_without_targets_is_nothing() -> None:
    rows = corpus_rows("documents")
    batch = rows.batch([0, 2])
    assert int(rows.lengths[2]) == 1
    loss = next_token_loss(batch)
    logits = torch.randn(*batch.ids.shape, families.VOCABULARY)
    want = torch.nn.functional.cross_entropy(logits[0, :-1], batch.ids[0, 1:], reduction="sum")
    assert torch.allclose(loss(logits), torch.stack([want, torch.tensor(0.0)]))
    assert torch.equal(loss.for_rows([1])(logits[1:]), torch.zeros(1))
    with pytest.raises(InputError, match="expected logits for"):
        loss(logits[:1])


def test_a_folder_keeps_what_was_harvested(tmp_path: Path) -> None:
    model, rows = families.model("gemma2"), corpus_rows("documents")
    sites = ["resid_mid.1", "grad:resid_mid.1"]
    told: list[tuple[int, int]] = []
    harvest = Harvest.of(model, rows, sites, together=2, dtype=torch.bfloat16)
    folder = harvest_values(harvest, tmp_path, shard_bytes=1, progress=lambda *at: told.append(at))
    passes = list(harvest.passes())
    value, gradient = (torch.cat([one.values[as_site(site)] for one in passes]) for site in sites)
    assert folder.n_tokens == len(value)
    assert torch.equal(torch.cat(list(folder.values(sites[0]))), value)
    assert torch.equal(torch.cat(list(folder.values(sites[1]))), gradient)
    assert torch.equal(torch.cat(list(folder.attribution("resid_mid.1"))), value * gradient)
    assert torch.cat(list(folder.tokens())).tolist() == list(range(len(value)))
    assert len(folder.shards) == harvest.n_passes
    assert told == [(n + 1, harvest.n_passes) for n in range(harvest.n_passes)]
    assert value.dtype == torch.bfloat16
    told.clear()
    harvest_values(harvest, tmp_path, progress=lambda *at: told.append(at))
    assert not told  # what is there is not made again


def test_a_folder_refuses_other_harvests_and_damage(tmp_path: Path) -> None:
    model, rows = families.model("gpt2"), corpus_rows()
    folder = harvest_values(Harvest.of(model, rows, ["embed"]), tmp_path)
    with pytest.raises(
        StoreError, match=r'holds another harvest: sites is \["embed"\] there and \["pos_embed"\] here'
    ):
        harvest_values(Harvest.of(model, rows, ["pos_embed"]), tmp_path)
    with pytest.raises(StoreError, match="model_hash is"):
        harvest_values(Harvest.of(families.model("llama"), rows, ["embed"]), tmp_path)
    with pytest.raises(StoreError, match="is of another model"):
        HarvestFolder.open(tmp_path, model_hash="ab" * 32)
    with pytest.raises(InputError, match=r"resid_post\.0 was not harvested; this folder holds embed"):
        list(folder.values("resid_post.0"))
    shard = tmp_path / "shard-00000.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(StoreError, match="cannot be read"):
        list(folder.values("embed"))
    other = harvest_values(Harvest.of(model, rows, ["pos_embed"]), tmp_path / "other")
    shard.write_bytes((other.folder / shard.name).read_bytes())
    with pytest.raises(StoreError, match="does not belong to this harvest"):
        list(folder.values("embed"))
    manifest = tmp_path / "harvest.json"
    text = manifest.read_text()
    for broken, message in (
        ("{", "is damaged"),
        ("{}", "is not the manifest of a harvest"),
        (text.replace('"version": 1', '"version": 2'), "has format version 2"),
        (text.replace('"passes"', '"passed"'), "is damaged"),
    ):
        manifest.write_text(broken)
        with pytest.raises(StoreError, match=message):
            HarvestFolder.open(tmp_path)
    manifest.unlink()
    with pytest.raises(StoreError, match="holds no harvest"):
        HarvestFolder.open(tmp_path)


def test_what_others_left_in_a_folder_stays(tmp_path: Path) -> None:
    model, rows = families.model("gpt2"), corpus_rows()
    theirs = tmp_path / "film.mkv.partial"
    theirs.write_text("half of it")
    harvest_values(Harvest.of(model, rows, ["embed"]), tmp_path)
    shard = tmp_path / "theirs" / "shard-00000.safetensors"
    shard.parent.mkdir()
    shard.write_text("their data")
    with pytest.raises(StoreError, match=r"holds shard-00000\.safetensors, which no harvest there wrote"):
        harvest_values(Harvest.of(model, rows, ["embed"]), shard.parent)
    with pytest.raises(StoreError, match=r"holds shard-00000\.safetensors, which no harvest there wrote"):
        harvest_units(model, rows, [random_basis("embed", 32, "theirs")], tmp_path)
    assert (theirs.read_text(), shard.read_text()) == ("half of it", "their data")


def test_what_cannot_be_harvested_is_refused() -> None:
    model, rows = families.model("gpt2"), corpus_rows()
    for sites, message in (
        ([], "name at least one site"),
        (["embed", "embed"], "each once"),
        (["resid_post.0@-1"], "chooses positions"),
        (["pattern.0"], "has no row of numbers a token"),
        (["resid_post.9"], "resid_post.9"),
    ):
        with pytest.raises(SiteError, match=message):
            Harvest.of(model, rows, sites).one(0)
    with pytest.raises(InputError, match="longer than the 32 positions"):
        Harvest.of(model, corpus_rows(columns=33), ["embed"])
    with pytest.raises(InputError, match="vocabulary of 99 tokens"):
        Harvest.of(model, CorpusRows(Corpus.of([[1]], 99), 4), ["embed"])
    with pytest.raises(InputError, match="no rows to read"):
        Harvest.of(model, CorpusRows(rows.corpus, 4, order=np.empty(0, np.int64)), ["embed"])
    with pytest.raises(InputError, match="at least one row"):
        Harvest.of(model, rows, ["embed"], together=0)
    broken = load(families.make("gpt2"))
    with torch.no_grad():
        next(iter(broken.module.transformer.h[1].parameters())).fill_(torch.nan)
    with pytest.raises(NotFiniteError):
        Harvest.of(broken, rows, ["resid_post.1"]).one(0)


def random_basis(site: str, width: int, name: str, seed: int = 0) -> LinearBasis:
    generator = torch.Generator().manual_seed(seed)
    return LinearBasis(as_site(site), torch.randn(5, width, generator=generator), name=name)


def test_units_are_the_codes_of_the_values_and_their_slopes(tmp_path: Path) -> None:
    model, rows = families.model("llama"), corpus_rows("documents", begin=2)
    bases = [neurons.Neurons("mlp_post.1", 48), random_basis("resid_post.0", 32, "random")]
    stores = harvest_units(model, rows, bases, tmp_path, gradients=True, together=3)
    sites = ["mlp_post.1", "resid_post.0", "grad:mlp_post.1", "grad:resid_post.0"]
    passes = list(Harvest.of(model, rows, sites, together=3).passes())
    with Registry.open(tmp_path / "registry.sqlite") as registry:
        assert [basis["name"] for basis in registry.bases()] == ["neurons", "random"]
        known = registry.units("random")
    for unit, row in enumerate(known):
        values = stores["random"].entries(unit).value
        assert (row["density"], row["largest"]) == (1.0, values[0])
        assert row["mean"] == pytest.approx(values.mean(dtype=np.float64))
    for basis in bases:
        (site,) = basis.reads
        values, slopes = (torch.cat([one.values[s] for one in passes]) for s in (site, site.grad))
        codes, store = basis.encode(values), stores[basis.name]
        assert store.manifest.seen == sum(LENGTHS)
        for unit in range(basis.n_units):
            got = store.entries(unit)
            assert len(got) == int((codes[:, unit] != 0).sum())
            want = codes[:, unit].numpy()[got.token]
            assert np.allclose(got.value, want, rtol=2.0**-11, atol=2.0**-24)
            slope = (slopes @ basis.direction(unit)).numpy()[got.token]
            assert np.allclose(got.gradient, slope, rtol=2.0**-7, atol=1e-6)
            assert np.allclose(got.attribution, slope * want, rtol=2.0**-6, atol=1e-5)


def test_bases_of_one_folder_share_its_corpus_and_refuse_others(tmp_path: Path) -> None:
    model, rows = families.model("gpt2"), corpus_rows()
    one, two = random_basis("embed", 32, "one"), random_basis("resid_post.0", 32, "second")
    harvest_units(model, rows, [one], tmp_path)
    stores = harvest_units(model, rows, [one, two], tmp_path)  # one is sealed already
    assert stores["second"].document(1).unit.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(StoreError, match=r"basis\.hash is"):
        harvest_units(model, rows, [random_basis("embed", 32, "one", seed=1)], tmp_path)
    with pytest.raises(StoreError, match="holds another corpus"):
        harvest_units(model, CorpusRows(Corpus.of([[1, 2]], families.VOCABULARY), 2), [one], tmp_path)
    with pytest.raises(StoreError, match="model_hash is"):
        harvest_units(families.model("gpt_neo"), rows, [one], tmp_path)
    for bases in ([], [one, one]):
        with pytest.raises(InputError, match="a name of its own"):
            harvest_units(model, rows, bases, tmp_path)
    backwards = replace(rows, order=np.arange(len(rows))[::-1].copy())
    with pytest.raises(InputError, match="harvest rows in order"):
        harvest_units(model, backwards, [one], tmp_path / "backwards", together=2)


def test_a_basis_is_known_by_its_numbers() -> None:
    one = random_basis("embed", 32, "one")
    assert basis_identity(one) == basis_identity(random_basis("embed", 32, "one"))
    assert basis_identity(one) != basis_identity(random_basis("embed", 32, "other"))
    before = basis_identity(one)
    one.encode_sparsely(torch.randn(2, 32))
    one.directions()
    assert basis_identity(one) == before
    with torch.no_grad():
        one.direction(0)[0] += 1
    assert basis_identity(one) != before
