"""The control link's gateway side: workers dial in, say hello, report every second. A lost link is a lost worker."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable

import aiohttp
from aiohttp import web

from gateway.pool import Pool
from gateway.replica import Replica
from wire import link
from wire.errors import ErrorCode, TtsError

log = logging.getLogger(__name__)

HELLO_SECONDS = 5.0


class Registry:
    """Feeds the pool from the links, and carries orders back. Its only state is which replica hangs on which link."""

    def __init__(self, pool: Pool, *, token: str, gateway_id: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._token = token
        self._gateway_id = gateway_id
        self._clock = clock
        # One entry a live link, made and removed by that link's own handler.
        self._links: dict[str, web.WebSocketResponse] = {}

    def add_to(self, app: web.Application) -> None:
        app.router.add_get(link.LINK_PATH, self.handle)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one worker's link for as long as it lives."""
        self.authenticate(request)
        socket = web.WebSocketResponse(max_msg_size=link.MAX_MESSAGE_BYTES)
        await socket.prepare(request)
        try:
            hello = await self._receive_hello(socket)
            replica = Replica.from_hello(hello, host=_peer_host(request), now=self._clock())
            self._pool.add(replica)
        except TtsError as error:
            log.warning("worker refused: %s", error.message)
            await socket.send_str(link.encode(link.Refused(str(error.code), error.message)))
            await socket.close(code=aiohttp.WSCloseCode.POLICY_VIOLATION)
            return socket
        self._links[replica.id] = socket
        reason = "the link was closed"
        try:
            await socket.send_str(link.encode(link.Welcome(self._gateway_id)))
            reason = await self._follow(socket, replica)
        except ConnectionError as error:
            reason = f"the link broke: {error}"
        finally:
            del self._links[replica.id]
            self._pool.lose(replica, reason)
            await socket.close()
        return socket

    async def order(self, worker: str, command: link.Command) -> Replica:
        """Send an order to a worker; returns when it is sent. What came of it shows in the worker's next status.

        Raises:
            TtsError: `worker_not_found`.
        """
        replica = next((replica for replica in self._pool.replicas if replica.id == worker), None)
        socket = self._links.get(worker)
        if replica is None or socket is None:
            known = ", ".join(sorted(self._links)) or "none"
            raise TtsError(
                ErrorCode.WORKER_NOT_FOUND, f"No worker {worker[:64]!r} is linked. Linked now: {known}.", param="id"
            )
        if command is link.Command.DRAIN:
            self._pool.mark_draining(replica)
        await socket.send_str(link.encode(link.Order(command)))
        return replica

    async def close(self) -> None:
        """Close every link; the workers will look for the gateway's next start."""
        await asyncio.gather(
            *(socket.close(code=aiohttp.WSCloseCode.GOING_AWAY) for socket in list(self._links.values()))
        )

    def authenticate(self, request: web.Request) -> None:
        """Let a worker in.

        Raises:
            TtsError: `unauthorized`.
        """
        given = request.headers.get("Authorization", "")
        if self._token and not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            log.warning("a link from %s was refused: wrong or missing token", request.remote)
            raise TtsError(
                ErrorCode.UNAUTHORIZED,
                "Wrong or missing worker token. Set TTS_WORKER_TOKEN to the same value on both sides.",
            )

    async def _receive_hello(self, socket: web.WebSocketResponse) -> link.Hello:
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                message = await socket.receive()
        except TimeoutError:
            raise TtsError(ErrorCode.LINK_REFUSED, f"No hello came within {HELLO_SECONDS:g} s.") from None
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise TtsError(ErrorCode.LINK_REFUSED, "The first message must be a hello, as text.")
        try:
            hello = link.parse(message.data)
        except link.LinkError as error:
            raise TtsError(ErrorCode.LINK_REFUSED, str(error)) from None
        if not isinstance(hello, link.Hello):
            raise TtsError(ErrorCode.LINK_REFUSED, "The first message must be a hello.")
        if hello.protocol != link.PROTOCOL_VERSION:
            raise TtsError(
                ErrorCode.LINK_REFUSED,
                f"The worker speaks protocol {hello.protocol}, the gateway {link.PROTOCOL_VERSION}: upgrade the older.",
            )
        return hello

    async def _follow(self, socket: web.WebSocketResponse, replica: Replica) -> str:
        """Feed the worker's reports to the pool until the link ends; return why it ended."""
        while True:
            try:
                message = await socket.receive(timeout=link.SILENCE_SECONDS)
            except TimeoutError:
                return f"silent for {link.SILENCE_SECONDS:g} s"
            match message.type:
                case aiohttp.WSMsgType.TEXT:
                    try:
                        report = link.parse(message.data)
                    except link.LinkError as error:
                        return f"broke the protocol: {error}"
                    if isinstance(report, link.Status):
                        self._pool.update(replica, report)
                case aiohttp.WSMsgType.CLOSE | aiohttp.WSMsgType.CLOSING | aiohttp.WSMsgType.CLOSED:
                    return "the link was closed"
                case aiohttp.WSMsgType.ERROR:
                    return f"the link broke: {socket.exception()}"
                case _:
                    return f"broke the protocol: a {message.type.name} message"


def _peer_host(request: web.Request) -> str:
    """The address the link really comes from: a worker announces a port, never an address."""
    assert request.transport is not None
    peer = request.transport.get_extra_info("peername")
    host: str = peer[0]
    return host
