"""A function of tensors as one launch of the GPU: recorded once for each shape, then replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("worker.models.chatterbox")

_WARM_UPS = 2  # what is tuned or built lazily must be there before the recording


@dataclass(frozen=True, slots=True)
class _Recording:
    graph: Any
    inputs: dict[str, Tensor]
    output: Tensor


class Graphs:
    """Calls `function` by name of its tensors; on CUDA through a recording, elsewhere directly. One thread.

    What a call returns is overwritten by the next one of the same shape. The calling thread must be on a stream of its
    own, since the default one cannot be recorded.
    """

    def __init__(self, function: Callable[..., Tensor], device: Any) -> None:
        self._function = function
        self._is_recorded = device.type == "cuda"
        self._recordings: dict[tuple[Any, ...], _Recording | None] = {}
        self._pool: Any = None

    def __call__(self, **inputs: Tensor) -> Tensor:
        if not self._is_recorded:
            return self._function(**inputs)
        key = tuple(tuple(tensor.shape) for tensor in inputs.values())
        if key not in self._recordings:
            self._recordings[key] = self._record(inputs)
        recording = self._recordings[key]
        if recording is None:
            return self._function(**inputs)
        for name, tensor in inputs.items():
            recording.inputs[name].copy_(tensor)
        recording.graph.replay()
        return recording.output

    def _record(self, inputs: dict[str, Tensor]) -> _Recording | None:
        """Record the function for these shapes; None where that fails, and it then runs as it is."""
        held = {name: tensor.clone() for name, tensor in inputs.items()}
        for _ in range(_WARM_UPS):
            self._function(**held)
        torch.cuda.current_stream().synchronize()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            # Of this thread only: another one may well allocate memory meanwhile, on a stream of its own.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                output = self._function(**held)
            finally:
                graph.capture_end()
        except RuntimeError as error:
            log.warning("a shape could not be recorded and will be slower: %s", str(error)[:200])
            return None
        return _Recording(graph, held, output)
