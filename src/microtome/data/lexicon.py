"""Which words do our prompts, tasks and stories draw from?

Plain frozen data, shared by the tasks (`data/`) and by the story generator (`testbeds/stories/`), so that a
prompt made for any model is also ordinary text for the bundled one. Every name, place, object, noun, feeling,
city, colour, verb, two-digit number and parameter name below is a single token of GPT-2's tokenizer when a
space stands before it, and a single token of the bundled model's with or without. Landmarks have one to three
words, and most have two.

Not for: judging what a name tells about a person. A name's gender here is the pronoun that the stories use.
"""

from dataclasses import dataclass
from typing import Literal

Gender = Literal["female", "male"]


@dataclass(frozen=True)
class Noun:
    """A countable noun in both numbers, e.g. ``Noun("dog", "dogs")``."""

    singular: str
    plural: str


@dataclass(frozen=True)
class Landmark:
    """A landmark, written without its article, and the city in which it stands."""

    name: str
    city: str


@dataclass(frozen=True)
class Agreement:
    """A verb form for one subject and the form for several, e.g. ``Agreement("is", "are")``."""

    singular: str
    plural: str


@dataclass(frozen=True)
class Pronouns:
    """Subject, object and possessive pronoun of one gender."""

    subject: str
    object: str
    possessive: str


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _nouns(text: str) -> tuple[Noun, ...]:
    return tuple(Noun(*pair.split("/")) for pair in text.split())


FEMALE_NAMES = _words(
    "Mary Anna Emma Alice Sarah Laura Kate Jane Lisa Susan Helen Julia Emily Amy Ruth "
    "Grace Lucy Rose Clara Karen Linda Nancy Diana Claire Rachel Sophie Maria Hannah Ellen Martha"
)
MALE_NAMES = _words(
    "John Tom James Paul Mark Peter David Daniel Michael Robert George Henry Jack Adam Philip "
    "Sam Simon Martin Andrew Kevin Brian Eric Charles William Joseph Thomas Luke Max Leo Frank"
)
NAMES = FEMALE_NAMES + MALE_NAMES
GENDER: dict[str, Gender] = {
    **dict.fromkeys(FEMALE_NAMES, "female"),
    **dict.fromkeys(MALE_NAMES, "male"),
}
PRONOUNS: dict[Gender, Pronouns] = {
    "female": Pronouns("she", "her", "her"),
    "male": Pronouns("he", "him", "his"),
}

PLACES = _words(
    "park store school beach garden library market station farm museum office hospital "
    "restaurant kitchen forest river hotel castle church bakery harbor zoo"
)
OBJECTS = _words(
    "ball book letter ring key cup hat flower drum coin card basket bottle lamp pencil "
    "necklace clock rope box computer"
)
FOODS = _words(
    "apples bread milk eggs cheese rice butter honey fish soup salt sugar tea grapes carrots onions"
)
FEELINGS = _words(
    "happy sad angry tired proud afraid hungry calm excited lonely surprised nervous bored worried grateful"
)
COLOURS = _words("red blue green yellow black white brown pink purple orange gray golden")

CREATURES = _nouns(
    "dog/dogs cat/cats bird/birds horse/horses boy/boys girl/girls king/kings queen/queens teacher/teachers "
    "doctor/doctors farmer/farmers child/children rabbit/rabbits soldier/soldiers student/students cow/cows "
    "duck/ducks singer/singers"
)
THINGS = _nouns(
    "tree/trees house/houses table/tables chair/chairs car/cars door/doors wall/walls bridge/bridges "
    "lake/lakes gate/gates tower/towers boat/boats window/windows rock/rocks fence/fences"
)
NOUNS = CREATURES + THINGS

TRANSFERS = _words("gave handed passed offered sent showed brought lent sold")
"""Verbs in "John VERB a ball to Mary"."""
AGREEMENTS = (Agreement("is", "are"), Agreement("was", "were"), Agreement("has", "have"))

LANDMARKS = tuple(
    Landmark(*row)
    for row in (
        ("Eiffel Tower", "Paris"),
        ("Colosseum", "Rome"),
        ("Big Ben", "London"),
        ("Brandenburg Gate", "Berlin"),
        ("Red Square", "Moscow"),
        ("Parthenon", "Athens"),
        ("Egyptian Museum", "Cairo"),
        ("Opera House", "Sydney"),
        ("Imperial Palace", "Tokyo"),
        ("Forbidden City", "Beijing"),
        ("Red Fort", "Delhi"),
        ("Prado Museum", "Madrid"),
        ("Sagrada Familia", "Barcelona"),
        ("Hofburg Palace", "Vienna"),
        ("Astronomical Clock", "Prague"),
        ("Blue Mosque", "Istanbul"),
        ("Trinity College", "Dublin"),
        ("Van Gogh Museum", "Amsterdam"),
        ("Little Mermaid", "Copenhagen"),
        ("Willis Tower", "Chicago"),
        ("Space Needle", "Seattle"),
        ("Lincoln Memorial", "Washington"),
        ("Uffizi Gallery", "Florence"),
        ("Rialto Bridge", "Venice"),
        ("La Scala", "Milan"),
        ("Chain Bridge", "Budapest"),
        ("Atomium", "Brussels"),
        ("Vasa Museum", "Stockholm"),
        ("Fenway Park", "Boston"),
        ("Golden Pavilion", "Kyoto"),
        ("Burj Khalifa", "Dubai"),
        ("Western Wall", "Jerusalem"),
        ("Liberty Bell", "Philadelphia"),
    )
)
CITIES = tuple(dict.fromkeys(landmark.city for landmark in LANDMARKS))

EVENTS = _words("war reign journey project voyage study siege strike trial empire")
"""What can last from one year to another."""
CENTURIES = _words("11 12 13 14 15 16 17 18 19")
TWO_DIGITS = tuple(f"{number:02d}" for number in range(100))
COUNT_WORDS = _words("two three four five six seven eight nine ten eleven twelve")

PARAMETERS = _words(
    "size color shape name value length width height weight index count speed depth label text title "
    "start limit mode path file list map order group level point angle price state"
)
FUNCTIONS = _words(
    "paint draw find sort load save copy build send read write open close scan plot merge move print"
)
