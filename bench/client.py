"""Speaks one request to a service by one of its three APIs, and stamps its journey."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import aiohttp
from yarl import URL

from bench.figures import stalls
from bench.journey import Journey, Problem, ProblemKind
from bench.receiver import (
    CompressedReceiver,
    FrameReceiver,
    PcmReceiver,
    ReceiveError,
    Receiver,
    SseReceiver,
    WavReceiver,
    error_code,
)
from wire.headers import SEGMENTS_PATH
from wire.segment import MAX_SEED, SegmentRequest

Clock = Callable[[], float]

_LONGEST_ERROR_BYTES = 1 << 16


class Api(StrEnum):
    """Which of a service's doors a run goes through."""

    TTS = "tts"
    OPENAI = "openai"
    SEGMENTS = "segments"  # straight to a worker, so that the gateway's share can be told

    @property
    def path(self) -> str:
        match self:
            case Api.TTS:
                return "/v1/tts"
            case Api.OPENAI:
                return "/v1/audio/speech"
            case Api.SEGMENTS:
                return SEGMENTS_PATH


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked of the service, the same in every request of a run."""

    url: str
    api: Api
    model: str | None = None
    voice: str | None = None
    format: str = "pcm"
    stream_format: str = "audio"
    token: str | None = None
    sample_rate: int = 24_000
    timeout_seconds: float = 300.0
    prebuffer_seconds: float = 0.0
    keep_recordings: bool = False
    seed: int = 0

    def body(self, index: int, text: str) -> dict[str, Any]:
        """Return the request's JSON. Number `index` of a seed asks for the same random choices of every service."""
        seed = 1 + (self.seed * 1_000_003 + index) % MAX_SEED
        match self.api:
            case Api.TTS:
                body = {"text": text, "format": self.format, "seed": seed}
            case Api.OPENAI:  # no seed: other servers refuse what is no field of OpenAI's
                body = {"input": text, "response_format": self.format, "stream_format": self.stream_format}
            case Api.SEGMENTS:
                return SegmentRequest(
                    request_id=f"bench-{self.seed}-{index}",
                    index=0,
                    text=text,
                    model=self.model or "",
                    voice=self.voice or "",
                    seed=seed,
                ).to_json()
        named = {"model": self.model, "voice": self.voice}
        return body | {name: value for name, value in named.items() if value is not None}

    def receiver(self) -> Receiver:
        """Return a new reader for one answer."""
        if self.api is Api.SEGMENTS:
            return FrameReceiver()
        audio: Receiver
        match self.format:
            case "pcm":
                audio = PcmReceiver(self.sample_rate)
            case "wav":
                audio = WavReceiver()
            case _:
                audio = CompressedReceiver(keep=self.keep_recordings)
        is_sse = self.api is Api.OPENAI and self.stream_format == "sse"
        return SseReceiver(audio) if is_sse else audio


def open_session() -> aiohttp.ClientSession:
    """Return a session that holds any number of connections and asks no proxy, whatever the environment says."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        trust_env=False,
    )


class SpeechClient:
    """Makes the requests of one run. Keeps nothing between them but the session's connections."""

    def __init__(self, session: aiohttp.ClientSession, target: Target, clock: Clock) -> None:
        self._session = session
        self._target = target
        self._clock = clock
        self._url = URL(target.url.rstrip("/") + target.api.path)
        self._headers = {"Content-Type": "application/json"}
        if target.token:
            self._headers["Authorization"] = f"Bearer {target.token}"

    async def speak(self, journey: Journey, text: str) -> None:
        """Send `text`, read the answer to its end or failure, and stamp all of it on `journey`.

        Failures of the service become `journey.problem`; only cancellation (and a bug) leaves this method.
        """
        target = self._target
        body = json.dumps(target.body(journey.index, text)).encode()
        status: int | None = None
        journey.sent_at = self._clock()
        try:
            async with (
                asyncio.timeout(target.timeout_seconds),
                self._session.post(self._url, data=body, headers=self._headers, allow_redirects=False) as response,
            ):
                status = response.status
                if status == 200:
                    await self._receive(journey, response)
                else:
                    journey.problem = Problem(ProblemKind.REFUSED, status, await _refusal(response))
        except TimeoutError:
            journey.problem = Problem(ProblemKind.TIMEOUT, status)
        except (aiohttp.ClientError, OSError) as error:
            # Before the headers there was no answer; behind them, one that lost its end.
            kind = ProblemKind.UNREACHABLE if status is None else ProblemKind.TRUNCATED
            journey.problem = Problem(kind, status, type(error).__name__)
        except asyncio.CancelledError:
            journey.problem = Problem(ProblemKind.CANCELLED, status)
            raise
        finally:
            if journey.finished_at is None:
                journey.finished_at = self._clock()

    async def _receive(self, journey: Journey, response: aiohttp.ClientResponse) -> None:
        clock, receiver, content = self._clock, self._target.receiver(), response.content
        arrived_at, sizes = array("d"), array("d")
        try:
            while data := await content.readany():
                now = clock()
                if size := receiver.feed(data):
                    if journey.first_audio_at is None:
                        journey.first_audio_at = now
                    arrived_at.append(now)
                    sizes.append(size)
            receiver.finish()
            if journey.first_audio_at is None:
                journey.problem = Problem(ProblemKind.SILENT, response.status)
        except ReceiveError as error:
            journey.problem = error.problem._replace(status=response.status)
            response.close()  # what may follow is not an answer, and the connection is in no known state
        finally:
            journey.finished_at = clock()
            _measure_audio(journey, receiver, arrived_at, sizes, self._target.prebuffer_seconds)


def _measure_audio(
    journey: Journey, receiver: Receiver, arrived_at: array[float], sizes: array[float], prebuffer_seconds: float
) -> None:
    journey.audio_bytes = int(sum(sizes))
    if (rate := receiver.bytes_per_second) is not None:
        journey.audio_seconds = journey.audio_bytes / rate
        heard = stalls(arrived_at, [size / rate for size in sizes], prebuffer_seconds=prebuffer_seconds)
        journey.stalls, journey.stall_seconds = heard.times, heard.seconds
    journey.recording = receiver.recording or None


async def _refusal(response: aiohttp.ClientResponse) -> str:
    """Return the code in an error's body; empty when it has none."""
    body = await response.content.read(_LONGEST_ERROR_BYTES)
    try:
        return error_code(json.loads(body))
    except (ValueError, RecursionError):
        return ""
