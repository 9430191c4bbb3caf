"""What is counted adds up; what is measured is plausible and never compared."""

import time

from hypothesis import given
from hypothesis import strategies as st

from microtome.core.cost import Cost, measure

COSTS = st.builds(
    Cost,
    passes=st.integers(0, 99),
    flops=st.integers(0, 10**15),
    seconds=st.integers(0, 99).map(float),
    peak_bytes=st.integers(0, 10**12),
    notes=st.lists(st.sampled_from(["a", "b", "c"]), max_size=2, unique=True).map(tuple),
)


@given(COSTS, COSTS, COSTS)
def test_costs_add_up(a: Cost, b: Cost, c: Cost) -> None:
    assert (a + b) + c == a + (b + c)
    assert a + Cost() == a
    assert (a + b).seconds == a.seconds + b.seconds
    assert (a + b).peak_bytes == max(a.peak_bytes, b.peak_bytes)


def test_measured_values_are_not_compared() -> None:
    assert Cost(1, 2, 3.0, 4) == Cost(1, 2, 5.0, 6)
    assert Cost(1, 2) != Cost(1, 3)


def test_a_block_is_measured() -> None:
    with measure() as recorder:
        recorder.add(passes=2, flops=10)
        recorder.add(passes=1)
        recorder.note("slow disk")
        recorder.note("slow disk")
        time.sleep(0.02)
        inside = recorder.cost()
    after = recorder.cost()
    time.sleep(0.02)
    assert after == Cost(3, 10, notes=("slow disk",))
    assert 0.02 <= inside.seconds <= after.seconds
    assert recorder.cost().seconds == after.seconds, "the clock stops with the block"


def test_the_peak_covers_what_was_held() -> None:
    with measure() as recorder:
        held = bytearray(64 << 20)
        held[::4096] = b"x" * len(held[::4096])
    assert recorder.cost().peak_bytes >= len(held)


def test_work_that_kept_its_own_account_is_included_once() -> None:
    with measure() as outer:
        with measure() as inner:
            inner.add(passes=5, flops=7)
            inner.note("no re-entry")
        outer.include(inner.cost())
    assert outer.cost() == Cost(5, 7, notes=("no re-entry",))
    assert outer.cost().seconds < inner.cost().seconds + 1


def test_the_account_survives_an_error() -> None:
    try:
        with measure() as recorder:
            recorder.add(passes=4)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert recorder.cost() == Cost(4)


def test_sentence() -> None:
    assert Cost(1, 3_200_000_000, 1.4, 810_000_000).sentence() == "1 pass, 3.2 GFLOP, 1.4 s, peak 810 MB"
    assert Cost(0).sentence() == "0 passes, operations not counted, 0 s, memory not measured"
    assert Cost(2, 999, 0.5, 10**18).sentence() == "2 passes, 999 FLOP, 0.5 s, peak 1 EB"
