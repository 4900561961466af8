"""How busy the GPUs of this machine are, and how much of their memory is used, while something runs."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from worker.gpu.nvidia import NvidiaReader
from worker.gpu.reader import Lost, Reader, Unavailable

_INTERVAL_SECONDS = 0.25


class GpuLoad:
    """Figures of each GPU, by its name in the driver: `utilization` are shares from 0 to 1, one a look."""

    def __init__(self) -> None:
        self.utilization: dict[str, list[float]] = {}
        self.memory_bytes: dict[str, int] = {}

    def note(self, uuid: str, figures: dict[str, Any]) -> None:
        """Take in one look at one GPU."""
        if (share := figures.get("utilization_ratio")) is not None:
            self.utilization.setdefault(uuid, []).append(share)
        if (used := figures.get("memory_used_bytes")) is not None:
            self.memory_bytes[uuid] = max(used, self.memory_bytes.get(uuid, 0))

    @property
    def mean(self) -> float | None:
        """The share of the time in which a GPU did anything, on average over those that did; None without one."""
        busy = [statistics.fmean(shares) for shares in self.utilization.values() if any(shares)]
        return statistics.fmean(busy) if busy else None


@asynccontextmanager
async def watched_gpus() -> AsyncIterator[GpuLoad]:
    """Look at all of NVIDIA's GPUs four times a second while the block runs; none where there is no driver."""
    load, reader = GpuLoad(), NvidiaReader()
    try:
        reader.open()
        uuids = [card.uuid for card in reader.cards()]
    except Unavailable:
        yield load
        return
    task = asyncio.create_task(_look(load, reader, uuids))
    try:
        yield load
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        reader.close()


async def _look(load: GpuLoad, reader: Reader, uuids: list[str]) -> None:
    while True:
        for uuid in uuids:
            with contextlib.suppress(Lost, Unavailable):
                # The driver may take its time: not on the loop that stamps answers.
                load.note(uuid, await asyncio.to_thread(reader.read, uuid))
        await asyncio.sleep(_INTERVAL_SECONDS)
