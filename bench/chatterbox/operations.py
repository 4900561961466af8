"""Counts what a step asks of a device: operations that are dispatched, and waits of the host for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# They make another view of the same memory and start no work.
_VIEWS = frozenset({
    "view", "_unsafe_view", "reshape", "t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "slice",
    "select", "as_strided", "split", "split_with_sizes", "unbind", "detach", "alias", "chunk", "lift_fresh",
    "view_as_real", "unfold", "_reshape_alias", "narrow", "diagonal", "empty", "empty_like", "empty_strided",
    "new_empty", "is_same_size", "_local_scalar_dense", "item",
})  # fmt: skip
# The host reads a number from the device, and waits for it; under inference mode a number that is read comes as `item`,
# else as what that is made of. `.tolist()` and `.numpy()` of a tensor that is on the CPU
# anyway are not seen here; `DriverWaits` sees all of them, on a GPU.
_WAITS = frozenset({"_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select"})
_DRIVER_WAITS = frozenset({"cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy"})


class OperationCount(TorchDispatchMode):
    """While entered, counts `operations` that start work and `waits` of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.waits = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().split("::")[1].split(".")[0]
        self.waits += name in _WAITS
        self.operations += name not in _VIEWS
        return function(*args, **(kwargs or {}))


class DriverWaits:
    """While entered, counts how often the host waited for the GPU, as its driver saw it."""

    def __init__(self) -> None:
        self.waits = 0
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        self._profile = torch.profiler.profile(activities=activities)

    def __enter__(self) -> DriverWaits:
        self._profile.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._profile.__exit__(*error)
        self.waits = sum(event.count for event in self._profile.key_averages() if event.key in _DRIVER_WAITS)
