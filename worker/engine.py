"""The one thread that owns the model: schedule, step, deliver; and the event loop's side of it.

Commands go in by one queue, outputs come out by one call into the event loop per step. Nothing else is shared.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from wire.errors import ErrorCode, TtsError
from wire.logs import fields
from wire.segment import SegmentRequest
from worker.metrics import Metrics
from worker.models.base import Clip, CloningModel, SpeechModel, StepOutput
from worker.scheduler import Scheduler
from worker.sequence import Chunk, Ended, Output, Progress, Sequence, SequenceState

log = logging.getLogger("worker.engine")

_BYTES_A_SAMPLE = 2
# A gateway takes a silence of five seconds for a hang, unless it expects a long one.
_PROGRESS_SECONDS = 1.0


class EngineDied(Exception):
    """The thread ended by a fault of its own; the process cannot speak any more."""


@dataclass(frozen=True, slots=True)
class _Submit:
    sequence: Sequence


@dataclass(frozen=True, slots=True)
class _Cancel:
    sequence: Sequence


@dataclass(frozen=True, slots=True)
class _Call:
    """Run one of the model's own methods between two steps and hand its result to the waiter."""

    run: Callable[[], Any]
    done: asyncio.Future[Any]


class _Stop:
    pass


_Command = _Submit | _Cancel | _Call | _Stop


class Engine:
    """The event loop's handle on the thread. All methods are for the event loop; none of them blocks it."""

    def __init__(self, model: SpeechModel[Any], *, batch: int, metrics: Metrics) -> None:
        self.info = model.info()
        self._model = model
        self._metrics = metrics
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._thread = _EngineThread(model, batch, self._commands, metrics, self._receive)
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
        self._commands.put(_Submit(sequence))
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """Have the sequence dropped within one chunk. Nothing happens to one that has ended or was cancelled before."""
        if sequence.cancelled or sequence.key not in self._held:
            return
        sequence.cancelled = True
        self._commands.put(_Cancel(sequence))

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
        self._commands.put(_Stop())
        # Not `join` in an executor: the loop waits for its executors at the end, and would wait for a hung model.
        has_ended = await self._thread.wait_ended(timeout_seconds)
        self._fail_held(TtsError(ErrorCode.WORKER_NOT_READY, "the worker stopped before the segment ended"))
        return has_ended

    async def _call(self, run: Callable[[], Any]) -> Any:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._commands.put(_Call(run, done))
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


