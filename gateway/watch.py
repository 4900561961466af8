"""Reads `GET /v1/live` of a running gateway, for `tts-gateway top` and `status`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import aiohttp

Snapshot = dict[str, Any]

_PATH = "/v1/live"
_RETRY_SECONDS = 1.0
# One comes every second.
_SILENCE_SECONDS = 4.0
_LARGEST_EVENT_BYTES = 8 << 20


class Refused(Exception):
    """The gateway answered with an error; its message is the message."""


async def first(session: aiohttp.ClientSession) -> Snapshot:
    """Return the newest snapshot, with the last minute in it.

    Raises:
        Refused, aiohttp.ClientError, OSError: there is none to be had.
    """
    async with aclosing(_snapshots(session)) as snapshots:
        async for snapshot in snapshots:
            return snapshot
    raise aiohttp.ServerDisconnectedError("The gateway is stopping.")


async def follow(session: aiohttp.ClientSession) -> AsyncGenerator[Snapshot | str, None]:
    """Yield snapshots for ever, and a sentence each time there is none: a gateway that restarts is waited for."""
    while True:
        try:
            async with aclosing(_snapshots(session)) as snapshots:
                async for snapshot in snapshots:
                    yield snapshot
            yield "The gateway is stopping."
        except (aiohttp.ClientError, OSError, TimeoutError, Refused) as error:
            yield f"No gateway answers: {str(error) or type(error).__name__}."
        await asyncio.sleep(_RETRY_SECONDS)


async def _snapshots(session: aiohttp.ClientSession) -> AsyncGenerator[Snapshot, None]:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE_SECONDS, sock_read=_SILENCE_SECONDS)
    async with session.get(_PATH, timeout=timeout, read_bufsize=_LARGEST_EVENT_BYTES) as response:
        if response.status != 200:
            raise Refused((await response.json())["error"]["message"])
        async for line in response.content:
            if line.startswith(b"data: "):
                snapshot: Snapshot = json.loads(line.removeprefix(b"data: "))
                yield snapshot
