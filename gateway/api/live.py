"""`GET /v1/live`: the service as it is, once a second, as server-sent events; on both listeners."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from gateway.live import Live
from gateway.pool import Pool
from wire import headers
from wire.errors import ErrorCode, TtsError

MOST_VIEWERS = 200
_TAKES_NOTHING_SECONDS = 30.0


@dataclass(slots=True)
class LiveRoutes:
    """The first event, `history`, holds the last minute up to now; each `snapshot` after it one second.

    A snapshot is made once, however many look, and not at all when nobody does. Who reads slowly misses some.
    A history is made for each who comes: `tts-gateway status` reads that one alone, and must not be told of a
    worker that died within the second.
    """

    live: Live
    pool: Pool
    _viewers: int = 0
    _made: tuple[int, bytes] = (-1, b"")  # the newest snapshot's tick, and its event

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/v1/live", self.follow)

    async def follow(self, request: web.Request) -> web.StreamResponse:
        if self._viewers >= MOST_VIEWERS:
            raise TtsError(
                ErrorCode.OVERLOADED,
                f"{MOST_VIEWERS} pages look on already. Close one, or scrape GET /metrics on the internal listener.",
                retry_after_seconds=60.0,
            )
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-store",
                headers.ACCEL_BUFFERING: "no",
            }
        )
        self._viewers += 1
        try:
            await response.prepare(request)
            await self._write(request, response, _event("history", self.live.history(self.pool)))
            while True:
                await self.live.wait_tick()
                if self.live.is_closed:
                    break
                await self._write(request, response, self._snapshot())
            await response.write_eof()
        except ConnectionError:
            pass  # the viewer left
        finally:
            self._viewers -= 1
        return response

    def _snapshot(self) -> bytes:
        if self._made[0] != self.live.ticks:
            self._made = self.live.ticks, _event("snapshot", self.live.snapshot(self.pool))
        return self._made[1]

    async def _write(self, request: web.Request, response: web.StreamResponse, data: bytes) -> None:
        try:
            async with asyncio.timeout(_TAKES_NOTHING_SECONDS):
                await response.write(data)
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionError("the viewer takes nothing") from None


def _event(name: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body, separators=(",", ":"), allow_nan=False)
    return f"event: {name}\ndata: {data}\n\n".encode()
