"""Brings what a step drew to the host, without waiting for the step: on CUDA it is read a step late."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Sent(Generic[T]):
    ids: Tensor  # on the host, and right once `has_come`
    has_come: Any  # an event on CUDA, else None
    whose: Sequence[tuple[int, T]]


class Arrivals(Generic[T]):
    """What is on its way from `out`, a tensor of one id a slot that every step writes. One thread."""

    def __init__(self, out: Tensor) -> None:
        self._out = out
        self._is_cuda = out.device.type == "cuda"
        # Two: one is being read while the other is being written.
        self._buffers = [torch.empty_like(out, device="cpu", pin_memory=True) for _ in range(2 * self._is_cuda)]
        self._under_way: deque[_Sent[T]] = deque()

    def send(self, whose: Sequence[tuple[int, T]]) -> None:
        """Send for what the last step drew, for these slots and whose they are now."""
        if not self._is_cuda:
            self._under_way.append(_Sent(self._out.clone(), None, whose))
            return
        self._buffers.reverse()
        self._buffers[0].copy_(self._out, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._under_way.append(_Sent(self._buffers[0], event, whose))

    def take(self, *, but_last: bool) -> list[tuple[T, int]]:
        """Return what has come, oldest first, waiting for it; `but_last`: do not wait for the last that was sent."""
        come = []
        while len(self._under_way) > but_last:
            sent = self._under_way.popleft()
            if sent.has_come is not None:
                sent.has_come.synchronize()
            ids = sent.ids.tolist()
            come += [(who, ids[slot]) for slot, who in sent.whose]
        return come
