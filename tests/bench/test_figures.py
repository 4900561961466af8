import itertools
import json
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.figures import (
    AUDIBLE_SECONDS,
    Alone,
    distribution,
    events_per_second,
    fit_alone,
    in_flight_steps,
    stalls,
    summarize,
)
from bench.journey import Journey, Problem, ProblemKind


def spoken(
    index: int = 0, *, characters: int = 100, sent: float = 0.0, first: float = 0.5, end: float = 1.0
) -> Journey:
    return Journey(
        index,
        characters,
        due_at=sent,
        sent_at=sent,
        first_audio_at=sent + first,
        finished_at=sent + end,
        audio_bytes=96_000,
        audio_seconds=2.0,
        stalls=0,
        stall_seconds=0.0,
    )


def failed(kind: ProblemKind, *, sent: float | None = 0.0, code: str = "", status: int | None = None) -> Journey:
    end = None if sent is None else sent + 0.1
    return Journey(9, 50, due_at=0.0, sent_at=sent, finished_at=end, problem=Problem(kind, status, code))


@given(st.lists(st.floats(0, 1e4), min_size=2, max_size=200))
def test_percentiles_are_those_of_the_standard_library(values: list[float]) -> None:
    found = distribution(values)
    assert found is not None
    exact = statistics.quantiles(values, n=100, method="inclusive")
    for name, place in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99)):
        assert found[name] == pytest.approx(exact[place - 1], abs=1e-6)
    assert found["max"] == max(values)
    assert found["mean"] == pytest.approx(statistics.fmean(values))
    assert found["count"] == len(values)


def test_nothing_has_no_distribution() -> None:
    assert distribution([]) is None


# Whole milliseconds, so that the simulation below can count them.
streams = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60)), min_size=1, max_size=12)


def heard(arrived_ms: list[int], chunk_ms: list[int], prebuffer_ms: int) -> list[int]:
    """Play millisecond by millisecond; return the lengths of the gaps."""
    total, started, played, gaps, gap = sum(chunk_ms), False, 0, [], 0
    for now in itertools.count():
        here = sum(length for at, length in zip(arrived_ms, chunk_ms, strict=True) if at <= now)
        started = started or here >= prebuffer_ms or here == total
        if started and here > played:
            if gap:
                gaps.append(gap)
            gap = 0
            played += 1
        elif started and played:
            gap += 1
        if played == total:
            return gaps
    raise AssertionError


@given(streams, st.integers(0, 100))
def test_gaps_are_those_of_a_listener_simulated_by_the_millisecond(
    stream: list[tuple[int, int]], prebuffer_ms: int
) -> None:
    arrived_ms = list(itertools.accumulate(gap for gap, _ in stream))
    chunk_ms = [length for _, length in stream]
    found = stalls(
        [at / 1000 for at in arrived_ms],
        [length / 1000 for length in chunk_ms],
        prebuffer_seconds=prebuffer_ms / 1000 - 1e-9,
    )
    gaps = heard(arrived_ms, chunk_ms, prebuffer_ms)
    assert found.seconds == pytest.approx(sum(gaps) / 1000, abs=1e-9)
    at_the_border = sum(gap == AUDIBLE_SECONDS * 1000 for gap in gaps)
    audible = sum(gap > AUDIBLE_SECONDS * 1000 for gap in gaps)
    assert audible <= found.times <= audible + at_the_border


def test_a_late_chunk_is_one_gap_and_the_rest_plays_on_after_it() -> None:
    found = stalls([0.0, 1.5, 2.0], [1.0, 1.0, 1.0])
    assert (found.times, found.seconds) == (1, 0.5)


def test_audio_in_hand_bridges_a_late_chunk() -> None:
    arrived_at, seconds = [0.0, 0.4, 2.2], [1.0, 1.0, 1.0]
    assert stalls(arrived_at, seconds).times == 1
    assert stalls(arrived_at, seconds, prebuffer_seconds=1.5).times == 0


