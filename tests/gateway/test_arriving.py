"""Text in pieces: checked piece by piece, cut like any text, and without the marks that nobody speaks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.arriving import ArrivingText
from gateway.plan import Item, Pause, Speak, StreamPlanner
from tests.gateway.test_plan import PARAGRAPH
from wire.errors import ErrorCode, TtsError


def arriving(*, max_characters: int = 5000, keep_markup: bool = False, scripts: frozenset[str] = frozenset()):
    return ArrivingText(
        StreamPlanner(), max_characters=max_characters, keep_markup=keep_markup, scripts=scripts, model="m"
    )


def said(text: ArrivingText, *pieces: str) -> list[Item]:
    items = [item for piece in pieces for item in text.take(text.checked(piece))]
    return items + text.flush()


def words(items: list[Item]) -> str:
    return " ".join(item.text for item in items if isinstance(item, Speak))


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 40))
def test_however_it_is_cut_and_wherever_its_author_pauses_no_word_is_lost_doubled_or_broken(size: int, pause_at: int):
    text = arriving(keep_markup=True)
    items: list[Item] = []
    for number, start in enumerate(range(0, len(PARAGRAPH), size)):
        items += text.take(text.checked(PARAGRAPH[start : start + size]))
        if number == pause_at:
            items += text.flush_words()
    items += text.flush()
    assert words(items).split() == PARAGRAPH.split()
    assert [item.index for item in items if isinstance(item, Speak)] == list(range(len(items)))
    assert text.characters == len(PARAGRAPH)


@pytest.mark.parametrize(
    ("waiting", "goes_on", "at_the_pause"),
    [
        ("Half a sen", "tence.", "Half a"),
        ("A whole word ", "more.", "A whole word"),
        ("Well,", " now.", "Well,"),
        ("That is all.", " No.", "That is all."),
        ("It costs 3.", "50 today.", "It costs"),
        ("Look [pau", "se:1s] there.", "Look"),
        ("Word", "s.", ""),
        ("今天天气", "很好。", "今天天气"),
    ],
)
def test_at_a_pause_a_word_that_may_go_on_stays_back(waiting: str, goes_on: str, at_the_pause: str):
    text = arriving()
    items = text.take(text.checked(waiting)) + text.flush_words()
    assert words(items) == at_the_pause
    items += said(text, goes_on)
    mark = "[pause:1s]"
    assert "".join(words(items).split()) == "".join((waiting + goes_on).replace(mark, "").split())
    assert (Pause(1.0) in items) == (mark in waiting + goes_on)


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("This is **bold** and *soft* and `code`.", "This is bold and soft and code."),
        ("## A title\nAnd text.", "A title And text."),
        ("See [the page](https://example.org).", "See the page."),
        ("2 * 3 is 6, and 2**3 is 8, in snake_case.", "2 * 3 is 6, and 2**3 is 8, in snake_case."),
        ("**All of this sentence is bold. And this one is too, to the end.**",
         "All of this sentence is bold. And this one is too, to the end."),
        ("```\nx = 1\n```", "x = 1"),
    ],
)  # fmt: skip
def test_marks_are_left_out_of_each_segment(text: str, spoken: str):
    assert words(said(arriving(), *text)) == spoken


def test_marks_that_are_wanted_are_kept():
    assert words(said(arriving(keep_markup=True), "This is **bold**.")) == "This is **bold**."


def test_a_segment_of_nothing_but_marks_is_none_and_the_numbers_have_no_gap():
    items = said(arriving(), "<br>[pause:1s]Hello.")
    assert items == [Pause(1.0), Speak("Hello.", 0)]


def test_half_a_character_waits_for_its_other_half_and_at_the_end_it_is_refused():
    assert words(said(arriving(), "A \ud83d", "\ude00 smile")) == "A 😀 smile"
    text = arriving()
    text.take(text.checked("A \ud83d"))
    with pytest.raises(TtsError) as refused:
        text.flush()
    assert refused.value.code is ErrorCode.UNSPEAKABLE_TEXT


@pytest.mark.parametrize(
    ("piece", "code"),
    [
        (3, ErrorCode.INVALID_VALUE),
        ("\x00", ErrorCode.UNSPEAKABLE_TEXT),
        ("\ude00", ErrorCode.UNSPEAKABLE_TEXT),
        ("привет", ErrorCode.UNSPEAKABLE_TEXT),
        ("x" * 11, ErrorCode.TEXT_TOO_LONG),
    ],
)
def test_a_piece_that_is_refused_leaves_no_trace(piece: object, code: ErrorCode):
    text = arriving(max_characters=20, scripts=frozenset({"LATIN"}))
    text.take(text.checked("Hello, you"))
    with pytest.raises(TtsError) as refused:
        text.checked(piece)
    assert (refused.value.code, refused.value.param) == (code, "text")
    assert text.characters == 10
    assert words(said(text, ".")) == "Hello, you."


def test_pauses_have_a_bound_over_all_pieces():
    text = arriving(max_characters=50_000)
    with pytest.raises(TtsError, match="longer than 300 s together"):
        said(text, *["Go. [pause:10s] "] * 31)
