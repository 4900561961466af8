"""`GET /v1/tts/stream`: a WebSocket: text comes in pieces, its audio goes back. docs/stream.md has the messages."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from aiohttp import WSCloseCode, WSMsgType, hdrs, web

from gateway.api.access import CALLER, presented_key
from gateway.api.answer import Answerer
from gateway.api.errors import REQUEST_ID, SANE_REQUEST_ID
from gateway.api.utterance import ENDPOINT, Utterance, error_fields
from gateway.keys import Caller
from gateway.request import parse_manner
from wire import headers
from wire.errors import ErrorCode, TtsError
from wire.segment import Range

# A browser takes a connection for failed when it offers protocols and none is chosen: it offers this one and its key.
SUBPROTOCOL = "tts"
MAX_MESSAGE_BYTES = 256 << 10
FLUSH_AFTER = Range(0.05, 60.0)
FLUSH_AFTER_SECONDS = 1.0
MESSAGES = ("start", "text", "flush", "end", "cancel")
_HEARTBEAT_SECONDS = 20.0  # a peer that is gone without a word is noticed within one and a half of these
_CLOSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class StreamRoutes:
    """`admit` says again, for each speech, whether the caller may: a key may have been revoked meanwhile."""

    answerer: Answerer
    admit: Callable[[web.Request], Caller]
    max_characters: int
    idle_timeout_seconds: float
    is_stopping: Callable[[], bool]
    _open: set[Conversation] = field(default_factory=set)  # one writer: `converse`

    def add_to(self, app: web.Application) -> None:
        app.router.add_get(ENDPOINT, self.converse, allow_head=False)

    def close(self) -> None:
        """The gateway stops: what is being spoken is spoken to its end, and nothing else begins."""
        for conversation in self._open:
            conversation.stop()

    async def converse(self, request: web.Request) -> web.StreamResponse:
        _check_handshake(request)
        if self.is_stopping():
            raise _stopping()
        socket = web.WebSocketResponse(
            protocols=(SUBPROTOCOL,),
            max_msg_size=MAX_MESSAGE_BYTES,
            heartbeat=_HEARTBEAT_SECONDS,
            timeout=_CLOSE_SECONDS,
            autoping=False,
            compress=False,  # sound does not get smaller, and what a stranger sent is not inflated
        )
        socket.headers[headers.REQUEST_ID] = request[REQUEST_ID]
        try:
            await socket.prepare(request)
        except ConnectionError:
            return web.Response()  # the caller left already, and gets neither
        conversation = Conversation(self, request, socket)
        self._open.add(conversation)
        try:
            await conversation.run()
        finally:
            self._open.discard(conversation)
        return socket


class Conversation:
    """One connection: any number of speeches, one after the other."""

    def __init__(self, routes: StreamRoutes, request: web.Request, socket: web.WebSocketResponse) -> None:
        self._routes = routes
        self._request = request
        self._socket = socket
        self._utterance: Utterance | None = None
        self._speeches = 0
        self._is_stopping = False
        self._silent_at = self._from_now()  # instant, of the loop's clock, at which the caller has been silent too long
        self._silence: asyncio.Timeout | None = None  # while a message is waited for

    async def run(self) -> None:
        """Answer messages until either side closes. Nothing that was begun here outlives it."""
        try:
            with contextlib.suppress(ConnectionError):
                while (text := await self._receive()) is not None:
                    await self._answer(text)
        except TtsError:  # a listener who takes nothing
            if self._request.transport is not None:
                self._request.transport.abort()
        finally:
            if self._utterance is not None:
                await self._utterance.cancel()

    def stop(self) -> None:
        """Close as soon as nothing is being spoken."""
        self._is_stopping = True
        self._listen_until(asyncio.get_running_loop().time())

    async def _receive(self) -> str | None:
        """Return the next message, or None when the connection is at its end."""
        while True:
            try:
                async with asyncio.timeout_at(self._silent_at) as self._silence:
                    message = await self._socket.receive()
            except TimeoutError:
                if not await self._keep_open():
                    return None
                continue
            finally:
                self._silence = None
            match message.type:
                case WSMsgType.TEXT:
                    self._listen_until(self._from_now())
                    return str(message.data)
                case WSMsgType.PING:
                    self._listen_until(self._from_now())
                    await self._socket.pong(message.data)
                case WSMsgType.PONG:
                    pass  # the peer's machine is there; that says nothing of the caller
                case WSMsgType.BINARY:
                    await self._tell("error", **error_fields(_invalid("type", "Send JSON in text messages.")))
                case _:
                    return None

    async def _keep_open(self) -> bool:
        """The caller has been silent: say whether to go on all the same."""
        self._listen_until(self._from_now())
        utterance = self._running
        if utterance is None:
            code, why = (WSCloseCode.GOING_AWAY, b"stopping") if self._is_stopping else (WSCloseCode.OK, b"idle")
            await self._socket.close(code=code, message=why)
            return False
        if utterance.is_awaited and not self._is_stopping:
            seconds = self._routes.idle_timeout_seconds
            utterance.fail(
                TtsError(ErrorCode.BODY_TIMEOUT, f"No text came for {seconds:g} s. Say end when there is no more.")
            )
        return True

    async def _answer(self, text: str) -> None:
        try:
            await self._heed(_message(text))
        except TtsError as error:
            if error.code is ErrorCode.SLOW_READER:
                raise
            await self._tell("error", **error_fields(error))

    async def _heed(self, message: Mapping[str, Any]) -> None:
        match message["type"]:
            case "start":
                self._start(message)
            case "text":
                await self._spoken_to().add(message.get("text"))
            case "flush":
                await self._spoken_to().flush()
            case "end":
                await self._spoken_to().end()
            case "cancel":
                running = self._running
                if running is not None:
                    await running.cancel()
                await self._tell("cancelled", request_id=running.request_id if running else None)

    def _start(self, message: Mapping[str, Any]) -> None:
        if self._running is not None:
            raise _invalid("type", "A speech is under way: end it and wait for done, or cancel it, before start.")
        if self._is_stopping:
            raise _stopping()
        manner = parse_manner(message)
        flush_after = message.get("flush_after_seconds")
        request_id = message.get("request_id")
        if request_id is not None and not (isinstance(request_id, str) and SANE_REQUEST_ID.fullmatch(request_id)):
            raise _invalid("request_id", "request_id must be 1 to 64 of the characters A-Z a-z 0-9 . _ -")
        self._request[CALLER] = self._routes.admit(self._request)
        self._speeches += 1
        self._utterance = Utterance(
            self._routes.answerer,
            self._request,
            self._socket,
            manner,
            request_id=request_id or f"{self._request[REQUEST_ID]}.{self._speeches}",
            max_characters=self._routes.max_characters,
            flush_after_seconds=(
                FLUSH_AFTER_SECONDS if flush_after is None else FLUSH_AFTER.check("flush_after_seconds", flush_after)
            ),
        )
        self._utterance.task.add_done_callback(lambda _: self._ended())

    def _ended(self) -> None:
        self._listen_until(asyncio.get_running_loop().time() if self._is_stopping else self._from_now())

    @property
    def _running(self) -> Utterance | None:
        return None if self._utterance is None or self._utterance.task.done() else self._utterance

    def _spoken_to(self) -> Utterance:
        if (running := self._running) is None:
            raise _invalid("type", "There is no speech to say this to. Send start first.")
        return running

    def _from_now(self) -> float:
        return asyncio.get_running_loop().time() + self._routes.idle_timeout_seconds

    def _listen_until(self, when: float) -> None:
        self._silent_at = when
        if self._silence is not None and not self._silence.expired():
            self._silence.reschedule(when)

    async def _tell(self, kind: str, **about: Any) -> None:
        async with self._routes.answerer.patience():
            await self._socket.send_json({"type": kind, **about})


def _check_handshake(request: web.Request) -> None:
    """Refuse what is no WebSocket, and a page of another site: browsers let any page open one to any machine, this one
    included, and do not ask first as they do for other calls.

    Raises:
        TtsError: `invalid_body` or `forbidden`.
    """
    if request.headers.get(hdrs.UPGRADE, "").lower() != "websocket":
        raise TtsError(ErrorCode.INVALID_BODY, f"{ENDPOINT} is a WebSocket. Open it with one, or use POST /v1/tts.")
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None or presented_key(request):
        return
    if urlsplit(origin).hostname != urlsplit(f"//{request.host}").hostname:
        raise TtsError(ErrorCode.FORBIDDEN, f"A page of {origin[:100]} may not speak here without a key.")


def _message(text: str) -> Mapping[str, Any]:
    """Return a message of the caller's, which is an object with a known type.

    Raises:
        TtsError: it is none.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TtsError(ErrorCode.INVALID_BODY, f"The message is not JSON: {str(error)[:200]}") from None
    if not isinstance(body, dict):
        raise TtsError(ErrorCode.INVALID_BODY, f"A message must be a JSON object, not {type(body).__name__}.")
    if body.get("type") not in MESSAGES:
        raise _invalid("type", f"type must be one of {', '.join(MESSAGES)}; it is {str(body.get('type'))[:40]!r}.")
    return body


def _invalid(param: str, message: str) -> TtsError:
    return TtsError(ErrorCode.INVALID_VALUE, message, param=param)


def _stopping() -> TtsError:
    return TtsError(ErrorCode.SHUTTING_DOWN, "This gateway stops. Connect again.", retry_after_seconds=1.0)
