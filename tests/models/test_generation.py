"""Generation with edits over the key/value cache equals running the whole growing text again for each token."""

from collections.abc import Sequence

import pytest
import torch
from tests.models import families
from torch import Tensor

from microtome.core.edits import Add, Edit, Function, Noise, Scale, Set, Zero
from microtome.core.errors import EditError, InputError, NotFiniteError, SiteError
from microtome.models.generation import generate
from microtome.models.model import Model

NEW = 6


def without_cache(model: Model, ids: Tensor, edits: Sequence[Edit], mask: Tensor | None = None) -> Tensor:
    """The slow answer: everything again for each token, edits of positions that do not exist yet left out."""
    for _ in range(NEW):
        lengths = [ids.shape[1]] * len(ids) if mask is None else mask.sum(dim=1).tolist()
        held = [e for e in edits if e.site.positions is None or max(e.site.positions) < min(lengths)]
        logits = model.run(ids, edit=held, mask=mask).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        mask = None if mask is None else torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return ids


def edits_of(model: Model) -> dict[str, list[Edit]]:
    """Edits of every kind of site, everywhere and at positions of the prompt and of what is generated."""
    d_model, d_head = model.sizes["d_model"], model.sizes["d_head"]
    vector = torch.randn(d_model, generator=torch.Generator().manual_seed(1))
    found: dict[str, list[Edit]] = {
        "stream everywhere": [Add("resid_post.0", vector=2 * vector)],
        "stream at a prompt position": [Add("resid_post.1@3", vector=4 * vector)],
        "stream at a generated position": [Add("resid_post.0@10", vector=6 * vector)],
        "heads": [Zero("z.1.h0,2"), Scale("result.0.h1", factor=3.0)],
        "queries, keys, values": [
            Scale("q.0", factor=2.0),
            Scale("k.1", factor=-1.0),
            Set("v.2@2", value=torch.ones(d_head)),
        ],
        "pattern": [Function("pattern.1", function=lambda p: p * p), Scale("scores.0.h1", factor=0.5)],
        "pattern at a generated position": [Zero("pattern.0.h0@11")],
        "a row": [Add("resid_pre.1", rows=(1,), vector=3 * vector)],
        "logits": [Add("logits", vector=torch.linspace(0, 4, families.VOCABULARY))],
    }
    if model.has("mlp_post.0"):
        found["neurons"] = [Scale("mlp_post.0.u0,5,7", factor=20.0), Zero("mlp_out.2@9")]
    return found


@pytest.mark.parametrize("name", families.DECODERS)
def test_edits_over_the_cache_equal_running_everything_again(name: str) -> None:
    model = families.model(name)
    ids = families.ids()
    plain = without_cache(model, ids, [])
    assert torch.equal(model.generate(ids, NEW), plain)
    changed = 0
    for kind, edits in edits_of(model).items():
        found = model.generate(ids, NEW, edits)
        assert torch.equal(found, without_cache(model, ids, edits)), kind
        changed += not torch.equal(found, plain)
    assert changed >= 4


@pytest.mark.parametrize("name", families.DECODERS)
def test_without_edits_it_is_the_models_own_greedy_generation(name: str) -> None:
    module = families.make(name)
    module.generation_config.eos_token_id = None
    model = families.load(module)
    ids = families.ids()
    own = module.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0
    )
    assert torch.equal(model.generate(ids, NEW), own)
    assert torch.equal(generate(model, ids, NEW), own)


@pytest.mark.parametrize("name", families.FEW)
def test_padded_prompts_continue_as_they_would_alone(name: str) -> None:
    model = families.model(name)
    ids = families.ids()
    short = ids[1:, 3:]
    edits = [Zero("z.1.h0"), Scale("resid_post.0@2", factor=3.0), Zero("pattern.0.h1@7")]
    alone = model.generate(short, NEW, edits)[:, short.shape[1] :]
    full = model.generate(ids[:1], NEW, edits)[:, ids.shape[1] :]
    for side in ("left", "right"):
        padded, mask = ids.clone(), torch.ones_like(ids)
        padded[1] = 0
        columns = slice(3, None) if side == "left" else slice(0, -3)
        padded[1, columns] = short[0]
        mask[1] = 0
        mask[1, columns] = 1
        found = model.generate(padded, NEW, edits, mask=mask)[:, ids.shape[1] :]
        assert torch.equal(found[:1], full)
        assert torch.equal(found[1:], alone), side


def test_sampling_is_fixed_by_the_seed() -> None:
    model = families.model("gpt2")
    ids = families.ids()
    one = model.generate(ids, 20, temperature=1.0, seed=3)
    assert torch.equal(one, model.generate(ids, 20, temperature=1.0, seed=3))
    assert not torch.equal(one, model.generate(ids, 20, temperature=1.0, seed=4))
    assert torch.equal(model.generate(ids, 5, temperature=1e-4), model.generate(ids, 5))


def test_sampling_follows_the_models_probabilities() -> None:
    model = families.model("gpt2")
    ids = families.ids(1).expand(4000, -1)
    chances = model.run(ids[:1]).logits[0, -1].softmax(-1)
    drawn = model.generate(ids, 1, temperature=1.0)[:, -1].bincount(minlength=families.VOCABULARY) / 4000
    assert float((drawn - chances).abs().max()) < 4 * (0.25 / 4000) ** 0.5


@pytest.mark.parametrize("name", families.FEW)
def test_the_module_is_as_it_was(name: str) -> None:
    module = families.make(name)
    unchanged = families.snapshot(module)
    before = families.untouched(module, families.ids())
    model = families.load(module)
    model.generate(families.ids(), NEW, [Zero("z.0"), Zero("pattern.1.h0")])
    with pytest.raises(NotFiniteError):
        model.generate(families.ids(), NEW, [Scale("resid_post.1@10", factor=float("nan"))])
    unchanged()
    assert torch.equal(families.untouched(module, families.ids()), before)


def test_what_cannot_be_continued_or_edited_is_refused() -> None:
    model = families.model("gpt2")
    ids = families.ids()
    with pytest.raises(EditError, match="from the end"):
        model.generate(ids, NEW, [Zero("z.0@-1")])
    with pytest.raises(EditError, match="last position"):
        model.generate(ids, NEW, [Zero(f"z.0@{families.COLUMNS + NEW - 1}")])
    with pytest.raises(EditError, match="noise"):
        model.generate(ids, NEW, [Noise("embed")])
    with pytest.raises(SiteError, match="layer 9"):
        model.generate(ids, NEW, [Zero("z.9")])
    with pytest.raises(InputError, match="positions"):
        model.generate(ids, 30)
    with pytest.raises(InputError, match="at least 0"):
        model.generate(ids, -1)
    for name in ("bert", "t5"):
        with pytest.raises(InputError, match="does not continue texts"):
            families.model(name).generate(families.inputs(name), NEW)
    assert torch.equal(model.generate(ids, 0), ids)


def test_noise_at_a_position_is_that_of_a_plain_pass() -> None:
    model = families.model("llama")
    edits = [Noise("embed@2", scale=3.0), Noise("resid_post.1@10", scale=3.0, seed=1)]
    assert torch.equal(
        model.generate(families.ids(), NEW, edits), without_cache(model, families.ids(), edits)
    )
