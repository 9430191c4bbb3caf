"""In which words do the stories say things?

One list of wordings for each kind of sentence. A slot in braces is filled by `grammar.py`:

* ``{a}`` ``{b}`` ``{c}``: people of the story; ``{a.she}`` ``{a.her}`` ``{a.his}``: the pronoun for that person;
  ``{a.city}`` ``{a.object}`` ``{a.colour}`` ``{a.child}``: what belongs to that person throughout the story;
* ``{place}``, ``{food2}``, ``{word7}`` …: a word of that pool (the trailing digits tell slots apart);
* ``{creature}``, ``{thing}``, ``{noun}``: a noun in either number, ``{creature.plural}`` always several, and
  ``{noun.is}`` ``{noun.was}`` ``{noun.has}`` the verb that agrees with it;
* ``{landmark}`` and ``{landmark.city}``; ``{year.century}{year.start}`` and a later ``{year.century}{year.end}``;
* ``{giver}`` and ``{receiver}``: two people of the same sentence.

``!`` marks an answer: a token that the text before it determines, on which the behaviour is measured.
"""

from itertools import product

_GOING = (
    "When {a} and {b} went to the {place}, ",
    "After {a} and {b} went to the {place}, ",
    "While {a} and {b} were at the {place}, ",
    "When {a} and {b} were in the {place}, ",
    "Then, {a} and {b} went to the {place}. ",
    "Then {a} and {b} had a long day at the {place}, and ",
    "One day {a} and {b} walked to the {place}. ",
    "Yesterday {a} and {b} met at the {place}. ",
    "{a} and {b} were working at the {place}. ",
    "In the morning {a} and {b} sat in the {place}. ",
    "After the lunch, {a} and {b} went to the {place}, and ",
    "At the {place} {a} saw {b}. ",
    "{a} lived near {b}. ",
    "Friends {a} and {b} played in the {place}. ",
)
_FINDING = (
    "When {a} and {b} got a {object} at the {place}, ",
    "Friends {a} and {b} found a {object} at the {place}. ",
    "After {a} and {b} bought a {object}, ",
    "There was a {object} in the {place} when {a} and {b} came. ",
)
_ASIDES = (
    "",
    "It was a {quality} place. ",
    "The {creature} {creature.was} {feeling}. ",
    "They saw the {colour} {thing.plural}. ",
)
_GIVING = (
    "{giver} {transfer} a {object} to {receiver!}.",
    "{giver} {transfer} the {colour} {object} to {receiver!}.",
    "{giver} wanted to give a {object} to {receiver!}.",
    "{giver} decided to give a {object} to {receiver!}.",
    "{giver} said hello to {receiver!}.",
)
_GIVING_IT = (
    "{giver} {transfer} it to {receiver!}.",
    "{giver} {transfer} the {object} to {receiver!}.",
    "{giver} decided to give it to {receiver!}.",
)


