"""One speech of a conversation over a WebSocket: from `start` to `done`, `cancelled` or `failed`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextlib import aclosing
from typing import Any

from aiohttp import web

from gateway.api.answer import Answerer
from gateway.assembler import Flushed
from gateway.dictation import Dictation
from gateway.journey import Journey
from gateway.plan import Speak
from gateway.request import SpeechRequest
from wire.errors import ErrorCode, TtsError

log = logging.getLogger(__name__)

ENDPOINT = "/v1/tts/stream"


class Utterance:
    """A request of its own, with its own id, log line and metrics, in a task of its own. What is said to it before it
    is admitted waits; what is said after its end is lost, and its end was told."""

    def __init__(
        self,
        answerer: Answerer,
        request: web.Request,
        socket: web.WebSocketResponse,
        manner: SpeechRequest,
        *,
        request_id: str,
        max_characters: int,
        flush_after_seconds: float,
    ) -> None:
        self.request_id = request_id
        self._answerer = answerer
        self._request = request
        self._socket = socket
        self._manner = manner
        self._max_characters = max_characters
        self._flush_after_seconds = flush_after_seconds
        self._flush_timer: asyncio.TimerHandle | None = None
        self._dictation: Dictation | None = None
        self._is_ended = False  # by the caller
        self._admitted = asyncio.Event()  # or refused
        self.task = asyncio.create_task(self._run(), name=request_id)

    @property
    def is_awaited(self) -> bool:
        """All that was said is spoken and sent, and the caller may say more."""
        return self._dictation is not None and self._dictation.speech.is_awaited

    async def add(self, piece: object) -> None:
        """Take the next piece of the text.

        Raises:
            TtsError: it cannot be taken; all else goes on.
        """
        if (dictation := await self._open()) is not None:
            dictation.add(piece)
            self._stop_timer()
            self._flush_timer = asyncio.get_running_loop().call_later(self._flush_after_seconds, dictation.pause)

    async def flush(self) -> None:
        """Say what was taken now."""
        if (dictation := await self._open()) is not None:
            self._stop_timer()
            dictation.flush()

    async def end(self) -> None:
        """Say what is left; the speech ends when it is spoken."""
        if (dictation := await self._open()) is not None:
            self._is_ended = True
            self._stop_timer()
            dictation.end()

    async def cancel(self) -> None:
        """Stop it at once, if it runs, and wait until its slots are given back."""
        self.task.cancel()
        await asyncio.wait([self.task])

    def fail(self, error: TtsError) -> None:
        """End it with an error, which its caller is told."""
        if self._dictation is not None:
            self._dictation.speech.fail(error)

    async def _open(self) -> Dictation | None:
        """Return where text goes; None when it has failed meanwhile.

        Raises:
            TtsError: `end` was said already.
        """
        if self._is_ended:
            raise TtsError(
                ErrorCode.INVALID_VALUE,
                "This speech was ended and is being spoken. Wait for done, or cancel it, and start another.",
                param="type",
            )
        await self._admitted.wait()
        return None if self.task.done() else self._dictation

    def _stop_timer(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()

    async def _run(self) -> None:
        try:
            with self._answerer.journey(self._request, ENDPOINT, self.request_id) as journey:
                async with self._answerer.service.dictated(
                    self._manner, journey, max_characters=self._max_characters
                ) as dictation:
                    self._dictation = dictation
                    await self._speak(dictation, journey)
                await self._tell("done", audio_seconds=round(journey.audio_seconds, 3), characters=journey.characters)
        except ConnectionError:
            pass  # the caller left; the journey says so
        except TtsError as error:
            await self._told(error)
        except Exception:  # request boundary
            log.exception("request failed: request_id=%s", self.request_id)
            await self._told(
                TtsError(ErrorCode.INTERNAL, "The gateway failed on this request; its log has the reason.")
            )
        finally:
            self._stop_timer()
            self._admitted.set()

    async def _speak(self, dictation: Dictation, journey: Journey) -> None:
        speech, form = dictation.speech, self._manner.format
        async with (
            aclosing(speech.parts()) as parts,
            self._answerer.encoding(form, speech.sample_rate, journey.encoding) as encode,
        ):
            await self._tell(
                "started",
                model=speech.cast.model.id,
                voice=speech.cast.voice,
                seed=speech.seed,
                format=str(form),
                content_type=form.content_type,
                sample_rate=form.sample_rate(speech.sample_rate),
                ignored_fields=speech.ignored_fields,
                watermark=speech.cast.model.watermark or None,
            )
            self._admitted.set()
            async for part in parts:
                match part:
                    case Speak():
                        at = round(journey.audio_seconds, 3)
                        await self._tell("segment", index=part.index, text=part.text, at_seconds=at)
                    case Flushed():
                        await self._tell("flushed", audio_seconds=round(journey.audio_seconds, 3))
                    case pcm:
                        await self._send(await encode(pcm), speech.seconds(pcm), journey)
            if journey.audio_seconds:  # a codec has something to end only where it began
                await self._send(await encode(None), 0.0, journey)

    async def _send(self, data: bytes, seconds: float, journey: Journey) -> None:
        if data:
            async with self._answerer.patience():
                await self._socket.send_bytes(data)
        if data or journey.first_audio is not None:  # a codec may keep its first samples to itself for a moment
            journey.audio_sent(data, seconds)

    async def _tell(self, kind: str, **about: Any) -> None:
        async with self._answerer.patience():
            await self._socket.send_json({"type": kind, "request_id": self.request_id, **about})

    async def _told(self, error: TtsError) -> None:
        """Say how it ended, to a caller who can be told; one who takes nothing is cut off."""
        with contextlib.suppress(ConnectionError, TtsError):
            if error.code is not ErrorCode.SLOW_READER:
                await self._tell("failed", **error_fields(error))
                return
        if self._request.transport is not None:
            self._request.transport.abort()


def error_fields(error: TtsError) -> dict[str, Any]:
    """Return an error as a message carries it: the envelope, and the seconds after which another try may help."""
    wait = error.retry_after_seconds
    return {**error.envelope(), **({} if wait is None else {"retry_after_seconds": round(wait, 1)})}
