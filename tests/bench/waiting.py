"""Waiting for a claim to come true."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(claim: Callable[[], object], *, timeout_seconds: float = 60.0) -> None:
    """Return as soon as `claim` holds, which it is asked a hundred times a second.

    Raises:
        TimeoutError: it never did.
    """
    async with asyncio.timeout(timeout_seconds):
        while not claim():  # noqa: ASYNC110  (what is waited for may happen in another process)
            await asyncio.sleep(0.01)