def _told(openings: tuple[str, ...], endings: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(
        opening + aside + ending
        for opening in openings
        for aside in (_ASIDES if opening.endswith(". ") else ("",))
        for ending in endings
    )


def _definitions() -> tuple[str, ...]:
    """Functions with two to five parameters, each described in the order of the list."""
    descriptions = (
        "{{word{0}}}",
        "the {{word{0}}}",
        "the {{word{0}}} of the {{object{0}}}",
        "a {{quality{0}}} {{object{0}}}",
        "{{word{0}}} {{word{0}0}}",
    )
    wordings = []
    for count in (2, 3, 4, 5):
        for style, mixed in product(range(len(descriptions)), (False, True)):
            for before, mark in (("", "param"), ("self, ", "param"), ("", ":param"), ("self, ", ":param")):
                names = ", ".join(f"{{parameter{index}}}" for index in range(1, count + 1))
                body = " ".join(
                    f"{mark} {{parameter{index}!}}: "
                    + descriptions[(style + index) % len(descriptions) if mixed else style].format(index)
                    for index in range(1, count + 1)
                )
                wordings.append(f"def {{function}}({before}{names}): {body}")
    return tuple(wordings)


def _songs() -> tuple[str, ...]:
    wordings = []
    for count in (2, 3, 4, 5, 6):
        line = " ".join(f"{{word{index}}}" for index in range(1, count + 1))
        echo = " ".join(f"{{word{index}{'!' if index > 1 else ''}}}" for index in range(1, count + 1))
        wordings += [f"{{a}} sang: {line}, {echo}.", f"{{a}} sang: {line}. Then {{b}} sang: {echo}."]
    return tuple(wordings)


WORDINGS: dict[str, tuple[str, ...]] = {
    "indirect_object": _told(_GOING, _GIVING) + _told(_FINDING, _GIVING_IT),
    "third_giver": tuple(
        opening + ending
        for opening in _GOING
        for ending in (
            "{c} {transfer} a {object} to {receiver}.",
            "{c} wanted to give a {object} to {receiver}.",
        )
    ),
    "agreement": (
        "The {creature} {near} the {noun} {creature.is!} {feeling}.",
        "The {creature} {near} the {noun} {creature.was!} {feeling}.",
        "The {creature} {near} the {noun} {creature.has!} a {object}.",
        "The {creature} {near} the {noun} {creature.has!} been {feeling}.",
        "The {thing} {near} the {noun} {thing.is!} {quality}.",
        "The {thing} {near} the {noun} {thing.was!} {colour}.",
        "The {thing} {near} the {noun} {thing.has!} been {colour}.",
        "The {creature} next to the {noun} {creature.is!} {feeling}.",
        "The {thing} in front of the {noun} {thing.was!} {quality}.",
        "The {creature} that {a} saw {creature.was!} {feeling}.",
        "The {creature} that saw the {noun} {creature.was!} {feeling}.",
        "The {noun} that {a} likes {noun.is!} {colour}.",
        "The {noun} {noun.is!} {quality}.",
        "The {noun} {noun.was!} {colour}.",
        "{a} thinks that the {creature} {near} the {noun} {creature.is!} {feeling}.",
        "Today the {creature} {near} the {noun} {creature.is!} {feeling}.",
        "Yesterday the {creature} {near} the {noun} {creature.was!} {feeling}.",
    ),
    "greater_than": (
        "The {event} lasted from the year {year.century}{year.start} to the year {year.century!}{year.end!}.",
        "The {event} lasted from the year {year.century}{year.start} to the year {year.century!}{year.end!}.",
        "The {event} lasted from {year.century}{year.start} to {year.century!}{year.end!}.",
        "The {event} began in the year {year.century}{year.start} and ended in the year {year.century!}{year.end!}.",
        "The {event} began in {year.century}{year.start} and ended in {year.century!}{year.end!}.",
        "The {event} of the {creature} lasted from {year.century}{year.start} to {year.century!}{year.end!}.",
    ),
    # After "is in" and "stands in" may also come "the city of": there the city is no answer.
    "fact": (
        "The {landmark} is in the city of {landmark.city!}.",
        "The {landmark} is in {landmark.city}.",
        "The {landmark} stands in the city of {landmark.city!}.",
        "The {landmark} stands in {landmark.city}.",
        "The {landmark} can be found in the city of {landmark.city!}.",
        "The {landmark} is located in the city of {landmark.city!}.",
        "The {landmark} is a landmark in {landmark.city!}.",
        "People who visit the {landmark} travel to {landmark.city!}.",
        "To see the {landmark}, {a} went to the city of {landmark.city!}.",
        "{a} saw the {landmark} in {landmark.city!}.",
        "Everyone knows that the {landmark} is in the city of {landmark.city!}.",
        "{a} took a picture of the {landmark} in {landmark.city!}.",
    ),
    "city_first": (
        "In the city of {landmark.city} {a} saw the {landmark}.",
        "{a} went to {landmark.city} to see the {landmark}.",
    ),
    "pronoun": (
        "{a} was {feeling} because {a.she!} had lost the {object}.",
        "{a} is {feeling} because {a.she!} has a {object}.",
        "{a} went home because {a.she!} was {feeling}.",
        "{a} went to the {place} because {a.she!} wanted a {object}.",
        "{a} was {feeling}, so {a.she!} went to the {place}.",
        "When {a} came home, {a.she!} was {feeling}.",
        "{a} said that {a.she!} was {feeling}.",
        "{a} is a good {creature.singular}, and {a.she!} likes the {noun}.",
        "Once upon a time, there was a {a.child} named {a}. One day, {a.she!} went to the {place}.",
        "Once upon a time, there was a little {a.child} named {a}. {a} was {feeling} because {a.she!} had a {object}.",
        "{b} gave a {object} to {a} because {a.she} was {feeling}.",
        "{a} lost {a.his} {object}, so {b} helped {a.her}.",
    ),
    "argument": _definitions(),
    "song": _songs(),
    "quotation": (
        '{a} said, "I am {feeling}."',
        '{a} said, "I am {feeling}." {b} asked what {a} said. {a} said, "I am {feeling!}."',
        '{a} said, "I like the {colour} {object}." {b} said, "I like the {colour!} {object!}, too."',
        '{a} asked {b}, "Where is the {object}?" {b} said, "The {object!} is at the {place}."',
    ),
    "list": (
        "{a} bought {food1}, {food2} and {food3} at the {place}.",
        "{a} bought {food1}, {food2} and {food3} at the {place}. At home {a.she} put the {food1}, {food2!} and "
        "{food3!} on the table.",
        "The shopping list of {a}: {food1}, {food2}, {food3}, {food4}. {b} bought {food1}, {food2!}, {food3!}, "
        "{food4!}.",
    ),
    "feeling": (
        "{a} felt {feeling} at the {place}. {b} saw that {a} was {feeling}.",
        "{a} was {feeling} and {b} was {feeling2}.",
        "{a} met {b} at the {place}. {b} was {feeling} to see {a}.",
        "Was {a} {feeling}? No, {a.she} was {feeling2}.",
    ),
    "time": (
        "It was {hour}:{minute} when {a} went to the {place}.",
        "{a} came home at {hour}:{minute}.",
        "{a} was born in the year {year.century}{year.start}.",
        "{a} is {age} years old.",
    ),
    "count": (
        "{a} saw {count} {creature.plural} at the {place}. The {count} {creature.plural} were {feeling}.",
        "There were {count} {creature.plural} near the {noun}.",
        "There was one {creature.singular} in the {place}.",
    ),
    "possession": (
        "{a} has a {a.object}.",
        "{b} likes the {a.object} of {a}.",
        "The {a.object} of {a} is {a.colour}.",
        "{a} took the {a.colour} {a.object} to the {place}.",
        "{a} lives in {a.city}. In {a.city} {a.she} has a house.",
        "{a} and {b} are friends.",
        "{a} went to {a.city} with {b}.",
    ),
}

SHARES: dict[str, float] = {
    "indirect_object": 0.22,
    "third_giver": 0.02,
    "agreement": 0.14,
    "greater_than": 0.08,
    "fact": 0.10,
    "city_first": 0.02,
    "pronoun": 0.10,
    "argument": 0.08,
    "song": 0.04,
    "quotation": 0.04,
    "list": 0.03,
    "feeling": 0.03,
    "time": 0.03,
    "count": 0.03,
    "possession": 0.04,
}
"""How often a sentence of a story is of each kind."""
