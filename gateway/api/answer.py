"""A speech as an HTTP answer: streamed in the codec asked for, as server-sent events, or whole."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import web

from gateway.api.access import CALLER
from gateway.api.errors import REQUEST_ID
from gateway.encoder import AudioFormat, StreamEncoder, encode_whole
from gateway.journey import Encoding, Journey, Outcome
from gateway.request import SpeechRequest
from gateway.service import SpeechService
from gateway.speech import Speech
from wire import headers, tracing
from wire.errors import TRAITS, ErrorCode, TtsError

log = logging.getLogger(__name__)

# Chatterbox speaks 25 tokens a second; the count in `usage` is of that kind, whatever the model.
_TOKENS_PER_SECOND = 25
_CHARACTERS_PER_TOKEN = 4


class Observer(Protocol):
    """Who wants to know of each request when it ends: metrics and the log."""

    def request_started(self, journey: Journey) -> None: ...
    def request_done(self, journey: Journey) -> None: ...


@dataclass(frozen=True, slots=True)
class Answerer:
    """Answers speech requests. Encoding that costs time runs in `executor`, off the event loop."""

    service: SpeechService
    observer: Observer
    executor: Executor
    reader_timeout_seconds: float

    @contextmanager
    def journey(self, request: web.Request, endpoint: str, request_id: str = "") -> Iterator[Journey]:
        """Follow one request from its reception to its end, and report it once, however it ends. `request_id` is for
        one of several that come by one connection."""
        caller = request[CALLER]
        request_id = request_id or request[REQUEST_ID]
        journey = Journey(endpoint, caller=caller.name, limits=caller.limits, request_id=request_id)
        journey.traceparent = request.headers.get(tracing.HEADER, "")
        self.observer.request_started(journey)
        try:
            yield journey
            journey.finish(Outcome.OK)
        except TtsError as error:
            journey.finish(outcome_of(error), str(error.code))
            raise
        except (asyncio.CancelledError, ConnectionError):
            journey.finish(Outcome.CANCELLED)
            raise
        finally:
            journey.finish(Outcome.FAILED, str(ErrorCode.INTERNAL))
            self.observer.request_done(journey)

    async def answer(
        self, request: web.Request, speech_request: SpeechRequest, journey: Journey, *, sse: bool = False
    ) -> web.StreamResponse:
        """Speak the request and return its answered response.

        Headers go out with the first audio, so that whatever fails before it has its own status. What fails later ends
        the connection without the last chunk: truncated audio must not look whole.

        Raises:
            TtsError: nothing was sent yet.
        """
        async with self.service.speak(speech_request, journey) as speech:
            if sse or speech_request.stream:
                return await self._stream(request, speech_request.format, speech, journey, sse=sse)
            return await self._whole(speech_request.format, speech, journey)

    async def _whole(self, format_: AudioFormat, speech: Speech, journey: Journey) -> web.Response:
        pcm = b"".join([chunk async for chunk in speech.chunks()])
        with journey.encoding.working():
            data = await self._run(encode_whole, pcm, format_, speech.sample_rate)
        journey.audio_sent(data, 0.0)
        return web.Response(body=data, headers=_headers(speech, journey, format_.content_type))

    async def _stream(
        self, request: web.Request, format_: AudioFormat, speech: Speech, journey: Journey, *, sse: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers=_headers(speech, journey, "text/event-stream" if sse else format_.content_type)
        )
        if sse:
            response.headers["Cache-Control"] = "no-cache"
        async with (
            aclosing(speech.chunks()) as chunks,
            self.encoding(format_, speech.sample_rate, journey.encoding) as encode,
        ):
            first = await anext(chunks, b"")
            try:
                data = await encode(first)
                await response.prepare(request)
                await self._send(response, data, speech.seconds(first), journey, sse=sse)
                async for chunk in chunks:
                    await self._send(response, await encode(chunk), speech.seconds(chunk), journey, sse=sse)
                await self._send(response, await encode(None), 0.0, journey, sse=sse)
                if sse:
                    await self._write(response, _last_events(journey))
                await response.write_eof()
            except Exception as error:  # request boundary: a response that has begun can only be broken off
                if not response.prepared or isinstance(error, ConnectionError):
                    raise
                if not isinstance(error, TtsError):
                    log.exception("request failed after its answer had begun: request_id=%s", journey.request_id)
                    error = TtsError(ErrorCode.INTERNAL, "The gateway failed on this request; its log has the reason.")
                # Noted first: closing the connection cancels this very handler, which is not the caller's doing.
                journey.finish(outcome_of(error), str(error.code))
                await self._break_off(request, response, error, sse=sse)
        return response

    async def _send(
        self, response: web.StreamResponse, data: bytes, seconds: float, journey: Journey, *, sse: bool
    ) -> None:
        if data:
            await self._write(response, _delta(data) if sse else data)
        if data or journey.first_audio is not None:  # a codec may keep its first samples to itself for a moment
            journey.audio_sent(data, seconds)

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        async with self.patience():
            await response.write(data)

    @asynccontextmanager
    async def patience(self) -> AsyncIterator[None]:
        """Bound the time that a listener may take for what is written in the block.

        Raises:
            TtsError: `slow_reader`.
        """
        try:
            async with asyncio.timeout(self.reader_timeout_seconds):
                yield
        except TimeoutError:
            raise TtsError(
                ErrorCode.SLOW_READER, f"The listener took nothing for {self.reader_timeout_seconds:g} s."
            ) from None

    async def _break_off(
        self, request: web.Request, response: web.StreamResponse, error: TtsError, *, sse: bool
    ) -> None:
        """End a response that has begun so that no client can take it for whole."""
        if sse and error.code is not ErrorCode.SLOW_READER:
            with contextlib.suppress(TtsError):  # a listener who takes nothing cannot be told why
                await self._write(response, _event({"type": "error", **error.envelope()}))
        response.force_close()
        if request.transport is None:
            return
        if error.code is ErrorCode.SLOW_READER:
            request.transport.abort()  # an orderly end would wait for the listener to take what is buffered
        else:
            # Sends what is buffered, then ends: without the last chunk of a chunked body.
            request.transport.close()

    @asynccontextmanager
    async def encoding(self, format_: AudioFormat, sample_rate: int, clock: Encoding) -> AsyncIterator[Any]:
        """Yield `encode(pcm | None) -> bytes` (None: the end), on the loop or in a thread, as the codec's cost asks."""
        encoder = StreamEncoder(format_, sample_rate)
        running: asyncio.Future[bytes] | None = None

        async def encode(pcm: bytes | None) -> bytes:
            nonlocal running
            with clock.working():
                if format_.is_cheap:
                    return encoder.finish() if pcm is None else encoder.feed(pcm)
                loop = asyncio.get_running_loop()
                if pcm is None:
                    running = loop.run_in_executor(self.executor, encoder.finish)
                else:
                    running = loop.run_in_executor(self.executor, encoder.feed, pcm)
                return await asyncio.shield(running)

        try:
            yield encode
        finally:
            if running is not None and not running.done():
                # The caller left while a thread is inside the codec: freeing it now would crash the process.
                await asyncio.wait([running])
            encoder.close()

    async def _run(self, function: Any, *args: Any) -> bytes:
        result: bytes = await asyncio.get_running_loop().run_in_executor(self.executor, function, *args)
        return result


