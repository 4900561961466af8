"""What goes between the host and a device without either waiting for the other. Elsewhere than on CUDA it is there."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def sent(values: Sequence[int], device: Any) -> Tensor:
    """Return whole numbers on the device, in the order of the present stream."""
    held = torch.tensor(values, dtype=torch.int64)
    # Out of plain memory the driver copies at once, and waits for all that was asked of the stream before.
    return held.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else held


class Landing:
    """A tensor on its way to the host, since all that was asked of the present stream before is done."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._has_come: Any = None
        if tensor.device.type == "cuda":
            # The allocator keeps pinned memory for the next ones, but not before this copy is over.
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._has_come = torch.cuda.Event(blocking=True)
            self._has_come.record()

    def wait(self) -> Tensor:
        """Return it once it is there. Any thread."""
        if self._has_come is not None:
            self._has_come.synchronize()
        return self._tensor


class Pace:
    """Lets the host be one turn ahead of the device: it prepares the next while the device works, and what comes new
    has no more than two turns in front of it. One thread."""

    def __init__(self, device: Any) -> None:
        self._is_cuda = device.type == "cuda"
        self._turns: deque[Any] = deque()

    def end_turn(self) -> None:
        """Return when the turn before this one is done on the device."""
        if not self._is_cuda:
            return
        event = torch.cuda.Event(blocking=True)
        event.record()
        self._turns.append(event)
        if len(self._turns) > 1:
            self._turns.popleft().synchronize()
