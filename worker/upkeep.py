"""When a worker is to do something by itself: give its model's memory back, or end and be started anew."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from wire.gpu import Gpu

_LOOK_SECONDS = 1.0


class Limits(NamedTuple):
    """Memory that the process may hold, of the host and of each of its GPUs; 0: any amount."""

    memory_bytes: int
    gpu_memory_bytes: int


async def wait_unused(patience_seconds: float, uses: Callable[[], int | None]) -> None:
    """Wait until `uses` has stood still for so long; for ever where the patience is 0.

    `uses` counts, and is None while something is in use. When this returns it has just been asked, in the same turn of
    the loop: whatever the caller does before it awaits is done while nothing is in use.
    """
    if not patience_seconds:
        await asyncio.Event().wait()
    seen: int | None = None
    since = time.monotonic()
    while True:
        await asyncio.sleep(min(_LOOK_SECONDS, patience_seconds / 4))
        now, count = time.monotonic(), uses()
        if count is None or count != seen:
            seen, since = count, now
        elif now - since >= patience_seconds:
            return


async def wait_too_large(limits: Limits, gpus: Callable[[], Sequence[Gpu]]) -> str:
    """Wait until the process holds more memory than it may; return what of, a sentence for the log."""
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        if reason := outgrown(limits, _resident_bytes(), gpus()):
            return reason


def outgrown(limits: Limits, resident_bytes: int, gpus: Sequence[Gpu]) -> str:
    """Return which limit is passed, or nothing. What a driver does not tell passes none."""
    if limits.memory_bytes and resident_bytes > limits.memory_bytes:
        return f"memory={resident_bytes} exceeds --max-memory-mb"
    for gpu in gpus:
        if limits.gpu_memory_bytes and (gpu.memory_own_bytes or 0) > limits.gpu_memory_bytes:
            return f"memory={gpu.memory_own_bytes} on {gpu.device} exceeds --max-gpu-memory-mb"
    return ""


def _resident_bytes() -> int:
    """Return how much memory the process holds now, by Linux' own count of pages."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
