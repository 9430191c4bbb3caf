"""What does a component do, in a sentence? Made from its measurements alone, each number with its unit.

No name is given for what was not measured: a head is called an induction head only where the scorecard, on random
text and against its control, calls it one.
"""

import zlib
from collections.abc import Mapping, Sequence

from microtome.core.site import Site
from microtome.models.components import spoken
from microtome.studies.measurements import Measured
from microtome.studies.predictions import SMALL, attended


def sentence(measured: Measured, roles: Mapping[str, Sequence[str]]) -> str:
    """One component. roles: names by the scorecard, by component."""
    site = Site.parse(measured.component)
    name = spoken(site)
    parts = [f"{name[0].upper()}{name[1:]} {_acts(measured)}"]
    if site.heads:
        parts.append(_looks(measured))
    parts.append(_writes(measured))
    text = "; ".join(part for part in parts if part) + "."
    if found := roles.get(measured.component):
        text += f" On random text it is {' and '.join(_with_article(role) for role in found)}."
    return text


def _with_article(role: str) -> str:
    return f"{'an' if role[0] in 'aeiou' else 'a'} {role}"


def _spoken(place: str) -> str:
    """A stretch of the prompt, as it stands in a sentence."""
    return "the last token" if place == "last token" else place


def _acts(measured: Measured) -> str:
    there = measured.places.get(measured.place, 0.0)
    if len(measured.places) < 2:
        return "acts on the prompt as a whole"
    if abs(there) < SMALL:
        return "matters little at any single place"
    return f"acts mostly at {_spoken(measured.place)}"


def _looks(measured: Measured) -> str:
    if not measured.attends:
        return ""
    end = "" if measured.place == "last token" else "the end of "
    where = f"from {end}{_spoken(measured.place)} " if len(measured.places) > 1 else ""
    target = attended(measured)
    if not target:
        best = max(measured.attends, key=lambda label: measured.attends[label])
        return f"{where}its attention is spread, most of it ({measured.attends[best]:.2f}) to {_spoken(best)}"
    return (
        f"{where}it attends to {_spoken(target)} ({measured.attends[target]:.2f} of its attention; an even spread "
        f"would give {measured.even[target]:.2f})"
    )


def _writes(measured: Measured) -> str:
    total, direct = measured.total, measured.direct
    if abs(total) < SMALL:
        return f"replacing it alone changes little ({_share(total)} of the behaviour lost)"
    verdict = "it helps the answer" if total > 0 else "it works against the answer"
    whole = f"{verdict}: replacing it alone loses {_share(total)} of the behaviour"
    if abs(direct) < SMALL:
        return f"{whole}, none of it directly: others pass it on"
    if direct * total < 0:
        return f"{whole}, although what it writes to the logits itself counts {_share(direct)}"
    if abs(direct) > 0.75 * abs(total):
        return f"{whole}, {_share(direct)} by writing to the logits directly"
    return f"{whole}, {_share(direct)} directly and the rest through others"


def _share(value: float) -> str:
    return f"{value:.2f}"


def length(sentences: Sequence[str]) -> tuple[int, int]:
    """Words, and bits after compression, of a description."""
    text = " ".join(sentences)
    return len(text.split()), 8 * len(zlib.compress(text.encode(), 9))
