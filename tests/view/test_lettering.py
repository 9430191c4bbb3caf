import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microtome.view.lettering import cell_text, numeral, visible

anything = st.text(st.characters(exclude_categories=()))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (1.0, "1.00"), (-0.5, "-0.500"), (0.94213, "0.942"), (12.345, "12.3"), (123.6, "124"),
        (91234.0, "91234"), (0.00012345, "0.000123"), (0.000012345, "1.23e-5"), (1.5e6, "1.50e6"),
        (math.nan, "–"), (math.inf, "∞"), (-math.inf, "-∞"),
    ],
)  # fmt: skip
def test_a_number_is_written_with_three_digits(value: float, text: str) -> None:
    assert numeral(value) == text


@given(st.floats(-1e300, 1e300, allow_subnormal=False))
def test_a_written_number_is_within_half_a_percent(value: float) -> None:
    assert float(numeral(value)) == pytest.approx(value, rel=0.0051)


@given(anything)
def test_visible_text_steers_no_terminal_and_can_be_saved(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    assert not any(unicodedata.category(character) in {"Cc", "Cf", "Cs"} for character in shown)


@given(st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1))
def test_what_can_be_seen_stays_as_it_is(text: str) -> None:
    assert visible(" " + text) == " " + text


def test_what_cannot_be_seen_is_named() -> None:
    assert visible("a\nb\t\x1b[0m\ud800") == "a⏎b⇥⟨0x1B⟩[0m⟨U+D800⟩"
    assert visible("  ") == "␣␣"


def test_cells_of_a_table() -> None:
    assert [cell_text(cell) for cell in (None, True, False, 123456789, 0.5, "a\n")] == [
        "–", "yes", "no", "123456789", "0.500", "a⏎",
    ]  # fmt: skip
