"""Two fillings of a template align token for token, or are refused with the offending tokens marked."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from microtome.core.errors import InputError
from microtome.data.templates import Template
from microtome.data.tokens import encode

Maker = Callable[[str], PreTrainedTokenizerBase]
GIVING = Template("When {A} and {B} went to the {place}, {B} gave a {object} to")
CLEAN = {"A": "Mary", "B": "John", "place": "park", "object": "ball"}


@pytest.mark.parametrize(("kind", "start"), [("words", 1), ("bytes", 0)])
def test_every_mention_of_a_slot_has_its_tokens(make_tokenizer: Maker, kind: str, start: int) -> None:
    spans = GIVING.fill(make_tokenizer(kind), CLEAN).spans
    expected = {"A": 1, "B": 3, "place": 7, "B#2": 9, "object": 12}
    assert spans == {slot: (start + at, start + at + 1) for slot, at in expected.items()}


def test_a_pair_differs_in_the_changed_slots_alone(words: PreTrainedTokenizerBase) -> None:
    pair = GIVING.pair(words, CLEAN, CLEAN | {"B": "Tom"})
    assert pair.changed == ("B", "B#2")
    assert [i for i, (a, b) in enumerate(zip(pair.clean, pair.corrupt, strict=True)) if a != b] == [4, 10]
    assert pair.text == "When Mary and John went to the park, John gave a ball to"
    assert pair.corrupt_text == "When Mary and Tom went to the park, Tom gave a ball to"


def test_fillers_of_different_token_lengths_are_refused_and_marked(make_tokenizer: Maker) -> None:
    template = Template("The {landmark} is in")
    with pytest.raises(InputError) as refusal:
        template.pair(make_tokenizer("words"), {"landmark": "Colosseum"}, {"landmark": "Eiffel Tower"})
    message = str(refusal.value)
    assert "do not align (5 and 6 tokens): the fillers of landmark are not equally many tokens" in message
    assert "clean:   '<bos>' ' The' >>' Colosseum'<< ' is' ' in'" in message
    assert "corrupt: '<bos>' ' The' >>' Eiffel'<< >>' Tower'<< ' is' ' in'" in message


def test_slots_that_trade_tokens_are_refused_though_the_lengths_agree(words: PreTrainedTokenizerBase) -> None:
    template = Template("The {first} near the {second}")
    long, short = "Eiffel Tower", "Colosseum"
    with pytest.raises(InputError, match="fillers of first, second are not equally many"):
        template.pair(words, {"first": long, "second": short}, {"first": short, "second": long})


def _merging() -> PreTrainedTokenizerBase:
    """A tokenizer in which `a` takes the `b` after it along."""
    vocabulary = {token: i for i, token in enumerate(["a", "b", "c", "z", "ab", "y"])}
    inner = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def test_tokens_that_change_outside_the_slot_are_refused_and_marked() -> None:
    with pytest.raises(InputError, match="tokens differ outside the changed slots") as refusal:
        Template("c{x}bc").pair(_merging(), {"x": "a"}, {"x": "z"})
    assert "clean:   'c' 'ab' >>'c'<<" in str(refusal.value)
    assert "corrupt: 'c' 'z' >>'b'<< >>'c'<<" in str(refusal.value)


def test_slots_that_share_a_token_are_refused() -> None:
    with pytest.raises(InputError, match="the slots x and y share the token 'ab'"):
        Template("c{x}{y}c").fill(_merging(), {"x": "a", "y": "b"})


def test_a_pair_without_a_difference_is_refused(words: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match="are the same tokens"):
        GIVING.pair(words, CLEAN, CLEAN)
    with pytest.raises(InputError, match="are the same tokens"):
        GIVING.pair(words, CLEAN, CLEAN | {"A": "Mary "})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a {", "cannot be read"),
        ("a {b!r}", "without ':' or '!'"),
        ("{b:2}", "without ':' or '!'"),
        ("{}", "plain names"),
        ("{a b}", "plain names"),
        ("{a.b}", "plain names"),
    ],
)
def test_templates_that_cannot_be_read_are_refused(text: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        Template(text)


@pytest.mark.parametrize("fillers", [{}, {"A": "Mary"}, CLEAN | {"C": "Tom"}])
def test_fillers_must_be_those_of_the_slots(fillers: dict[str, str]) -> None:
    with pytest.raises(InputError, match="expected fillers for the slots A, B, place, object"):
        GIVING.text_with(fillers)


def test_doubled_braces_are_text() -> None:
    assert Template("{{{a}}}").text_with({"a": "x"}) == "{x}"


FILLER = st.one_of(
    st.text(max_size=5), st.sampled_from(["Mary", "John", "Eiffel Tower", "17", "1732", "é", " "])
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.sampled_from(
        ["{x}{y} to", "When {x} and {y}", "{x} gave {y} to {x}", "({x}, {y})", "17{x}{y}17"]
    ),
    fillers=st.tuples(FILLER, FILLER, FILLER, FILLER),
)
@example(text="17{x}{y}17", fillers=("3", "2", "2", "3"))
@example(text="{x}{y} to", fillers=("Mary", " John", "John", " Mary"))
def test_never_a_silently_misaligned_pair(
    tokenizer: PreTrainedTokenizerBase, text: str, fillers: tuple[str, str, str, str]
) -> None:
    template = Template(text)
    clean, corrupt = dict(zip("xy", fillers[:2], strict=True)), dict(zip("xy", fillers[2:], strict=True))
    try:
        pair = template.pair(tokenizer, clean, corrupt)
    except InputError:
        return
    assert pair.text == text.format(**clean)
    assert pair.corrupt_text == text.format(**corrupt)
    assert pair.clean == encode(tokenizer, pair.text).ids
    assert pair.corrupt == encode(tokenizer, pair.corrupt_text).ids
    assert len(pair.clean) == len(pair.corrupt)
    assert pair.clean != pair.corrupt

    inside = [position for slot in pair.spans for position in range(*pair.spans[slot])]
    assert len(set(inside)) == len(inside), "no token belongs to two slots"
    free = set(range(len(pair.clean)))
    for slot in pair.changed:
        free -= set(range(*pair.spans[slot]))
    assert all(pair.clean[position] == pair.corrupt[position] for position in free)

    for filled, side in ((pair.text, clean), (pair.corrupt_text, corrupt)):
        whole = tokenizer(filled)
        at = 0
        counts: dict[str, int] = {}
        for literal, slot in template._pieces():
            at += len(literal)
            if slot is None:
                continue
            counts[slot] = counts.get(slot, 0) + 1
            key = slot if counts[slot] == 1 else f"{slot}#{counts[slot]}"
            tokens = {whole.char_to_token(i) for i in range(at, at + len(side[slot]))} - {None}
            assert tokens <= set(range(*pair.spans[key])), "each character's token lies in its slot's span"
            at += len(side[slot])
