"""One segment being spoken: the request, how far it is, and the way its audio goes out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from wire.errors import TtsError
from wire.segment import SegmentRequest


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of audio on its way out (PCM s16le), and the checkpoint for the moment after it, if there is one."""

    audio: bytes
    checkpoint: bytes | None


@dataclass(frozen=True, slots=True)
class Progress:
    """Work is being done, and nothing has come of it for a while: a sign that it has not stopped."""


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing follows. `error` is None for a segment that was spoken to its end."""

    error: TtsError | None = None


Output = Chunk | Progress | Ended


class SequenceState(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(slots=True)
class Timings:
    """Instants of the monotonic clock; None until they come."""

    submitted: float
    started: float | None = None
    prefilled: float | None = None
    first_chunk: float | None = None
    ended: float | None = None


class Sequence:
    """A segment in the engine.

    The engine thread writes `state`, `timings`, `samples` and `told`; the event loop writes `cancelled` and owns the
    outbound queue. What the loop reads of the other side is one attribute at a time, and after `Ended` has come out
    nothing changes any more.
    """

    def __init__(self, key: int, request: SegmentRequest, submitted: float, voice: bytes | None = None) -> None:
        self.key = key
        self.request = request
        self.voice = voice  # what a cloning model prepared, for a voice that is not its own
        self.state = SequenceState.WAITING
        self.timings = Timings(submitted)
        self.samples = 0
        self.told = submitted  # instant of the last output, by the engine thread
        # Set by the event loop when nobody listens any more, read by the engine thread: a plain bool is enough, since
        # it goes one way only and the engine is told by a command as well.
        self.cancelled = False
        # Not bounded: a slow reader must not stop the engine for everybody else, and a segment is a few hundred
        # characters, so all that can ever pile up here is a minute or two of audio.
        self._outbound: asyncio.Queue[Output] = asyncio.Queue()

    def __repr__(self) -> str:
        return f"<Sequence {self.key} {self.request.request_id}/{self.request.index} {self.state}>"

    def deliver(self, output: Output) -> None:
        """Hand over an output; called on the event loop only."""
        self._outbound.put_nowait(output)

    async def wait_outputs(self) -> AsyncIterator[list[Output]]:
        """Yield all that has come since the last time, waiting until there is something; the last list ends in Ended.

        Lists, because one write for the chunks of several steps costs no more than a write for one.
        """
        while True:
            outputs = [await self._outbound.get()]
            while not self._outbound.empty():
                outputs.append(self._outbound.get_nowait())
            yield outputs
            if isinstance(outputs[-1], Ended):
                return

    def stages(self) -> Iterator[tuple[str, float, float]]:
        """Yield name, begin and end of what a sequence that has ended went through, as far as it got."""
        timings = self.timings
        instants = {
            "queue": timings.submitted,
            "prefill": timings.started,
            "synthesis": timings.prefilled,
            "": timings.ended,
        }
        reached = [(name, instant) for name, instant in instants.items() if instant is not None]
        for (name, began), (_, ended) in pairwise(reached):
            yield name, began, ended

    def summary(self, sample_rate: int) -> dict[str, float | int]:
        """Return the timings of a sequence that has ended, in seconds, as the `D` frame and the log line show them.

        `first_chunk_seconds` counts from the submission; `synthesis_seconds` from the join to the end. `samples` are
        those of this sequence alone, without what an earlier worker had delivered.
        """
        timings = self.timings
        ended = timings.ended if timings.ended is not None else timings.submitted
        started = timings.started if timings.started is not None else ended
        first_chunk = timings.first_chunk if timings.first_chunk is not None else ended
        return {
            "audio_seconds": round(self.samples / sample_rate, 6),
            "queue_seconds": round(started - timings.submitted, 6),
            "first_chunk_seconds": round(first_chunk - timings.submitted, 6),
            "synthesis_seconds": round(ended - started, 6),
            "samples": self.samples,
        }
