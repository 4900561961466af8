"""What the journeys of a run add up to: percentiles, underruns, slowdown, throughput. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bench.journey import Journey, ProblemKind

SHORT_CHARACTERS = 200  # a text of at most so many is "short" in reports
AUDIBLE_SECONDS = 0.01

Distribution = dict[str, float]
Figures = dict[str, Any]


def distribution(values: Iterable[float]) -> Distribution | None:
    """Return count, p50, p90, p95, p99, mean and max (percentiles interpolate linearly); None of no values."""
    data = np.fromiter(values, dtype=float)
    if not len(data):
        return None
    p50, p90, p95, p99 = (float(value) for value in np.percentile(data, (50, 90, 95, 99)))
    return {
        "count": len(data),
        "p50": p50,
        "p90": p90,
        "p95": p95,
        "p99": p99,
        "mean": float(data.mean()),
        "max": float(data.max()),
    }


class Stalls(NamedTuple):
    """How often a listener heard a gap between the first and the last sample, and how long nothing played in all."""

    times: int
    seconds: float


def stalls(arrived_at: Sequence[float], chunk_seconds: Sequence[float], *, prebuffer_seconds: float = 0.0) -> Stalls:
    """Play chunks as they arrive, and return the gaps that were heard.

    The listener starts with the chunk that makes `prebuffer_seconds` of audio (or with the last one), never pauses by
    itself, and after a gap goes on with the next chunk at once. A gap below `AUDIBLE_SECONDS` adds to the seconds but
    is not counted: a service that sends in real time would be blamed for each tick of the clock.
    """
    count, silent, buffered = 0, 0.0, 0.0
    plays_until: float | None = None  # the instant at which the listener will have played all that has arrived
    for at, seconds in zip(arrived_at, chunk_seconds, strict=True):
        if plays_until is None:
            buffered += seconds
            if buffered >= prebuffer_seconds:
                plays_until = at + buffered
            continue
        if at > plays_until:
            count += at - plays_until >= AUDIBLE_SECONDS
            silent += at - plays_until
            plays_until = at
        plays_until += seconds
    return Stalls(count, silent)


class Alone(NamedTuple):
    """The time that a text needs on an idle service: so much a request and so much a character, in seconds."""

    per_request_seconds: float
    per_character_seconds: float

    def seconds(self, characters: int) -> float:
        return self.per_request_seconds + self.per_character_seconds * characters


def fit_alone(measured: Iterable[tuple[int, float]]) -> Alone | None:
    """Fit (characters, completion seconds) of requests that ran alone by least squares, with no negative part.

    None when there is nothing to fit. Where a line would cut below zero, or all texts have one length, it goes
    through the origin.
    """
    points = [(characters, seconds) for characters, seconds in measured if seconds > 0]
    if not points:
        return None
    x, y = np.array(points, dtype=float).T
    if np.ptp(x) > 0:
        slope, base = (float(value) for value in np.polyfit(x, y, 1))
        if slope < 0:
            return Alone(float(y.mean()), 0.0)
        if base >= 0:
            return Alone(base, slope)
    return Alone(0.0, float((x @ y) / (x @ x)))


def in_flight_steps(journeys: Iterable[Journey]) -> tuple[list[float], list[int]]:
    """Return the instants at which a request was sent or ended, and how many were under way from each on."""
    events: list[tuple[float, int]] = []
    for journey in journeys:
        if journey.sent_at is not None and journey.finished_at is not None:
            events += [(journey.sent_at, 1), (journey.finished_at, -1)]
    events.sort(key=lambda event: (event[0], -event[1]))  # no level below 0 within one tick of the clock
    times: list[float] = []
    counts: list[int] = []
    level = 0
    for at, step in events:
        level += step
        times.append(at)
        counts.append(level)
    return times, counts


def summarize(journeys: Sequence[Journey], *, offered_per_second: float, alone: Alone | None) -> Figures:
    """Return every figure of a run as plain JSON; distributions are of the requests that succeeded.

    Rates of answers are over the time from the start of the run to the end of its last answer.
    """
    sent = [journey for journey in journeys if journey.sent_at is not None]
    ok = [journey for journey in journeys if journey.is_ok]
    elapsed = max((journey.finished_at or 0.0 for journey in journeys), default=0.0)
    return {
        "elapsed_seconds": elapsed,
        "requests": {
            "sent": len(sent),
            "ok": len(ok),
            "failed": sum(journey.problem is not None and journey.sent_at is not None for journey in journeys),
            "capped": sum(_is_capped(journey) for journey in journeys),
        },
        "rates": {
            "offered_per_second": offered_per_second,
            "sent_per_second": events_per_second(_known(journey.sent_at for journey in sent)),
            "completed_per_second": _ratio(len(ok), elapsed),
            "audio_seconds_per_second": _ratio(sum(journey.audio_seconds or 0.0 for journey in ok), elapsed),
        },
        "in_flight": _in_flight(journeys),
        "send_lag_seconds": distribution(_known(journey.send_lag_seconds for journey in sent)),
        "errors": _errors(journeys),
        "groups": {
            "all": _group(journeys, alone),
            "short": _group([j for j in journeys if j.characters <= SHORT_CHARACTERS], alone),
            "long": _group([j for j in journeys if j.characters > SHORT_CHARACTERS], alone),
        },
    }


def _group(journeys: Sequence[Journey], alone: Alone | None) -> Figures:
    ok = [journey for journey in journeys if journey.is_ok]
    timed = [journey for journey in ok if journey.audio_seconds]
    played = [journey for journey in ok if journey.stall_seconds is not None]
    return {
        "requests": len(journeys),
        "ok": len(ok),
        "characters": distribution(float(journey.characters) for journey in journeys),
        "ttfa_seconds": distribution(_known(journey.ttfa_seconds for journey in ok)),
        "completion_seconds": distribution(_known(journey.completion_seconds for journey in ok)),
        "slowdown": distribution(_slowdown(journey, alone) for journey in ok) if alone else None,
        "completion_per_audio_second": distribution(
            (journey.completion_seconds or 0.0) / (journey.audio_seconds or 1.0) for journey in timed
        ),
        "stall_seconds": distribution(_known(journey.stall_seconds for journey in played)),
        "stalls": sum(journey.stalls or 0 for journey in played) if played else None,
        "stalled_requests": sum(bool(journey.stalls) for journey in played) if played else None,
        "audio_seconds": sum(journey.audio_seconds or 0.0 for journey in ok),
    }


def _slowdown(journey: Journey, alone: Alone) -> float:
    """How many times longer than on an idle service it took."""
    return (journey.completion_seconds or 0.0) / alone.seconds(journey.characters)


def _errors(journeys: Iterable[Journey]) -> list[Figures]:
    """Count failures by what they have in common, the most frequent first."""
    counts = Counter(journey.problem for journey in journeys if journey.problem is not None)
    return [
        {"kind": str(problem.kind), "status": problem.status, "code": problem.code, "count": count}
        for problem, count in counts.most_common()
    ]


def _is_capped(journey: Journey) -> bool:
    return journey.problem is not None and journey.problem.kind is ProblemKind.CAPPED


def _in_flight(journeys: Iterable[Journey]) -> Figures:
    times, counts = in_flight_steps(journeys)
    span = times[-1] - times[0] if times else 0.0
    held = math.fsum(count * (end - at) for at, end, count in zip(times, times[1:], counts, strict=False))
    return {"peak": max(counts, default=0), "mean": _ratio(held, span)}


def events_per_second(instants: Sequence[float]) -> float:
    """Return how many a second there were between the first and the last; 0 of fewer than two."""
    return _ratio(len(instants) - 1, max(instants) - min(instants)) if len(instants) > 1 else 0.0


def _ratio(value: float, by: float) -> float:
    return value / by if by > 0 else 0.0


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
