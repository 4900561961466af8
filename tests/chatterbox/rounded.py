"""The shapes of a GPU, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worker.models.chatterbox.graphs import FunctionGraphs


class Rounded(FunctionGraphs):
    """Has everything computed in the few shapes that are recorded on CUDA."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.is_recording = True
        self.shapes: set[tuple[tuple[int, ...], ...]] = set()

    def __call__(self, function: Callable[..., Any], **inputs: Tensor) -> Any:
        self.shapes.add(tuple(tuple(tensor.shape) for tensor in inputs.values()))
        return function(**inputs)
