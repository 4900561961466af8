"""Sends the requests of a trace at their instants, open loop: arrivals do not wait for answers."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Sequence

from bench.journey import Journey, Problem, ProblemKind
from bench.trace import Arrival

Speak = Callable[[Journey, str], Awaitable[None]]

_LAG_INTERVAL_SECONDS = 0.1


class OpenLoop:
    """One run. `speak` stamps the journey it is given and returns when the request has ended, however it ended.

    `clock` gives seconds since the start of the run (below zero until then). A generator that comes late sends at once
    and says so: the journey keeps both the instant that was due and the one at which it was sent.
    """

    def __init__(
        self, trace: Sequence[Arrival], speak: Speak, clock: Callable[[], float], *, max_in_flight: int | None = None
    ) -> None:
        self.planned = len(trace)
        # All of these change only in this object's own tasks, between two awaits.
        self.journeys: list[Journey] = []
        self.done = 0
        self.failed = 0
        self.first_audio_seconds = array("d")
        self._trace = trace
        self._speak = speak
        self._clock = clock
        self._max_in_flight = max_in_flight
        self._sender: asyncio.Task[None] | None = None
        self._requests: set[asyncio.Task[None]] = set()

    @property
    def in_flight(self) -> int:
        return len(self._requests)

    async def run(self) -> list[Journey]:
        """Return the journeys, in order of arrival, when the last has ended or after `stop`."""
        async with asyncio.TaskGroup() as group:
            self._sender = group.create_task(self._send(group))
        return self.journeys

    def stop(self) -> None:
        """Send nothing more and give up what is under way. Any number of times."""
        for task in (self._sender, *self._requests):
            if task is not None:
                task.cancel()

    async def _send(self, group: asyncio.TaskGroup) -> None:
        for index, (due_at, text) in enumerate(self._trace):
            # Also when late: answers must be read, and stamped, between two requests.
            await asyncio.sleep(max(due_at - self._clock(), 0))
            journey = Journey(index, len(text), due_at)
            self.journeys.append(journey)
            if self._max_in_flight is not None and self.in_flight >= self._max_in_flight:
                journey.problem = Problem(ProblemKind.CAPPED)
                self._count(journey)
                continue
            task = group.create_task(self._one(journey, text))
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)

    async def _one(self, journey: Journey, text: str) -> None:
        try:
            await self._speak(journey, text)
        finally:
            self._count(journey)

    def _count(self, journey: Journey) -> None:
        self.done += 1
        if journey.problem is not None:
            self.failed += 1
        elif journey.ttfa_seconds is not None:
            self.first_audio_seconds.append(journey.ttfa_seconds)


async def sample_loop_lag(lags_seconds: array[float], clock: Callable[[], float]) -> None:
    """Append, ten times a second until cancelled, how late the event loop wakes: all other instants may be so late."""
    while True:
        due_at = clock() + _LAG_INTERVAL_SECONDS
        await asyncio.sleep(_LAG_INTERVAL_SECONDS)
        lags_seconds.append(max(clock() - due_at, 0.0))
