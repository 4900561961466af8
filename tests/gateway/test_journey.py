"""A request's own clock: what its log line, headers and metrics are made of."""

from __future__ import annotations

from gateway.dispatch import SegmentJourney
from gateway.journey import Journey, Outcome


def journey() -> Journey:
    return Journey("/v1/tts", caller="127.0.0.1", received=100.0)


def test_only_the_first_end_counts():
    of = journey()
    of.finish(Outcome.FAILED, "worker_failed")
    at = of.finished
    of.finish(Outcome.OK)
    of.finish(Outcome.CANCELLED)
    assert (of.outcome, of.error_code, of.finished) == (Outcome.FAILED, "worker_failed", at)


def test_the_first_audio_is_noted_once_and_every_byte_is_counted():
    of = journey()
    assert of.first_audio_seconds is None
    of.audio_sent(b"abc", 0.1)
    first = of.first_audio_seconds
    of.audio_sent(b"de", 0.1)
    assert of.first_audio_seconds == first
    assert of.bytes_sent == 5


def test_durations_are_counted_from_the_reception():
    of = journey()
    of.finished, of.first_audio, of.audio_seconds = 104.0, 101.5, 8.0
    assert (of.duration_seconds, of.first_audio_seconds, of.real_time_factor) == (4.0, 1.5, 0.5)


def test_without_audio_there_is_no_real_time_factor():
    assert journey().real_time_factor is None


def test_the_wait_is_that_of_the_first_segment():
    of = journey()
    assert of.queue_wait_seconds is None
    of.segments[1] = SegmentJourney(10, waited_seconds=5.0, tries=1, workers=["w1"])
    assert of.queue_wait_seconds is None
    of.segments[0] = SegmentJourney(10, waited_seconds=0.25, tries=1, workers=["w0"])
    assert of.queue_wait_seconds == 0.25


def test_the_log_line_has_the_workers_once_and_the_tries_beyond_the_first():
    of = journey()
    of.segments[0] = SegmentJourney(10, tries=3, workers=["w1", "w0", "w1"])
    of.segments[1] = SegmentJourney(10, tries=1, workers=["w1"])
    of.finish(Outcome.OK)
    fields = of.log_fields()
    assert (fields["workers"], fields["retries"], fields["outcome"]) == ("w0,w1", 2, "ok")


def test_a_retry_that_found_only_full_workers_is_none():
    of = journey()
    of.segments[0] = SegmentJourney(10, tries=0, workers=["w0"])
    assert of.log_fields()["retries"] == 0


def test_the_log_line_leaves_out_what_is_not_known():
    fields = journey().log_fields()
    assert {"error", "model", "first_audio_seconds", "real_time_factor", "workers"}.isdisjoint(fields)
    assert fields["endpoint"] == "/v1/tts"


def test_every_request_has_an_id_of_its_own():
    assert len({Journey("/v1/tts").request_id for _ in range(100)}) == 100


def test_a_listener_who_has_heard_all_that_was_sent_waits_and_one_who_has_not_does_not():
    ahead = Journey("/v1/tts")
    for _ in range(3):
        ahead.audio_sent(b"ab", 100.0)
    assert ahead.stall_seconds == 0
    dry = Journey("/v1/tts")
    dry.audio_sent(b"ab", 0.0)
    begin = dry.first_audio
    dry.audio_sent(b"ab", 0.0)
    dry.audio_sent(b"ab", 0.0)
    assert dry.stall_seconds == dry.heard_until - begin > 0
