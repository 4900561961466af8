"""The event loop's side of the one thread that owns the model.

Commands go in by one queue, outputs come out by one call into the event loop per step. Nothing else is shared.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from wire.errors import ErrorCode, TtsError
from wire.segment import SegmentRequest
from worker.engine_thread import Call, Cancel, Command, EngineThread, Stop, Submit
from worker.metrics import Metrics
from worker.models.base import Clip, CloningModel, SpeechModel
from worker.sequence import Ended, Output, Sequence


class EngineDied(Exception):
    """The thread ended by a fault of its own; the process cannot speak any more."""


class Engine:
    """The event loop's handle on the thread. All methods are for the event loop; none of them blocks it."""

    def __init__(self, model: SpeechModel[Any], *, batch: int, metrics: Metrics) -> None:
        self.info = model.info()
        self._model = model
        self._metrics = metrics
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._thread = EngineThread(model, batch, self._commands, metrics, self._receive)
        # Written by the event loop only: a sequence is here from submit until its Ended has been handed over.
        self._held: dict[int, Sequence] = {}
        self._next_key = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._died: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Engine {self.info.id} in_flight={self.in_flight} steps={self.steps}>"

    @property
    def in_flight(self) -> int:
        """Segments that were submitted and have not ended; a cancelled one counts until the model has let go of it."""
        return len(self._held)

    @property
    def steps(self) -> int:
        """Model steps since start. A figure that stands still while `in_flight` is not 0 is a model that hangs."""
        return self._thread.steps

    def start(self) -> None:
        """Start the thread; needs the running event loop, to which it will deliver."""
        self._died = asyncio.get_running_loop().create_future()
        self._thread.begin(asyncio.get_running_loop(), self._has_died)

    async def load(self) -> int | None:
        """Load the model, waiting for as long as that takes; raises what the model raises.

        Returns how many segments at once it has memory for, if it has counted.
        """
        room: int | None = await self._call(self._model.load)
        self._metrics.model_loaded.labels(self.info.id).set(1)
        return room

    async def resize(self, batch: int) -> None:
        """Speak so many segments in one step from the next one on."""
        await self._call(partial(self._thread.resize, batch))

    async def warm_up(self) -> None:
        """Let the model speak once; raises what the model raises."""
        await self._call(self._model.warm_up)

    async def unload(self) -> None:
        """Wait for the running segments, then free the model. The caller has seen to it that no new ones come."""
        await self._idle.wait()
        await self._call(self._model.unload)
        self._metrics.model_loaded.labels(self.info.id).set(0)

    def settings(self) -> Mapping[str, Any]:
        """What is set and what is on in the model, for `/health`."""
        return self._model.settings()

    @property
    def voice_format(self) -> str:
        """Which prepared voices `submit` takes. Only for a model that clones, and only once it is loaded."""
        return cast(CloningModel[Any], self._model).voice_format()

    async def prepare_voice(self, clip: Clip) -> bytes:
        """Prepare a voice between two steps of the model, waiting for that; raises what the model raises."""
        prepared: bytes = await self._call(partial(cast(CloningModel[Any], self._model).prepare_voice, clip))
        return prepared

    def submit(self, request: SegmentRequest, voice: bytes | None = None) -> Sequence:
        """Put a segment in line, with the prepared voice if it has one.

        Its outputs come on the sequence; `cancel` it when nobody listens any more.
        """
        self._next_key += 1
        sequence = Sequence(self._next_key, request, time.monotonic(), voice)
        self._held[sequence.key] = sequence
        self._idle.clear()
        self._commands.put(Submit(sequence))
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """Have the sequence dropped within one chunk. Nothing happens to one that has ended or was cancelled before."""
        if sequence.cancelled or sequence.key not in self._held:
            return
        sequence.cancelled = True
        self._commands.put(Cancel(sequence))

    async def wait_idle(self) -> None:
        """Wait until nothing is in flight."""
        await self._idle.wait()

    async def wait_died(self) -> None:
        """Wait until the thread ends by a fault of its own and raise `EngineDied`; for ever, if it never does."""
        assert self._died is not None, "wait_died before start"
        await asyncio.shield(self._died)

    async def stop(self, timeout_seconds: float) -> bool:
        """End the thread after its present step; what is still in flight fails with `worker_not_ready`.

        Waits at most `timeout_seconds`. Returns False when the model did not come back from its step by then; the
        thread is a daemon and dies with the process.
        """
        self._commands.put(Stop())
        # Not `join` in an executor: the loop waits for its executors at the end, and would wait for a hung model.
        has_ended = await self._thread.wait_ended(timeout_seconds)
        self._fail_held(TtsError(ErrorCode.WORKER_NOT_READY, "the worker stopped before the segment ended"))
        return has_ended

    async def _call(self, run: Callable[[], Any]) -> Any:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._commands.put(Call(run, done))
        return await done

    def _receive(self, outputs: list[tuple[Sequence, Output]]) -> None:
        """Take the outputs of one step; runs on the event loop."""
        for sequence, output in outputs:
            if sequence.key not in self._held:
                continue  # it was failed by stop, and its last outputs were under way
            sequence.deliver(output)
            if isinstance(output, Ended):
                del self._held[sequence.key]
        if not self._held:
            self._idle.set()

    def _has_died(self, error: BaseException) -> None:
        assert self._died is not None
        reason = f"the engine died: {type(error).__name__}: {error}"
        self._fail_held(TtsError(ErrorCode.SEGMENT_FAILED, reason))
        if not self._died.done():
            # Not the error itself: a SystemExit out of a future would end the event loop on the spot.
            self._died.set_exception(EngineDied(reason))

    def _fail_held(self, error: TtsError) -> None:
        self._receive([(sequence, Ended(error)) for sequence in self._held.values()])
