"""One request from text to audio: who speaks, the plan, its segments on many workers, their audio in order."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway.assembler import SAMPLE_BYTES, SegmentAudio, joined
from gateway.dispatch import Dispatcher, SegmentJourney
from gateway.journey import Journey
from gateway.plan import Item, Speak, plan_text
from gateway.pool import Pool
from gateway.queue import Standing
from gateway.quota import Quotas
from gateway.request import SpeechRequest
from gateway.text import check_scripts
from gateway.voices.catalogue import Cast, Catalogue
from gateway.voices.store import VoiceStore
from gateway.work import Admitted
from wire.errors import ErrorCode, TtsError
from wire.segment import MAX_SEED, SegmentRequest


@dataclass(frozen=True, slots=True)
class SpeechOptions:
    """What the operator decides about every request. Seconds, characters; `look_ahead` 0: twice the fleet's slots."""

    queue_timeout_seconds: float
    request_timeout_seconds: float
    first_characters: int
    max_characters: int
    look_ahead: int
    whole: bool


class Speech:
    """A request being spoken. Made by `SpeechService.speak`, read once through `chunks`."""

    def __init__(
        self,
        request: SpeechRequest,
        journey: Journey,
        cast: Cast,
        items: tuple[Item, ...],
        pool: Pool,
        dispatcher: Dispatcher,
        options: SpeechOptions,
        admitted: Admitted,
    ) -> None:
        self.cast = cast
        self.seed = request.seed if request.seed is not None else secrets.randbelow(MAX_SEED) + 1
        self.ignored_fields = sorted(_ignored(request, cast))
        self._request = request
        self._journey = journey
        self._items = items
        self._segments = [item for item in items if isinstance(item, Speak)]
        self._pool = pool
        self._dispatcher = dispatcher
        self._options = options
        self._admitted = admitted
        unspoken = sum(len(segment.text) for segment in self._segments)
        self._standing = Standing(journey.caller, request.priority, unspoken)
        self._deadline = journey.received + (request.timeout_seconds or options.request_timeout_seconds)
        # Written on the loop's thread only: by `_launch` and by the segments' own tasks.
        self._audios = [SegmentAudio() for _ in self._segments]
        self._tasks: list[asyncio.Task[None]] = []
        self._delivered = 0

    @property
    def sample_rate(self) -> int:
        return self.cast.model.sample_rate

    def seconds(self, pcm: bytes) -> float:
        return len(pcm) / SAMPLE_BYTES / self.sample_rate

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the speech as PCM s16le mono, in order, as soon as each piece is there.

        Raises:
            TtsError: a segment could not be spoken; what was yielded before is then not the whole.
        """
        async for chunk in joined(self._items, self._audios, self.sample_rate, self._segment_delivered):
            self._journey.audio_seconds += self.seconds(chunk)
            yield chunk

    def launch(self) -> None:
        """Start the segments within the look-ahead. A long text so has work on every worker, and never holds them all
        back from others: each of its segments stands in the line by its own rank."""
        window = self._options.look_ahead or max(2, 2 * self._pool.slots(self.cast.model.id))
        while len(self._tasks) < min(len(self._segments), self._delivered + window):
            index = len(self._tasks)
            task = asyncio.create_task(self._speak_segment(index), name=f"{self._journey.request_id}/{index}")
            self._tasks.append(task)

    async def stop(self) -> None:
        """Cancel what is still running and wait until its slots are given back."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _segment_delivered(self, index: int) -> None:
        self._delivered = index + 1
        self.launch()

    async def _speak_segment(self, index: int) -> None:
        segment = self._segments[index]
        with self._journey.segment(index, len(segment.text)) as journey:
            await self._dispatch(segment, index, journey)

    async def _dispatch(self, segment: Speak, index: int, journey: SegmentJourney) -> None:
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                await self._dispatcher.speak(
                    self._segment_request(segment),
                    self._audios[index],
                    journey,
                    standing=self._standing,
                    sample_rate=self.sample_rate,
                    admitted=self._admitted,
                    remaining_seconds=self._first_patience if index == 0 else self._remaining_seconds,
                )
            self._pool.request_spoken(self.cast.model.id, self._standing, len(segment.text))
        except TimeoutError:
            self._fail(
                TtsError(
                    ErrorCode.DEADLINE_EXCEEDED,
                    f"The speech was not finished within {self._deadline - self._journey.received:g} s. "
                    "Send less text, or a larger timeout_seconds.",
                    param="timeout_seconds",
                )
            )
        except Exception as error:  # request boundary: a segment's task has no other reader than the audio it writes
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        # One segment that cannot be had spoils the speech: the reader learns it now, not when it gets there.
        for audio in self._audios:
            audio.fail(error)

    def _remaining_seconds(self) -> float:
        return self._deadline - time.monotonic()

    def _first_patience(self) -> float:
        return min(self._options.queue_timeout_seconds, self._remaining_seconds())

    def _segment_request(self, segment: Speak) -> SegmentRequest:
        heeded = self.cast.model.parameters
        return SegmentRequest(
            request_id=self._journey.request_id,
            index=segment.index,
            text=segment.text,
            model=self.cast.model.id,
            voice=self.cast.voice,
            voice_sha256=self.cast.clip,
            # Each segment has a seed of its own, and the same one whoever speaks it.
            seed=(self.seed + segment.index) % (MAX_SEED + 1),
            language=self._request.language,
            speed=self._request.speed,
            parameters={name: value for name, value in self._request.parameters.items() if name in heeded},
        )


