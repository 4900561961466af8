import heapq
import math
import random
import re
import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.plan import Item, Pause, Speak, StreamPlanner, plan_text
from tests.e2e.texts import PARAGRAPH, SENTENCES
from wire.errors import ErrorCode, TtsError

LONG = " ".join(SENTENCES)

# Written text, and what breaks splitters: marks, joined emoji, other scripts, runs without a letter, ends of sentences.
PIECES = st.sampled_from(
    [
        *[
            "Yes. ",
            "No! ",
            "Mr. Fox, ",
            "a ",
            "word ",
            "house—boat ",
            "it is so: ",
            "3,000 ",
            '"Hm," ',
            "(so) ",
            "\n\n",
            " ",
        ],
        *[
            "x" * 40,
            "-" * 15,
            "😀",
            "👨\u200d👩\u200d👧",
            "🇩🇪🇫🇷",
            "👍🏽",
            "é",
            "e\u0301\u0323",
            "你好。",
            "是的，",
            "क्\u200dष ",
            "? ",
        ],
    ]
)
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=60).map("".join))


def texts(items: tuple[Item, ...] | list[Item]) -> list[str]:
    return [item.text for item in items if isinstance(item, Speak)]


def without_space(text: str) -> str:
    return "".join(text.split())


def refusal(text: str, **options: object) -> TtsError:
    with pytest.raises(TtsError) as caught:
        plan_text(text, **options)  # type: ignore[arg-type]
    return caught.value


def test_a_short_text_is_one_segment():
    assert plan_text("Hello there, how are you?") == (Speak("Hello there, how are you?", 0),)


def test_the_first_segment_is_the_first_sentence_and_later_ones_pack_whole_sentences():
    first, *later = texts(plan_text(LONG))
    assert first == SENTENCES[0]
    assert all(150 < len(text) <= 250 for text in later[:-1])
    assert all(text.endswith((".", "?")) for text in later)


def test_a_long_first_sentence_is_cut_at_its_last_clause_that_fits():
    start = "When the ferry came in, and the men had tied it to the wall, "
    first, second = texts(
        plan_text(start + "the children ran along the harbour to see what there was on board that day.")
    )
    assert first == start.strip()
    assert second.startswith("the children")


def test_a_long_first_sentence_without_a_clause_is_cut_at_a_space():
    first = texts(plan_text("the children ran along the harbour " * 5))[0]
    assert 60 < len(first) <= 100
    assert first.split()[-1] in ("the", "children", "ran", "along", "harbour")


@pytest.mark.parametrize("opening", ['"Hm," ', "Well, ", "Sure! ", "Yes. No. "])
def test_the_first_segment_is_no_fragment(opening: str):
    first = texts(plan_text(opening + SENTENCES[8] + " " + LONG))[0]
    assert first == opening + SENTENCES[8]


@pytest.mark.parametrize("opening", ["Well, ", "Sure! "])
def test_the_first_segment_is_no_fragment_of_a_long_sentence_either(opening: str):
    first = texts(plan_text(opening + "the children ran along the harbour " * 5))[0]
    assert 60 < len(first) <= 100


def test_no_fragment_is_left_at_the_end():
    # Four of these fill a segment, and the last word alone would be another.
    sentence = "The children ran along the whole of the great harbour wall..."
    assert texts(plan_text(f"{sentence} " * 5 + "Ok."))[-1] == f"{sentence} Ok."
    words = "The children ran along the harbour " + "word " * 42
    assert texts(plan_text(f"{sentence} {words}Ok."))[-1].endswith("word word word Ok.")
    assert texts(plan_text("Hello there, my dear old friend. Ok.")) == ["Hello there, my dear old friend. Ok."]


def test_an_address_longer_than_the_first_segment_stays_whole():
    address = "https://example.org/" + "path/" * 25
    first, *_ = texts(plan_text(f"{address} is where the old ferry is described in all its detail. {LONG}"))
    assert first == address


