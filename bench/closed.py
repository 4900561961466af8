"""Closed-loop load: so many connections, each of which asks for the next text when its last one has been answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from bench.journey import Journey

Speak = Callable[[Journey, str], Awaitable[None]]


async def speak_all(
    speak: Speak,
    texts: Sequence[str],
    connections: int,
    clock: Callable[[], float],
    done: Callable[[], None] = lambda: None,
) -> list[Journey]:
    """Speak each text once, the next one as soon as one of the connections is free; return them in order.

    `clock` gives seconds since the start of the run; `done` is called after each answer.
    """
    journeys: list[Journey] = []
    waiting = iter(texts)

    async def connection() -> None:
        for text in waiting:
            journey = Journey(len(journeys), len(text), due_at=clock())
            journeys.append(journey)
            await speak(journey, text)
            done()

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(connection())
    return journeys
