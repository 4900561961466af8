"""The way back from a short-time Fourier transform. torch.istft asks the device whether its window may be divided by,
which is a wait, and cannot be recorded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_TINY = 1e-11  # where no frame reaches, nothing is divided by nothing


def inverse(spectrum: Tensor, window: Tensor, hop: int, mask: Tensor) -> Tensor:
    """Return the samples (rows, (frames - 1) * hop) of a spectrum (rows, bins, frames) whose frames are centred.

    A frame that `mask` (rows or 1, 1, frames) has at zero is as good as none: a row ends with its last one.
    """
    size = len(window)
    frames = torch.fft.irfft(spectrum, n=size, dim=1) * (window[:, None] * mask)
    weight = _overlapped(window.square()[:, None] * mask, hop).clamp_min(_TINY)
    return (_overlapped(frames, hop) / weight)[:, size // 2 : -(size // 2)]


def _overlapped(frames: Tensor, hop: int) -> Tensor:
    """Add up (rows, size, frames), each `hop` after the one before."""
    size, count = frames.shape[1:]
    return F.fold(frames, (1, (count - 1) * hop + size), (1, size), stride=(1, hop))[:, 0, 0]
