"""One request being spoken: its segments on many workers, their audio in order."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from gateway.assembler import SAMPLE_BYTES, Flushed, Script, SegmentAudio, joined
from gateway.dispatch import Dispatcher, SegmentJourney
from gateway.journey import Journey
from gateway.plan import Item, Speak
from gateway.pool import Pool
from gateway.queue import Standing
from gateway.request import SpeechRequest
from gateway.voices.catalogue import Cast
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
    """A request being spoken. Made by `SpeechService`, told what to say, read once through `chunks` or `parts`."""

    def __init__(
        self,
        request: SpeechRequest,
        journey: Journey,
        cast: Cast,
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
        self._script = Script()
        self._pool = pool
        self._dispatcher = dispatcher
        self._options = options
        self._admitted = admitted
        self._standing = Standing(journey.caller, request.priority, admitted.waiting_characters)
        self._allowed_seconds = request.timeout_seconds or options.request_timeout_seconds
        self._deadline = journey.received + self._allowed_seconds
        # Written on the loop's thread only: by `say`, `_launch` and the segments' own tasks.
        self._segments: list[Speak] = []
        self._audios: list[SegmentAudio] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._delivered = 0

    @property
    def sample_rate(self) -> int:
        return self.cast.model.sample_rate

    def seconds(self, pcm: bytes) -> float:
        return len(pcm) / SAMPLE_BYTES / self.sample_rate

    def say(self, items: Sequence[Item | Flushed]) -> None:
        """Take what is to be heard next, in order; segments are numbered on. `end` says that this was all."""
        if self.has_failed:
            return  # nobody would hear it
        self._script.add(items)
        segments = [item for item in items if isinstance(item, Speak)]
        self._segments += segments
        self._audios += [SegmentAudio() for _ in segments]
        if segments:
            self._journey.say([len(segment.text) for segment in segments])
        self._launch()

    def grow(self, characters: int) -> None:
        """Count characters that were not there when the request was admitted, before they are said."""
        self._pool.request_grew(self._admitted, self._standing, characters)

    def end(self) -> None:
        self._script.end()

    @property
    def has_failed(self) -> bool:
        return self._script.has_failed

    @property
    def is_awaited(self) -> bool:
        """All that was said has been taken, and more is to come."""
        return self._script.is_awaited

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the speech as PCM s16le mono, in order, as soon as each piece is there.

        Raises:
            TtsError: a segment could not be spoken; what was yielded before is then not the whole.
        """
        async with aclosing(self.parts()) as parts:
            async for part in parts:
                if isinstance(part, bytes):
                    yield part

    async def parts(self) -> AsyncGenerator[bytes | Speak | Flushed, None]:
        """Yield the chunks, each segment before its first one, and the places of flushes. Raises what `chunks` does."""
        async for part in joined(self._script, self._audios, self.sample_rate, self._segment_delivered):
            if isinstance(part, bytes):
                self._journey.audio_seconds += self.seconds(part)
            yield part

    def _launch(self) -> None:
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
        self._launch()

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
            self.fail(
                TtsError(
                    ErrorCode.DEADLINE_EXCEEDED,
                    f"The speech was not finished within {self._allowed_seconds:g} s. "
                    "Send less text, or a larger timeout_seconds.",
                    param="timeout_seconds",
                )
            )
        except Exception as error:  # request boundary: a segment's task has no other reader than the audio it writes
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """End the speech with `error`. One segment that cannot be had spoils it: the reader learns it now, not when it
        gets there."""
        self._script.fail(error)
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


def _ignored(request: SpeechRequest, cast: Cast) -> set[str]:
    """Return the tuning fields that the caller set and the model does not heed. A language that the model speaks counts
    as heeded: there is nothing else that it could have done."""
    return {name for name in request.given if name not in cast.model.parameters and name != "language"}
