"""A worker that somebody else wrote: it dials a real gateway with the fleet's token and says and does what it likes."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp

from tests.e2e.cluster import Cluster
from tests.gateway.builders import TONE
from wire import link
from wire.link import Hello, Status, WorkerState

HELLO: dict[str, Any] = json.loads(link.encode(Hello("guest", "e1", 8100, 4, "cpu", (TONE,), WorkerState.READY)))
STATUS: dict[str, Any] = json.loads(link.encode(Status(WorkerState.READY, 0, 0, 4)))


def hello(**changes: Any) -> dict[str, Any]:
    return HELLO | changes


def model(**changes: Any) -> dict[str, Any]:
    """A hello whose one model is like tone, but for these fields."""
    return hello(models=[HELLO["models"][0] | changes])


@dataclass
class Guest:
    """A control link to the cluster's gateway, for the length of the block."""

    cluster: Cluster
    token: str | None = None
    socket: aiohttp.ClientWebSocketResponse = field(init=False)
    _reporting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        token = self.cluster.token if self.token is None else self.token
        self.socket = await self.cluster.session.ws_connect(
            self.cluster.internal_url + link.LINK_PATH, headers={"Authorization": f"Bearer {token}"}
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reporting is not None:
            self._reporting.cancel()
            await asyncio.gather(self._reporting, return_exceptions=True)
        await self.socket.close()

    async def say(self, message: Any) -> dict[str, Any]:
        """Send a hello, return the gateway's answer."""
        await self.socket.send_str(message if isinstance(message, str) else json.dumps(message))
        answer: dict[str, Any] = json.loads(await self.socket.receive_str())
        return answer

    async def join(self, message: Any) -> None:
        """Send a hello that must be welcome, and report every second from then on, as a worker does."""
        answer = await self.say(message)
        assert answer["type"] == "welcome", answer
        self._reporting = asyncio.create_task(self._report())

    async def _report(self) -> None:
        while True:
            await self.socket.send_json(STATUS)
            await asyncio.sleep(1.0)
