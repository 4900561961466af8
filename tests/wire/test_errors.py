"""Every error has a status, a type and an answer to "may I try again?", and survives the way to the other side."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import TRAITS, ErrorCode, TtsError

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_a_message_of_the_other_side_is_shortened() -> None:
    body = {"error": {"code": "internal_error", "message": "x" * 1_000_000}}
    assert TtsError.from_envelope(body).message == "x" * 500


def test_every_code_has_traits() -> None:
    assert TRAITS.keys() == set(ErrorCode)


@pytest.mark.parametrize("code", list(ErrorCode))
def test_the_status_is_an_error_and_fits_the_type(code: ErrorCode) -> None:
    status, type_, _ = TRAITS[code]
    assert 400 <= status <= 599
    assert (type_ == "server_error") <= (status >= 500)
    assert (type_ in ("invalid_request_error", "authentication_error")) <= (status < 500)


@pytest.mark.parametrize("code", [code for code in ErrorCode if TRAITS[code].type == "overloaded_error"])
def test_an_overload_passes(code: ErrorCode) -> None:
    assert TRAITS[code].retryable


@given(st.sampled_from(ErrorCode), st.text(max_size=500), st.none() | st.text())
def test_an_error_survives_its_envelope(code: ErrorCode, message: str, param: str | None) -> None:
    error = TtsError.from_envelope(TtsError(code, message, param=param).envelope())
    assert (error.code, error.message, error.param) == (code, message, param)
    assert (error.status, error.retryable) == (TRAITS[code].status, TRAITS[code].retryable)


def test_an_envelope_is_openais() -> None:
    assert TtsError(ErrorCode.EMPTY_TEXT, "No text.", param="text").envelope() == {
        "error": {"message": "No text.", "type": "invalid_request_error", "param": "text", "code": "empty_text"}
    }


@given(ANYTHING, st.booleans())
def test_whatever_the_other_side_sends_becomes_an_error(body: Any, is_inner: bool) -> None:
    error = TtsError.from_envelope({"error": body} if is_inner else body)
    assert isinstance(error.message, str)


@pytest.mark.parametrize("field", ["code", "message", "param"])
def test_deep_nesting_in_an_envelope_does_no_harm(field: str) -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert TtsError.from_envelope({"error": {"code": "worker_full", "message": "x"} | {field: nested}}).status >= 400
    assert TtsError.from_envelope(nested).code is ErrorCode.SEGMENT_FAILED
    while nested:  # taken apart one by one: freeing it at once may exhaust the stack
        nested = nested.pop()


def test_a_code_of_a_newer_worker_keeps_its_message_and_may_be_tried_again() -> None:
    error = TtsError.from_envelope({"error": {"code": "gpu_on_fire", "message": "The GPU is on fire."}})
    assert (error.code, error.message, error.retryable) == (ErrorCode.SEGMENT_FAILED, "The GPU is on fire.", True)


def test_an_answer_that_is_no_envelope_is_quoted_but_not_at_length() -> None:
    assert "HTTP 502" in TtsError.from_envelope("HTTP 502").message
    assert len(TtsError.from_envelope("x" * 10_000).message) < 300
