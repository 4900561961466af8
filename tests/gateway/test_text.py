import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.text import check_scripts, clean_piece, clean_text, strip_markup
from wire.errors import ErrorCode, TtsError


def clean(text: str, **options: object) -> str:
    return clean_text(text, max_characters=5000, **options)  # type: ignore[arg-type]


def refusal(text: str, **options: object) -> TtsError:
    with pytest.raises(TtsError) as caught:
        clean(text, **options)
    return caught.value


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "\u200b\ufeff", "\u00a0\u3000"])
def test_a_text_without_a_visible_character_is_refused_as_empty(text: str):
    error = refusal(text)
    assert (error.code, error.param) == (ErrorCode.EMPTY_TEXT, "text")


def test_a_refusal_names_the_field_that_the_caller_sent():
    error = refusal(" ", param="input")
    assert error.param == "input"
    assert error.message.startswith("input ")


@pytest.mark.parametrize(
    ("text", "code_point", "position"),
    [
        ("ab\x00c", "U+0000", 2),
        ("\x1b[31mred", "U+001B", 0),
        ("page\x0c", "U+000C", 4),
        ("\x85next", "U+0085", 0),
        ("\x7f", "U+007F", 0),
        ("a\ud83d", "U+D83D", 1),
        ("\udc00 b", "U+DC00", 0),
    ],
)
def test_control_characters_and_half_surrogates_are_refused_by_code_point_and_position(
    text: str, code_point: str, position: int
):
    error = refusal(text)
    assert error.code is ErrorCode.UNSPEAKABLE_TEXT
    assert code_point in error.message
    assert f"position {position} " in error.message


@pytest.mark.parametrize("text", ["!!!", "… — …", "😀", "👨\u200d👩\u200d👧 🎉", "***", "\u0301", "$ % &"])
def test_a_text_without_a_letter_or_digit_has_nothing_to_say(text: str):
    error = refusal(text)
    assert error.code is ErrorCode.UNSPEAKABLE_TEXT
    assert "nothing to say" in error.message


def test_a_text_of_markup_alone_has_nothing_to_say():
    assert refusal("<br> **", keep_markup=False).code is ErrorCode.UNSPEAKABLE_TEXT


@pytest.mark.parametrize("text", ["7", "ß", "Ω", "你好", "नमस्ते", "a!"])
def test_one_letter_or_digit_is_enough(text: str):
    assert clean(text) == text


def test_a_text_over_the_limit_is_refused_with_both_numbers():
    assert clean("a" * 5000) == "a" * 5000
    error = refusal("a" * 5001)
    assert error.code is ErrorCode.TEXT_TOO_LONG
    assert "5001" in error.message
    assert "5000" in error.message


def test_the_length_is_checked_before_anything_that_takes_time():
    # Combining marks without end: normalising them would take time quadratic in their number.
    assert refusal("a" + "\u0301\u0316" * 500_000).code is ErrorCode.TEXT_TOO_LONG


def test_marks_stacked_on_one_letter_are_refused_before_they_are_normalised():
    error = refusal("a" + "\u0301\u0316" * 2000)
    assert error.code is ErrorCode.UNSPEAKABLE_TEXT
    assert "combining marks" in error.message
    assert clean("Z" + "\u0301" * 7) == "\u0179" + "\u0301" * 6


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("one\u2028two\u2029three", "one\ntwo\nthree"),
        ("  round \n", "round"),
        ("a\tb", "a b"),
        ("a\u00a0b\u2009c\u3000d\u202fe", "a b c d e"),
        ("cafe\u0301", "café"),
        ("\ufeffco\u00adop\u200ber\u2060ate", "cooperate"),
        ("left\u200e right\u202c", "left right"),
        ("heart ❤\ufe0f", "heart ❤"),
        ("family 👨\u200d👩", "family 👨👩"),
        ("chapter ........ page", "chapter ... page"),
        ("wow!!!!!!!", "wow!!!!!!!"),
        ("a" + "_" * 60 + "b", "a___b"),
        ("1" * 60, "1" * 60),
    ],
)
def test_what_has_no_sound_is_made_plain(text: str, cleaned: str):
    assert clean(text) == cleaned


def test_joiners_that_decide_what_a_word_is_are_kept():
    persian = "می\u200cخواهم"
    sinhala = "ශ්\u200dරී"
    assert clean(persian) == persian
    assert clean(sinhala) == sinhala
    assert clean("la\u200ctin") == "latin"


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"])))
def test_cleaning_loses_no_letter_and_is_done_once(text: str):
    try:
        cleaned = clean(text)
    except TtsError:
        return
    assert clean(cleaned) == cleaned
    assert cleaned == cleaned.strip()
    assert not re.search("[\r\t\u00a0\u200b\ufeff]", cleaned)


