"""The hidden state has an address at every time, and what is put there is what the network goes on from."""

import pytest
import torch

from microtome.core.draws import generator
from microtome.core.edits import Add, Set
from microtome.core.errors import InputError
from microtome.data.metrics import build as metric
from microtome.testbeds.algorithmic.automata import machine, states
from microtome.testbeds.case import Case
from microtome.testbeds.others import recurrent
from microtome.testbeds.others.recurrent import LONG, MIDDLE


@pytest.fixture(scope="module", params=recurrent.cases())
def built(request: pytest.FixtureRequest) -> Case:
    return recurrent.build(request.param)


def test_labels_are_the_states_of_the_machine(built: Case) -> None:
    table = machine(built.name.partition("/")[2])
    assert torch.equal(built.truth.labels["state"], states(table, built.tokens))


def test_the_loop_is_a_gated_recurrent_unit(built: Case) -> None:
    module = built.model.module
    whole = torch.nn.GRU(recurrent.UNITS, recurrent.UNITS, batch_first=True)
    whole.load_state_dict(
        {f"{key}_l0": weight for key, weight in module.get_submodule("cell").state_dict().items()}
    )
    held, _ = whole(module.get_submodule("embed")(built.tokens))
    wanted = [f"path:states.{time}" for time in (0, 9, LONG - 1)]
    run = built.model.run(built.tokens, read=wanted)
    for time, site in zip((0, 9, LONG - 1), wanted, strict=True):
        assert torch.allclose(run[site], held[:, time], atol=1e-5)


def test_what_is_put_at_a_time_changes_what_follows_and_nothing_before(built: Case) -> None:
    """Patching the whole hidden state from another word is reading that word up to there."""
    one, two = built.tokens[:64], built.tokens[64:128]
    held = built.model.run(two, read=[MIDDLE])[MIDDLE]
    time = LONG // 2
    patched = built.model.run(one, edit=[Set(MIDDLE, value=held, origin="patch")]).logits
    spliced = built.model.run(torch.cat([two[:, : time + 1], one[:, time + 1 :]], 1)).logits
    plain = built.model.run(one).logits
    assert patched is not None
    assert spliced is not None
    assert plain is not None
    assert torch.equal(patched[:, :time], plain[:, :time])
    assert torch.allclose(patched[:, time:], spliced[:, time:], atol=1e-5)


def test_the_directions_steer_and_others_of_the_same_length_do_not(built: Case) -> None:
    case = built.name.partition("/")[2]
    symbols = built.tokens
    expected, said = recurrent.exchanged(case, built.model, 0, symbols)
    assert not torch.equal(expected, built.truth.labels["state"])
    follows = (said.argmax(-1) == expected).all(-1).float().mean()
    assert follows >= 0.95
    truth = built.truth.labels["state"][:, LONG // 2]
    mean = built.truth.variables[0].directions
    count = len(mean)
    other = (truth + torch.randint(1, count, truth.shape, generator=generator(0, -4))) % count
    shift = mean[other] - mean[truth]
    wild = shift[:, torch.randperm(shift.shape[1], generator=generator(0))]
    logits = built.model.run(symbols, edit=[Add(MIDDLE, vector=wild)]).logits
    assert logits is not None
    assert (logits.argmax(-1) == expected).all(-1).float().mean() < 0.6


def test_pairs_tell_right_from_wrong(built: Case) -> None:
    assert built.pairs is not None
    assert len(built.pairs) >= 32
    difference = metric("logit-difference", built.pairs)
    for tokens, sign in ((built.pairs.clean, 1), (built.pairs.corrupt, -1)):
        found = built.model.run(tokens, metric=difference).metric
        assert found is not None
        assert (found * sign > 0).float().mean() >= 0.95


def test_words_that_are_too_long_are_refused(built: Case) -> None:
    with pytest.raises(InputError, match="at most 48 symbols"):
        built.model.run(torch.zeros(1, LONG + 1, dtype=torch.long))
