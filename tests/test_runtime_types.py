"""What the run-time checks of this suite catch: a check that never fails would let every test below it pass."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from runtime_types import install

_SOURCE = """
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from nowhere import Stranger


def plain(x: int, *, y: str = "") -> int:
    return x if not y else y


def halves(x: float) -> float:
    return x / 2


def summed(a: Float[Tensor, "row d"], b: Float[Tensor, "row d"]) -> Float[Tensor, "row"]:
    return (a + b).sum(1) if a.shape[0] > 1 else a


def within(a: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
    return summed(a[:, :2], a[:, 2:])[:, None].expand(a.shape)


def wide(width: int, x: Float[Tensor, "row {width}"]) -> None: ...


def counted(n: int) -> "Iterator[int]":
    yield from range(n)


def strange(x: "Stranger", y: int) -> None: ...


def outer(k: int):
    def inner(x: int) -> int:
        return x + k

    return inner


def typed(kind: type):
    def inner(x: kind) -> None: ...

    return inner


@dataclass(frozen=True)
class Pair:
    left: int
    right: Float[Tensor, "d"]

    @property
    def wrong(self) -> str:
        return self.left

    @classmethod
    def of(cls, left: int) -> "Pair":
        return cls(left, None)

    def other(self, pair: "Pair") -> "Pair":
        return pair

    @staticmethod
    def text(x: str) -> str:
        return x
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    folder = tmp_path_factory.mktemp("checked")
    (folder / "checked_example.py").write_text("from collections.abc import Iterator\n" + _SOURCE)
    sys.path.insert(0, str(folder))
    before = list(sys.meta_path)
    try:
        install("checked_example")
        yield importlib.import_module("checked_example")
    finally:
        sys.meta_path[:] = before
        sys.path.remove(str(folder))
        sys.modules.pop("checked_example", None)


def test_what_fits_passes(module: ModuleType) -> None:
    a = torch.ones(3, 4)
    assert module.plain(2) == 2
    assert module.halves(3) == 1.5
    assert module.summed(a, a).tolist() == [8.0] * 3
    assert module.within(a).shape == (3, 4)
    assert module.wide(4, a) is None
    assert list(module.counted(2)) == [0, 1]
    assert module.strange(object(), 1) is None
    pair = module.Pair(1, torch.ones(2))
    assert pair.other(pair) is pair
    assert module.Pair.text("a") == "a"


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.plain("2"),
        lambda m: m.plain(1, y=2),
        lambda m: m.plain(1, y="returned"),
        lambda m: m.halves("3"),
        lambda m: m.summed(torch.ones(3, 4), torch.ones(3, 5)),
        lambda m: m.summed(torch.ones(3, 4), torch.ones(3, 4, dtype=torch.int64)),
        lambda m: m.summed(torch.ones(1, 4), torch.ones(1, 4)),
        lambda m: m.summed(torch.ones(3, 4), None),
        lambda m: m.wide(5, torch.ones(3, 4)),
        lambda m: m.counted("2"),
        lambda m: m.strange(object(), "1"),
        lambda m: m.outer(1)("2"),
        lambda m: m.Pair("1", torch.ones(2)),
        lambda m: m.Pair(1, torch.ones(2, 2)),
        lambda m: m.Pair(1, torch.ones(2)).wrong,
        lambda m: m.Pair.of(1),
        lambda m: m.Pair(1, torch.ones(2)).other(3),
        lambda m: m.Pair.text(1),
    ],
)
def test_what_does_not_fit_is_refused(module: ModuleType, call: Callable[[ModuleType], object]) -> None:
    with pytest.raises(TypeError):
        call(module)


def test_each_call_of_an_outer_function_has_its_own_inner_one(module: ModuleType) -> None:
    first, second = module.outer(1), module.outer(2)
    assert [first(1), second(1), first(1)] == [2, 3, 2]
    with pytest.raises(TypeError):
        second("1")
    whole, text = module.typed(int), module.typed(str)
    whole(1)
    text("1")
    with pytest.raises(TypeError):
        text(1)


def test_the_package_itself_is_checked() -> None:
    from microtome.core.site import Site

    with pytest.raises(TypeError):
        Site.parse(3)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="microtome not to be imported"):
        install("microtome")


def test_only_the_package_is_decorated(module: ModuleType) -> None:
    path = Path(module.__file__ or "")
    assert not (path.parent / "__pycache__").exists()
    spec = importlib.util.spec_from_file_location("plain_example", path)
    assert spec is not None
    assert spec.loader is not None
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    assert plain.plain("2") == "2"