class _EngineThread(threading.Thread):
    """The thread itself. Everything here, but `begin` and `wait_ended`, runs in it."""

    def __init__(
        self,
        model: SpeechModel[Any],
        batch: int,
        commands: queue.SimpleQueue[_Command],
        metrics: Metrics,
        receive: Callable[[list[tuple[Sequence, Output]]], None],
    ) -> None:
        super().__init__(name="engine", daemon=True)
        self.steps = 0  # written here, read by the event loop
        self._model = model
        self._sample_rate = model.info().sample_rate
        self._commands = commands
        self._metrics = metrics
        self._receive = receive
        self._scheduler = Scheduler(batch)
        self._sequences: dict[int, Sequence] = {}  # all that were submitted and have not ended
        self._states: dict[int, Any] = {}  # what the model knows of those that run
        self._outputs: list[tuple[Sequence, Output]] = []  # of this step, not yet delivered
        self._is_stopping = False

    def begin(self, loop: asyncio.AbstractEventLoop, died: Callable[[BaseException], None]) -> None:
        self._loop = loop
        self._died = died
        self._ended = asyncio.Event()
        self.start()

    async def wait_ended(self, timeout_seconds: float) -> bool:
        """Wait until the thread has done its last work, at most so long; say whether it has."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._ended.wait()
        except TimeoutError:
            log.error("engine=hung steps=%d: the model did not return from its step", self.steps)
            return False
        return True

    def run(self) -> None:
        try:
            while not self._is_stopping:
                self._take_commands()
                self._turn()
        except BaseException as error:  # boundary: the engine loop. A fault of our own; the worker cannot go on.
            log.exception("engine=died")
            self._tell(self._died, error)
        finally:
            self._tell(self._ended.set)

    def resize(self, batch: int) -> None:
        """Between two steps: have so many places."""
        self._scheduler.resize(batch)

    def _turn(self) -> None:
        """Do one step of all that runs, and deliver what it made."""
        plan = self._scheduler.plan_step()
        for key in plan.leaves:
            self._leave(self._sequences[key])
        for key in plan.joins:
            self._join(self._sequences[key])
        # Before the step: who has left, or could not be started, has no reason to wait for it.
        self._deliver()
        running = [self._sequences[key] for key in plan.running if key in self._states]
        if running:
            self._step(running)
            self._deliver()

    def _deliver(self) -> None:
        """Hand all outputs so far to the event loop, in one call."""
        if self._outputs:
            outputs, self._outputs = self._outputs, []
            self._tell(self._receive, outputs)

    def _take_commands(self) -> None:
        """Carry out all commands that are there; wait for one when there is nothing else to do."""
        try:
            while not self._is_stopping:
                self._carry_out(self._commands.get(block=self._scheduler.is_idle))
        except queue.Empty:
            pass

    def _carry_out(self, command: _Command) -> None:
        match command:
            case _Submit(sequence):
                self._sequences[sequence.key] = sequence
                self._scheduler.submit(sequence.key)
            case _Cancel(sequence):
                # It may have ended while the command was under way; then there is nothing to cancel.
                if sequence.key in self._sequences:
                    self._scheduler.cancel(sequence.key)
            case _Call(run, done):
                self._call(run, done)
            case _Stop():
                self._is_stopping = True

    def _call(self, run: Callable[[], Any], done: asyncio.Future[Any]) -> None:
        try:
            result = run()
        except Exception as error:  # boundary: the engine loop. The waiter decides what a failed load means.
            self._tell(_settle, done, None, error)
        else:
            self._tell(_settle, done, result, None)

    def _leave(self, sequence: Sequence) -> None:
        state = self._states.pop(sequence.key, None)
        if state is not None:
            self._let_go(state)
        self._end(sequence, SequenceState.CANCELLED)

    def _join(self, sequence: Sequence) -> None:
        sequence.state = SequenceState.RUNNING
        sequence.timings.started = time.monotonic()
        self._metrics.spend("queue", sequence.timings.started - sequence.timings.submitted)
        self._metrics.characters.inc(len(sequence.request.text))
        try:
            self._states[sequence.key] = self._model.prefill(sequence.request, sequence.voice)
        except Exception as error:  # boundary: the engine loop. One bad text must not end the others.
            self._fail(sequence, error)
        sequence.timings.prefilled = time.monotonic()
        self._metrics.spend("prefill", sequence.timings.prefilled - sequence.timings.started)

    def _step(self, running: list[Sequence]) -> None:
        began = time.monotonic()
        try:
            results = self._model.step([self._states[sequence.key] for sequence in running])
            if len(results) != len(running):
                raise RuntimeError(f"the model answered {len(results)} of {len(running)} sequences")
        except Exception as error:  # boundary: the engine loop. The model broke with these on its hands.
            results = [StepOutput(error=error)] * len(running)
            for sequence in running:
                self._let_go(self._states[sequence.key])
        seconds = time.monotonic() - began
        self.steps += 1
        self._metrics.decode_step_seconds.observe(seconds)
        self._metrics.batch_size.observe(len(running))
        self._metrics.spend("step", seconds)
        for sequence, result in zip(running, results, strict=True):
            self._take_result(sequence, result)

    def _take_result(self, sequence: Sequence, result: StepOutput) -> None:
        now = time.monotonic()
        if result.progressed and not result.audio and now - sequence.told >= _PROGRESS_SECONDS:
            sequence.told = now
            self._outputs.append((sequence, Progress()))
        if result.audio:
            sequence.told = now
            if sequence.timings.first_chunk is None:
                sequence.timings.first_chunk = now
            samples = len(result.audio) // _BYTES_A_SAMPLE
            sequence.samples += samples
            self._metrics.audio_seconds.inc(samples / self._sample_rate)
            if not sequence.cancelled:
                self._outputs.append((sequence, Chunk(result.audio, result.checkpoint)))
        if result.error is not None:
            self._fail(sequence, result.error)
        elif result.finished:
            self._forget(sequence)
            self._end(sequence, SequenceState.FINISHED)

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        self._forget(sequence)
        if not isinstance(error, TtsError):
            request = sequence.request
            about = {"request_id": request.request_id, "segment": request.index}
            log.error("segment failed", exc_info=error, extra=fields(about))
            error = TtsError(ErrorCode.SEGMENT_FAILED, f"the model failed: {type(error).__name__}: {str(error)[:200]}")
        self._end(sequence, SequenceState.FAILED, error)

    def _forget(self, sequence: Sequence) -> None:
        self._scheduler.finish(sequence.key)
        self._states.pop(sequence.key, None)

    def _end(self, sequence: Sequence, state: SequenceState, error: TtsError | None = None) -> None:
        sequence.state = state
        sequence.timings.ended = time.monotonic()
        del self._sequences[sequence.key]
        self._outputs.append((sequence, Ended(error)))

    def _let_go(self, state: Any) -> None:
        try:
            self._model.cancel(state)
        except Exception:  # boundary: the engine loop. The sequence is gone either way.
            log.exception("cancel failed")

    def _tell(self, callback: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            # The loop has closed: a model that hung came back after everybody else had gone home.
            self._is_stopping = True


def _settle(done: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    """Answer a waiter, unless it was cancelled meanwhile."""
    if done.done():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)
