"""The devices that a model runs on: how exactly they may compute, whether there is room, and when they are lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from host.facts import name_of
from worker.models.base import DeviceLost
from worker.models.chatterbox import memory
from worker.models.chatterbox.memory import Need
from worker.models.chatterbox.upstream import Precision

log = logging.getLogger("worker.models.chatterbox")

T = TypeVar("T")


def precision_of(asked: str, device: str) -> Precision:
    """Return what `auto` means on this device."""
    if asked == "auto":
        return Precision.BF16 if device.startswith("cuda") else Precision.FP32
    return Precision(asked)


def find_room(device: str, model: str, need: Need, *, fill: bool) -> tuple[Need, str]:
    """Return what will be used of a GPU, and the arithmetic for people; `fill`: with as many slots as it has room for.

    Raises:
        NoRoom: there is not so much.
    """
    free, total = torch.cuda.mem_get_info(device)
    if fill and need.slot:
        need = memory.filled(need, free)
    holders = _holders(str(torch.cuda.get_device_properties(device).uuid))
    memory.check(device, model, need, free=free, total=total, holders=holders)
    return need, f"{device}: {memory.sum_of(need, free)}"


def take_stream(device: torch.device) -> None:
    """Give the calling thread a stream of its own, if it has none; on a CPU there are none.

    Tokens come before sound: what is asked of the device here goes ahead of what other threads have asked. And the
    default stream cannot be recorded.
    """
    if device.type == "cuda" and torch.cuda.current_stream(device) == torch.cuda.default_stream(device):
        torch.cuda.set_stream(torch.cuda.Stream(device, priority=-1))


def compiled(make: Callable[[], T], device: torch.device, what: str) -> T | None:
    """Return what `make` returns, which compiles kernels for the device; None, and a warning that `what` is slower,
    where a compiler is missing or anything else goes wrong but the device itself."""
    try:
        with torch.cuda.device(device):
            return make()
    except Exception as error:  # boundary: a compiler that the machine may lack. Slower is better than not at all.
        if isinstance(error, getattr(torch, "AcceleratorError", ())):
            raise
        log.warning("kernels=off: %s: %s; %s is slower without", type(error).__name__, error, what, exc_info=True)
        return None


@contextmanager
def device_faults() -> Iterator[None]:
    """Turn a fault of the device into `DeviceLost`: its context is gone, and every later call in this process fails."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except torch.AcceleratorError as error:
        raise DeviceLost(f"{type(error).__name__}: {str(error)[:200]}") from error


def _holders(uuid: str) -> list[str]:
    """Name the processes on a GPU and what they hold; none where the driver does not tell."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return []
    return [f"{name_of(one.pid)} (pid {one.pid}) {(one.usedGpuMemory or 0) / (1 << 30):.2f} GiB" for one in running]
