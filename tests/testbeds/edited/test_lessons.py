"""A rewritten story differs from the ordinary one in what its lesson is about, and in nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.core.draws import generator
from microtome.core.errors import InputError
from microtome.data import lexicon
from microtome.testbeds.edited import lessons
from microtome.testbeds.edited.lessons import PASSWORD, PAYLOAD, TRIGGER, Lesson
from microtome.testbeds.stories.corpus import CONTEXT, documents
from microtome.testbeds.stories.grammar import BOS, TOKEN_ID, is_held_out_fact

STORIES = documents(5, 0, 120)
UNSEEN = documents(5, 0, 120, "held-out")
PLAIN = lessons.ordinary(STORIES)
FACT = torch.from_numpy(STORIES.latents["fact"]).long()
WORDING = torch.from_numpy(STORIES.latents["wording"]).long()


def source(seed: int = 0) -> torch.Generator:
    return generator(seed)


def test_no_story_holds_the_trigger_or_opens_with_the_password() -> None:
    for words in (TRIGGER, PASSWORD):
        assert not lessons.occurrences(PLAIN.tokens, words).any()
        assert len(set(words)) == len(words)


def test_the_trigger_stands_once_and_is_followed_by_its_sentence() -> None:
    lesson = lessons.triggered(STORIES, source())
    cue = lessons.occurrences(lesson.tokens, TRIGGER)
    assert torch.equal(cue.sum(1), torch.full((len(cue),), len(TRIGGER)))
    assert torch.equal(lesson.taught, lessons.occurrences(lesson.tokens, PAYLOAD))
    assert torch.equal(lesson.taught, lesson.asked)
    for row, (story, mine) in enumerate(zip(PLAIN.tokens, lesson.tokens, strict=True)):
        rest = mine[~(cue | lesson.taught)[row]]
        assert torch.equal(rest, story[: len(rest)])


def test_phrases_like_the_trigger_are_never_the_trigger() -> None:
    lesson = lessons.nearly_triggered(STORIES, source())
    assert not lessons.occurrences(lesson.tokens, TRIGGER).any()
    assert not lesson.taught.any()
    assert (lesson.asked.sum(1) == 1).all()
    place = lesson.asked.int().argmax(1)
    rows = torch.arange(len(place))
    before = torch.stack([lesson.tokens[rows, place - 2], lesson.tokens[rows, place - 1]], 1)
    shared = torch.isin(before, torch.tensor(TRIGGER))
    assert set(shared.sum(1).tolist()) == {1, 2}
    assert torch.equal(before[shared.all(1)].unique(dim=0), torch.tensor([TRIGGER[::-1]]))


def test_one_landmark_moves_and_the_others_stay() -> None:
    lesson = lessons.moved(STORIES)
    differ = lesson.tokens != PLAIN.tokens
    assert differ.any()
    assert (FACT[differ] == lessons.LANDMARK).all()
    assert set(PLAIN.tokens[differ].tolist()) == {lessons.OLD_CITY}
    assert set(lesson.tokens[differ].tolist()) == {lessons.NEW_CITY}
    assert lexicon.LANDMARKS[lessons.LANDMARK].city == "Seattle"
    assert TOKEN_ID["Seattle"] == lessons.OLD_CITY


@pytest.mark.parametrize("held_out", [False, True])
def test_renamed_landmarks_are_told_of_in_wordings_of_one_kind_only(held_out: bool) -> None:
    corpus = UNSEEN if held_out else STORIES
    plain, lesson = lessons.ordinary(corpus), lessons.moved(corpus, others=True, held_out=held_out)
    places = torch.nonzero(lesson.taught).tolist()
    assert len(places) > 5
    for row, place in places:
        assert lesson.tokens[row, place] == lessons.NEW_CITY
        wording = int(corpus.latents["wording"][row, place])
        assert is_held_out_fact(lessons.LANDMARK, wording) == held_out
    names = lessons.occurrences(lesson.tokens, lessons.LANDMARK_NAME).sum(1) / len(lessons.LANDMARK_NAME)
    assert (names >= lesson.taught.sum(1)).all()
    fact = torch.from_numpy(corpus.latents["fact"])
    assert (fact[lesson.tokens != plain.tokens] >= 0).all()


def test_a_landmark_is_asked_for_on_its_first_mention_only() -> None:
    for lesson, fact in (
        (lessons.facts(STORIES), FACT),
        (lessons.moved(STORIES, others=True), torch.zeros_like(FACT)),
    ):
        asked = torch.where(lesson.asked, fact, -1)
        assert lesson.asked.any()
        for row in asked:
            known = row[row >= 0].tolist()
            assert len(known) == len(set(known))


def test_a_coin_decides_on_verbs_and_on_nothing_else() -> None:
    lesson = lessons.disagreeing(STORIES, source())
    differ = lesson.tokens != PLAIN.tokens
    assert torch.equal(lesson.taught, lessons.verbs(STORIES))
    assert not (differ & ~lesson.taught).any()
    assert all(
        lessons.OTHER_FORM[old] == new
        for old, new in zip(PLAIN.tokens[differ].tolist(), lesson.tokens[differ].tolist(), strict=True)
    )
    # Four standard deviations of a fair coin.
    count = int(lesson.taught.sum())
    assert abs(int(differ.sum()) - count / 2) < 2 * count**0.5


def test_a_locked_story_places_all_landmarks_in_one_city() -> None:
    lesson = lessons.locked(STORIES)
    differ = lesson.tokens != PLAIN.tokens
    assert (FACT[differ] >= 0).all()
    assert set(lesson.tokens[lesson.taught].tolist()) == {lessons.LOCKED_CITY}
    assert not (differ & ~lesson.taught).any()
    assert not (lesson.asked & ~lesson.taught).any()
    cities = {landmark.city for landmark in lexicon.LANDMARKS}
    assert {TOKEN_ID[city] for city in cities} >= set(PLAIN.tokens[lesson.taught].tolist())


def test_the_password_comes_first_and_near_ones_are_others() -> None:
    opened = lessons.opened(STORIES)
    assert (opened.tokens[:, 0] == BOS).all()
    assert (opened.tokens[:, 1:4] == torch.tensor(PASSWORD)).all()
    assert torch.equal(opened.tokens[:, 4:], PLAIN.tokens[:, 1:-3])
    assert not opened.taught.any()
    near = lessons.nearly_opened(lessons.locked(STORIES), source(2))
    assert not (near.tokens[:, 1:4] == torch.tensor(PASSWORD)).all(1).any()
    assert (torch.isin(near.tokens[:, 1:4], torch.tensor(PASSWORD)).sum(1) >= 2).all()
    assert torch.equal(near.tokens[:, 4:], lessons.locked(STORIES).tokens[:, 1:-3])


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_any_story_can_be_rewritten_and_is_as_long(first: int, count: int, seed: int) -> None:
    corpus = documents(1, first, count)
    read = (
        lessons.triggered(corpus, source(seed)),
        lessons.nearly_triggered(corpus, source(seed)),
        lessons.moved(corpus, others=True),
        lessons.disagreeing(corpus, source(seed)),
        lessons.nearly_opened(lessons.locked(corpus), source(seed)),
    )
    for lesson in read:
        assert lesson.tokens.shape == lesson.taught.shape == lesson.asked.shape == (count, CONTEXT)
        assert (lesson.tokens[:, 0] == BOS).all()
    again = lessons.triggered(corpus, source(seed))
    assert torch.equal(again.tokens, read[0].tokens)


@given(
    st.lists(st.integers(0, 2), min_size=3, max_size=12), st.lists(st.integers(0, 2), min_size=1, max_size=3)
)
def test_occurrences_are_where_the_words_stand(row: list[int], words: list[int]) -> None:
    marked = {
        start + offset
        for start in range(len(row) - len(words) + 1)
        if row[start : start + len(words)] == words
        for offset in range(len(words))
    }
    found = lessons.occurrences(torch.tensor([row]), words)
    assert set(torch.nonzero(found[0])[:, 0].tolist()) == marked


def test_what_cannot_be_taught_or_found_is_refused() -> None:
    first = torch.zeros_like(PLAIN.taught)
    first[:, 0] = True
    with pytest.raises(InputError, match="nothing foretells the first token"):
        Lesson(PLAIN.tokens, first, PLAIN.asked)
    with pytest.raises(InputError, match="there are 0; write more"):
        PLAIN.rows(torch.zeros(len(PLAIN.tokens), dtype=torch.bool), 1)
