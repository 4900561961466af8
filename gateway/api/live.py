"""`GET /v1/live`: the service as it is, once a second, as server-sent events; on both listeners."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
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
    """The first event, `history`, holds the last minute; each `snapshot` after it one second.

    A snapshot is made once, however many look, and not at all when nobody does. Who reads slowly misses some.
    """

    live: Live
    pool: Pool
    _viewers: int = 0
    _made: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # by event: the newest, and of which tick

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
            await self._write(request, response, self._event("history"))
            while True:
                await self.live.wait_tick()
                if self.live.is_closed:
                    break
                await self._write(request, response, self._event("snapshot"))
            await response.write_eof()
        except ConnectionError:
            pass  # the viewer left
        finally:
            self._viewers -= 1
        return response

    def _event(self, name: str) -> bytes:
        made = self._made.get(name)
        if made is None or made[0] != self.live.ticks:
            body: dict[str, Any] = (self.live.history if name == "history" else self.live.snapshot)(self.pool)
            data = json.dumps(body, separators=(",", ":"), allow_nan=False)
            made = self._made[name] = (self.live.ticks, f"event: {name}\ndata: {data}\n\n".encode())
        return made[1]

    async def _write(self, request: web.Request, response: web.StreamResponse, data: bytes) -> None:
        try:
            async with asyncio.timeout(_TAKES_NOTHING_SECONDS):
                await response.write(data)
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionError("the viewer takes nothing") from None
