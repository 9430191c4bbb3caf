"""The singular vectors of a weight are the weight, in place."""

import pytest
import torch
from tests.bases.test_splice import logits, near
from tests.models import families

from microtome.bases import unit_edits
from microtome.bases.splice import splice
from microtome.bases.weight_singular_vectors import of_weight
from microtome.core.errors import FamilyError, InputError, SiteError


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama_biased", "gpt_neox"])
def test_all_of_them_are_the_matrix_and_few_the_best_of_their_rank(name: str) -> None:
    model, tokens = families.model(name), families.ids()
    gated = name.startswith("llama")
    plain = logits(model, [])
    for weight in ("W_Q.1", "W_K.1", "W_V.1", "W_O.1", "W_out.1", "W_gate.1" if gated else "W_in.1"):
        basis = of_weight(model, weight)
        run = model.run(tokens, read=[*basis.reads, *basis.writes])
        written = run[basis.writes[0]].flatten(2)
        torch.testing.assert_close(
            basis.reconstruct(basis.rows_of(run.values)), written, atol=2e-5, rtol=1e-4
        )
        assert near(logits(model, splice(basis, "drop")), plain)
        cut = of_weight(model, weight, units=3)
        assert cut.n_units == 3
        matrix = (basis.readers.mT * basis.values) @ basis.writers
        few = (cut.readers.mT * cut.values) @ cut.writers
        rest = float((matrix - few).square().sum())
        assert rest == pytest.approx(float(basis.values[3:].square().sum()), rel=1e-4)
    assert not near(logits(model, splice(basis, change=unit_edits.zero(0))), plain)


def test_what_is_no_matrix_between_two_sites_is_refused() -> None:
    with pytest.raises(InputError, match="between no two sites"):
        of_weight(families.model("gpt2"), "W_U")
    with pytest.raises(InputError, match="multiplied by a gate"):
        of_weight(families.model("llama"), "W_in.0")
    with pytest.raises(FamilyError, match="a norm stands between"):
        of_weight(families.model("gemma2"), "W_out.0")
    with pytest.raises(InputError, match="33 were asked for"):
        of_weight(families.model("gpt2"), "W_out.0", units=33)
    with pytest.raises(SiteError):
        of_weight(families.model("gpt2"), "W_out.7")
