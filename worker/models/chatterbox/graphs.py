"""What a GPU is asked to do again and again, recorded once for each shape and then launched as one; elsewhere called.

A step of the token stage is 1,200 operations, and to launch them one by one takes a GPU longer than to carry them out.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("worker.models.chatterbox")

_WARM_UPS = 2  # what is tuned or built lazily must be there before the recording
_GRAIN = 64
# While one thread records, no other may wait for the whole device, which is what torch does before it records.
RECORDING = threading.Lock()
_MOST_RECORDINGS = 96  # each keeps some megabytes of the driver's


def few_rows(rows: int) -> int:
    """Return how many rows are computed for so many: a power of two, or the middle of two."""
    power: int = 1 << (rows - 1).bit_length()
    return power * 3 // 4 if power >= 4 and rows <= power * 3 // 4 else power


def few_lengths(length: int) -> int:
    """Return how long what is computed is for something so long: at most a quarter longer, where it is long."""
    grain = max(_GRAIN, 1 << length.bit_length() >> 3)
    return -(-length // grain) * grain


@dataclass(frozen=True, slots=True)
class Recording:
    graph: Any
    inputs: dict[str, Tensor]
    output: Any


class FunctionGraphs:
    """Calls functions by name of their tensors; on CUDA through recordings, elsewhere directly. One thread.

    What a call returns may be overwritten by the next call of any: take a copy, in this stream. The calling thread must
    be on a stream of its own, since the default one cannot be recorded. All recordings work in the same memory, as much
    as the largest needs; the one that was used least lately gives way where there are too many.
    """

    def __init__(self, device: Any) -> None:
        self.is_recording = device.type == "cuda"
        self._recordings: dict[tuple[Any, ...], Recording | None] = {}  # the one used last is the last
        self._pool: Any = None

    def __call__(self, function: Callable[..., Any], **inputs: Tensor) -> Any:
        """Return what `function`, which is told by its equality, returns: a tensor, or a tuple of some."""
        if not self.is_recording:
            return function(**inputs)
        key = (function, *(tuple(tensor.shape) for tensor in inputs.values()))
        recording = self._recordings.pop(key) if key in self._recordings else self._record(function, inputs)
        self._recordings[key] = recording
        if len(self._recordings) > _MOST_RECORDINGS:
            torch.cuda.current_stream().synchronize()  # it may be what the device is doing
            del self._recordings[next(iter(self._recordings))]
        if recording is None:
            return function(**inputs)
        for name, tensor in inputs.items():
            recording.inputs[name].copy_(tensor)
        recording.graph.replay()
        return recording.output

    def _record(self, function: Callable[..., Any], inputs: dict[str, Tensor]) -> Recording | None:
        """Record the function for these shapes; None where that fails, and it then runs as it is."""
        held = {name: tensor.clone() for name, tensor in inputs.items()}
        for _ in range(_WARM_UPS):
            function(**held)
        torch.cuda.current_stream().synchronize()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            # Of this thread only: another one may well allocate memory meanwhile, on a stream of its own.
            with RECORDING:
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    output = function(**held)
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            log.warning("a shape could not be recorded and will be slower: %s", str(error)[:200])
            return None
        return Recording(graph, held, output)

    def forget(self) -> None:
        """Drop all recordings: tensors of which they speak are there no more."""
        self._recordings.clear()
        self._pool = None


class StepGraphs:
    """One recording of `step` for each shape that it is called with. One thread, whose other work on the device may go
    on; on CUDA it must be on a stream of its own, since the default one cannot be recorded."""

    def __init__(
        self,
        step: Callable[..., None],
        device: torch.device,
        idle: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """`step` reads and writes tensors that stay where they are; within `idle()` it changes nothing that counts."""
        self._step = step
        self._idle = idle
        self._is_recording = device.type == "cuda"
        self._graphs: dict[tuple[int, ...], Any] = {}
        self._pool: Any = None

    def __repr__(self) -> str:
        return f"<StepGraphs {sorted(self._graphs)}>"

    def __call__(self, *shape: int) -> None:
        """Carry out the step. The first of a shape is recorded, which takes a part of a second."""
        if self._is_recording and (shape in self._graphs or self.record(*shape)):
            self._graphs[shape].replay()
        else:
            self._step(*shape)

    def record(self, *shape: int) -> bool:
        """Record a shape and return True; False where that does not work, and then it is not tried again."""
        if not self._is_recording:
            return False
        graph = torch.cuda.CUDAGraph()
        try:
            with RECORDING, self._idle():
                # Libraries set up at their first call what a recording does not allow.
                self._step(*shape)
                torch.cuda.current_stream().synchronize()
                if self._pool is None:
                    self._pool = torch.cuda.graph_pool_handle()
                # Only this thread: the sound stage may ask for memory meanwhile.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    self._step(*shape)
                finally:
                    graph.capture_end()
        except RuntimeError:
            # If it was the device that broke, this raises again, and the process ends as it must.
            torch.cuda.current_stream().synchronize()
            log.exception("graphs=off shape=%s: the steps are carried out one by one, slower", shape)
            self._is_recording = False
            return False
        self._graphs[shape] = graph
        return True

    def forget(self) -> None:
        """Drop all recordings: the tensors that they speak of are there no more."""
        self._graphs.clear()
        self._pool = None
