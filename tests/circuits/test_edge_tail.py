"""Passes entered where the cuts begin, against plain passes: bit for bit, and honest where they cannot be."""

import pytest
import torch
from tests.circuits.test_edge_run import DECODERS, Difference, setting
from tests.models import families
from torch import Tensor

from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_run import EdgeRun
from microtome.circuits.edge_tail import EdgeTail
from microtome.core.errors import NotFiniteError
from microtome.models.reentry import BasePass, CannotReenterError


def cuts(graph: EdgeGraph) -> list[Tensor]:
    """Random cuts from some receiver on, one of the logits alone, none, and all."""
    found = []
    count = len(graph.receivers)
    for seed, first in enumerate((0, count // 3, 2 * count // 3, count - 1, count)):
        drawn = torch.rand(graph.allowed.shape, generator=torch.Generator().manual_seed(seed))
        cut = ((drawn < 0.4) & graph.allowed).float()
        cut[:first] = 0
        found.append(cut)
    return [*found, graph.allowed.float()]


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("kind", ["resample", "zero"])
def test_it_is_the_plain_pass_bit_for_bit(name: str, kind: str) -> None:
    _, graph, batch, corrupt = setting(name)
    ablation = batch.ablation(kind, corrupt)
    tail = EdgeTail(batch, ablation)
    assert tail.reason == ""
    for cut in cuts(graph):
        assert torch.equal(tail.score(cut), batch.score(cut, ablation))


def test_positions_as_a_source_and_padding() -> None:
    model = families.model("gpt2")
    graph = EdgeGraph.of(model, split_positions=True)
    tokens, corrupt = families.ids(seed=0), families.ids(seed=1)
    for left in (True, False):
        mask = torch.ones_like(tokens)
        mask[1, :3] = 0
        mask = mask if left else mask.flip(1)
        batch = EdgeRun(model, graph, tokens, Difference(), mask)
        ablation = batch.ablation("resample", corrupt)
        tail = EdgeTail(batch, ablation)
        for cut in cuts(graph):
            torch.testing.assert_close(tail.score(cut), batch.score(cut, ablation), rtol=0, atol=1e-6)


def test_only_blocks_from_the_first_cut_on_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model, graph, batch, corrupt = setting("llama")
    tail = EdgeTail(batch, batch.ablation("resample", corrupt))
    ran: list[int] = []
    block = BasePass.block

    def watched(self: BasePass, layer: int, *rest: object) -> Tensor:
        ran.append(layer)
        return block(self, layer, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(BasePass, "block", watched)
    tail.score(graph.mask([("embed", "z.2.h0", "q")]).float())
    assert ran == [2]
    ran.clear()
    tail.score(graph.mask([("embed", "logits", "logits")]).float())
    assert ran == []
    tail.score(graph.mask([("embed", "mlp_out.1", "mlp")]).float())
    assert ran == list(range(1, model.n_layers))


@pytest.mark.parametrize("wrong", ["refused", "failing", "different"])
def test_where_blocks_cannot_be_called_it_takes_plain_passes_and_says_why(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: BasePass, layer: int, stream: Tensor, *rest: object) -> Tensor:
        if wrong == "different":
            return stream
        raise CannotReenterError("no way in") if wrong == "refused" else TypeError("an argument is missing")

    monkeypatch.setattr(BasePass, "block", broken)
    _, graph, batch, corrupt = setting("gpt2")
    ablation = batch.ablation("resample", corrupt)
    tail = EdgeTail(batch, ablation)
    said = {"refused": "no way in", "failing": "an argument is missing", "different": "differs from the base"}
    assert said[wrong] in tail.reason
    for cut in cuts(graph)[:2]:
        assert torch.equal(tail.score(cut), batch.score(cut, ablation))


def test_what_is_not_finite_is_refused() -> None:
    _, graph, batch, corrupt = setting("gpt2")
    ablation = batch.ablation("zero", corrupt)
    ablation.writes.fill_(float("nan"))
    with pytest.raises(NotFiniteError):
        EdgeTail(batch, ablation).score(graph.mask([("embed", "z.1.h0", "q")]).float())
