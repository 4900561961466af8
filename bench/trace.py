"""What a run sends and when: arrivals and texts from a seed, written to and read from JSON lines. Pure."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import islice, takewhile
from random import Random
from typing import NamedTuple

from bench.prose import prose

# The mix of the routing study: assistants' sentences and paragraphs, as (share, median characters, sigma).
_SENTENCES = (0.75, 70, 0.6)
_PARAGRAPHS = (0.25, 500, 0.9)
SHORTEST_CHARACTERS = 4
LONGEST_CHARACTERS = 4096

# Bursts: a fifth of the time at three times the rate; the calm rest is what keeps the mean.
_BURST_SHARE = 0.2
_BURST_FACTOR = 3.0
_CALM_FACTOR = (1 - _BURST_SHARE * _BURST_FACTOR) / (1 - _BURST_SHARE)
_MEAN_BURST_SECONDS = 4.0
_MEAN_CALM_SECONDS = _MEAN_BURST_SECONDS * (1 - _BURST_SHARE) / _BURST_SHARE


class Arrival(NamedTuple):
    """One request of a trace; `at_seconds` counts from the start of the run."""

    at_seconds: float
    text: str


class Pattern(StrEnum):
    """How arrivals are spread in time."""

    POISSON = "poisson"
    UNIFORM = "uniform"
    BURSTS = "bursts"


class TraceError(Exception):
    """A saved trace that cannot be replayed; the message names the line."""


def make_trace(
    times: Iterable[float], texts: Iterable[str], *, duration_seconds: float | None = None, requests: int | None = None
) -> list[Arrival]:
    """Return the arrivals before `duration_seconds`, at most `requests` of them; one bound must be given."""
    if duration_seconds is None and requests is None:
        raise ValueError("a trace without end")
    end = math.inf if duration_seconds is None else duration_seconds
    bounded = takewhile(lambda at: at < end, islice(times, requests))
    return [Arrival(at, text) for at, text in zip(bounded, texts, strict=False)]


def arrival_times(pattern: Pattern, rate: float, seed: int) -> Iterator[float]:
    """Yield instants in seconds from 0, rising, `rate` a second on average, without end.

    Times and texts have random streams of their own: another rate leaves the texts of a seed as they are.
    """
    rng = Random(f"{seed}:arrivals")
    match pattern:
        case Pattern.UNIFORM:
            return _uniform(rate)
        case Pattern.POISSON:
            return _poisson(rng, rate)
        case Pattern.BURSTS:
            return _bursts(rng, rate)


def _uniform(rate: float) -> Iterator[float]:
    count = 0
    while True:
        yield count / rate
        count += 1


def _poisson(rng: Random, rate: float) -> Iterator[float]:
    at = 0.0
    while True:
        at += rng.expovariate(rate)
        yield at


def _bursts(rng: Random, rate: float) -> Iterator[float]:
    """Markov-modulated Poisson arrivals of two states, both of exponential length."""
    at = 0.0
    in_burst = rng.random() < _BURST_SHARE
    while True:
        mean = _MEAN_BURST_SECONDS if in_burst else _MEAN_CALM_SECONDS
        end = at + rng.expovariate(1 / mean)
        factor = _BURST_FACTOR if in_burst else _CALM_FACTOR
        while (following := at + rng.expovariate(rate * factor)) < end:
            at = following
            yield at
        at = end  # the gap that reached over the end is drawn anew: it has no memory
        in_burst = not in_burst


def standard_texts(seed: int, *, longest: int = LONGEST_CHARACTERS) -> Iterator[str]:
    """Yield prose with the lengths of the standard mix, none longer than `longest` characters, without end."""
    rng = Random(f"{seed}:texts")
    while True:
        yield prose(rng, standard_length(rng, longest=longest))


def standard_length(rng: Random, *, longest: int = LONGEST_CHARACTERS) -> int:
    """Draw a length in characters from the standard mix."""
    _, median, sigma = _SENTENCES if rng.random() < _SENTENCES[0] else _PARAGRAPHS
    return min(max(round(rng.lognormvariate(math.log(median), sigma)), SHORTEST_CHARACTERS), longest)


def fixed_texts(seed: int, characters: int) -> Iterator[str]:
    """Yield prose of one length without end."""
    rng = Random(f"{seed}:texts")
    while True:
        yield prose(rng, characters)


def listed_texts(seed: int, texts: Sequence[str]) -> Iterator[str]:
    """Yield one of `texts` at random, with repeats, without end."""
    rng = Random(f"{seed}:texts")
    while True:
        yield rng.choice(texts)


def to_lines(trace: Iterable[Arrival]) -> Iterator[str]:
    """Yield each arrival as one line of JSON; `from_lines` gives back the very same arrivals."""
    for at, text in trace:
        yield json.dumps({"at_seconds": at, "text": text}) + "\n"


def from_lines(lines: Iterable[str]) -> Iterator[Arrival]:
    """Yield the arrivals of a saved trace; empty lines and unknown fields are passed over.

    Raises:
        TraceError: a line is no arrival, or earlier than the one before it.
    """
    latest = 0.0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        arrival = _arrival(line, number)
        if not latest <= arrival.at_seconds < math.inf:
            raise TraceError(
                f"line {number}: at_seconds is {arrival.at_seconds:g}, after {latest:g} in the line before"
            )
        latest = arrival.at_seconds
        yield arrival


def _arrival(line: str, number: int) -> Arrival:
    try:
        entry = json.loads(line)
        at, text = float(entry["at_seconds"]), entry["text"]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise TraceError(f'line {number} is not {{"at_seconds": number, "text": string}}') from None
    if not isinstance(text, str) or not text:
        raise TraceError(f"line {number}: text must be a string that is not empty")
    return Arrival(at, text)


def digest(trace: Iterable[Arrival]) -> str:
    """Return 16 hexadecimal digits that tell two traces apart."""
    total = hashlib.sha256()
    for line in to_lines(trace):
        total.update(line.encode())
    return total.hexdigest()[:16]
