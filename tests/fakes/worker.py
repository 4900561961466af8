"""A worker's data port, scriptable: real HTTP and real frames, and every way in which a worker can fail."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Self

from aiohttp import web

from wire.errors import ErrorCode, TtsError
from wire.frames import FrameType, encode_frame
from wire.headers import SEGMENT_CONTENT_TYPE, SEGMENTS_PATH

SAMPLE_RATE = 24_000


class Ending(Enum):
    ORDERLY = auto()
    CUT = auto()  # the connection is dropped
    HANG = auto()  # open and silent, until the caller hangs up


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call gets: an error status, or 200 with these frames and this ending."""

    refusal: TtsError | None = None
    frames: tuple[bytes, ...] = ()
    ending: Ending = Ending.ORDERLY
    status: int | None = None  # with a body that is no envelope

    def then(self, *frames: bytes, ending: Ending = Ending.ORDERLY) -> Answer:
        return Answer(frames=(*self.frames, *frames), ending=ending)


def meta(sample_rate: int = SAMPLE_RATE) -> bytes:
    return encode_frame(FrameType.META, {"sample_rate": sample_rate})


def audio(pcm: bytes) -> bytes:
    return encode_frame(FrameType.AUDIO, pcm)


def checkpoint(state: bytes) -> bytes:
    return encode_frame(FrameType.CHECKPOINT, state)


def done(samples: int) -> bytes:
    return encode_frame(FrameType.DONE, {"samples": samples})


def error(code: ErrorCode, message: str = "as scripted") -> bytes:
    return encode_frame(FrameType.ERROR, TtsError(code, message, param="text").envelope())


def refuses(code: ErrorCode) -> Answer:
    return Answer(refusal=TtsError(code, "as scripted", param="text"))


def speaks(pcm: bytes) -> Answer:
    """The whole segment in two pieces, and well."""
    half = len(pcm) // 4 * 2
    return Answer(frames=(meta(), audio(pcm[:half]), checkpoint(b"half"), audio(pcm[half:]), done(len(pcm) // 2)))


BEGINS = Answer(frames=(meta(),))


@dataclass(slots=True)
class FakeWorker:
    """Gives its answers in turn, the last one again and again. Listens on a free port of loopback for the block."""

    answers: list[Answer]
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    port: int = 0
    in_flight: int = 0
    _runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post(SEGMENTS_PATH, self._speak)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _speak(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.headers.append(request.headers.copy())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.in_flight += 1
        try:
            return await self._give(request, answer)
        finally:
            self.in_flight -= 1

    async def _give(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        if answer.status is not None:
            return web.Response(status=answer.status, text="<html>no envelope</html>", content_type="text/html")
        if answer.refusal is not None:
            return web.json_response(answer.refusal.envelope(), status=answer.refusal.status)
        response = web.StreamResponse(headers={"Content-Type": SEGMENT_CONTENT_TYPE})
        await response.prepare(request)
        for frame in answer.frames:
            await response.write(frame)
        match answer.ending:
            case Ending.CUT:
                assert request.transport is not None
                request.transport.close()
            case Ending.HANG:
                await asyncio.Event().wait()
            case Ending.ORDERLY:
                await response.write_eof()
        return response
