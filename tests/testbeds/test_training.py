import pytest
import torch
from torch import Tensor, nn

from microtome.core.draws import generator
from microtome.core.errors import NotFiniteError
from microtome.testbeds.training import Training, seeded, tiny_as_zero, train

TARGET = torch.tensor([[1.0, -2.0, 0.5]])


def batch(step: int) -> Tensor:
    return torch.randn(16, 3, generator=generator(5, step))


def loss(module: nn.Module, x: Tensor) -> Tensor:
    return (module(x) - x @ TARGET.T).square().mean()


def learner(seed: int = 0) -> nn.Linear:
    with seeded(seed):
        return nn.Linear(3, 1)


def run(steps: int = 200, **options: object) -> tuple[nn.Linear, Training]:
    module = learner()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    return module, train(module, optimizer, batch, loss, steps, **options)


def test_it_learns_and_leaves_the_module_ready_for_use() -> None:
    module, log = run()
    assert log.steps == 200
    assert log.losses[-1] < 1e-3 < log.losses[0]
    assert not module.training
    assert torch.allclose(module.weight, TARGET, atol=0.02)


def test_a_training_is_replayed_bit_for_bit() -> None:
    torch.manual_seed(1)
    _, one = run(60, keep=(0, 7, 20))
    torch.manual_seed(2)
    torch.rand(5)
    _, two = run(60, keep=(0, 7, 20))
    assert one.losses == two.losses
    assert list(one.checkpoints) == [0, 7, 20, 60]
    for step, state in one.checkpoints.items():
        assert all(torch.equal(state[name], two.checkpoints[step][name]) for name in state)


def test_a_checkpoint_is_the_training_that_ended_there() -> None:
    _, whole = run(60, keep=(20,))
    module, _ = run(20)
    assert torch.equal(whole.checkpoints[20]["weight"], module.weight)


def test_it_ends_when_done_and_says_so() -> None:
    asked: list[bool] = []

    def done(module: nn.Module) -> bool:
        asked.append(module.training or torch.is_grad_enabled())
        return len(asked) == 3

    module, log = run(done=done, check_every=10)
    assert log.reached
    assert log.steps == 30
    assert asked == [False] * 3
    assert torch.equal(log.checkpoints[30]["weight"], module.weight)
    assert not run(20, done=lambda _: False, check_every=10)[1].reached


def test_the_rate_scales_every_step_and_is_put_back() -> None:
    module = learner()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    before = module.weight.clone()
    train(module, optimizer, batch, loss, 5, rate=lambda step: 0.0)
    assert torch.equal(module.weight, before)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_loss_that_is_not_finite_stops_the_training_before_it_spoils_the_weights() -> None:
    module = learner()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)

    def broken(inner: nn.Module, x: Tensor) -> Tensor:
        return loss(inner, x) if len(seen) < 4 else loss(inner, x) * float("nan")

    seen: list[int] = []

    def counted(step: int) -> Tensor:
        seen.append(step)
        return batch(step)

    with pytest.raises(NotFiniteError, match="nan at step 3"):
        train(module, optimizer, counted, broken, 10)
    assert all(bool(p.isfinite().all()) for p in module.parameters())


def test_the_global_random_numbers_go_on_as_if_nothing_had_been() -> None:
    torch.manual_seed(3)
    torch.rand(2)
    expected = torch.rand(2)
    torch.manual_seed(3)
    torch.rand(2)
    learner(9)
    run(3)
    assert torch.equal(torch.rand(2), expected)


def test_tiny_numbers_are_zero_inside_and_whole_again_outside() -> None:
    tiny = torch.tensor([1e-40])
    with tiny_as_zero():
        inside = float(tiny * 1.0)
    assert inside == 0.0
    assert float(tiny * 1.0) > 0.0
