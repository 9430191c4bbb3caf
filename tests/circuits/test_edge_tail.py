"""Passes entered where the cuts begin, against plain passes: bit for bit, and honest where they cannot be."""

import pytest
import torch
from tests.circuits.test_edge_run import DECODERS, Difference, setting
from tests.models import families
from torch import Tensor

from microtome.circuits.edge_cut import AblationKind
from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_run import EdgeRun
from microtome.circuits.edge_tail import EdgeTail
from microtome.core.errors import NotFiniteError
from microtome.core.logits import LogitSelection
from microtome.models.reentry import BasePass, CannotReenterError

# One for each way of calling blocks: caches, masks, rotations, parallel blocks, norms behind, experts, no MLP.
DOORS = ("gpt2", "gptj", "llama", "mistral", "gemma2", "bloom", "mixtral", "microtome_attention_only")


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


class FirstAndLast(Difference):
    """Reads a position that no cut changes, and all tokens."""

    needs = LogitSelection((0, -1))

    def __call__(self, logits: Tensor) -> Tensor:
        return logits[:, 0, 2].float() + logits[:, -1].float().logsumexp(dim=-1)


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "resample") for name in DOORS), ("gpt2", "mean"), ("llama", "zero")]
)
def test_together_each_is_its_plain_pass_to_rounding(
    name: str, kind: AblationKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, graph, batch, corrupt = setting(name)
    batch = EdgeRun(model, graph, batch.tokens, FirstAndLast())
    first = 3
    corrupt = torch.cat([batch.tokens[:, :first], corrupt[:, first:]], dim=1)
    ablation = batch.ablation(kind, corrupt)
    wanted = torch.stack([batch.score(cut, ablation) for cut in cuts(graph)])
    ran: list[tuple[int, int]] = []
    block = BasePass.block

    def watched(self: BasePass, layer: int, stream: Tensor, *rest: object) -> Tensor:
        ran.append((len(stream), stream.shape[1]))
        return block(self, layer, stream, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(BasePass, "block", watched)
    tail = EdgeTail(batch, ablation, together=True)
    assert tail.reason == ""
    ran.clear()
    found = tail.scores(cuts(graph))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    # A mean carries something else at every position, another prompt from its first other token on.
    # The blocks of Microtome's own transformer take no keys and values of before.
    leaves = kind == "resample" and not name.startswith("microtome")
    columns = batch.tokens.shape[1] - (first if leaves else 0)
    assert ran == [(len(wanted) * len(batch.tokens), columns)] * model.n_layers


def test_as_many_climb_together_as_fit_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    _, graph, batch, corrupt = setting("llama")
    ablation = batch.ablation("resample", corrupt)
    wanted = torch.stack([batch.score(cut, ablation) for cut in cuts(graph)])
    counts = []
    for bytes_ in (1, 1 << 18, 1 << 30):
        monkeypatch.setattr("microtome.circuits.edge_tail._LANE_BYTES", {"cpu": bytes_})
        tail = EdgeTail(batch, ablation, together=True)
        counts.append(tail._lanes())
        torch.testing.assert_close(tail.scores(cuts(graph)), wanted, rtol=1e-5, atol=1e-5)
    assert counts[0] == 1 < counts[1] < len(wanted) < counts[2]


def test_edges_by_position_climb_together() -> None:
    model, _, batch, corrupt = setting("gpt2")
    graph = EdgeGraph.of(model, positions=batch.tokens.shape[1])
    batch = EdgeRun(model, graph, batch.tokens, Difference())
    corrupt = torch.cat([batch.tokens[:, :4], corrupt[:, 4:]], dim=1)
    ablation = batch.ablation("resample", corrupt)
    drawn = torch.rand(3, *graph.allowed.shape, generator=torch.Generator().manual_seed(0))
    some = list(((drawn < 0.3) & graph.allowed).float())
    wanted = torch.stack([batch.score(cut, ablation) for cut in some])
    found = EdgeTail(batch, ablation, together=True).scores(some)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


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
    for one in (tail, EdgeTail(batch, ablation, together=True)):
        assert said[wrong] in one.reason
        for cut in cuts(graph)[:2]:
            assert torch.equal(one.score(cut), batch.score(cut, ablation))


def test_where_a_block_cannot_be_cut_to_columns_all_of_them_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    _, graph, batch, corrupt = setting("gpt2")
    ablation = batch.ablation("resample", torch.cat([batch.tokens[:, :2], corrupt[:, 2:]], dim=1))
    block = BasePass.block

    def whole_only(self: BasePass, layer: int, stream: Tensor, rows: list[int], start: int) -> Tensor:
        if start:
            raise CannotReenterError("no key/value cache")
        return block(self, layer, stream, rows, start)

    monkeypatch.setattr(BasePass, "block", whole_only)
    tail = EdgeTail(batch, ablation, together=True)
    assert tail.reason == ""
    wanted = torch.stack([batch.score(cut, ablation) for cut in cuts(graph)])
    torch.testing.assert_close(tail.scores(cuts(graph)), wanted, rtol=1e-5, atol=1e-5)


def test_what_is_not_finite_is_refused() -> None:
    _, graph, batch, corrupt = setting("gpt2")
    ablation = batch.ablation("zero", corrupt)
    ablation.writes.fill_(float("nan"))
    with pytest.raises(NotFiniteError):
        EdgeTail(batch, ablation).score(graph.mask([("embed", "z.1.h0", "q")]).float())