def test_numbers_and_times_are_no_clauses():
    text = "at 10:30 we counted 3,000 boats on the lake and " * 8
    assert all(not part.startswith(("30", "000")) for part in texts(plan_text(text)))


def test_a_word_without_end_is_cut_hard():
    parts = texts(plan_text("a" * 900))
    assert "".join(parts) == "a" * 900
    assert [len(part) for part in parts] == [100, 250, 250, 250, 50]


@pytest.mark.parametrize(
    "unit",
    ["e\u0301\u0323", "x👨\u200d👩\u200d👧\u200d👦", "x🇩🇪🇫🇷🇯🇵", "x👍🏽", "क्\u200dषि", "สวัสดี"],
    ids=["marks", "family", "flags", "skin tone", "conjunct", "thai"],
)
def test_a_hard_cut_never_parts_what_is_one_character_to_the_eye(unit: str):
    for part in texts(plan_text(unit * 200)):
        assert not unicodedata.category(part[0]).startswith("M")
        assert part[0] not in "\u200d🏽"
        assert part[-1] != "\u200d"
        flags = sum("\U0001f1e6" <= character <= "\U0001f1ff" for character in part)
        assert flags % 2 == 0


def test_signs_without_a_letter_are_spoken_with_their_neighbour():
    assert texts(plan_text("!!! Hello you.")) == ["!!! Hello you."]
    assert texts(plan_text(f"{LONG} — ”"))[-1].endswith("— ”")
    assert texts(plan_text(f"{'x' * 100}{'.' * 60}"))[-1] == "x" * 100 + "." * 60


@pytest.mark.parametrize("text", ["", " ", "!!!", "[pause:1s]", "… [pause:1s] …"])
def test_a_plan_without_a_letter_or_digit_is_refused(text: str):
    error = refusal(text, param="input")
    assert (error.code, error.param) == (ErrorCode.UNSPEAKABLE_TEXT, "input")


def test_more_signs_than_fit_with_a_letter_are_refused_and_not_dropped():
    error = refusal("Hello. " + "!?" * 300 + " Bye.")
    assert (error.code, error.param) == (ErrorCode.UNSPEAKABLE_TEXT, "text")
    assert "250" in error.message


@pytest.mark.parametrize(
    ("mark", "seconds"),
    [
        *[
            ("[pause:1.5s]", 1.5),
            ("[pause:300ms]", 0.3),
            ("[pause:2]", 2.0),
            ("[PAUSE: 2 S]", 2.0),
            ("[ pause : .5 s ]", 0.5),
        ],
        *[("[pause:10s]", 10.0), ("[pause:10000ms]", 10.0), ("[pause:0]", 0.0), ("[pause:3.]", 3.0)],
    ],
)
def test_a_pause_mark_is_exact_silence(mark: str, seconds: float):
    assert plan_text(f"Wait.{mark} Go on.") == (Speak("Wait.", 0), Pause(seconds), Speak("Go on.", 1))


@pytest.mark.parametrize(
    "mark",
    [
        "[pause]",
        "[pause:]",
        "[pause:abc]",
        "[pause:-1]",
        "[pause:1,5s]",
        "[pause:1e1]",
        "[pause:1m]",
        "[pause:1s",
        "[pause:nan]",
    ],
)
def test_a_malformed_pause_mark_is_refused_by_name(mark: str):
    error = refusal(f"Wait. {mark} Go on.", param="input")
    assert (error.code, error.param) == (ErrorCode.INVALID_VALUE, "input")
    assert mark in error.message
    assert "[pause:1.5s]" in error.message


@pytest.mark.parametrize("mark", ["[pause:10.1s]", "[pause:11]", "[pause:10001ms]"])
def test_a_pause_longer_than_ten_seconds_is_refused_by_name(mark: str):
    error = refusal(f"Wait. {mark} Go on.")
    assert error.code is ErrorCode.INVALID_VALUE
    assert mark in error.message


def test_pauses_without_end_are_refused():
    plan_text("a [pause:10s] " * 30)
    assert refusal("a [pause:10s] " * 31).code is ErrorCode.INVALID_VALUE