@given(st.text("ab \n.é", max_size=40))
def test_a_piece_keeps_the_blanks_around_it(text: str):
    assert clean_piece(text) == text


def test_a_piece_of_a_longer_text_may_be_blank_but_not_unspeakable():
    assert clean_piece(" \r\n") == " \n"
    assert clean_piece("") == ""
    with pytest.raises(TtsError):
        clean_piece("a\x00")


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        ("**bold** and *it* and __x__ and _y_", "bold and it and x and y"),
        ("***both*** **a *b* c** ~~gone~~", "both a b c gone"),
        ("# Title\n## Part two\ntext", "Title\nPart two\ntext"),
        ("- one\n* two\n  + three\n- [x] four", "one\ntwo\nthree\nfour"),
        ("> quoted\n> again", "quoted\nagain"),
        ("1. first\n2. second", "1. first\n2. second"),
        ("call `len(x)` or ``y``", "call len(x) or y"),
        ("see [the page](https://a.b/c_(d)) now", "see the page now"),
        ('![a cat](cat.png "t") sits', "a cat sits"),
        ("<https://a.b/c>", "https://a.b/c"),
        ("```python\nprint(1)\n```", "\nprint(1)\n"),
        ("above\r\n---\r\nbelow", "above\n\nbelow"),
        ("Hello<br/>World", "Hello\nWorld"),
        ('<p class="a b">Hi <b>you</b></p>', "\nHi you\n"),
        ("AT&amp;T &lt;3 caf&eacute; &#8364;", "AT&T <3 café €"),
        ("&lt;b&gt; is text", "<b> is text"),
    ],
)
def test_markup_goes_and_its_words_stay(marked: str, plain: str):
    assert strip_markup(marked) == plain


@pytest.mark.parametrize(
    "text",
    [
        "a < b and c > d",
        "if a <b and c> d then",
        "Dear <name>, hello",
        "3 * 4 * 5",
        "2**3**4",
        "snake_case_name and _private",
        "I <3 you",
        "[pause:1.5s]",
        "wait [pause: 300ms] here [laugh]",
        "f*** that s***",
        "-5 degrees, #1 fan, AT&T, Q&A &copy=1",
        "~5 minutes, ~10 at most",
        "5 > 3",
    ],
)
def test_what_only_looks_like_markup_stays(text: str):
    assert strip_markup(text) == text


@given(st.text(st.sampled_from("ab1 \n*_~`#->+=[]")))
def test_stripping_markup_never_loses_a_word(text: str):
    assert "".join(words(strip_markup(text))) == "".join(words(text))


@given(st.text())
def test_stripping_markup_never_fails(text: str):
    strip_markup(text)


def test_an_entity_cannot_smuggle_in_a_control_character():
    assert clean("a&#0;b&#12;c&#xD800;d&#27;e", keep_markup=False) == "a\ufffdbc\ufffdde"


def test_a_position_is_counted_in_the_text_that_was_sent():
    assert "position 5 " in refusal("**a**\x00", keep_markup=False).message


@pytest.mark.parametrize(
    ("text", "letter", "script"),
    [
        ("Hello мир", "м", "Cyrillic"),
        ("你好", "你", "Cjk"),
        ("price ひと", "ひ", "Hiragana"),
        ("שלום", "ש", "Hebrew"),
    ],
)
def test_a_letter_that_the_model_cannot_read_is_named_with_its_script(text: str, letter: str, script: str):
    with pytest.raises(TtsError) as caught:
        check_scripts(text, scripts=("LATIN",), model="tone", param="input")
    error = caught.value
    assert (error.code, error.param) == (ErrorCode.UNSPEAKABLE_TEXT, "input")
    assert f"{script} letter {letter!r} at position {text.index(letter)}" in error.message
    assert "tone" in error.message


@pytest.mark.parametrize("text", ["naïve Ｆｕｌｌ ﬁn 𝐛𝐨𝐥𝐝 ª", "Hawaiʻi 5 € 😀 — “x”", "²½ ①"])
def test_latin_in_all_its_shapes_signs_and_digits_are_no_foreign_script(text: str):
    check_scripts(text, scripts=("LATIN",), model="tone")


def test_a_model_without_scripts_reads_any():
    check_scripts("мир 你好", scripts=(), model="any")


def test_each_of_several_scripts_is_read():
    check_scripts("Hi мир", scripts=("LATIN", "CYRILLIC"), model="two")
    with pytest.raises(TtsError):
        check_scripts("hi", scripts=("CYRILLIC",), model="russian")
