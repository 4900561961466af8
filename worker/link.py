"""The control link: dials a gateway, says hello, reports the status, obeys orders, and dials again when it drops.

Audio never travels here, and a link that drops disturbs no segment: whoever holds a data connection keeps it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from typing import Any

from aiohttp import (
    ClientError,
    ClientSession,
    ClientTimeout,
    ClientWebSocketResponse,
    WSMsgType,
    WSServerHandshakeError,
)
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential, wait_random

from wire.link import (
    LINK_PATH,
    MAX_MESSAGE_BYTES,
    SILENCE_SECONDS,
    Command,
    Hello,
    LinkError,
    Order,
    Refused,
    Status,
    Welcome,
    encode,
    parse,
)
from worker.config import Address

log = logging.getLogger("worker.link")

_FIRST_RETRY_SECONDS = 0.1
_LONGEST_RETRY_SECONDS = 5.0
_HASTY_RETRY_SECONDS = 2.0
_CLOSE_SECONDS = 1.0


class LinkRefused(Exception):
    """The gateway answered the hello with a no; its reason is the message."""


class Link:
    """The link to one gateway. One task runs `run`; `hello`, `status` and `obey` are called on the event loop."""

    def __init__(
        self,
        gateway: Address,
        *,
        token: str,
        hello: Callable[[], Hello],
        status: Callable[[], Status],
        obey: Callable[[Command], None],
    ) -> None:
        self.gateway = gateway
        self._token = token
        self._hello = hello
        self._status = status
        self._obey = obey
        self._socket: ClientWebSocketResponse | None = None  # from welcome to the end of the conversation
        self._changed = asyncio.Event()
        self._was_dialled = asyncio.Event()  # once at least, whatever came of it
        self._trouble = ""
        self._is_closing = False

    def __repr__(self) -> str:
        return f"<Link {self.gateway} {'up' if self.is_up else 'down'}>"

    @property
    def is_up(self) -> bool:
        return self._socket is not None

    def report(self) -> dict[str, Any]:
        """Return what `/health` shows of this link."""
        return {"gateway": str(self.gateway), "up": self.is_up, "trouble": self._trouble}

    def announce(self) -> None:
        """Have the status sent at once; the next second is late for a drain."""
        self._changed.set()

    async def run(self) -> None:
        """Keep the link up until `close`; a gateway that is away or refuses is asked again, at most every 5 s or so."""
        # total=None: a link lasts for days. The connection itself and the first answer have limits of their own.
        timeout = ClientTimeout(total=None, sock_connect=SILENCE_SECONDS)
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        async with ClientSession(timeout=timeout, headers=headers) as session:
            # A link that was closed on purpose must not be dialled again: the gateway would see a new worker, stopped.
            while not self._is_closing:
                socket, interval_seconds = await self._connect(session)
                began = time.monotonic()
                try:
                    await self._converse(socket, interval_seconds)
                finally:
                    self._socket = None
                    await socket.close()
                # Two workers of one name throw each other out as soon as they are welcome; let them do it slowly.
                lasted = time.monotonic() - began >= _LONGEST_RETRY_SECONDS
                await asyncio.sleep(random.uniform(0, _FIRST_RETRY_SECONDS if lasted else _HASTY_RETRY_SECONDS))

    async def close(self) -> None:
        """Send the last status and hang up. `run` ends, unless it is dialling: cancel it afterwards.

        Waits a moment for the first dial: a worker that fails at once is to be heard of, too.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._was_dialled.wait()
        self._is_closing = True
        socket = self._socket
        if socket is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await socket.send_str(encode(self._status()))
                await socket.close()
        except (TimeoutError, ConnectionError):
            log.info("gateway=%s did not wait for the farewell", self.gateway)

    async def _connect(self, session: ClientSession) -> tuple[ClientWebSocketResponse, float]:
        """Dial until a gateway says welcome; return the socket and how often it wants a status."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type((ClientError, OSError, TimeoutError, LinkError, LinkRefused)),
            # The jitter spreads a fleet whose gateway has just come back.
            wait=wait_exponential(_FIRST_RETRY_SECONDS, _LONGEST_RETRY_SECONDS) + wait_random(0, _FIRST_RETRY_SECONDS),
            before_sleep=self._note_failure,
        )
        answer: tuple[ClientWebSocketResponse, float] = await retrying(self._dial, session)
        self._socket, self._trouble = answer[0], ""
        self._was_dialled.set()
        log.info("gateway=%s link=up", self.gateway)
        return answer

    def _note_failure(self, attempt: RetryCallState) -> None:
        error = attempt.outcome.exception() if attempt.outcome else None
        trouble = f"{type(error).__name__}: {error}"[:300]
        # A gateway that is away for an hour is one line, not seven hundred.
        if trouble != self._trouble:
            log.warning("gateway=%s link=down reason=%r", self.gateway, trouble)
            self._trouble = trouble
        self._was_dialled.set()

    async def _dial(self, session: ClientSession) -> tuple[ClientWebSocketResponse, float]:
        """Dial once, say hello and wait for the answer."""
        url = f"ws://{self.gateway}{LINK_PATH}"
        try:
            socket = await session.ws_connect(url, heartbeat=SILENCE_SECONDS, max_msg_size=MAX_MESSAGE_BYTES)
        except WSServerHandshakeError as error:
            if error.status == 401:
                raise LinkRefused(
                    "401: wrong or missing token; set TTS_WORKER_TOKEN to the same value on both sides"
                ) from None
            raise
        try:
            await socket.send_str(encode(self._hello()))
            async with asyncio.timeout(SILENCE_SECONDS):
                return socket, await self._wait_welcome(socket)
        except BaseException:
            await socket.close()
            raise

    async def _wait_welcome(self, socket: ClientWebSocketResponse) -> float:
        async for message in socket:
            match parse(message.data) if message.type is WSMsgType.TEXT else None:
                case Welcome(_, interval_seconds):
                    if not isinstance(interval_seconds, int | float) or not 0.01 <= interval_seconds <= 60:
                        raise LinkError(f"a status every {interval_seconds!r} seconds is not possible")
                    return float(interval_seconds)
                case Refused(code, reason):
                    raise LinkRefused(f"{code}: {reason}")
        raise LinkError(f"the gateway closed the link ({socket.close_code}) instead of answering the hello")

    async def _converse(self, socket: ClientWebSocketResponse, interval_seconds: float) -> None:
        """Report and obey until the link drops, for whatever reason."""
        try:
            async with asyncio.TaskGroup() as group:
                reporting = group.create_task(self._report_forever(socket, interval_seconds))
                await self._obey_orders(socket)
                reporting.cancel()
        except* (ClientError, OSError, LinkError) as errors:
            self._trouble = f"{errors.exceptions[0]}"[:300]
        if not self._is_closing:
            log.warning("gateway=%s link=dropped close_code=%s %s", self.gateway, socket.close_code, self._trouble)

    async def _report_forever(self, socket: ClientWebSocketResponse, interval_seconds: float) -> None:
        while True:
            # Cleared before the status is read: a change during the send is sent again, never lost.
            self._changed.clear()
            await socket.send_str(encode(self._status()))
            try:
                async with asyncio.timeout(interval_seconds):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _obey_orders(self, socket: ClientWebSocketResponse) -> None:
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                raise LinkError(f"the gateway sent a {message.type.name} message")
            match parse(message.data):
                case Order(command):
                    log.info("gateway=%s order=%s", self.gateway, command)
                    self._obey(command)
                case Refused(code, reason):
                    raise LinkError(f"refused: {code}: {reason}")
