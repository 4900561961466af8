"""A scriptable text-to-speech service on a real socket: all three APIs, paced audio, and every way to go wrong."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import av
import numpy as np
from aiohttp import web

from wire.errors import ErrorCode, TtsError
from wire.frames import FrameType, encode_frame

SAMPLE_RATE = 24_000
_BYTES_PER_SECOND = 2 * SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Script:
    """How one request is answered. Counts of chunks are of audio; the default is all audio at once, and well."""

    first_byte_seconds: float = 0.0
    per_character_seconds: float = 0.0  # of waiting, before the first byte
    chunks: int = 5
    chunk_audio_seconds: float = 0.1
    interval_seconds: float = 0.0  # from one chunk to the next
    stall_after_chunks: int | None = None
    stall_seconds: float = 0.0
    cut_after_chunks: int | None = None  # the connection is dropped without an end
    fail_after_chunks: int | None = None  # an error is told inside the stream
    refuse: ErrorCode | None = None
    retry_after_seconds: int | None = None
    half_a_sample: bool = False
    format: str | None = None  # whatever was asked for


@dataclass(slots=True)
class Received:
    """One request as it came in."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def text(self) -> str:
        return str(self.body.get("text") or self.body.get("input"))


@dataclass(slots=True)
class SpeechServer:
    """Answers each request by `script`, or by what `script` makes of its text. Listens on a free port of loopback."""

    script: Script | Callable[[str], Script] = field(default_factory=Script)
    requests: list[Received] = field(default_factory=list)
    url: str = ""
    in_flight: int = 0
    answered: int = 0  # to the end of what the script says
    _runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        for path in ("/v1/tts", "/v1/audio/speech", "/v1/segments"):
            app.router.add_post(path, self._answer)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        received = Received(request.path, await request.json(), dict(request.headers))
        self.requests.append(received)
        script = self.script if isinstance(self.script, Script) else self.script(received.text)
        self.in_flight += 1
        try:
            response = await self._speak(request, received, script)
            self.answered += 1
            return response
        finally:
            self.in_flight -= 1

    async def _speak(self, request: web.Request, received: Received, script: Script) -> web.StreamResponse:
        await asyncio.sleep(script.first_byte_seconds + script.per_character_seconds * len(received.text))
        if script.refuse is not None:
            error = TtsError(script.refuse, "refused by script")
            headers = {} if script.retry_after_seconds is None else {"Retry-After": str(script.retry_after_seconds)}
            return web.json_response(error.envelope(), status=error.status, headers=headers)
        voice = _dialect(received, script.format)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(voice.opening)
        for number, chunk in enumerate(voice.chunks(script)):
            if number == script.cut_after_chunks:
                assert request.transport is not None
                request.transport.close()
                return response
            if number == script.fail_after_chunks:
                await response.write(voice.failure())
                return response
            if number == script.stall_after_chunks:
                await asyncio.sleep(script.stall_seconds)
            elif number and script.interval_seconds:
                await asyncio.sleep(script.interval_seconds)
            await response.write(voice.wrap(chunk))
        await response.write(voice.closing)
        return response


def _dialect(received: Received, format_: str | None) -> Plain:
    if received.path == "/v1/segments":
        return Frames()
    format_ = format_ or str(received.body.get("format") or received.body.get("response_format"))
    return Events(format_) if received.body.get("stream_format") == "sse" else Plain(format_)


class Plain:
    """The audio itself as body."""

    closing = b""

    def __init__(self, format_: str) -> None:
        self.format = format_

    @property
    def opening(self) -> bytes:
        return wav_header() if self.format == "wav" else b""

    def chunks(self, script: Script) -> Iterator[bytes]:
        """Yield the audio in `script.chunks` pieces."""
        pcm = bytes(int(script.chunk_audio_seconds * SAMPLE_RATE) * 2)
        if self.format in ("pcm", "wav"):
            for number in range(script.chunks):
                is_last = number == script.chunks - 1
                yield pcm[:-1] if script.half_a_sample and is_last else pcm
            return
        file = compressed(self.format, script.chunks * script.chunk_audio_seconds)
        size = -(-len(file) // script.chunks)
        for start in range(0, len(file), size):
            yield file[start : start + size]

    def wrap(self, chunk: bytes) -> bytes:
        return chunk

    def failure(self) -> bytes:
        raise NotImplementedError("plain audio cannot tell an error")


class Events(Plain):
    """Server-sent events."""

    closing = b'data: {"type":"speech.audio.done","usage":{}}\n\n'

    @property
    def opening(self) -> bytes:
        # The header is a delta like any other.
        return self.wrap(wav_header()) if self.format == "wav" else b": hello\n\n"

    def wrap(self, chunk: bytes) -> bytes:
        event = {"type": "speech.audio.delta", "audio": base64.b64encode(chunk).decode()}
        return f"event: speech.audio.delta\ndata: {json.dumps(event)}\n\n".encode()

    def failure(self) -> bytes:
        event = {"type": "error"} | TtsError(ErrorCode.WORKER_FAILED, "by script").envelope()
        return f"data: {json.dumps(event)}\n\n".encode()


class Frames(Plain):
    """A worker's frames."""

    opening = encode_frame(FrameType.META, {"sample_rate": SAMPLE_RATE})
    closing = encode_frame(FrameType.DONE, {})

    def __init__(self) -> None:
        super().__init__("pcm")

    def wrap(self, chunk: bytes) -> bytes:
        return encode_frame(FrameType.AUDIO, chunk) + encode_frame(FrameType.CHECKPOINT, b"here")

    def failure(self) -> bytes:
        return encode_frame(FrameType.ERROR, TtsError(ErrorCode.SEGMENT_FAILED, "by script").envelope())


def wav_header(size: int = 0xFFFFFFFF) -> bytes:
    """Return the 44 bytes before `size` bytes of audio; the default is a stream's."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, SAMPLE_RATE, _BYTES_PER_SECOND, 2, 16)
    return b"RIFF" + struct.pack("<I", 0xFFFFFFFF) + b"WAVE" + form + b"data" + struct.pack("<I", size)


def compressed(format_: str, seconds: float) -> bytes:
    """Return a whole file of a quiet tone."""
    at = np.arange(int(seconds * SAMPLE_RATE))
    wave = (np.sin(at * 2 * np.pi * 220 / SAMPLE_RATE) * 3000).astype(np.int16)
    file = io.BytesIO()
    with av.open(file, "w", format=format_) as container:
        stream = container.add_stream(format_, rate=SAMPLE_RATE, layout="mono")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(wave.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return file.getvalue()