class SpeechService:
    """Speaks requests. Two of them may live in one process; all state is in the pool, the quotas and each Speech."""

    def __init__(
        self,
        pool: Pool,
        dispatcher: Dispatcher,
        options: SpeechOptions,
        *,
        default_model: str | None,
        aliases: dict[str, str],
        voices: VoiceStore,
        quotas: Quotas,
    ) -> None:
        self._pool = pool
        self._quotas = quotas
        self._dispatcher = dispatcher
        self._options = options
        self._default_model = default_model
        self._aliases = aliases
        self._voices = voices

    @property
    def catalogue(self) -> Catalogue:
        """The models and voices that are known now."""
        return Catalogue(
            self._pool.known.models,
            default_model=self._default_model,
            aliases=self._aliases,
            uploaded=self._voices.by_handle,
        )

    @asynccontextmanager
    async def speak(self, request: SpeechRequest, journey: Journey) -> AsyncIterator[Speech]:
        """Speak a request for the length of the block. When the block ends, however it ends, nothing of it runs on:
        queued segments have left the line, running ones are cancelled, slots are back.

        Waits for the first worker ever to appear, at most the queue's patience; nothing else is waited for here.

        Raises:
            TtsError: the text, model, voice or language cannot be; the line is full, or the caller has had its share;
                no worker at all.
        """
        await self._pool.wait_for_models(min(self._options.queue_timeout_seconds, request.timeout_seconds or 1e9))
        cast = self.catalogue.cast(model=request.model, voice=request.voice)
        journey.model, journey.voice = cast.model.id, cast.voice
        journey.format, journey.characters = str(request.format), len(request.text)
        _check_language(request, cast)
        check_scripts(request.text, scripts=cast.model.scripts, model=cast.model.id, param=request.text_field)
        items = plan_text(
            request.text,
            language=request.language or cast.model.languages[0],
            first_characters=min(self._options.first_characters, cast.model.max_segment_characters),
            max_characters=min(self._options.max_characters, cast.model.max_segment_characters),
            parallelism=self._pool.known.parallelism(cast.model.id),
            whole=self._options.whole,
            param=request.text_field,
        )
        journey.planned = time.monotonic()
        journey.plan = tuple(len(item.text) for item in items if isinstance(item, Speak))
        characters, journey.segments_planned = sum(journey.plan), len(journey.plan)
        with (
            # Nothing was awaited since the cast, so that the clip is still there; it stays to the end of the request.
            self._voices.holding(cast.clip),
            self._quotas.hold(
                journey.caller, journey.limits, characters, was_heard=lambda: journey.first_audio is not None
            ),
            self._pool.admit(
                cast.model.id,
                journey.caller,
                characters,
                caller_queued_seconds=journey.limits.queued_seconds,
            ) as admitted,
        ):
            speech = Speech(request, journey, cast, items, self._pool, self._dispatcher, self._options, admitted)
            try:
                speech.launch()
                yield speech
            finally:
                await speech.stop()


def _check_language(request: SpeechRequest, cast: Cast) -> None:
    if request.language is not None and cast.model.languages and request.language not in cast.model.languages:
        raise TtsError(
            ErrorCode.INVALID_VALUE,
            f"language {request.language!r} is not spoken by model {cast.model.id!r}; it speaks "
            f"{', '.join(cast.model.languages)}.",
            param="language",
        )


def _ignored(request: SpeechRequest, cast: Cast) -> set[str]:
    """Return the tuning fields that the caller set and the model does not heed. A language that the model speaks counts
    as heeded: there is nothing else that it could have done."""
    return {name for name in request.given if name not in cast.model.parameters and name != "language"}
