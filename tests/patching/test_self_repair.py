"""Who makes up for whom: a planted backup and its control, the sum of the parts on every family, held and joint."""

import numpy as np
import pytest
from tests.circuits.planted import pairs_of, random_pairs
from tests.models import families

from microtome.core.edits import Set, Zero
from microtome.core.errors import FamilyError, InputError
from microtome.core.result import Result
from microtome.core.site import Site
from microtome.data import metrics
from microtome.models.components import components
from microtome.models.model import Model
from microtome.models.random_twin import random_twin
from microtome.patching import self_repair
from microtome.patching.direct_effects import DirectEffects
from microtome.patching.self_repair import Config
from microtome.testbeds.case import Case
from microtome.testbeds.hand_set import testbed
from microtome.testbeds.hand_set.backup_heads import BACKUP, LOUD, MAIN


def of(case: Case, kind: str = "resample") -> self_repair.Result:
    assert case.pairs is not None
    return self_repair.run(case.model, case.pairs, Config.read({"kind": kind}))


@pytest.mark.parametrize("kind", ["resample", "mean", "zero"])
def test_the_backup_is_found_and_makes_up_for_what_is_known(kind: str) -> None:
    found = of(testbed.build("backup"), kind)
    backups = found.backups()
    assert set(backups) == {(MAIN, BACKUP)}
    # It says the token as loud as the main head did, whatever stands in that one's place.
    assert backups[MAIN, BACKUP] == pytest.approx(LOUD, rel=1e-3)
    own = {"resample": -2 * LOUD, "zero": -LOUD}
    if kind in own:
        at = found.data["compensation"].sel(ablated=MAIN, component=MAIN)
        assert float(at) == pytest.approx(own[kind], rel=1e-3)
        assert found.repaired(MAIN) == pytest.approx(-LOUD / own[kind], rel=1e-3)


def test_importance_without_compensation_is_what_was_hidden() -> None:
    """Zeroed, the main head seems to do nothing: its backup says the same. With that held or gone, it does all."""
    found = of(testbed.build("backup"), "zero")
    at = found.data["importance"].sel(ablated=MAIN)
    gap = found.data.attrs["gap"]
    assert float(at.sel(which="naive")) == pytest.approx(0, abs=1e-3)
    for which in ("backups held", "all held", "joint"):
        assert float(at.sel(which=which)) == pytest.approx(LOUD / gap, rel=1e-3)


def test_the_backup_is_triggered_through_its_queries() -> None:
    found = of(testbed.build("backup"))
    trigger = found.data["trigger"].sel(backup=f"{MAIN} -> {BACKUP}")
    np.testing.assert_allclose(trigger.values, [1, 0, 0], atol=1e-3)


def test_without_a_backup_none_is_found() -> None:
    found = of(testbed.build("no_backup"))
    assert not found.backups()
    importance = found.data["importance"].sel(ablated=MAIN).values
    np.testing.assert_allclose(importance, importance[0], atol=1e-4)
    case = testbed.build("backup")
    assert case.pairs is not None
    twin = random_twin(case.model, how="drawn")
    alike = self_repair.run(twin, case.pairs).data
    assert abs(alike["compensation"].sel(ablated=MAIN, component=BACKUP)) < 0.1 * LOUD


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj", "gemma2", "olmo2", "microtome_attention_only"])
@pytest.mark.parametrize("kind", ["resample", "zero"])
def test_own_others_norm_rest_and_cap_are_the_whole_change(name: str, kind: str) -> None:
    """Against two plain passes; and each component's part against what it writes in them."""
    model, pairs = families.model(name), random_pairs(2)
    effects = DirectEffects(model, pairs)
    site = Site("z", 0, heads=(1,))
    there = model.run(pairs.corrupt, [site])[site]
    edit = Set(site, value=there) if kind == "resample" else Zero(site)
    change = effects.after([edit])
    metric = metrics.build(metrics.DEFAULT, pairs)
    plain, edited = (model.run(pairs.clean, edit=edits, metric=metric).metric for edits in ([], [edit]))
    assert plain is not None
    assert edited is not None
    np.testing.assert_allclose(change.total, (edited - plain).detach().numpy(), atol=1e-5)
    parts = change.components.sum(0) + change.rest + change.scale + change.cap
    np.testing.assert_allclose(parts, change.total, atol=1e-9)
    # Without a soft cap nothing bends, and without norms behind the parts nothing else writes.
    size = np.abs(change.components).max() + np.abs(change.scale).max()
    if name != "gemma2":
        assert np.abs(change.cap).max() < 1e-4 * max(1.0, size)
    if name not in ("gemma2", "olmo2"):
        assert np.abs(change.rest).max() < 1e-4 * max(1.0, size)
    if name == "microtome_attention_only":
        assert np.abs(change.scale).max() < 1e-4 or _has_norm(model)


def _has_norm(model: Model) -> bool:
    return model.anatomy.role("final_norm") is not None


@pytest.mark.parametrize("name", ["gpt2", "gptj"])
def test_nothing_before_a_part_or_beside_it_compensates(name: str) -> None:
    model, pairs = families.model(name), random_pairs(2)
    found = self_repair.run(model, pairs).data["compensation"]
    sites = components(model)
    for i, one in enumerate(sites):
        for j, other in enumerate(sites):
            assert one.layer is not None
            assert other.layer is not None
            earlier = other.layer < one.layer or (one.layer == other.layer and (name == "gptj" or j < i))
            if earlier and i != j:
                assert abs(float(found[i, j])) < 1e-5


def test_it_comes_back_equal(tmp_path: object) -> None:
    found = of(testbed.build("backup"))
    again = Result.load(found.save(str(tmp_path) + "/r"))
    assert again == found
    assert isinstance(again, self_repair.Result)
    assert again.backups() == found.backups()
    assert len(found.shapes()) == 3
    assert "head 1.0" in str(found.shapes()[1])


def test_bad_input() -> None:
    model, pairs = families.model("gpt2"), random_pairs(2)
    with pytest.raises(InputError, match="no behaviour to take apart"):
        self_repair.run(model, pairs_of(pairs.clean, pairs.clean, [3] * 2, [5] * 2))
    with pytest.raises(FamilyError):
        self_repair.run(families.model("opt_post_norm"), pairs)
