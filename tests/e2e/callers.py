"""What callers do to a fleet of the tone model: short and long texts at both doors, hang-ups, impossible requests."""

from __future__ import annotations

import asyncio
import itertools

from tests.e2e.cluster import Cluster

SHORT = "A sentence of some length is spoken here."
LONG = "A long text is spoken in pieces, by all workers at once, and heard in order. " * 12


async def call_for_ever(fleet: Cluster, between_seconds: float) -> None:
    """Send a request at each interval, whatever became of the others; cancel to end."""
    async with asyncio.TaskGroup() as group:
        for number in itertools.count():
            match number % 10:
                case 0:
                    group.create_task(fleet.speak(LONG, format="mp3"))
                case 1:
                    group.create_task(_hang_up(fleet))
                case 2:
                    group.create_task(fleet.speak(SHORT, voice="nobody"))
                case 3 | 4 | 5:
                    body = {"model": "tone", "input": SHORT, "voice": "alto", "response_format": "opus"}
                    group.create_task(fleet.post("/v1/audio/speech", body))
                case _:
                    group.create_task(fleet.speak(SHORT))
            await asyncio.sleep(between_seconds)


async def _hang_up(fleet: Cluster) -> None:
    async with fleet.streaming(LONG, format="pcm") as response:
        await response.content.readexactly(100)
