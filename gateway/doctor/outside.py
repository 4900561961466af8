"""The service as a caller from outside has it, through the proxy in front: one speech, and what the proxy lets through.

The same text with the same seed is asked of the gateway itself where it can be reached, so that what the proxy adds is
seen byte by byte, however fast or slow the models are.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

import aiohttp
from yarl import URL

from gateway.doctor.facts import ANSWER_SECONDS, Answer, ask
from gateway.voices.clip import MAX_UPLOAD_BYTES
from host.facts import in_words
from wire.errors import ErrorCode

ROUNDS = 2
# Several segments, so that the sound of one comes while the next is made.
_TEXT = (
    "This tries the way from the speaker to the listener. Each sentence is to be heard as soon as it is made. "
    "A proxy may keep sound back until it has enough of it. This is the last sentence."
)
_SPEECH_SECONDS = 120.0
_STREAM_PATH = "/v1/tts/stream"
OPERATORS_PATHS = ("/metrics", "/admin/workers", "/internal/workers")


class _WouldBeRead(Exception):
    """Whoever answers wants the body: its size is not refused."""


@dataclass(frozen=True, slots=True)
class Speech:
    """One speech as it came: `arrivals` are seconds since the request was sent, and how many bytes were there then."""

    status: int = 0
    error: str = ""  # the code of an error in our envelope, which no proxy writes
    arrivals: tuple[tuple[float, int], ...] = ()
    trouble: str = ""

    @property
    def is_whole(self) -> bool:
        return self.status == 200 and bool(self.arrivals) and not self.trouble


# The same speech through the proxy, and from the gateway itself; None where that cannot be asked.
Round = tuple[Speech, Speech | None]


@dataclass(frozen=True, slots=True)
class Outside:
    """What came back. `refused` has path, bytes and status of the bodies whose size was tried; 0 for one that would be
    read."""

    url: str
    answer: Answer
    has_key: bool
    rounds: tuple[Round, ...] = ()
    refused: tuple[tuple[str, int, int], ...] = ()
    open_paths: tuple[str, ...] = ()
    websocket: int = 0  # the status of a handshake; 101 is a WebSocket
    certificate_days: float | None = None  # None without TLS


async def look(
    url: str, direct_url: str, key: str, max_characters: int, needs_another: Callable[[Sequence[Round]], bool]
) -> Outside:
    """Call the service from outside. Speaks the text once on either way and, while `needs_another` says so, up to
    `ROUNDS` times; takes as long as that takes."""
    url = url.rstrip("/")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
        answer = await ask(session, f"{url}/readyz")
        if answer.trouble or answer.status >= 500:
            return Outside(url, answer, bool(key))
        rounds: list[Round] = []
        while len(rounds) < ROUNDS:
            direct = await _speak(session, direct_url, headers)
            rounds.append((await _speak(session, url, headers), direct if direct.status else None))
            if not needs_another(rounds):
                break
        bodies = (("/v1/tts", 6 * max_characters), ("/v1/voices", MAX_UPLOAD_BYTES))
        return Outside(
            url,
            answer,
            bool(key),
            tuple(rounds),
            tuple([(path, size, await _refusal(session, url + path, size, headers)) for path, size in bodies]),
            tuple([path for path in OPERATORS_PATHS if (await ask(session, url + path)).status in (200, 400, 401)]),
            await _handshake(session, url + _STREAM_PATH, headers),
            await _certificate_days(url),
        )


async def _speak(session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]) -> Speech:
    # Opus of 32 kbit/s in pages of 60 ms: the fewest bytes a second, which a buffer of some size keeps back longest.
    body = {"text": _TEXT, "format": "opus", "seed": 1}
    timeout = aiohttp.ClientTimeout(total=_SPEECH_SECONDS)
    arrivals: list[tuple[float, int]] = []
    began, count, status = time.monotonic(), 0, 0
    try:
        async with session.post(f"{url}/v1/tts", json=body, headers=headers, timeout=timeout) as response:
            status = response.status
            if status != 200:
                return Speech(status, _error_code(Answer(status, await response.content.read(1 << 16))))
            async for data in response.content.iter_any():
                count += len(data)
                arrivals.append((time.monotonic() - began, count))
    except TimeoutError:
        return Speech(status, "", tuple(arrivals), f"not whole after {_SPEECH_SECONDS:g} s")
    except (aiohttp.ClientError, OSError) as error:
        return Speech(status, "", tuple(arrivals), in_words(error))
    return Speech(status, "", tuple(arrivals))


def _error_code(answer: Answer) -> str:
    body = answer.json()
    error = body.get("error") if isinstance(body, dict) else None
    code = str(error.get("code", "")) if isinstance(error, dict) else ""
    return code if code in [str(known) for known in ErrorCode] else ""


async def _refusal(session: aiohttp.ClientSession, url: str, size: int, headers: Mapping[str, str]) -> int:
    """Return 413 where a body of this size is refused by its length alone, else 0. Nothing of a body is sent."""

    async def body() -> AsyncIterator[bytes]:
        raise _WouldBeRead
        yield b""

    said = {**headers, "Content-Length": str(size), "Content-Type": "application/json"}
    try:
        async with session.post(url, data=body(), headers=said, expect100=True) as response:
            return response.status if response.status == 413 else 0
    except (_WouldBeRead, TimeoutError, aiohttp.ClientError, OSError):
        return 0


async def _handshake(session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]) -> int:
    try:
        async with session.ws_connect(url, headers=headers):
            return 101
    except aiohttp.WSServerHandshakeError as error:
        return error.status
    except (TimeoutError, aiohttp.ClientError, OSError):
        return 0


async def _certificate_days(url: str) -> float | None:
    """Return how long the certificate still counts; that it counts now, the first call has found."""
    parts = URL(url)
    if parts.scheme != "https" or parts.host is None:
        return None
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            _, writer = await asyncio.open_connection(parts.host, parts.port, ssl=ssl.create_default_context())
    except (TimeoutError, OSError):
        return None
    ends = writer.get_extra_info("ssl_object").getpeercert()["notAfter"]
    writer.transport.abort()
    return (ssl.cert_time_to_seconds(ends) - time.time()) / 86400
