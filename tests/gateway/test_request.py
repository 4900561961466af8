"""The fields of a speech request: what each may be, what it becomes, and how a bad one is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.openai import parse_openai
from gateway.encoder import AudioFormat
from gateway.queue import Priority
from gateway.request import SpeechRequest, parse_speech
from wire.errors import ErrorCode, TtsError
from wire.segment import PARAMETERS


def parse(**fields: Any) -> SpeechRequest:
    return parse_speech({"text": "Hello."} | fields, text_field="text", max_characters=1000)


def refused(**fields: Any) -> TtsError:
    with pytest.raises(TtsError) as caught:
        parse(**fields)
    return caught.value


def test_a_text_alone_is_a_request_with_the_defaults():
    request = parse()
    assert request == SpeechRequest(text="Hello.", text_field="text")
    assert (request.format, request.stream, request.speed) == (AudioFormat.WAV, True, 1.0)
    assert (request.voice, request.model, request.seed, request.language) == (None, None, None, None)
    assert (request.timeout_seconds, request.priority) == (None, Priority.INTERACTIVE)


def test_every_field_that_is_null_counts_as_absent():
    names = ("voice", "model", "format", "stream", "seed", "speed", "language", "timeout_seconds", "priority")
    assert parse(**dict.fromkeys((*names, *PARAMETERS))) == parse()


def test_unknown_fields_are_ignored():
    assert parse(chunk_size=120, user="me", extra={"a": [1]}) == parse()


@pytest.mark.parametrize("text_field", ["text", "input"])
def test_a_missing_text_is_told_by_the_name_that_the_route_has_for_it(text_field: str):
    for body in ({}, {text_field: None}):
        with pytest.raises(TtsError) as caught:
            parse_speech(body, text_field=text_field, max_characters=10)
        assert (caught.value.code, caught.value.param) == (ErrorCode.EMPTY_TEXT, text_field)


def test_the_length_is_that_of_the_text_as_it_was_sent():
    assert parse_speech({"text": "a" * 10}, text_field="text", max_characters=10).text == "a" * 10
    with pytest.raises(TtsError) as caught:
        parse_speech({"text": " " * 10 + "a"}, text_field="text", max_characters=10)
    assert caught.value.code is ErrorCode.TEXT_TOO_LONG
    assert "11" in caught.value.message


@pytest.mark.parametrize("form", AudioFormat)
def test_every_format_is_known_by_its_name(form: AudioFormat):
    assert parse(format=str(form)).format is form


@pytest.mark.parametrize("value", ["ogg", "WAV", "", 1, ["wav"], {"a": 1}, True])
def test_a_format_that_does_not_exist_is_told_with_those_that_do(value: object):
    error = refused(format=value)
    assert (error.code, error.param) == (ErrorCode.INVALID_VALUE, "format")
    assert "wav, mp3, opus, flac, aac, pcm" in error.message


@pytest.mark.parametrize("value", [None, 0, -1])
def test_seeds_that_mean_a_random_one(value: int | None):
    assert parse(seed=value).seed is None


@pytest.mark.parametrize("value", [1, 42, 4294967295])
def test_seeds_that_mean_themselves(value: int):
    assert parse(seed=value).seed == value


@pytest.mark.parametrize("value", [-2, 4294967296, 1.0, "1", True, False, [1]])
def test_seeds_that_cannot_be(value: object):
    assert refused(seed=value).param == "seed"


@pytest.mark.parametrize(
    ("value", "language"), [("en", "en"), ("EN", "en"), ("en-US", "en"), ("pt_BR", "pt"), (" yue ", "yue")]
)
def test_a_language_is_its_bare_code(value: str, language: str):
    assert parse(language=value).language == language


@pytest.mark.parametrize("value", ["", " ", "e", "english please", "日本", "e1", 5, ["en"], "a" * 9])
def test_languages_that_cannot_be(value: object):
    assert refused(language=value).param == "language"


@pytest.mark.parametrize("name", ["voice", "model"])
def test_names_are_stripped_and_have_an_end(name: str):
    assert getattr(parse(**{name: "  alto "}), name) == "alto"
    assert getattr(parse(**{name: "a" * 128}), name) == "a" * 128
    for value in ("", "  ", "a" * 129, 5, ["alto"], True):
        assert refused(**{name: value}).param == name


def test_a_voice_may_be_an_object_as_openais_newer_clients_send_it():
    assert parse(voice={"id": "alto"}).voice == "alto"
    for value in ({}, {"id": None}, {"id": 5}, {"name": "alto"}):
        assert refused(voice=value).param == "voice"


@pytest.mark.parametrize("value", ["true", 1, 0, "", []])
def test_stream_is_true_or_false_and_nothing_like_it(value: object):
    assert refused(stream=value).param == "stream"


@pytest.mark.parametrize(("value", "priority"), [("interactive", Priority.INTERACTIVE), ("batch", Priority.BATCH)])
def test_a_priority_is_a_word(value: str, priority: Priority):
    assert parse(priority=value).priority is priority


@pytest.mark.parametrize("value", [0, 1, "urgent", "BATCH", ["batch"], {}])
def test_priorities_that_cannot_be(value: object):
    assert refused(priority=value).param == "priority"


@pytest.mark.parametrize("name", [*PARAMETERS, "speed", "timeout_seconds"])
def test_a_number_is_one_that_is_finite_and_in_its_range(name: str):
    for value in ("1", True, [], {}, float("nan"), float("inf"), -float("inf"), 10**400, -1):
        error = refused(**{name: value})
        assert (error.code, error.param) == (ErrorCode.INVALID_VALUE, name)
        assert name in error.message


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_ends_of_a_range_belong_to_it(name: str):
    for value in (PARAMETERS[name].low, PARAMETERS[name].high):
        request = parse(**{name: value})
        assert request.parameters == {name: value}
        assert request.given == {name}


def test_what_the_caller_set_is_remembered():
    assert parse(speed=1.0, language="en", temperature=0.5, seed=5, voice="x").given == {
        "speed",
        "language",
        "temperature",
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("text", "voice", "model", "format", "stream", "seed", "speed", "language", "timeout_seconds", "priority")


@given(st.dictionaries(st.sampled_from((*FIELDS, *PARAMETERS)), json_values))
def test_whatever_json_comes_it_is_a_request_or_an_error_that_names_a_field(fields: dict[str, Any]):
    fields = json.loads(json.dumps(fields))
    try:
        request = parse_speech(fields, text_field="text", max_characters=1000)
    except TtsError as error:
        refusal = error
    else:
        assert request.text.strip()
        return
    assert refusal.status == 422
    assert refusal.param in (*FIELDS, *PARAMETERS)
    json.dumps(refusal.envelope()).encode()


# ── OpenAI's names ───────────────────────────────────────────────────────────────────────────────────────────────────


def openai(**fields: Any) -> tuple[SpeechRequest, bool]:
    return parse_openai({"input": "Hello."} | fields, max_characters=1000)


def test_openais_defaults_are_mp3_and_plain_audio():
    request, sse = openai()
    assert (request.format, request.text_field, sse) == (AudioFormat.MP3, "input", False)


def test_openais_format_has_its_own_name_and_ours_means_nothing():
    assert openai(response_format="flac")[0].format is AudioFormat.FLAC
    assert openai(format="flac")[0].format is AudioFormat.MP3
    assert openai(response_format=None)[0].format is AudioFormat.MP3


@pytest.mark.parametrize(("value", "sse"), [("sse", True), ("audio", False), (None, False)])
def test_the_stream_format_says_whether_events_are_wanted(value: str | None, sse: bool):
    assert openai(stream_format=value)[1] is sse


@pytest.mark.parametrize("name", ["response_format", "stream_format"])
@pytest.mark.parametrize("value", ["ogg", 1, [], {}, True, ["mp3"]])
def test_what_cannot_be_is_told_by_openais_name(name: str, value: object):
    with pytest.raises(TtsError) as caught:
        openai(**{name: value})
    assert (caught.value.code, caught.value.param) == (ErrorCode.INVALID_VALUE, name)


def test_instructions_are_noted_as_something_that_was_wanted():
    assert openai(instructions="Whisper.")[0].given == {"instructions"}
    assert openai(instructions="")[0].given == set()
