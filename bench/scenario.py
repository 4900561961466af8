"""What the policies are tried on: how much work a text is, what goes wrong, a trace of exactly so much load. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from itertools import islice
from typing import NamedTuple

from bench.figures import Alone
from bench.trace import Arrival, Pattern, arrival_times, standard_texts

CHARACTERS_PER_SECOND = 15  # of speech, as the tone model speaks

# What one GPU takes in the routing study, and so the pace that "real" seconds mean in reports.
STUDY_REALTIME_FACTOR = 0.25
STUDY_OVERHEAD_SECONDS = 0.30

_SLOWER = 2.0


class Work(NamedTuple):
    """What a worker needs for a text: so many seconds a second of speech, and a fixed part for each piece of text.

    A server that takes a whole text pays the fixed part every `piece_characters`, as a model does that can speak no
    more at once; with 0 it pays it once a text.
    """

    realtime_factor: float
    overhead_seconds: float
    piece_characters: int = 250

    @property
    def per_character_seconds(self) -> float:
        return self.realtime_factor / CHARACTERS_PER_SECOND

    def seconds(self, characters: int) -> float:
        """Return what one worker needs for a whole text of so many characters."""
        pieces = math.ceil(characters / self.piece_characters) if self.piece_characters else 1
        return pieces * self.overhead_seconds + characters * self.per_character_seconds

    @property
    def alone(self) -> Alone:
        """The same as a line through all lengths, for slowdown."""
        per_character = self.overhead_seconds / self.piece_characters if self.piece_characters else 0.0
        return Alone(self.overhead_seconds, self.per_character_seconds + per_character)

    @property
    def compression(self) -> float:
        """How many times faster all of it runs than on the GPU of the study."""
        return STUDY_REALTIME_FACTOR / self.realtime_factor

    def tone_options(self, *, slower: float = 1.0) -> tuple[str, ...]:
        return (
            *("--tone-realtime-factor", f"{self.realtime_factor * slower:g}"),
            *("--tone-overhead-seconds", f"{self.overhead_seconds * slower:g}"),
        )


class Scenario(StrEnum):
    """What the fleet and the arrivals are like. Where a worker is odd, it is one of them."""

    HOMOGENEOUS = "homogeneous"
    ONE_SLOW = "one-slow"
    FAILING = "failing"
    HANGING = "hanging"
    BURSTS = "bursts"

    @property
    def meaning(self) -> str:
        return _MEANINGS[self]

    @property
    def pattern(self) -> Pattern:
        return Pattern.BURSTS if self is Scenario.BURSTS else Pattern.POISSON

    @property
    def is_plain(self) -> bool:
        """All workers do the same work in the same time."""
        return self in (Scenario.HOMOGENEOUS, Scenario.BURSTS)

    def capacity(self, workers: int) -> float:
        """Return how many sound workers of full speed the fleet is worth. One that answers nothing is worth nothing."""
        match self:
            case Scenario.ONE_SLOW:
                return workers - 1 + 1 / _SLOWER
            case Scenario.FAILING | Scenario.HANGING:
                return workers - 1
            case _:
                return workers

    def odd_worker_options(self, work: Work) -> tuple[str, ...] | None:
        """Return the options of the one worker that is not like the others; None where all are alike."""
        match self:
            case Scenario.ONE_SLOW:
                return work.tone_options(slower=_SLOWER)
            case Scenario.FAILING:
                return (*work.tone_options(), "--tone-reject")
            case Scenario.HANGING:
                return (*work.tone_options(), "--tone-stall-after-chunks", "0")
            case _:
                return None


_MEANINGS = {
    Scenario.HOMOGENEOUS: "all workers alike",
    Scenario.ONE_SLOW: "one worker takes twice as long",
    Scenario.FAILING: "one worker fails every segment within 20 ms",
    Scenario.HANGING: "one worker accepts and never answers",
    Scenario.BURSTS: "a fifth of the time at three times the rate",
}


def loaded_trace(
    scenario: Scenario, work: Work, *, workers: int, load: float, duration_seconds: float, seed: int
) -> list[Arrival]:
    """Return arrivals whose work fills `load` of the fleet's capacity for the duration, as near as whole texts can.

    The seed decides the texts, and with them how many requests there are. Their instants are drawn from the scenario's
    pattern and stretched to the duration: without that, runs of a few hundred requests would differ in load by a tenth
    and more in waiting. Empty where not one text fits.
    """
    budget = load * scenario.capacity(workers) * duration_seconds
    texts: list[str] = []
    for text in standard_texts(seed):
        budget -= work.seconds(len(text))
        if budget < 0:
            break
        texts.append(text)
    if not texts:
        return []
    return list(map(Arrival, stretched(scenario.pattern, len(texts), duration_seconds, seed), texts))


def stretched(pattern: Pattern, count: int, duration_seconds: float, seed: int) -> Sequence[float]:
    """Return `count` instants of the pattern within the duration; the one after them would be its end."""
    times = list(islice(arrival_times(pattern, count / duration_seconds, seed), count + 1))
    return [at * duration_seconds / times[-1] for at in times[:-1]]


def offered_load(trace: Sequence[Arrival], work: Work, *, available_seconds: float) -> float:
    """Return the share of the fleet's seconds that a trace needs, if whole texts are spoken."""
    return sum(work.seconds(len(arrival.text)) for arrival in trace) / available_seconds
