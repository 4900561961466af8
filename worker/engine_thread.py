"""The one thread that owns the model: schedule, step, deliver. `worker.engine` is the event loop's side of it."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wire.errors import ErrorCode, TtsError
from wire.logs import fields
from worker.metrics import Metrics
from worker.models.base import SpeechModel, StepOutput
from worker.scheduler import Scheduler
from worker.sequence import Chunk, Ended, Output, Progress, Sequence, SequenceState

log = logging.getLogger("worker.engine")

_BYTES_A_SAMPLE = 2
# A gateway takes a silence of five seconds for a hang, unless it expects a long one.
_PROGRESS_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Submit:
    sequence: Sequence


@dataclass(frozen=True, slots=True)
class Cancel:
    sequence: Sequence


@dataclass(frozen=True, slots=True)
class Call:
    """Run one of the model's own methods between two steps and hand its result to the waiter."""

    run: Callable[[], Any]
    done: asyncio.Future[Any]


class Stop:
    pass


Command = Submit | Cancel | Call | Stop


class EngineThread(threading.Thread):
    """The thread itself. Everything here, but `begin` and `wait_ended`, runs in it."""

    def __init__(
        self,
        model: SpeechModel[Any],
        batch: int,
        commands: queue.SimpleQueue[Command],
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

    def _carry_out(self, command: Command) -> None:
        match command:
            case Submit(sequence):
                self._sequences[sequence.key] = sequence
                self._scheduler.submit(sequence.key)
            case Cancel(sequence):
                # It may have ended while the command was under way; then there is nothing to cancel.
                if sequence.key in self._sequences:
                    self._scheduler.cancel(sequence.key)
            case Call(run, done):
                self._call(run, done)
            case Stop():
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
