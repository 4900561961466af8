"""The body of a data call: what is sent is what is read, and a bad value is refused by name."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import ErrorCode, TtsError
from wire.segment import (
    MAX_CHECKPOINT_BYTES,
    MAX_SEED,
    MAX_SEGMENT_CHARACTERS,
    PARAMETERS,
    Range,
    Resume,
    SegmentRequest,
)

PARAMETER_VALUES = st.fixed_dictionaries(
    {}, optional={name: st.floats(range_.low, range_.high) for name, range_ in PARAMETERS.items()}
)
SEGMENTS = st.builds(
    SegmentRequest,
    request_id=st.text(max_size=40),
    index=st.integers(0, 1_000_000),
    text=st.text(min_size=1, max_size=200),
    model=st.text(max_size=40),
    voice=st.text(max_size=40),
    seed=st.integers(0, MAX_SEED),
    voice_sha256=st.none() | st.text("0123456789abcdef", min_size=64, max_size=64),
    language=st.none() | st.text(max_size=8),
    speed=st.floats(0.25, 4.0),
    parameters=PARAMETER_VALUES,
    resume=st.none() | st.builds(Resume, st.binary(max_size=200), st.integers(0, 2**40)),
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text() | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
BODY: dict[str, Any] = {
    "request_id": "r",
    "index": 0,
    "text": "Hello.",
    "model": "tone",
    "voice": "a",
    "seed": 1,
    "voice_sha256": None,
    "language": "en",
    "speed": 1.0,
    "parameters": {},
    "resume": {"checkpoint": "", "delivered_samples": 0},
}
REQUIRED = ("request_id", "index", "text", "model", "voice", "seed")


def refusal_or_none(body: object) -> TtsError | None:
    try:
        SegmentRequest.from_json(body)
    except TtsError as error:
        return error
    return None


def refusal(body: object) -> TtsError:
    error = refusal_or_none(body)
    assert error is not None, f"{body} was read"
    return error


@given(SEGMENTS)
def test_what_is_sent_is_what_is_read(segment: SegmentRequest) -> None:
    assert SegmentRequest.from_json(json.loads(json.dumps(segment.to_json()))) == segment


@given(ANYTHING)
def test_no_body_raises_anything_but_a_tts_error(body: Any) -> None:
    if error := refusal_or_none(body):
        assert error.code in (ErrorCode.INVALID_BODY, ErrorCode.INVALID_VALUE)


@given(st.sampled_from([*BODY, "resume.checkpoint", "resume.delivered_samples", *PARAMETERS]), ANYTHING)
def test_a_bad_value_of_any_field_is_refused_by_name(name: str, value: Any) -> None:
    if name in PARAMETERS:
        body = BODY | {"parameters": {name: value}}
    elif name.startswith("resume."):
        body = BODY | {"resume": BODY["resume"] | {name.removeprefix("resume."): value}}
    else:
        body = BODY | {name: value}
    if error := refusal_or_none(body):
        assert error.code is ErrorCode.INVALID_VALUE
        # Inside an object that is bad as a whole, the name is that of the part.
        assert error.param is not None
        assert name.endswith(error.param) or error.param in PARAMETERS or name in ("resume", "parameters")


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_field_is_named(name: str) -> None:
    error = refusal({key: value for key, value in BODY.items() if key != name})
    assert (error.code, error.param) == (ErrorCode.INVALID_VALUE, name)


def test_what_may_be_left_out_has_its_default() -> None:
    segment = SegmentRequest.from_json({name: BODY[name] for name in REQUIRED})
    assert (segment.language, segment.speed, segment.parameters, segment.resume) == (None, 1.0, {}, None)


def test_unknown_fields_and_parameters_are_ignored() -> None:
    body = BODY | {"mood": "good", "parameters": {"temperature": 1, "vibrato": "wide"}}
    assert SegmentRequest.from_json(body).parameters == {"temperature": 1.0}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"text": ""}, "text"),
        ({"text": "a" * (MAX_SEGMENT_CHARACTERS + 1)}, "text"),
        ({"index": -1}, "index"),
        ({"index": True}, "index"),
        ({"index": 1.0}, "index"),
        ({"seed": -1}, "seed"),
        ({"seed": MAX_SEED + 1}, "seed"),
        ({"language": 1}, "language"),
        ({"speed": 0.2}, "speed"),
        ({"speed": float("nan")}, "speed"),
        ({"speed": 10**400}, "speed"),
        ({"speed": "fast"}, "speed"),
        ({"parameters": {"temperature": -0.1}}, "temperature"),
        ({"parameters": {"repetition_penalty": True}}, "repetition_penalty"),
        ({"parameters": []}, "parameters"),
        ({"resume": "yes"}, "resume"),
        ({"resume": {"checkpoint": "###", "delivered_samples": 0}}, "resume.checkpoint"),
        ({"resume": {"checkpoint": "é", "delivered_samples": 0}}, "resume.checkpoint"),
        ({"resume": {"checkpoint": "", "delivered_samples": -1}}, "delivered_samples"),
    ],
)
def test_an_impossible_value_is_refused(change: dict[str, Any], param: str) -> None:
    error = refusal(BODY | change)
    assert (error.code, error.param) == (ErrorCode.INVALID_VALUE, param)


@pytest.mark.parametrize("body", [None, [], "text", 1])
def test_a_body_that_is_no_object_is_refused(body: object) -> None:
    assert refusal(body).code is ErrorCode.INVALID_BODY


def test_the_longest_text_and_checkpoint_pass() -> None:
    checkpoint = bytes(MAX_CHECKPOINT_BYTES)
    resume = {"checkpoint": base64.b64encode(checkpoint).decode(), "delivered_samples": 2**40}
    segment = SegmentRequest.from_json(BODY | {"text": "a" * MAX_SEGMENT_CHARACTERS, "resume": resume})
    assert segment.resume == Resume(checkpoint, 2**40)


def test_a_checkpoint_that_is_too_long_is_refused() -> None:
    resume = {"checkpoint": base64.b64encode(bytes(MAX_CHECKPOINT_BYTES + 1)).decode(), "delivered_samples": 0}
    assert refusal(BODY | {"resume": resume}).param == "resume.checkpoint"


@pytest.mark.parametrize("value", [0.5, 1, 2.0])
def test_a_range_holds_its_ends(value: float) -> None:
    assert Range(0.5, 2.0).check("x", value) == value


@pytest.mark.parametrize(
    "value", [0.4999, 2.0001, float("nan"), float("inf"), -float("inf"), 10**400, True, "1", None, [], {}]
)
def test_what_is_outside_a_range_or_no_number_is_refused_with_both_ends(value: object) -> None:
    with pytest.raises(TtsError, match=r"(from|between) 0\.5 (to|and) 2") as error:
        Range(0.5, 2.0).check("x", value)
    assert error.value.param == "x"


def test_half_of_a_surrogate_pair_is_no_text():
    body = SegmentRequest("r", 0, "Hello \ud800", "tone", "alto", 1).to_json()
    with pytest.raises(TtsError) as refused:
        SegmentRequest.from_json(body)
    assert refused.value.param == "text"
