"""The sound stage's own thread: renderings in, marked pieces of sound out, while the token stage draws the next ones.

How much can wait here is bounded by the engine's batch: a segment keeps its place there until its last sample is out,
so that a slow sound stage holds back the segments that have not begun.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from worker.models.base import DeviceLost
from worker.models.chatterbox.clock import StageClock
from worker.models.chatterbox.s3gen import Rendering, SoundRun, SoundStage
from worker.models.chatterbox.transit import Pace
from worker.models.chatterbox.vocoder import MOST_ROWS
from worker.models.chatterbox.watermark import Marker

log = logging.getLogger("worker.models.chatterbox")

STAGE = "vocode"
# One piece of work takes seconds at most, at full size on a CPU; the first on a GPU some more.
_HANG_SECONDS = 120.0
_STOP_SECONDS = 30.0
_WARM_UP_SECONDS = 8.0


class SoundThread(threading.Thread):
    """The thread owns the stage and every run that was given to it. The other methods are for the engine thread."""

    def __init__(
        self,
        stage: SoundStage,
        marker: Marker,
        clock: StageClock,
        device: Any,
        batch: int,
        hang_seconds: float = _HANG_SECONDS,
    ) -> None:
        super().__init__(name="sound", daemon=True)
        self._stage = stage
        self._marker = marker
        self._clock = clock
        self._device = device
        self._batch = batch
        self._hang_seconds = hang_seconds
        self._commands: queue.SimpleQueue[tuple[SoundRun, Rendering | None] | None] = queue.SimpleQueue()
        self._news = threading.Event()
        self._runs: dict[int, SoundRun] = {}  # in the order in which they came, or came again
        self._is_stopping = False
        self._pace = Pace(device)
        # Written here, read by the engine thread.
        self._working_since: float | None = None
        self._fault: BaseException | None = None

    def render(self, run: SoundRun, rendering: Rendering) -> None:
        """Have it rendered after what was given before for the same run."""
        self._commands.put((run, rendering))

    def drop(self, run: SoundRun) -> None:
        """Have no more work done for the run, after the piece at which the stage is now."""
        self._commands.put((run, None))

    def wait(self, seconds: float) -> None:
        """Wait until something has come out since the last time, at most so long."""
        self._news.wait(seconds)
        self._news.clear()

    def check(self) -> None:
        """Return if the stage is well.

        Raises:
            DeviceLost: it is not, or has not come back from a piece of work for `hang_seconds`.
        """
        if self._fault is not None:
            name = type(self._fault).__name__
            raise DeviceLost(f"the sound stage died: {name}: {str(self._fault)[:200]}") from self._fault
        since = self._working_since
        if since is not None and time.monotonic() - since > self._hang_seconds:
            raise DeviceLost(f"the sound stage hangs: it has not come back for {self._hang_seconds:.0f} s")

    def stop(self) -> None:
        """End the thread after its present piece of work, and wait for that. No run is alive."""
        self._commands.put(None)
        self.join(_STOP_SECONDS)
        if self.is_alive():
            log.error("stage=%s hung: it did not come back within %.0f s", STAGE, _STOP_SECONDS)

    def run(self) -> None:
        try:
            with self._own_stream():
                if self._device.type == "cuda":
                    self._stage.warm_up(self._batch, _WARM_UP_SECONDS)
                    self._marker.warm_up(MOST_ROWS)
                while True:
                    self._take_commands()
                    if self._is_stopping:
                        return
                    self._turn()
        except BaseException as error:  # boundary: the sound stage. The engine thread raises it; the process must end.
            log.exception("stage=%s died", STAGE)
            self._fault = error
            self._news.set()

    def _own_stream(self) -> AbstractContextManager[Any]:
        """On a GPU the two stages have a stream each, or they would take turns."""
        if self._device.type != "cuda":
            return nullcontext()
        torch.cuda.set_device(self._device)
        return torch.cuda.stream(torch.cuda.Stream(self._device))

    def _due(self) -> list[SoundRun]:
        return [run for run in self._runs.values() if run.is_due][: self._batch]

    def _take_commands(self) -> None:
        """Carry out all commands that are there; wait for one when there is nothing else to do."""
        try:
            while not self._is_stopping:
                self._carry_out(self._commands.get(block=not self._due()))
        except queue.Empty:
            pass

    def _carry_out(self, command: tuple[SoundRun, Rendering | None] | None) -> None:
        match command:
            case None:
                self._is_stopping = True
            case (run, None):
                self._runs.pop(id(run), None)
            case (run, rendering) if not run.has_ended:
                if not run.is_due:
                    self._runs.pop(id(run), None)  # its place in the line is of now
                self._runs[id(run)] = run
                run.renderings.append(rendering)

    def _turn(self) -> None:
        """Do one piece of work for the oldest that are due, and hand out what it made."""
        runs = self._due()
        self._working_since = time.monotonic()
        try:
            with self._clock.at_work(STAGE):
                pieces = self._stage.advance(runs)
                self._hand_out(runs, pieces)
                self._pace.end_turn()
        except torch.OutOfMemoryError as error:
            self._fail(self._stage.at_work, error)
        except torch.AcceleratorError:
            raise
        except Exception as error:  # boundary: the sound stage. It broke with these on its hands; the others go on.
            self._fail(self._stage.at_work, error)
        self._working_since = None
        for run in runs:
            if run.is_spoken:
                run.has_ended = True  # after its last piece was handed out
            if run.has_ended:
                self._runs.pop(id(run), None)
                self._news.set()

    def _hand_out(self, runs: list[SoundRun], pieces: list[Tensor | None]) -> None:
        speaking = [(run, piece) for run, piece in zip(runs, pieces, strict=True) if piece is not None]
        if not speaking:
            return
        for (run, _), mark in zip(speaking, self._marker.mark([piece for _, piece in speaking]), strict=True):
            run.pieces.append(mark)
            mark.add_done_callback(lambda _: self._news.set())

    @staticmethod
    def _fail(runs: Sequence[SoundRun], error: Exception) -> None:
        for run in runs:
            run.flow = None
            run.renderings.clear()
            run.error = error
            run.has_ended = True