def test_brackets_that_are_no_pause_are_text():
    text = "Hm [laugh] wait [pause for effect] so."
    assert texts(plan_text(text)) == [text]


def test_pauses_stand_where_they_were_written():
    items = plan_text("[pause:1s] One. [pause:2s][pause:3s] Two. [pause:4s] !! [pause:5s]")
    assert items == (Pause(1), Speak("One.", 0), Pause(2), Pause(3), Speak("Two. !!", 1), Pause(4), Pause(5))


def test_whole_cuts_at_pauses_only():
    assert texts(plan_text(f"{LONG} [pause:1s] {PARAGRAPH}", whole=True)) == [LONG, PARAGRAPH]
    assert texts(plan_text(LONG, whole=True, parallelism=8)) == [LONG]


@pytest.mark.parametrize("language", [None, "en", "en-US", "pt_BR", "EN", "zz", ""])
def test_any_language_code_will_do(language: str | None):
    assert texts(plan_text("One is here for you. Two is there.", language=language))


def test_sentences_of_scripts_without_spaces_are_cut_too():
    text = "今天天气很好，我们去公园散步。" * 40
    parts = texts(plan_text(text, language="zh"))
    assert "".join(parts) == text
    assert all(part.endswith("。") for part in parts)
    assert max(map(len, parts)) <= 250


def test_lines_become_one():
    assert texts(plan_text("One  line\nand\tanother.")) == ["One line and another."]


