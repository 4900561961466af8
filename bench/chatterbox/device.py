"""What a device can do, measured: bytes and arithmetic a second; and how much of its memory was in use."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from bench.roofline import Rates

_REPEATS = 7
_CPU_MATRIX, _GPU_MATRIX = 1024, 8192
_CPU_BYTES, _GPU_BYTES = 256 << 20, 2 << 30  # larger than any cache


def is_cuda(device: str) -> bool:
    return torch.device(device).type == "cuda"


def finish(device: str) -> None:
    """Wait until the device has done what it was told; on a CPU it has."""
    if is_cuda(device):
        torch.cuda.synchronize(device)


def measured_rates(device: str, dtype: Any) -> Rates:
    """Return the rates of a device: the best of a few reads of memory, and of a few large products in `dtype`.

    Memory is read as decoding reads it, a matrix times a vector, and copied; the better one counts. A product of two
    matrices is what no layer is better than.
    """
    count = (_GPU_BYTES if is_cuda(device) else _CPU_BYTES) // 4
    rows = 1 << (count.bit_length() // 2)
    matrix = torch.zeros(rows, count // rows, device=device)
    vector, target = torch.zeros(count // rows, device=device), torch.empty_like(matrix)
    read = _fastest(lambda: torch.mv(matrix, vector), device)
    copied = _fastest(lambda: target.copy_(matrix), device)
    size = matrix.numel() * 4
    side = _GPU_MATRIX if is_cuda(device) else _CPU_MATRIX
    left = torch.randn(side, side, device=device).to(dtype)
    product = _fastest(lambda: left @ left, device)
    return Rates(bytes_per_second=max(size / read, 2 * size / copied), flops_per_second=2 * side**3 / product)


def _fastest(work: Callable[[], object], device: str) -> float:
    times = []
    for _ in range(_REPEATS):
        finish(device)
        began = time.perf_counter()
        work()
        finish(device)
        times.append(time.perf_counter() - began)
    return min(times)


def forget_peak(device: str) -> None:
    """Begin to watch for the most memory in use."""
    if is_cuda(device):
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: str) -> int | None:
    """Return the most memory that tensors held since `forget_peak`; None on a CPU, where nobody counts it."""
    return int(torch.cuda.max_memory_allocated(device)) if is_cuda(device) else None


def described(device: str) -> str:
    """Return the name of a device, as a table shows it."""
    if is_cuda(device):
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return f"{device}, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


def limit_threads(count: int) -> None:
    """Compute with so many threads of the CPU; 0 leaves it to torch."""
    if count:
        torch.set_num_threads(count)
