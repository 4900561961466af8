"""A caller of `GET /v1/tts/stream`: says pieces of text, and keeps what comes back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.e2e.cluster import PATIENCE_SECONDS, Cluster


@dataclass
class Talk:
    """One connection. `audio` and `told` are what came since the last `start`."""

    socket: aiohttp.ClientWebSocketResponse
    audio: bytearray = field(default_factory=bytearray)
    told: list[dict[str, Any]] = field(default_factory=list)

    async def tell(self, type_: str, **fields: Any) -> None:
        await self.socket.send_json({"type": type_, **fields})

    async def start(self, **fields: Any) -> dict[str, Any]:
        """Begin a speech, as samples unless said otherwise; return what `started` says."""
        self.audio.clear()
        self.told.clear()
        await self.tell("start", **{"format": "pcm"} | fields)
        return await self.hear("started")

    async def say(self, *pieces: str) -> None:
        for piece in pieces:
            await self.tell("text", text=piece)

    async def hear(self, *types: str) -> dict[str, Any]:
        """Return the next message of such a type; keep all that comes on the way.

        Raises:
            AssertionError: the connection ended before.
        """
        while True:
            got = await self.socket.receive(PATIENCE_SECONDS)
            if got.type is aiohttp.WSMsgType.BINARY:
                self.audio += got.data
                continue
            assert got.type is aiohttp.WSMsgType.TEXT, f"{got.type!r} {got.data!r} instead of {types}; {self.told}"
            self.told.append(json.loads(got.data))
            if self.told[-1]["type"] in types:
                return self.told[-1]

    async def hear_audio(self, count: int) -> None:
        """Wait until so many bytes of audio have come."""
        while len(self.audio) < count:
            got = await self.socket.receive(PATIENCE_SECONDS)
            if got.type is aiohttp.WSMsgType.BINARY:
                self.audio += got.data
            else:
                assert got.type is aiohttp.WSMsgType.TEXT, got
                self.told.append(json.loads(got.data))

    async def hear_close(self) -> int | None:
        """Wait until the gateway closes; return the code."""
        while True:
            got = await self.socket.receive(PATIENCE_SECONDS)
            if got.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
                return self.socket.close_code
            if got.type is aiohttp.WSMsgType.TEXT:
                self.told.append(json.loads(got.data))

    def all(self, type_: str) -> list[dict[str, Any]]:
        return [message for message in self.told if message["type"] == type_]


@contextlib.asynccontextmanager
async def talking(cluster: Cluster, **options: Any) -> AsyncIterator[Talk]:
    """Connect for the length of the block."""
    async with cluster.session.ws_connect(cluster.url + "/v1/tts/stream", **options) as socket:
        yield Talk(socket)
