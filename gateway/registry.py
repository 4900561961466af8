"""The control link's gateway side: workers dial in, say hello, report every second. A lost link is a lost worker."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import aiohttp
from aiohttp import web

from gateway.address import is_loopback
from gateway.bucket import Rate
from gateway.pool import Pool
from gateway.replica import Replica
from wire import link
from wire.errors import ErrorCode, TtsError

log = logging.getLogger(__name__)

HELLO_SECONDS = 5.0
# Links that may be up at once, and of these such that have not said hello.
MAX_WORKERS = 1024
MAX_STRANGERS = 64
# Models that may ever be announced: they are remembered while their workers are away.
MAX_MODELS = 256
# Dials of one address: a rack of workers that comes back together, then one that flaps.
DIALS_AT_ONCE = 200
DIALS_PER_SECOND = 10.0
# Messages on one link: a status a second, and one at each change of state.
MESSAGES_AT_ONCE = 100
MESSAGES_PER_SECOND = 20.0
# Nothing that speaks this protocol runs as root.
LOWEST_PORT = 1024


class Registry:
    """Feeds the pool from the links, and carries orders back. Its only state is which replica hangs on which link."""

    def __init__(
        self,
        pool: Pool,
        *,
        token: str,
        gateway_id: str,
        own_ports: Callable[[], Iterable[int]] = tuple,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._own_ports = own_ports
        self._token = token
        self._gateway_id = gateway_id
        self._clock = clock
        # One entry a live link, made and removed by that link's own handler.
        self._links: dict[str, web.WebSocketResponse] = {}
        self._wakings: set[asyncio.Task[None]] = set()  # keeps them from being collected
        self._strangers = 0  # links that have not said hello yet
        self._dials = Rate(DIALS_AT_ONCE, DIALS_PER_SECOND)

    def add_to(self, app: web.Application) -> None:
        app.router.add_get(link.LINK_PATH, self.handle)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one worker's link for as long as it lives."""
        self._limit_dials(request)
        self.authenticate(request)
        # Not compressed: a status is small, and a small message that inflates is an attack.
        socket = web.WebSocketResponse(max_msg_size=link.MAX_MESSAGE_BYTES, compress=False)
        try:
            with self._stranger():
                await socket.prepare(request)
                hello = await self._receive_hello(socket)
            host = _peer_host(request)
            self._check(hello, is_here=is_loopback(host) or host == _own_host(request))
            replica = Replica.from_hello(hello, host=host, now=self._clock())
            replica.wake = partial(self._wake, socket)
            self._pool.add(replica)
        except TtsError as error:
            if not socket.prepared:
                raise
            log.warning("worker at %s refused: %s", request.remote, error.message)
            with contextlib.suppress(ConnectionError):  # whoever sent nonsense may be gone already
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

    def _wake(self, socket: web.WebSocketResponse) -> None:
        """Order a worker to load, without waiting until that is sent. Whatever is lost here is made up for: its next
        status says that it is still unloaded."""
        task = asyncio.create_task(_send(socket, link.Order(link.Command.LOAD)))
        self._wakings.add(task)
        task.add_done_callback(self._wakings.discard)

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

    def _limit_dials(self, request: web.Request) -> None:
        """Raises:
        TtsError: `rate_limited`, for an address that dials again and again.
        """
        now = self._clock()
        wait_seconds = self._dials.wait_seconds(request.remote, now)
        if len(self._dials) > MAX_WORKERS:
            self._dials.forget(now)
        if wait_seconds:
            raise TtsError(
                ErrorCode.RATE_LIMITED, "This address dials too often.", retry_after_seconds=max(1.0, wait_seconds)
            )

    @contextlib.contextmanager
    def _stranger(self) -> Iterator[None]:
        """Count a link that has not said hello for the length of the block.

        Raises:
            TtsError: `rate_limited`, when there are too many of them, or of links at all.
        """
        if self._strangers >= MAX_STRANGERS or len(self._links) + self._strangers >= MAX_WORKERS:
            raise TtsError(
                ErrorCode.RATE_LIMITED,
                f"{len(self._links)} workers are linked and {self._strangers} links have not said hello; no more.",
                retry_after_seconds=HELLO_SECONDS,
            )
        self._strangers += 1
        try:
            yield
        finally:
            self._strangers -= 1

    def _check(self, hello: link.Hello, *, is_here: bool) -> None:
        """Refuse what would send the gateway's calls to somebody who is not a worker.

        Raises:
            TtsError: `link_refused`.
        """
        if hello.port < LOWEST_PORT:
            raise TtsError(
                ErrorCode.LINK_REFUSED,
                f"Data port {hello.port} is below {LOWEST_PORT}, where other services listen. Take another --port.",
            )
        if is_here and hello.port in self._own_ports():
            raise TtsError(ErrorCode.LINK_REFUSED, f"Data port {hello.port} is the gateway's own. Take another --port.")
        self._check_models(hello.models)

    def _check_models(self, models: Iterable[link.ModelInfo]) -> None:
        known = self._pool.known.models
        if len(known) + sum(model.id not in known for model in models) > MAX_MODELS:
            raise TtsError(ErrorCode.LINK_REFUSED, f"More than {MAX_MODELS} models have been announced here.")

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
        messages = Rate(MESSAGES_AT_ONCE, MESSAGES_PER_SECOND)
        while True:
            try:
                message = await socket.receive(timeout=link.SILENCE_SECONDS)
            except TimeoutError:
                return f"silent for {link.SILENCE_SECONDS:g} s"
            if messages.wait_seconds(replica.id, self._clock()):
                return f"broke the protocol: more than {MESSAGES_PER_SECOND:g} messages a second"
            match message.type:
                case aiohttp.WSMsgType.TEXT:
                    try:
                        report = link.parse(message.data)
                        if isinstance(report, link.Status):
                            self._check_models(report.models)
                    except (link.LinkError, TtsError) as error:
                        return f"broke the protocol: {error}"
                    if isinstance(report, link.Status):
                        self._pool.update(replica, report)
                case aiohttp.WSMsgType.CLOSE | aiohttp.WSMsgType.CLOSING | aiohttp.WSMsgType.CLOSED:
                    return "the link was closed"
                case aiohttp.WSMsgType.ERROR:
                    return f"the link broke: {socket.exception()}"
                case _:
                    return f"broke the protocol: a {message.type.name} message"


async def _send(socket: web.WebSocketResponse, message: link.Message) -> None:
    with contextlib.suppress(ConnectionError, RuntimeError):  # closed meanwhile: the worker is lost, and its link knows
        await socket.send_str(link.encode(message))


def _peer_host(request: web.Request) -> str:
    """The address the link really comes from: a worker announces a port, never an address."""
    assert request.transport is not None
    peer = request.transport.get_extra_info("peername")
    host: str = peer[0]
    return host


def _own_host(request: web.Request) -> str:
    """The address at which the worker reached this gateway."""
    assert request.transport is not None
    host: str = request.transport.get_extra_info("sockname")[0]
    return host
