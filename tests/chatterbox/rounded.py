"""The shapes and the recordings of a GPU, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worker.models.chatterbox.graphs import FunctionGraphs, Recording


class Rounded(FunctionGraphs):
    """Has everything computed in the few shapes that are recorded on CUDA, and overwrites what a recording does."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.is_recording = True
        self.shapes: list[tuple[tuple[int, ...], ...]] = []

    def _record(self, function: Callable[..., Any], inputs: dict[str, Tensor]) -> Recording:
        self.shapes.append(tuple(tuple(tensor.shape) for tensor in inputs.values()))
        held = {name: tensor.clone() for name, tensor in inputs.items()}
        output = function(**held)
        return Recording(_Replayed(function, held, output), held, output)


@dataclass(frozen=True, slots=True)
class _Replayed:
    function: Callable[..., Any]
    inputs: dict[str, Tensor]
    output: Any

    def replay(self) -> None:
        made = self.function(**self.inputs)
        for old, new in zip(_all(self.output), _all(made), strict=True):
            old.copy_(new)


def _all(output: Any) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)
