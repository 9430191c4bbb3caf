"""How are numbers and tokens written, the same in every view?

Numbers keep three significant digits (integers stay whole). Tokens keep their letters, and what cannot be
seen or would disturb a screen is named: a newline is `⏎`, a tab `⇥`, a token of spaces alone `␣`, a control
character `⟨0x1B⟩`, half of a surrogate pair `⟨U+D800⟩`. `static/lettering.js` follows the same rules.
"""

import math
import unicodedata

from microtome.core.shapes import Cell

ABSENT = "–"
_NAMED = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
_UNSEEN = {"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"}


def numeral(value: float, digits: int = 3) -> str:
    """A float with `digits` significant digits; scientific below 1e-4 and from 1e6 on; NaN is `–`."""
    if math.isnan(value):
        return ABSENT
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def cell_text(cell: Cell) -> str:
    """A table's cell: `–` for None, yes or no for a bool, integers whole, floats as `numeral`."""
    match cell:
        case None:
            return ABSENT
        case bool():
            return "yes" if cell else "no"
        case int():
            return str(cell)
        case float():
            return numeral(cell)
        case _:
            return visible(cell)


def visible(text: str) -> str:
    """`text` with every character that cannot be seen, or would steer a terminal, replaced by its name."""
    if not text.strip(" "):
        return "␣" * len(text)
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    if unicodedata.category(character) not in _UNSEEN:
        return character
    code = ord(character)
    return f"⟨0x{code:02X}⟩" if code < 0x100 else f"⟨U+{code:04X}⟩"
