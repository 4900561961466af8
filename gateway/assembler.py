"""Segments' audio between the workers that make it and the listener who is not there yet, and its joining."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from gateway.plan import Item, Pause, Speak

SAMPLE_BYTES = 2
# Silence is handed on in pieces of this length, so that a pause of ten seconds is no lump in the stream.
_PAUSE_PIECE_SECONDS = 0.5
# One second at 24 kHz: what gathered while the listener was not there costs one encoder call, not twenty.
_LARGEST_CHUNK_BYTES = 48_000


class SegmentAudio:
    """Audio of one segment: written by its dispatch, read once by the assembler. Never blocks the writer, so that a
    slow listener holds no worker; how much may lie here is bounded by the look-ahead."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._written = asyncio.Event()
        self._finished = False
        self._error: BaseException | None = None
        self.samples = 0  # written so far: what a worker that takes over must not repeat

    def write(self, pcm: bytes) -> None:
        self._chunks.append(pcm)
        self.samples += len(pcm) // SAMPLE_BYTES
        self._written.set()

    def finish(self) -> None:
        self._finished = True
        self._written.set()

    def fail(self, error: BaseException) -> None:
        """End the reading with `error`, at once: audio that is still here would only be cut off later."""
        self._error = error
        self._written.set()

    @property
    def is_finished(self) -> bool:
        """All of it was written, though it may not have been read."""
        return self._finished

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the audio as it comes, what has gathered up to `_LARGEST_CHUNK_BYTES` in one piece; waits for more
        until the segment is finished.

        Raises:
            BaseException: what `fail` was given.
        """
        while True:
            if self._error is not None:
                raise self._error
            if self._chunks:
                yield self._gather()
            elif self._finished:
                return
            else:
                self._written.clear()
                await self._written.wait()

    def _gather(self) -> bytes:
        first = self._chunks.popleft()
        if not self._chunks or len(first) >= _LARGEST_CHUNK_BYTES:
            return first
        pieces, size = [first], len(first)
        while self._chunks and size + len(self._chunks[0]) <= _LARGEST_CHUNK_BYTES:
            pieces.append(self._chunks.popleft())
            size += len(pieces[-1])
        return b"".join(pieces)


@dataclass(frozen=True, slots=True)
class Flushed:
    """A place in a speech: whoever comes here has heard all that the caller had said before a flush."""


class Script:
    """What a speech consists of, in order; it may still be written while it is read, once, by the assembler."""

    def __init__(self) -> None:
        self._items: deque[Item | Flushed] = deque()
        self._written = asyncio.Event()
        self._ended = False
        self._error: BaseException | None = None
        self.is_awaited = False  # the reader has all there is, and more is to come

    def add(self, items: Sequence[Item | Flushed]) -> None:
        self._items.extend(items)
        self._written.set()

    def end(self) -> None:
        self._ended = True
        self._written.set()

    def fail(self, error: BaseException) -> None:
        """End the reading with `error`, at once."""
        self._error = error
        self._written.set()

    @property
    def has_failed(self) -> bool:
        return self._error is not None

    async def items(self) -> AsyncIterator[Item | Flushed]:
        """Yield what there is; waits for more until the end.

        Raises:
            BaseException: what `fail` was given.
        """
        while True:
            if self._error is not None:
                raise self._error
            if self._items:
                yield self._items.popleft()
            elif self._ended:
                return
            else:
                self._written.clear()
                self.is_awaited = True
                try:
                    await self._written.wait()
                finally:
                    self.is_awaited = False


async def joined(
    script: Script,
    audios: Sequence[SegmentAudio],
    sample_rate: int,
    on_segment_delivered: Callable[[int], None],
) -> AsyncIterator[bytes | Speak | Flushed]:
    """Yield the whole speech in order: each segment and then its audio as it comes, each pause as exactly its length of
    silence, and the places of flushes.

    `on_segment_delivered` is called with a segment's index when the last of its audio was taken.
    """
    async for item in script.items():
        if isinstance(item, Pause):
            for piece in silence(item.seconds, sample_rate):
                yield piece
            continue
        yield item
        if isinstance(item, Speak):
            async for chunk in audios[item.index].chunks():
                yield chunk
            on_segment_delivered(item.index)


def silence(seconds: float, sample_rate: int) -> list[bytes]:
    """Return silence of exactly round(seconds · sample_rate) samples, in pieces."""
    samples = round(seconds * sample_rate)
    piece = round(_PAUSE_PIECE_SECONDS * sample_rate)
    whole, rest = divmod(samples, piece)
    return [bytes(piece * SAMPLE_BYTES)] * whole + ([bytes(rest * SAMPLE_BYTES)] if rest else [])
