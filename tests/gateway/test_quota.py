"""What a key may have: characters a minute, requests at once."""

from __future__ import annotations

import contextlib

import pytest

from gateway.keys import NO_LIMITS, Limits
from gateway.quota import Quotas
from wire.errors import ErrorCode, TtsError


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def speak(quotas: Quotas, limits: Limits, characters: int, *, caller: str = "key:a", heard: bool = True) -> None:
    with quotas.hold(caller, limits, characters, was_heard=lambda: heard):
        pass


def refusal(quotas: Quotas, limits: Limits, characters: int = 1) -> TtsError:
    with pytest.raises(TtsError) as caught:
        speak(quotas, limits, characters)
    assert caught.value.code is ErrorCode.RATE_LIMITED
    return caught.value


def test_a_minutes_characters_may_be_had_at_once_and_then_the_wait_is_told():
    clock = Clock()
    quotas, limits = Quotas(clock), Limits(characters_per_minute=600)
    for _ in range(6):
        speak(quotas, limits, 100)
    error = refusal(quotas, limits)
    assert error.param == "characters_per_minute"
    assert error.retry_after_seconds == pytest.approx(0.1)
    clock.now += error.retry_after_seconds
    speak(quotas, limits, 1)


def test_the_rate_holds_over_an_hour_whatever_the_size_of_the_texts():
    clock = Clock()
    quotas, limits = Quotas(clock), Limits(characters_per_minute=600)
    spoken = 0
    while clock.now < 4600:
        try:
            speak(quotas, limits, 777)
            spoken += 777
        except TtsError as error:
            clock.now += error.retry_after_seconds
    # One bucket at the start, one text beyond the last refill.
    assert 36_000 - 777 <= spoken <= 36_000 + 600 + 777


def test_a_text_longer_than_a_minutes_worth_goes_through_and_is_paid_for_with_time():
    clock = Clock()
    quotas, limits = Quotas(clock), Limits(characters_per_minute=600)
    speak(quotas, limits, 6000)
    error = refusal(quotas, limits)
    assert error.retry_after_seconds == pytest.approx(540, abs=1)
    clock.now += error.retry_after_seconds - 1
    refusal(quotas, limits)
    clock.now += 1.1
    speak(quotas, limits, 1)


def test_what_nobody_heard_costs_nothing():
    quotas, limits = Quotas(Clock()), Limits(characters_per_minute=100)
    for _ in range(10):
        speak(quotas, limits, 100, heard=False)
    speak(quotas, limits, 100)
    refusal(quotas, limits)


def test_no_more_requests_at_once_than_the_key_may_have_however_they_end():
    quotas, limits = Quotas(Clock()), Limits(concurrent=2)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(quotas.hold("key:a", limits, 10, was_heard=lambda: True))
        error = refusal(quotas, limits)
        assert (error.param, error.retry_after_seconds) == ("concurrent", 1.0)
        speak(quotas, limits, 10, caller="key:b")  # another key has its own
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), quotas.hold("key:a", limits, 10, was_heard=lambda: False):
            raise ZeroDivisionError
    speak(quotas, limits, 10)


def test_a_refused_request_is_not_counted():
    quotas, limits = Quotas(Clock()), Limits(concurrent=1)
    with quotas.hold("key:a", limits, 10, was_heard=lambda: True):
        for _ in range(5):
            refusal(quotas, limits)
    speak(quotas, limits, 10)


def test_without_limits_nothing_is_counted():
    quotas = Quotas(Clock())
    for number in range(1000):
        speak(quotas, NO_LIMITS, 10_000, caller=f"10.0.0.{number}")
    assert quotas._meters == {}


def test_a_limit_that_is_raised_counts_at_once():
    clock = Clock()
    quotas = Quotas(clock)
    speak(quotas, Limits(characters_per_minute=60), 60)
    refusal(quotas, Limits(characters_per_minute=60))
    clock.now += 1
    speak(quotas, Limits(characters_per_minute=6000), 50)


def test_a_text_that_is_still_arriving_is_charged_as_it_comes_and_given_back_whole_when_nothing_was_heard():
    clock = Clock()
    quotas, limits = Quotas(clock), Limits(characters_per_minute=600)
    for heard in (False, True):
        with quotas.hold("key:a", limits, 0, was_heard=lambda heard=heard: heard) as charge:
            charge(500)
            charge(500)
    assert refusal(quotas, limits).retry_after_seconds == pytest.approx((1000 - 600 + 1) / 10)
