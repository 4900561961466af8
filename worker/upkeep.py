"""When a worker is to do something by itself: give its model's memory back, or end and be started anew."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable
from pathlib import Path

_LOOK_SECONDS = 1.0


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


async def wait_too_large(limit_bytes: int) -> str:
    """Wait until the process holds more memory of the host than this, 0: any amount; return a sentence for the log."""
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        if limit_bytes and (resident := _resident_bytes()) > limit_bytes:
            return f"memory={resident} exceeds --max-memory-mb"


def _resident_bytes() -> int:
    """Return how much memory the process holds now, by Linux' own count of pages."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
