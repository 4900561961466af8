"""Uploaded voices, ready for the model: from memory, else from a gateway, else computed here, once for the whole fleet.

Voices are known by the SHA-256 of their clip. A gateway that has the clip also keeps what any worker computed of it,
and tells one worker to compute what is not there while the others wait. Nothing is written to this machine's disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import logging
import wave
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import numpy as np
from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout

from wire.errors import ErrorCode, TtsError
from wire.headers import CLIP_PATH, PREPARED_PATH
from worker.config import Address
from worker.engine import Engine
from worker.metrics import Metrics
from worker.models.base import Clip

log = logging.getLogger("worker.voices")

_CACHE_BYTES = 128 << 20
_MAX_CLIP_BYTES = 8 << 20
_CONNECT_SECONDS = 2.0
# A gateway may keep us waiting for 10 s, for another worker's result.
_ANSWER_SECONDS = 15.0
_TOLD_AS_WARM = 256


class Absent(Exception):
    """This gateway has no such clip, or cannot be asked."""


class Voices:
    """The prepared voices of one worker. All methods are for the event loop.

    `gateways` gives the addresses to ask, the likeliest first.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        *,
        gateways: Callable[[], Iterable[Address]],
        token: str,
        cache_bytes: int = _CACHE_BYTES,
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._gateways = gateways
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._cache_bytes = cache_bytes
        # Least lately used first; by clip and by the format that the model of then had.
        self._prepared: dict[tuple[str, str], bytes] = {}
        self._underway: dict[str, asyncio.Task[bytes]] = {}

    @property
    def warm(self) -> tuple[str, ...]:
        """The clips whose voices are in memory, as many as a status has room for."""
        return tuple(sha256 for sha256, _ in list(self._prepared)[-_TOLD_AS_WARM:])

    async def prepared(self, sha256: str) -> bytes:
        """Return the prepared voice of a clip, waiting until it is there.

        Raises:
            TtsError: `segment_failed` when no gateway has the clip, or what the model makes of it.
        """
        key = (sha256, self._engine.voice_format)
        if key in self._prepared:
            self._metrics.count_voice("memory")
            self._prepared[key] = voice = self._prepared.pop(key)
            return voice
        task = self._underway.get(sha256)
        if task is None:
            task = self._underway[sha256] = asyncio.create_task(self._obtain(*key), name=f"voice {sha256[:12]}")
            task.add_done_callback(lambda done: self._obtained(sha256, done))
        # Whoever hangs up leaves the work to those who wait for the same voice, and to those who come next.
        return await asyncio.shield(task)

    def _obtained(self, sha256: str, task: asyncio.Task[bytes]) -> None:
        del self._underway[sha256]
        if not task.cancelled():
            task.exception()  # seen: those who waited have it, and there may be nobody left

    async def close(self) -> None:
        """Cancel what is under way."""
        tasks = list(self._underway.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _obtain(self, sha256: str, format_: str) -> bytes:
        troubles = []
        # A session for the purpose: this happens once a voice.
        timeout = ClientTimeout(total=_ANSWER_SECONDS, sock_connect=_CONNECT_SECONDS)
        async with ClientSession(timeout=timeout, headers=self._headers, trust_env=False) as session:
            for address in self._gateways():
                try:
                    voice = await self._ask(session, address, sha256, format_)
                except (ClientError, OSError, TimeoutError, Absent) as error:
                    troubles.append(f"{address}: {error or type(error).__name__}")
                else:
                    self._keep((sha256, format_), voice)
                    return voice
        message = f"no gateway gave the clip {sha256[:12]}…: {'; '.join(troubles) or 'none is linked'}"
        log.warning(message)
        raise TtsError(ErrorCode.SEGMENT_FAILED, message)

    async def _ask(self, session: ClientSession, address: Address, sha256: str, format_: str) -> bytes:
        url = f"http://{address}" + PREPARED_PATH.format(format=format_, sha256=sha256)
        async with _answered(session, "GET", url) as response:
            if response.status == 200:
                voice = await response.read()
                self._metrics.count_voice("gateway")
                return voice
        # 204: the gateway waits for us to compute it, and lets others wait.
        try:
            clip = await self._fetch_clip(session, f"http://{address}" + CLIP_PATH.format(sha256=sha256), sha256)
            voice = await self._prepare(sha256, clip)
        except BaseException:
            with contextlib.suppress(ClientError, OSError, TimeoutError, Absent):
                async with _answered(session, "DELETE", url):
                    pass
            raise
        self._metrics.count_voice("computed")
        log.info("clip=%s seconds=%.1f prepared bytes=%d", sha256[:12], clip.seconds, len(voice))
        try:
            async with _answered(session, "PUT", url, data=voice):
                pass
        except (ClientError, OSError, TimeoutError, Absent) as error:
            log.warning("gateway=%s did not take the prepared voice: %s", address, error)
        return voice

    async def _prepare(self, sha256: str, clip: Clip) -> bytes:
        try:
            return await self._engine.prepare_voice(clip)
        except TtsError:
            raise
        except Exception as error:  # boundary: whatever a model raises over a clip means the same
            log.exception("clip=%s could not be prepared", sha256[:12])
            reason = f"the model failed at the clip: {type(error).__name__}: {str(error)[:200]}"
            raise TtsError(ErrorCode.SEGMENT_FAILED, reason) from None

    async def _fetch_clip(self, session: ClientSession, url: str, sha256: str) -> Clip:
        async with _answered(session, "GET", url) as response:
            if (response.content_length or 0) > _MAX_CLIP_BYTES:
                raise Absent(f"a clip of {response.content_length} bytes")
            content = await response.read()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise Absent("what came is not the clip that was asked for")
        try:
            return read_clip(content)
        except ValueError as error:
            raise Absent(str(error)) from None

    def _keep(self, key: tuple[str, str], voice: bytes) -> None:
        self._prepared[key] = voice
        while sum(map(len, self._prepared.values())) > self._cache_bytes and len(self._prepared) > 1:
            del self._prepared[next(iter(self._prepared))]


def read_clip(content: bytes) -> Clip:
    """Return the samples of a clip as gateways keep them: WAV, mono, s16le.

    Raises:
        ValueError: it is something else.
    """
    try:
        with wave.open(io.BytesIO(content)) as file:
            if (file.getnchannels(), file.getsampwidth()) != (1, 2):
                raise ValueError(f"a clip is mono s16le, not {file.getparams()}")
            rate, data = file.getframerate(), file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"the clip is no WAV file: {error}") from None
    return Clip(np.frombuffer(data, dtype="<i2").astype(np.float32) / 32768.0, rate)


@asynccontextmanager
async def _answered(
    session: ClientSession, method: str, url: str, data: bytes | None = None
) -> AsyncIterator[ClientResponse]:
    """Ask a gateway.

    Raises:
        Absent: it answered anything but yes.
    """
    async with session.request(method, url, data=data) as response:
        if response.status not in (200, 204):
            raise Absent(f"HTTP {response.status}")
        yield response