def can_be_cut(text: str, limit: int) -> bool:
    """Tell whether it has something to say, and no run of signs so long that it takes up half a segment."""
    return any(map(str.isalnum, text)) and all(len(run) < limit // 2 for run in re.findall(r"[\W_]+", text))


@given(TEXTS, st.integers(1, 120), st.integers(16, 260), st.sampled_from([1, 2, 8]), st.booleans())
def test_nothing_is_lost_doubled_moved_or_too_long(text: str, first: int, limit: int, parallelism: int, whole: bool):
    assume("[" not in text)
    assume(can_be_cut(text, limit))
    items = plan_text(text, first_characters=first, max_characters=limit, parallelism=parallelism, whole=whole)
    parts = texts(items)
    assert without_space("".join(parts)) == without_space(text)
    assert [item.index for item in items if isinstance(item, Speak)] == list(range(len(parts)))
    for part in parts:
        assert part == part.strip()
        assert any(map(str.isalnum, part))
        assert whole or len(part) <= limit


@given(st.lists(st.sampled_from(["One two. ", "!? ", "[pause:1s]", "[ PAUSE : 20ms ]", "three, ", "😀"]), max_size=20))
def test_pauses_keep_their_place_and_the_text_its_order(pieces: list[str]):
    text = "".join(pieces)
    marks = [1.0 if piece == "[pause:1s]" else 0.02 for piece in pieces if "pause" in piece.lower()]
    spoken = "".join(piece for piece in pieces if "pause" not in piece.lower())
    assume(any(map(str.isalnum, spoken)))
    items = plan_text(text)
    assert [item.seconds for item in items if isinstance(item, Pause)] == marks
    assert without_space("".join(texts(items))) == without_space(spoken)


@given(st.text(st.characters(categories=["L", "Nd", "Zs"]), min_size=1))
def test_a_text_of_words_is_never_refused(text: str):
    assume(any(map(str.isalnum, text)))
    plan_text(text, max_characters=16)


def speed_up(text: str, workers: int) -> float:
    """Return how much sooner than one `workers` are done, if time goes by characters and each takes the next piece."""
    lengths = [len(part) for part in texts(plan_text(text, parallelism=workers))]
    busy_until = [0] * workers
    for length in lengths:
        heapq.heapreplace(busy_until, busy_until[0] + length)
    return sum(lengths) / max(busy_until)


def ordinary_texts(characters: int) -> list[str]:
    shuffled = []
    for seed in range(4):
        chosen = random.Random(seed).choices(SENTENCES, k=math.ceil(characters / 40))
        shuffled.append(" ".join(chosen)[:characters])
    return [(f"{PARAGRAPH} " * 20)[:characters], *shuffled]


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_a_long_text_keeps_all_workers_busy_to_the_end(workers: int):
    for text in ordinary_texts(3000):
        assert speed_up(text, workers) >= 0.9 * workers


def test_a_text_for_many_workers_is_cut_between_sentences_where_that_balances():
    parts = texts(plan_text(LONG * 3, parallelism=4))
    ends = sum(part.endswith((".", "?")) for part in parts)
    assert ends >= 0.75 * len(parts)


def test_pieces_for_many_workers_are_no_fragments():
    assert min(map(len, texts(plan_text(LONG, parallelism=64))[:-1])) >= 20


def stream(text: str, size: int, **options: int) -> tuple[list[Item], list[Item]]:
    planner = StreamPlanner(**options)  # type: ignore[arg-type]
    early = [item for start in range(0, len(text), size) for item in planner.feed(text[start : start + size])]
    return early, planner.flush()


@pytest.mark.parametrize("size", [1, 3, 17, 10_000])
@pytest.mark.parametrize(
    "text",
    [
        LONG,
        f"{PARAGRAPH}\n\n{LONG}",
        f"Sure! {PARAGRAPH}",
        f"One is first. [pause:1.5s] {LONG} [pause:2] The end is here.",
        "the children ran along the harbour " * 30,
        "When the ferry came in, and the men had tied it to the wall, " * 9,
        "今天天气很好，我们去公园散步。" * 40,
        f"!! [pause:1s] {PARAGRAPH}",
        f"https://example.org/{'path/' * 25} is the address. {LONG}",
    ],
)
def test_a_text_in_pieces_gets_the_same_segments_as_in_one(text: str, size: int):
    early, late = stream(text, size)
    assert tuple(early + late) == plan_text(text)


def test_the_first_sentence_comes_out_when_the_next_has_begun():
    planner = StreamPlanner()
    assert planner.feed(SENTENCES[0] + " ") == []
    assert planner.feed("P") == []
    assert planner.feed("l") == [Speak(SENTENCES[0], 0)]


def test_a_mark_in_pieces_is_not_spoken():
    planner = StreamPlanner()
    assert planner.feed("Wait here for me please. [pau") == []
    assert planner.feed("se:1s] Now.") == [Speak("Wait here for me please.", 0), Pause(1.0)]
    assert planner.flush() == [Speak("Now.", 1)]


def test_a_bracket_that_is_no_mark_is_not_held_for_long():
    early, late = stream("So [laugh] it was. " + LONG, 1)
    assert texts(early + late)[0].startswith("So [laugh] it was.")
    assert len(early) > 3


def test_a_stream_may_be_flushed_between_its_sentences():
    planner = StreamPlanner()
    planner.feed("Hello.")
    assert planner.flush() == [Speak("Hello.", 0)]
    assert planner.flush() == []
    planner.feed(" And again.")
    assert planner.flush() == [Speak("And again.", 1)]


def test_what_cannot_be_spoken_alone_waits_for_a_word():
    planner = StreamPlanner()
    planner.feed("… ")
    assert planner.flush() == []
    planner.feed("so")
    assert planner.flush() == [Speak("… so", 0)]


@pytest.mark.parametrize("piece", ["!?" * 300, "Hello. " + "!?" * 300, "[pause:99s]", "[pause:" + "1" * 60])
def test_a_stream_is_refused_as_a_whole_text_is(piece: str):
    planner = StreamPlanner()
    with pytest.raises(TtsError):
        planner.feed(piece)


@given(TEXTS, st.integers(1, 50), st.integers(16, 260))
def test_a_stream_loses_nothing_and_keeps_the_limit(text: str, size: int, limit: int):
    assume("[" not in text)
    assume(can_be_cut(text + "end", limit))
    early, late = stream(text + " end", size, max_characters=limit)
    parts = texts(early + late)
    assert without_space("".join(parts)) == without_space(text + "end")
    assert max(map(len, parts)) <= limit
