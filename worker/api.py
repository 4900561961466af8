"""The data listener: segments in, frames out; and what probes and Prometheus ask."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from aiohttp import hdrs, web

from wire import tracing
from wire.errors import ErrorCode, TtsError
from wire.frames import FrameType, encode_frame
from wire.headers import ACCEL_BUFFERING, EPOCH, SEGMENT_CONTENT_TYPE, SEGMENTS_PATH
from wire.logs import fields
from wire.segment import SegmentRequest
from wire.tracing import Attribute, Span, Tracer
from worker.engine import Engine
from worker.lifecycle import Lifecycle
from worker.metrics import Metrics
from worker.sequence import Chunk, Ended, Output, Progress, Sequence
from worker.voices import Voices

log = logging.getLogger("worker.api")

# The longest segment in \u escapes, and the largest checkpoint in base64.
MAX_BODY_BYTES = 256 * 1024

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Slots:
    """How many segments this worker has promised to speak at once. The only way to hold a slot gives it back."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.taken = 0  # so far; this and the next change only here, on the event loop
        self._held = 0
        self._free = asyncio.Event()
        self._free.set()

    @property
    def held(self) -> int:
        return self._held

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold one slot for the length of the block.

        Raises:
            TtsError: `worker_full`, at once; a line of waiting is the gateway's business.
        """
        if self._held >= self.count:
            raise TtsError(ErrorCode.WORKER_FULL, f"all {self.count} slots are held")
        self._held += 1
        self.taken += 1
        self._free.clear()
        try:
            yield
        finally:
            self._held -= 1
            if not self._held:
                self._free.set()

    async def wait_free(self) -> None:
        """Wait until no slot is held."""
        await self._free.wait()


class Api:
    """The routes of a worker. `report` gives the JSON of `/health`."""

    def __init__(
        self,
        *,
        engine: Engine,
        lifecycle: Lifecycle,
        slots: Slots,
        voices: Voices,
        metrics: Metrics,
        tracer: Tracer,
        token: str,
        epoch: str,
        report: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._engine = engine
        self._lifecycle = lifecycle
        self._slots = slots
        self._voices = voices
        self._metrics = metrics
        self._tracer = tracer
        self._token = token.encode()
        self._epoch = epoch
        self._report = report

    def application(self) -> web.Application:
        """Return the application. Run it with `handler_cancellation=True`, or a caller who hangs up keeps its slot."""
        app = web.Application(middlewares=[_errors_as_json], client_max_size=MAX_BODY_BYTES)
        app.router.add_post(SEGMENTS_PATH, self._segments)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._expose)
        return app

    async def _livez(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        state = self._lifecycle.state
        return web.Response(text=f"{state}\n", status=200 if self._lifecycle.takes_segments else 503)

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response(self._report())

    async def _expose(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=self._metrics.expose(), headers={hdrs.CONTENT_TYPE: "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _segments(self, request: web.Request) -> web.StreamResponse:
        received = time.monotonic()
        self._authorise(request)
        self._recognise(request)
        segment = SegmentRequest.from_json(await _read_json(request))
        # But for a voice, nothing awaits from here to `submit`: the state and the slot that were checked are the ones
        # that count.
        try:
            self._admit(segment)
            with self._slots.hold():
                voice = None
                if segment.voice_sha256 is not None:
                    voice = await self._voices.prepared(segment.voice_sha256)
                    self._admit(segment)
                sequence = self._engine.submit(segment, voice)
                span = self._tracer.begin("segment", request.headers.get(tracing.HEADER, ""), received)
                return await self._speak(request, sequence, span)
        except TtsError:
            self._metrics.count_segment("refused")
            raise

    def _authorise(self, request: web.Request) -> None:
        if not self._token:
            return
        scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        # As bytes: compare_digest raises on text that is not ASCII, and a header may hold anything.
        given = token.strip().encode("utf-8", "surrogateescape")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, self._token):
            raise TtsError(ErrorCode.UNAUTHORIZED, "the fleet's token is missing or wrong")

    def _recognise(self, request: web.Request) -> None:
        """Refuse a call that is meant for a process which had this port before."""
        meant = request.headers.get(EPOCH, self._epoch)
        if meant != self._epoch:
            message = f"this is epoch {self._epoch}, not {meant[:64]!r}: another process had this port"
            raise TtsError(ErrorCode.WRONG_WORKER, message)

    def _admit(self, segment: SegmentRequest) -> None:
        """Refuse what this worker cannot speak, now or ever.

        Raises:
            TtsError: the code says which of the two it is.
        """
        if not self._lifecycle.takes_segments:
            raise TtsError(ErrorCode.WORKER_NOT_READY, f"the worker is {self._lifecycle.state}")
        info = self._engine.info
        if segment.model != info.id:
            message = f"this worker speaks {info.id}, not {segment.model[:64]!r}"
            raise TtsError(ErrorCode.MODEL_NOT_FOUND, message, param="model")
        if segment.voice_sha256 is not None and not info.cloning:
            message = f"{info.id} speaks with its own voices only, not with that of a clip"
            raise TtsError(ErrorCode.VOICE_NOT_FOUND, message, param="voice")
        if segment.voice_sha256 is None and segment.voice not in info.voices:
            message = f"{info.id} has no voice {segment.voice[:64]!r}; it has {', '.join(info.voices)}"
            raise TtsError(ErrorCode.VOICE_NOT_FOUND, message, param="voice")
        if len(segment.text) > info.max_segment_characters:
            message = (
                f"a segment of {info.id} has at most {info.max_segment_characters} characters, not {len(segment.text)}"
            )
            raise TtsError(ErrorCode.TEXT_TOO_LONG, message, param="text")

    async def _speak(self, request: web.Request, sequence: Sequence, span: Span) -> web.StreamResponse:
        """Write the frames of a sequence as they come. However this ends, the engine keeps nothing of it."""
        response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: SEGMENT_CONTENT_TYPE, ACCEL_BUFFERING: "no"})
        outcome = "cancelled"
        try:
            await response.prepare(request)
            await response.write(self._meta(sequence))
            async for outputs in sequence.wait_outputs():
                # The write waits while the gateway reads slowly; the engine does not wait with it.
                await response.write(b"".join(self._frames(sequence, outputs)))
                if isinstance(ended := outputs[-1], Ended):
                    outcome = "failed" if ended.error else "done"
            await response.write_eof()
        except ConnectionError:
            # The gateway hung up between two writes. As ordinary as a cancelled handler; there is nobody to answer.
            outcome = "cancelled"
        finally:
            self._engine.cancel(sequence)
            self._report_end(sequence, outcome, span)
        return response

    def _meta(self, sequence: Sequence) -> bytes:
        segment = sequence.request
        return encode_frame(
            FrameType.META,
            {
                "sample_rate": self._engine.info.sample_rate,
                "model": segment.model,
                "voice": segment.voice,
                "seed": segment.seed,
            },
        )

    def _frames(self, sequence: Sequence, outputs: list[Output]) -> Iterator[bytes]:
        for output in outputs:
            match output:
                case Chunk(audio, checkpoint):
                    yield encode_frame(FrameType.AUDIO, audio)
                    if checkpoint is not None:
                        yield encode_frame(FrameType.CHECKPOINT, checkpoint)
                case Progress():
                    yield encode_frame(FrameType.PROGRESS, b"")
                case Ended(None):
                    yield encode_frame(FrameType.DONE, sequence.summary(self._engine.info.sample_rate))
                case Ended(TtsError() as error):
                    yield encode_frame(FrameType.ERROR, error.envelope())

    def _report_end(self, sequence: Sequence, outcome: str, span: Span) -> None:
        self._metrics.count_segment(outcome)
        summary = sequence.summary(self._engine.info.sample_rate)
        if outcome == "done":
            self._metrics.segment_seconds.observe(summary["queue_seconds"] + summary["synthesis_seconds"])
        request = sequence.request
        about: dict[str, Attribute] = {
            "request_id": request.request_id,
            "segment": request.index,
            "outcome": outcome,
            "characters": len(request.text),
            "voice": request.voice,
            "resumed": request.resume is not None,
        }
        for stage, began, ended in sequence.stages():
            span.part(stage, began, ended)
        span.end(about, error=outcome if outcome != "done" else "")
        log.info("segment", extra=fields({**about, **summary}))


async def _read_json(request: web.Request) -> object:
    try:
        return json.loads(await request.read())
    except (ValueError, RecursionError) as error:
        raise TtsError(ErrorCode.INVALID_BODY, f"the body is not JSON: {error}") from None


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into the envelope; the one place on this side that does."""
    try:
        return await handler(request)
    except TtsError as error:
        return _answer(error)
    except web.HTTPRequestEntityTooLarge:
        return _answer(TtsError(ErrorCode.BODY_TOO_LARGE, f"a body has at most {MAX_BODY_BYTES} bytes"))
    except web.HTTPNotFound:
        return _answer(TtsError(ErrorCode.NOT_FOUND, f"there is no {request.path}"))
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        response = _answer(TtsError(ErrorCode.METHOD_NOT_ALLOWED, f"{request.path} knows {allowed}"))
        response.headers[hdrs.ALLOW] = allowed
        return response
    except asyncio.CancelledError:
        raise
    except Exception:  # boundary: one request
        log.exception("path=%s failed", request.path)
        return _answer(TtsError(ErrorCode.INTERNAL, "a fault in the worker; its log says more"))


def _answer(error: TtsError) -> web.Response:
    return web.json_response(error.envelope(), status=error.status)