def test_a_line_is_fitted_through_requests_that_ran_alone() -> None:
    found = fit_alone([(100, 1.3), (200, 2.3), (400, 4.3)])
    assert found is not None
    assert found.per_request_seconds == pytest.approx(0.3)
    assert found.per_character_seconds == pytest.approx(0.01)
    assert found.seconds(300) == pytest.approx(3.3)


@given(st.lists(st.tuples(st.integers(1, 4000), st.floats(1e-3, 1e3)), min_size=1, max_size=20))
def test_a_fit_is_never_zero_or_less(points: list[tuple[int, float]]) -> None:
    found = fit_alone(points)
    assert found is not None
    assert min(found) >= 0
    assert found.seconds(1) > 0
    assert math.isfinite(found.seconds(4096))


def test_texts_of_one_length_are_fitted_by_the_character() -> None:
    assert fit_alone([(100, 1.0), (100, 3.0)]) == Alone(0.0, 0.02)
    assert fit_alone([]) is None


def test_requests_in_flight_are_counted_between_sending_and_end() -> None:
    journeys = [spoken(0, sent=0.0), spoken(1, sent=0.5), spoken(2, sent=1.0), failed(ProblemKind.CAPPED, sent=None)]
    assert in_flight_steps(journeys) == ([0.0, 0.5, 1.0, 1.0, 1.5, 2.0], [1, 2, 3, 2, 1, 0])


def test_a_summary_holds_every_figure_and_is_json() -> None:
    journeys = [
        *(spoken(number, characters=100, sent=number / 2) for number in range(10)),
        spoken(10, characters=1000, sent=5.0, first=1.0, end=5.0),
        failed(ProblemKind.REFUSED, status=503, code="overloaded"),
        failed(ProblemKind.REFUSED, status=503, code="overloaded"),
        failed(ProblemKind.TRUNCATED, status=200, code="ClientPayloadError"),
        failed(ProblemKind.CAPPED, sent=None),
    ]
    found = json.loads(
        json.dumps(summarize(journeys, offered_per_second=2.0, alone=Alone(0.0, 0.005)), allow_nan=False)
    )
    assert found["requests"] == {"sent": 14, "ok": 11, "failed": 3, "capped": 1}
    assert found["elapsed_seconds"] == 10.0
    assert found["rates"]["completed_per_second"] == pytest.approx(1.1)
    assert found["rates"]["audio_seconds_per_second"] == pytest.approx(2.2)
    assert found["errors"][0] == {"kind": "refused", "status": 503, "code": "overloaded", "count": 2}
    assert {error["kind"]: error["count"] for error in found["errors"]} == {"refused": 2, "truncated": 1, "capped": 1}
    short, long = found["groups"]["short"], found["groups"]["long"]
    assert (short["requests"], short["ok"], long["requests"], long["ok"]) == (14, 10, 1, 1)
    assert short["ttfa_seconds"]["p50"] == pytest.approx(0.5)
    assert short["slowdown"]["p50"] == pytest.approx(2.0)
    assert long["completion_seconds"]["max"] == pytest.approx(5.0)
    assert found["groups"]["all"]["slowdown"]["max"] == pytest.approx(2.0)
    assert found["in_flight"]["peak"] == 4


def test_a_run_in_which_all_failed_has_figures_too() -> None:
    found = summarize([failed(ProblemKind.UNREACHABLE)], offered_per_second=0.0, alone=None)
    assert found["requests"]["ok"] == 0
    assert found["groups"]["all"]["ttfa_seconds"] is None
    assert found["groups"]["all"]["stalls"] is None


def test_stalls_and_slowdown_are_not_made_up_where_they_are_unknown() -> None:
    journey = spoken()
    journey.stalls = journey.stall_seconds = journey.audio_seconds = None
    group = summarize([journey], offered_per_second=1.0, alone=None)["groups"]["all"]
    assert (
        group["stall_seconds"] is group["stalls"] is group["slowdown"] is group["completion_per_audio_second"] is None
    )
    assert group["completion_seconds"]["count"] == 1


def test_a_rate_needs_two_instants() -> None:
    assert events_per_second([0.0, 1.0, 2.0]) == 1.0
    assert events_per_second([3.0]) == events_per_second([]) == events_per_second([1.0, 1.0]) == 0.0