def outcome_of(error: TtsError) -> Outcome:
    """Return how a request ended that an error ended."""
    if error.code is ErrorCode.SLOW_READER:
        return Outcome.CANCELLED
    refused = error.status < 500 or TRAITS[error.code].type == "overloaded_error"
    return Outcome.REFUSED if refused else Outcome.FAILED


def _headers(speech: Speech, journey: Journey, content_type: str) -> dict[str, str]:
    fields = {
        "Content-Type": content_type,
        headers.REQUEST_ID: journey.request_id,
        headers.SEED: str(speech.seed),
        headers.MODEL: speech.cast.model.id,
        headers.VOICE: speech.cast.voice,
        headers.ACCEL_BUFFERING: "no",
    }
    if speech.cast.model.watermark:
        fields[headers.WATERMARK] = speech.cast.model.watermark
    if speech.ignored_fields:
        fields[headers.IGNORED_FIELDS] = ", ".join(speech.ignored_fields)
    return fields


def _event(body: object) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def _delta(data: bytes) -> bytes:
    return _event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode("ascii")})


def _last_events(journey: Journey) -> bytes:
    """The end of a stream of events: OpenAI's `done` with usage, then the `[DONE]` that LiveKit waits for."""
    tokens_in = -(-journey.characters // _CHARACTERS_PER_TOKEN)
    tokens_out = round(journey.audio_seconds * _TOKENS_PER_SECOND)
    usage = {"input_tokens": tokens_in, "output_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
    return _event({"type": "speech.audio.done", "usage": usage}) + b"data: [DONE]\n\n"
