import asyncio
import time
from array import array

import pytest
from rich.console import Console

from bench.generator import OpenLoop, sample_loop_lag
from bench.journey import Journey, Problem, ProblemKind
from bench.progress import describe, show_progress
from bench.trace import Arrival
from tests.bench.waiting import until


class Gate:
    """A service that answers when it is told to."""

    def __init__(self) -> None:
        self.origin = time.monotonic()
        self.open = asyncio.Event()
        self.arrived = asyncio.Condition()
        self.texts: list[str] = []

    def clock(self) -> float:
        return time.monotonic() - self.origin

    async def speak(self, journey: Journey, text: str) -> None:
        journey.sent_at = self.clock()
        try:
            async with self.arrived:
                self.texts.append(text)
                self.arrived.notify_all()
            await self.open.wait()
            journey.first_audio_at = self.clock()
        except asyncio.CancelledError:
            journey.problem = Problem(ProblemKind.CANCELLED)
            raise
        finally:
            journey.finished_at = self.clock()

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(30), self.arrived:
            await self.arrived.wait_for(lambda: len(self.texts) >= count)


def trace(count: int, gap_seconds: float = 0.0) -> list[Arrival]:
    return [Arrival(number * gap_seconds, f"text {number}") for number in range(count)]


async def test_arrivals_do_not_wait_for_answers() -> None:
    gate = Gate()
    load = OpenLoop(trace(50, 0.001), gate.speak, gate.clock)
    run = asyncio.create_task(load.run())
    await gate.wait_for(50)
    assert load.in_flight == 50
    assert load.done == 0
    gate.open.set()
    journeys = await run
    assert [journey.index for journey in journeys] == list(range(50))
    assert all(journey.is_ok for journey in journeys)
    assert (load.in_flight, load.done, load.failed, len(load.first_audio_seconds)) == (0, 50, 0, 50)


async def test_no_request_is_early_and_a_late_one_says_how_late() -> None:
    gate = Gate()
    gate.open.set()

    async def hold_up(journey: Journey, text: str) -> None:
        await gate.speak(journey, text)
        if journey.index == 0:
            time.sleep(0.5)  # noqa: ASYNC251  (the generator itself is late for the second)

    journeys = await OpenLoop(trace(3, 0.2), hold_up, gate.clock).run()
    lags = [journey.send_lag_seconds for journey in journeys]
    assert all(lag is not None and lag >= 0 for lag in lags)
    assert lags[1] is not None
    assert lags[1] >= 0.25


async def test_what_comes_above_the_cap_is_counted_and_not_sent() -> None:
    gate = Gate()
    load = OpenLoop(trace(5), gate.speak, gate.clock, max_in_flight=2)
    run = asyncio.create_task(load.run())
    await until(lambda: load.done == 3)
    gate.open.set()
    journeys = await run
    assert gate.texts == ["text 0", "text 1"]
    assert [journey.problem for journey in journeys] == [None, None, *[Problem(ProblemKind.CAPPED)] * 3]
    assert (load.done, load.failed) == (5, 3)


async def test_a_stopped_run_ends_at_once_and_keeps_what_there_is() -> None:
    gate = Gate()
    load = OpenLoop([*trace(3), Arrival(3600, "much later")], gate.speak, gate.clock)
    run = asyncio.create_task(load.run())
    await gate.wait_for(3)
    load.stop()
    load.stop()
    async with asyncio.timeout(30):
        journeys = await run
    assert [journey.problem for journey in journeys] == [Problem(ProblemKind.CANCELLED)] * 3
    assert load.in_flight == 0


async def test_a_bug_in_a_request_ends_the_run() -> None:
    async def broken(journey: Journey, text: str) -> None:
        raise KeyError(text)

    load = OpenLoop([*trace(1), Arrival(3600, "much later")], broken, lambda: 0.0)
    with pytest.RaisesGroup(KeyError):
        async with asyncio.timeout(30):
            await load.run()


async def test_a_held_up_loop_is_seen() -> None:
    lags = array("d")
    task = asyncio.create_task(sample_loop_lag(lags, time.monotonic))
    await asyncio.sleep(0)
    time.sleep(0.5)  # noqa: ASYNC251
    await until(lambda: lags)
    task.cancel()
    assert lags[0] >= 0.3


async def test_progress_tells_how_far_a_run_is() -> None:
    gate = Gate()
    load = OpenLoop(trace(4), gate.speak, gate.clock, max_in_flight=3)
    assert describe(load) == "sent 0/4 · done 0 · errors 0 · in flight 0 · TTFA p95 –"
    run = asyncio.create_task(load.run())
    console = Console(force_terminal=True, width=120, record=True, quiet=False)
    drawing = asyncio.create_task(show_progress(load, console))
    await gate.wait_for(3)
    gate.open.set()
    await run
    line = describe(load)
    assert line.startswith("sent 4/4 · done 4 · errors 1 · in flight 0 · TTFA p95 0.")
    drawing.cancel()


async def test_nothing_is_drawn_where_nobody_watches() -> None:
    gate = Gate()
    async with asyncio.timeout(30):
        await show_progress(OpenLoop(trace(1), gate.speak, gate.clock), Console(force_terminal=False))
